//! An image from a Dockerfile: built by buildah, in a store of its own that goes with the build.

use std::{
    fs,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tempfile::TempDir;

use crate::{
    cancel::{Cancel, Cancelled},
    recipe::Dockerfile,
};

/// How often a running buildah is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// So long a buildah that is told to end may take to.
const GRACE: Duration = Duration::from_secs(5);
/// So much of buildah's last words is told, in bytes.
const TOLD: usize = 4096;
/// The image's name in the store and in the layout.
const NAME: &str = "localhost/fledge:latest";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum DockerfileError {
    #[error(
        "a Dockerfile is built with buildah, which is not installed: install the package buildah, or build the image \
         elsewhere and name it as image = \"oci-archive:FILE\""
    )]
    NoBuildah,
    #[error("cannot read the Dockerfile {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the Dockerfile's context {} is no folder", .0.display())]
    Context(PathBuf),
    #[error("cannot make a folder for buildah")]
    Folder(#[source] io::Error),
    #[error("cannot run buildah")]
    Run(#[source] io::Error),
    #[error("buildah could not {act} ({status}):\n{told}")]
    Failed {
        act: &'static str,
        status: ExitStatus,
        told: String,
    },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// An image in a layout, which is gone when this is dropped.
#[derive(Debug)]
pub struct BuiltImage {
    folder: Store,
}

impl BuiltImage {
    /// For `volant_oci::Source`.
    #[must_use]
    pub fn source(&self) -> String {
        format!("oci:{}:latest", self.folder.layout().display())
    }
}

/// Builds the image for a platform. Paths are relative to `folder`. The same files give the same image: times are fixed.
pub fn build(
    dockerfile: &Dockerfile,
    folder: &Path,
    platform: Option<&str>,
    cancel: &Cancel,
) -> Result<BuiltImage, DockerfileError> {
    let path = folder.join(&dockerfile.path);
    path.metadata().map_err(|source| DockerfileError::Read {
        path: path.clone(),
        source,
    })?;
    let context = match &dockerfile.context {
        Some(context) => folder.join(context),
        None => path.parent().map_or_else(PathBuf::new, Path::to_owned),
    };
    // An empty path is the working directory.
    let context = if context.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        context
    };
    if !context.is_dir() {
        return Err(DockerfileError::Context(context));
    }
    let store = Store::new().map_err(DockerfileError::Folder)?;
    let mut build = store.buildah();
    build
        // In a chroot, as any user can have it; no network but the host's, no container runtime.
        .args([
            "build",
            "--isolation",
            "chroot",
            "--format",
            "oci",
            "--timestamp",
            "0",
        ])
        .args(["--tag", NAME, "--file"])
        .arg(&path)
        .args(platform.map(|platform| format!("--platform={platform}")))
        .args(
            dockerfile
                .target
                .as_ref()
                .map(|target| format!("--target={target}")),
        )
        .args(dockerfile.build_args.iter().map(|(name, value)| {
            if is_told_to_buildah(name) {
                format!("--build-arg={name}={value}")
            } else {
                format!("--build-arg={name}")
            }
        }))
        // Everyone can see a command line; these may be secrets.
        .envs(
            dockerfile
                .build_args
                .iter()
                .filter(|(name, _)| !is_told_to_buildah(name)),
        )
        .arg("--")
        .arg(&context);
    run(&mut build, "build the Dockerfile", cancel)?;
    let layout = format!("oci:{}:latest", store.layout().display());
    run(
        store
            .buildah()
            .args(["push", "--quiet", "--format", "oci", NAME, &layout]),
        "write the image",
        cancel,
    )?;
    Ok(BuiltImage { folder: store })
}

/// Whether a variable of that name may mean something to buildah itself.
fn is_told_to_buildah(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "GODEBUG",
        "GOGC",
        "GOMAXPROCS",
        "GOMEMLIMIT",
        "GOTRACEBACK",
        "HOME",
        "LANG",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "USER",
    ];
    const BEGINNINGS: &[&str] = &[
        "BUILDAH_",
        "CONTAINERS_",
        "DBUS_",
        "DOCKER_",
        "LC_",
        "LD_",
        "REGISTRY_",
        "STORAGE_",
        "XDG_",
        "_",
    ];
    let upper = name.to_ascii_uppercase();
    NAMES.contains(&&*upper)
        || BEGINNINGS.iter().any(|begins| upper.starts_with(begins))
        || upper.ends_with("_PROXY")
}

