//! An image from a Dockerfile: built by buildah, in a store of its own that goes with the build.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    cancel::{Cancel, Cancelled},
    recipe::Dockerfile,
};

/// How often a running buildah is looked at.
const LOOK: Duration = Duration::from_millis(50);
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
    let store = Store(
        tempfile::Builder::new()
            .prefix("fledge-")
            .tempdir()
            .map_err(DockerfileError::Folder)?,
    );

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
        .args(
            dockerfile
                .build_args
                .iter()
                .map(|(name, value)| format!("--build-arg={name}={value}")),
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

/// buildah's store and the layout.
#[derive(Debug)]
struct Store(TempDir);

impl Store {
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
            .args(["--storage-driver", "vfs"]);
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
                .arg(self.0.path().join("root"));
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

/// A child that does not outlive its value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended was waited for: both calls do nothing then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
