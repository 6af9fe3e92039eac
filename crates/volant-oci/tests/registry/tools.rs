//! The tools of others, and the ways of a user of this crate.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;
use volant_layers::Layer as _;
use volant_oci::{
    Cache, Client, Credentials, Image, ImageError, Limits, Loader, Platform, Registries, Source,
};

/// Runs one of Debian's tools and gives what it printed.
pub fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}, which this test needs: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    output.stdout
}

/// A registry on the loopback, of its own folder.
pub struct Registry {
    pub host: String,
    child: Child,
    _dir: TempDir,
}

impl Registry {
    pub fn open() -> Self {
        Self::start("")
    }

    /// For user `bob` with the password `s3cret` alone.
    pub fn guarded() -> Self {
        Self::start("auth: {htpasswd: {realm: test, path: DIR/htpasswd}}\n")
    }

    fn start(more: &str) -> Self {
        const BOB: &str = "bob:$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        std::fs::write(dir.path().join("htpasswd"), BOB).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: DIR/data}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n{more}"
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.replace("DIR", &at)).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry, which this test needs, must be installed");
        let log = BufReader::new(child.stderr.take().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, after)) = line.split_once("listening on ") {
                    let end = |c: char| c == '"' || c.is_whitespace();
                    let _ = tell.send(after.split(end).next().unwrap().to_owned());
                }
            }
        });
        let host = told
            .recv_timeout(Duration::from_secs(20))
            .expect("docker-registry says where it listens");
        Self {
            host,
            child,
            _dir: dir,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout with one image `v1`, of one layer with the file `/hello`.
pub fn layout(dir: &Path, architecture: &str) -> String {
    let layout = dir
        .join(format!("layout-{architecture}"))
        .display()
        .to_string();
    let image = format!("{layout}:v1");
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    let bundle = dir
        .join(format!("bundle-{architecture}"))
        .display()
        .to_string();
    run(
        "umoci",
        &["unpack", "--rootless", "--image", &image, &bundle],
    );
    let text = format!("hello from {architecture}\n");
    std::fs::write(Path::new(&bundle).join("rootfs/hello"), text).unwrap();
    run("umoci", &["repack", "--image", &image, &bundle]);
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--architecture",
            architecture,
            "--os",
            "linux",
            "--config.user",
            "www-data",
            "--config.entrypoint",
            "/hello",
            "--config.env",
            "A=b=c",
            "--config.exposedports",
            "8080/tcp",
            "--config.volume",
            "/data",
            "--config.stopsignal",
            "SIGQUIT",
        ],
    );
    layout
}

/// Copies with skopeo, which has no policy file of its own here.
pub fn skopeo_copy(args: &[&str]) {
    let all = [
        &[
            "--insecure-policy",
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ],
        args,
    ]
    .concat();
    run("skopeo", &all);
}

pub fn quick() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        window: Duration::from_secs(5),
        backoff: Duration::from_millis(1),
        ..Limits::default()
    }
}

pub fn client() -> Client {
    Client::new(Credentials::none(), Registries::default(), quick())
}

pub fn loader(client: Client, cache: &Path) -> Loader {
    Loader {
        client,
        cache: Cache::at(cache),
        platform: Platform::default(),
        progress: None,
    }
}

pub async fn load(loader: &Loader, source: &str) -> Result<Image, ImageError> {
    let source = Source::parse(source, Path::new("/")).unwrap();
    source.load(loader).await
}

/// What `/hello` of an image says.
pub fn hello(image: &Image) -> String {
    let mut found = None;
    for layer in &image.layers {
        let mut plain = Vec::new();
        layer.open().unwrap().read_to_end(&mut plain).unwrap();
        let mut tar = tar::Archive::new(&plain[..]);
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name: PathBuf = entry.path().unwrap().into();
            if name.ends_with("hello") {
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                found = Some(text);
            }
        }
    }
    found.expect("there is a file /hello")
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