/// buildah's store, its temporary files, and the layout.
#[derive(Debug)]
struct Store(TempDir);

impl Store {
    fn new() -> io::Result<Self> {
        let store = Self(tempfile::Builder::new().prefix("fledge-").tempdir()?);
        fs::create_dir(store.temporary())?;
        Ok(store)
    }

    fn temporary(&self) -> PathBuf {
        self.0.path().join("tmp")
    }

    fn layout(&self) -> PathBuf {
        self.0.path().join("layout")
    }

    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(self.0.path().join("root"))
            .arg("--runroot")
            .arg(self.0.path().join("run"))
            // The one that needs nothing of the kernel.
            .args(["--storage-driver", "vfs"])
            .env("TMPDIR", self.temporary())
            // The terminal's Ctrl-C is for fledge, which ends it in order.
            .process_group(0);
        command
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // What stages of other users made, only they can remove; buildah can be them. As root there is nothing to do.
        if !rustix::process::geteuid().is_root() {
            let mut remove = Command::new("buildah");
            remove
                .args(["unshare", "rm", "-rf"])
                .args(["root", "run", "tmp"].map(|name| self.0.path().join(name)))
                .process_group(0);
            let _ = remove
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn run(command: &mut Command, act: &'static str, cancel: &Cancel) -> Result<(), DockerfileError> {
    cancel.check()?;
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => Running(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DockerfileError::NoBuildah);
        }
        Err(error) => return Err(DockerfileError::Run(error)),
    };
    let told = child
        .0
        .stderr
        .take()
        .map(|stderr| thread::spawn(move || last_words(stderr)));
    let status = loop {
        if let Some(status) = child.0.try_wait().map_err(DockerfileError::Run)? {
            break status;
        }
        cancel.check()?;
        thread::park_timeout(LOOK);
    };
    let told = told.and_then(|told| told.join().ok()).unwrap_or_default();
    if status.success() {
        Ok(())
    } else {
        Err(DockerfileError::Failed { act, status, told })
    }
}

/// Reads to the end, and keeps the last of it.
fn last_words(mut from: impl Read) -> String {
    let (mut kept, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = from.read(&mut piece) {
        kept.extend_from_slice(&piece[..count]);
        let spare = kept.len().saturating_sub(TOLD);
        kept.drain(..spare);
    }
    String::from_utf8_lossy(&kept).trim_end().to_owned()
}

/// A child that does not outlive its value, nor do its own children.
struct Running(Child);

impl Running {
    /// Waits until a child has ended, and leaves it a zombie: nobody else gets its number then.
    fn wait_for(pid: Pid, within: Duration) {
        let until = Instant::now() + within;
        loop {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            match waitid(WaitId::Pid(pid), look) {
                Ok(None) if Instant::now() < until => thread::park_timeout(LOOK),
                Ok(_) | Err(_) => return,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended was waited for.
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        if let Ok(number) = i32::try_from(self.0.id())
            && let Some(pid) = Pid::from_raw(number)
        {
            // It removes what it mounted and put elsewhere.
            let _ = kill_process_group(pid, Signal::TERM);
            Self::wait_for(pid, GRACE);
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_buildah_is_not_in_its_environment() {
        for name in [
            "PATH",
            "tmpdir",
            "LD_PRELOAD",
            "https_proxy",
            "_CONTAINERS_X",
            "GODEBUG",
        ] {
            assert!(is_told_to_buildah(name), "{name}");
        }
        for name in ["VERSION", "GOOGLE_TOKEN", "npm_config_registry"] {
            assert!(!is_told_to_buildah(name), "{name}");
        }
    }

    #[test]
    fn a_child_ends_with_its_own_children() {
        // The second's does not hear of it until it is killed.
        for script in [
            "sleep 60 & echo $!; wait",
            "trap '' TERM; sleep 60 & echo $!; trap 'exit 0' TERM; wait",
        ] {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            let mut line = [0; 16];
            let count = child.stdout.take().unwrap().read(&mut line).unwrap();
            let grandchild = String::from_utf8_lossy(&line[..count]).trim().to_owned();
            drop(Running(child));
            // Whoever adopted it may not have looked at it yet.
            let state = || fs::read_to_string(format!("/proc/{grandchild}/stat"));
            let until = Instant::now() + GRACE;
            while state().is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < until, "{script}: {:?}", state());
                thread::park_timeout(LOOK);
            }
        }
    }
}
