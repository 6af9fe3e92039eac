//! A folder to build in, and the tools of others.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use volant_spec::Manifest;

/// A static program of many names.
pub const BUSYBOX: &str = "/bin/busybox";

/// A project folder with a home and a TMPDIR of its own, which stays empty.
pub struct Work(TempDir);

impl Work {
    pub fn new(recipe: &str) -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        fs::create_dir(work.path("tmp")).unwrap();
        fs::create_dir(work.path("home")).unwrap();
        work.write("fledge.toml", recipe);
        work
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.0.path())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env_remove("FLEDGE_CACHE")
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    pub fn fledge(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = self.command(&program());
        command.args(arguments);
        assert_cmd::Command::from_std(command)
    }

    /// Builds into `out`; gives the manifest.
    pub fn build(&self) -> Manifest {
        self.fledge(&["build", "-o", "out"]).assert().success();
        assert_eq!(names(&self.path("tmp")), Vec::<String>::new());
        self.manifest()
    }

    pub fn manifest(&self) -> Manifest {
        Manifest::parse(&fs::read(self.path("out/app.manifest.json")).unwrap()).unwrap()
    }

    /// Unpacks the squashfs image that was built.
    pub fn unpacked(&self) -> PathBuf {
        let root = self.path("unpacked");
        run(self
            .command("unsquashfs")
            .args(["-no-progress", "-quiet", "-dest"])
            .arg(&root)
            .arg("out/app.squashfs"));
        root
    }

    pub fn umoci(&self, arguments: &[&str]) {
        run(self.command("umoci").args(arguments));
    }

    /// The image `layout:1` of these layers.
    pub fn image(&self, layers: &[Vec<u8>], config: &[&str]) {
        self.umoci(&["init", "--layout", "layout"]);
        self.umoci(&["new", "--image", "layout:1"]);
        for layer in layers {
            fs::write(self.path("layer.tar"), layer).unwrap();
            self.umoci(&["raw", "add-layer", "--image", "layout:1", "layer.tar"]);
        }
        let common = [
            "config",
            "--image",
            "layout:1",
            "--architecture",
            "amd64",
            "--os",
            "linux",
        ];
        self.umoci(&[&common, config].concat());
    }

    /// What follows an interrupt: nothing of the build, and the exit code of a shell.
    pub fn assert_interrupted(&self, mut build: Child) {
        run(Command::new("kill").args(["-INT", &build.id().to_string()]));
        let mut status = None;
        eventually("the build ends", || {
            status = build.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(130));
        assert_eq!(names(&self.path("tmp")), Vec::<String>::new());
        assert!(!self.path("out").exists());
    }
}

pub fn program() -> String {
    env!("CARGO_BIN_EXE_fledge").to_owned()
}

/// What is in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {command:?}: {error}; `cargo xtask test` installs what tests need")
        });
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A tar stream, entry by entry.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// `kind` is tar's letter.
    pub fn add(
        mut self,
        kind: u8,
        path: &str,
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) -> Self {
        let mut header = header(kind, mode, content.len() as u64);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn dir(self, path: &str) -> Self {
        self.add(b'5', path, 0o755, (0, 0), b"")
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.add(b'0', path, 0o644, (0, 0), content)
    }

    pub fn link(mut self, kind: u8, path: &str, target: &str) -> Self {
        let mut header = header(kind, 0o777, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let name = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(&*name, value)]).unwrap();
        self
    }

    pub fn busybox(self) -> Self {
        let busybox = fs::read(BUSYBOX).unwrap();
        self.dir("bin/")
            .add(b'0', "bin/busybox", 0o755, (0, 0), &busybox)
    }

    pub fn end(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn header(kind: u8, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().linkflag = [kind];
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_500_000_000);
    header.set_size(size);
    header
}

/// A registry on the loopback, of its own folder.
pub struct Registry {
    pub host: String,
    child: Child,
    _folder: TempDir,
}

impl Registry {
    pub fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            folder.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs docker-registry");
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
            _folder: folder,
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
