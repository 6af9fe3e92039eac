//! The way from the boot initramfs into a plugin's own root: a read-only image below, memory or a disk above.
//!
//! ```text
//! disk with the serial number ────────── mounted read-only ──┐
//! tmpfs (at most half of the memory), or another disk with ──┴─▶ overlay ──▶ "/" of this process and of all that it starts
//! its own serial number: upper, work
//! ```
//! The image is whatever the plugin's author made of it: it may lack folders, or have something else in their place.

mod check;
mod ext4;
mod format;
mod sweep;
mod volumes;

use std::{io, time::Duration};

use nix::{errno::Errno, mount::MsFlags};
use tokio::time::{Instant, sleep};

pub use self::{
    check::{E2fsck, check},
    ext4::ext4_bytes,
    format::{Format, HEAD},
    sweep::sweep,
    volumes::{is_new, mount_volumes},
};
use crate::{
    kernel::Kernel,
    logs::Logs,
    mounts::{Mount, MountError, mount_one},
};

/// How long a disk may take to appear: it is there before this process, unless the machine is very busy.
const DISK_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

const BASE: &str = "/.kestrel";
const IMAGE: &str = "/.kestrel/image";
const LAYER: &str = "/.kestrel/layer";
const UPPER: &str = "/.kestrel/layer/upper";
const WORK: &str = "/.kestrel/layer/work";
const ROOT: &str = "/.kestrel/root";
/// `redirect_dir` lets a folder of the image be renamed, `xino` gives the whole root one device number.
const OVERLAY: &str = "lowerdir=/.kestrel/image,upperdir=/.kestrel/layer/upper,workdir=/.kestrel/layer/work,redirect_dir=on,xino=auto";

/// Mounted already, with what is below them. `/run` and `/tmp` are the image's: it may have made folders there for its user.
const MOVED: &[&str] = &["/dev", "/proc", "/sys"];
/// What programs expect of any root, and its mode where the image has none.
const EXPECTED: &[(&str, u32)] = &[("/etc", 0o755), ("/run", 0o755), ("/tmp", 0o1777)];

/// Which disk becomes the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootConfig {
    pub serial: String,
    /// Absent: any that is known.
    pub format: Option<Format>,
    /// The disk that keeps what is written. Absent: memory.
    pub layer_serial: Option<String>,
}

/// A disk of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// As in `/sys/block` and `/dev`.
    pub name: String,
    /// Empty when it has none.
    pub serial: String,
}

/// Why a guest does not get to its root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot list the disks")]
    Disks(#[source] io::Error),
    #[error("there is no disk with the serial number '{serial}', but {others}")]
    NoDisk { serial: String, others: String },
    #[error("more than one disk has the serial number '{serial}': {others}")]
    ManyDisks { serial: String, others: String },
    #[error("cannot read {device}")]
    Read { device: String, source: io::Error },
    #[error("{device} has no squashfs, erofs or ext4, but {looks}")]
    NoFormat { device: String, looks: &'static str },
    #[error("{device} has {found}, not {wanted} as the plugin says")]
    OtherFormat {
        device: String,
        wanted: Format,
        found: Format,
    },
    #[error(
        "cannot mount the {format} on {device}, which is damaged, cut short, or has features that the guest's kernel lacks"
    )]
    Image {
        device: String,
        format: Format,
        source: io::Error,
    },
    #[error("cannot mount the ext4 of {what} on {device}")]
    Disk {
        what: String,
        device: String,
        source: io::Error,
    },
    #[error("cannot check the file system of {what} on {device}")]
    Check {
        what: String,
        device: String,
        source: io::Error,
    },
    #[error(
        "the file system of {what} on {device} is damaged beyond what can be repaired by itself: {words}; repair it with \
         e2fsck on the host, while the VM is stopped"
    )]
    Damaged {
        what: String,
        device: String,
        words: String,
    },
    #[error("cannot mount the volume '{name}'")]
    Volume { name: String, source: Box<Self> },
    #[error("cannot mount the host's directory")]
    Share(#[source] io::Error),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot {act} {path}")]
    Step {
        act: &'static str,
        path: String,
        source: io::Error,
    },
}

/// Makes the disk that `wanted` names the root of this process. Whatever the initramfs had is gone after.
///
/// # Errors
/// Why it cannot be; the guest has no use any more.
pub async fn enter(
    kernel: &impl Kernel,
    wanted: &RootConfig,
    logs: &Logs,
) -> Result<(), RootError> {
    let disk = find(kernel, &wanted.serial).await?;
    let device = format!("/dev/{}", disk.name);
    let format = examine(kernel, &device, wanted.format)?;
    let layer = match &wanted.layer_serial {
        Some(serial) => Some(find(kernel, serial).await?),
        None => None,
    };
    stack(kernel, (&device, format), layer.as_ref(), logs)?;
    for path in MOVED {
        let target = format!("{ROOT}{path}");
        kernel
            .make_mount_point(&target)
            .map_err(step("make the folder", &target))?;
        kernel
            .move_mount(path, &target)
            .map_err(failed("move the mount to", &target))?;
    }
    if let Err(error) = kernel.empty_initramfs() {
        logs.say(&format!("the initramfs keeps its memory: {error}"));
    }
    kernel
        .change_root(ROOT)
        .map_err(failed("make the root of", ROOT))?;
    for (path, mode) in EXPECTED {
        make_dir(kernel, path, *mode)?;
    }
    Ok(())
}

/// Waits a moment for the disk, which the kernel may still be finding.
async fn find(kernel: &impl Kernel, serial: &str) -> Result<Disk, RootError> {
    let deadline = Instant::now() + DISK_WITHIN;
    loop {
        let disks = kernel.disks().map_err(RootError::Disks)?;
        match choose(disks, serial) {
            Err(RootError::NoDisk { .. }) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
            chosen => return chosen,
        }
    }
}

/// The one disk with this serial number: never another, never one of two.
fn choose(disks: Vec<Disk>, serial: &str) -> Result<Disk, RootError> {
    let (mut fitting, others): (Vec<_>, Vec<_>) =
        disks.into_iter().partition(|disk| disk.serial == serial);
    let serial = serial.to_owned();
    match (fitting.pop(), fitting.is_empty()) {
        (Some(disk), true) => Ok(disk),
        (Some(disk), false) => {
            fitting.push(disk);
            let others = names(&fitting);
            Err(RootError::ManyDisks { serial, others })
        }
        (None, _) => {
            let others = names(&others);
            Err(RootError::NoDisk { serial, others })
        }
    }
}

fn names(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "no disk at all".to_owned();
    }
    let names: Vec<_> = disks
        .iter()
        .map(|disk| format!("{} '{}'", disk.name, disk.serial.escape_debug()))
        .collect();
    names.join(", ")
}

fn examine(
    kernel: &impl Kernel,
    device: &str,
    wanted: Option<Format>,
) -> Result<Format, RootError> {
    let head = kernel.head(device).map_err(|source| RootError::Read {
        device: device.to_owned(),
        source,
    })?;
    match (Format::detect(&head), wanted) {
        (Some(found), Some(wanted)) if found != wanted => Err(RootError::OtherFormat {
            device: device.to_owned(),
            wanted,
            found,
        }),
        (Some(found), _) => Ok(found),
        (None, _) => Err(RootError::NoFormat {
            device: device.to_owned(),
            looks: format::looks(&head),
        }),
    }
}

/// Mounts the overlay of image and layer on [`ROOT`].
fn stack(
    kernel: &impl Kernel,
    (device, format): (&str, Format),
    layer: Option<&Disk>,
    logs: &Logs,
) -> Result<(), RootError> {
    for path in [BASE, IMAGE] {
        make_dir(kernel, path, 0o755)?;
    }
    let image = Mount {
        source: device,
        kind: format.as_str(),
        target: IMAGE,
        flags: MsFlags::MS_RDONLY,
        data: format.options(),
        needed: true,
    };
    kernel.mount(&image).map_err(|errno| RootError::Image {
        device: device.to_owned(),
        format,
        source: errno.into(),
    })?;
    match layer {
        Some(disk) => {
            make_dir(kernel, LAYER, 0o755)?;
            ext4::mount_own(kernel, disk, LAYER, "the root's layer", logs)?;
        }
        // Without a size, a tmpfs takes half of the memory at most.
        None => mount_one(
            kernel,
            &Mount::new("tmpfs", LAYER, MsFlags::empty(), "mode=0755"),
        )?,
    }
    make_dir(kernel, WORK, 0o755)?;
    match kernel.make_dir(UPPER, 0o755) {
        // The root folder shows the owner and the mode of the upper one: at first the image's.
        Ok(()) => kernel
            .copy_owner(IMAGE, UPPER)
            .map_err(step("give its owner to", UPPER))?,
        // As the guest left it.
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed("make the folder", UPPER)(errno)),
    }
    mount_one(
        kernel,
        &Mount::new("overlay", ROOT, MsFlags::empty(), OVERLAY),
    )?;
    // The overlay holds both by itself: so nobody sees them, and nothing else need be unmounted at the end.
    for path in [IMAGE, LAYER] {
        kernel
            .unmount(path.as_ref())
            .map_err(failed("unmount", path))?;
    }
    Ok(())
}

fn make_dir(kernel: &impl Kernel, path: &str, mode: u32) -> Result<(), RootError> {
    match kernel.make_dir(path, mode) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(failed("make the folder", path)(errno)),
    }
}

fn failed(act: &'static str, path: &str) -> impl FnOnce(Errno) -> RootError {
    let step = step(act, path);
    move |errno| step(errno.into())
}

fn step(act: &'static str, path: &str) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Step { act, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;

    fn config(format: Option<Format>) -> RootConfig {
        RootConfig {
            serial: "rootfs".to_owned(),
            format,
            layer_serial: None,
        }
    }

    async fn error(kernel: &FakeKernel, format: Option<Format>) -> String {
        let error = enter(kernel, &config(format), &Logs::default()).await;
        let error = error.unwrap_err();
        let source = std::error::Error::source(&error);
        source.map_or(error.to_string(), |source| format!("{error}: {source}"))
    }

    #[tokio::test]
    async fn the_overlay_is_complete_before_anything_moves_and_the_initramfs_goes_before_the_root_changes()
     {
        let kernel = FakeKernel::default();
        kernel.has_disk("vda", "data", b"hsqs");
        kernel.has_disk("vdb", "rootfs", b"hsqs");
        enter(&kernel, &config(None), &Logs::default())
            .await
            .unwrap();
        assert_eq!(
            kernel.calls(),
            [
                "mkdir /.kestrel 755",
                "mkdir /.kestrel/image 755",
                "mount squashfs /dev/vdb on /.kestrel/image MS_RDONLY ''",
                "mkdir /.kestrel/layer 755",
                "mount tmpfs on /.kestrel/layer  'mode=0755'",
                "mkdir /.kestrel/layer/work 755",
                "mkdir /.kestrel/layer/upper 755",
                "owner /.kestrel/image to /.kestrel/layer/upper",
                "mkdir /.kestrel/root 755",
                &format!("mount overlay on /.kestrel/root  '{OVERLAY}'"),
                "umount /.kestrel/image",
                "umount /.kestrel/layer",
                "mount point /.kestrel/root/dev",
                "move /dev to /.kestrel/root/dev",
                "mount point /.kestrel/root/proc",
                "move /proc to /.kestrel/root/proc",
                "mount point /.kestrel/root/sys",
                "move /sys to /.kestrel/root/sys",
                "empty the initramfs",
                "root /.kestrel/root",
                "mkdir /etc 755",
                "mkdir /run 755",
                "mkdir /tmp 1777",
            ]
        );
    }

    #[tokio::test]
    async fn a_layer_is_the_disk_with_its_serial_number_and_keeps_the_roots_owner() {
        let kernel = FakeKernel::default();
        kernel.has_disk("vda", "vol-0", b"");
        kernel.has_disk("vdb", "rootfs", b"hsqs");
        kernel.has_disk("vdc", "layer", b"");
        let wanted = RootConfig {
            layer_serial: Some("layer".to_owned()),
            ..config(None)
        };
        enter(&kernel, &wanted, &Logs::default()).await.unwrap();
        let calls = kernel.calls();
        let layer = "mount ext4 /dev/vdc on /.kestrel/layer MS_NODEV 'discard,errors=remount-ro'";
        let at = calls.iter().position(|call| call == layer).unwrap();
        assert_eq!(
            calls[at + 1..at + 5],
            [
                "grow vdc at /.kestrel/layer",
                "mkdir /.kestrel/layer/work 755",
                "mkdir /.kestrel/layer/upper 755",
                "owner /.kestrel/image to /.kestrel/layer/upper",
            ]
        );
        assert!(!calls.iter().any(|call| call.starts_with("mount tmpfs")));

        let again = FakeKernel::default();
        again.has_disk("vda", "rootfs", b"hsqs");
        again.has_disk("vdb", "layer", b"");
        again.fail("mkdir /.kestrel/layer/upper", Errno::EEXIST);
        enter(&again, &wanted, &Logs::default()).await.unwrap();
        assert!(!again.calls().iter().any(|call| call.starts_with("owner")));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_mounted_when_the_layer_is_not_there() {
        let kernel = FakeKernel::default();
        kernel.has_disk("vda", "rootfs", b"hsqs");
        let wanted = RootConfig {
            layer_serial: Some("layer".to_owned()),
            ..config(None)
        };
        let entered = enter(&kernel, &wanted, &Logs::default()).await;
        let error = entered.unwrap_err().to_string();
        assert!(error.contains("serial number 'layer'"), "{error}");
        assert_eq!(kernel.calls(), [""; 0]);
    }

    #[tokio::test]
    async fn folders_that_are_there_and_an_initramfs_that_stays_do_not_matter() {
        let kernel = FakeKernel::default();
        kernel.has_disk("vda", "rootfs", b"hsqs");
        kernel.fail("mkdir", Errno::EEXIST);
        kernel.fail("empty", Errno::EACCES);
        enter(&kernel, &config(Some(Format::Squashfs)), &Logs::default())
            .await
            .unwrap();
        assert!(kernel.calls().contains(&"root /.kestrel/root".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn no_other_disk_is_taken_for_the_root() {
        let kernel = FakeKernel::default();
        assert_eq!(
            error(&kernel, None).await,
            "there is no disk with the serial number 'rootfs', but no disk at all"
        );
        kernel.has_disk("vda", "", b"hsqs");
        kernel.has_disk("vdb", "rootfs2", b"hsqs");
        assert_eq!(
            error(&kernel, None).await,
            "there is no disk with the serial number 'rootfs', but vda '', vdb 'rootfs2'"
        );
        kernel.has_disk("vdc", "rootfs", b"hsqs");
        kernel.has_disk("vdd", "rootfs", b"hsqs");
        assert_eq!(
            error(&kernel, None).await,
            "more than one disk has the serial number 'rootfs': vdc 'rootfs', vdd 'rootfs'"
        );
        assert_eq!(kernel.calls(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_comes_late_is_waited_for() {
        let kernel = FakeKernel::default();
        let late = {
            let kernel = kernel.clone();
            async move {
                sleep(DISK_WITHIN / 2).await;
                kernel.has_disk("vda", "rootfs", b"hsqs");
            }
        };
        let (wanted, logs) = (config(None), Logs::default());
        let (entered, ()) = tokio::join!(enter(&kernel, &wanted, &logs), late);
        entered.unwrap();
    }

    #[tokio::test]
    async fn an_image_that_cannot_be_the_root_is_told_with_its_cause() {
        let squashfs = FakeKernel::default();
        squashfs.has_disk("vda", "rootfs", b"hsqs");
        assert_eq!(
            error(&squashfs, Some(Format::Ext4)).await,
            "/dev/vda has squashfs, not ext4 as the plugin says"
        );
        squashfs.fail("mount squashfs", Errno::EINVAL);
        assert!(
            error(&squashfs, None)
                .await
                .starts_with("cannot mount the squashfs on /dev/vda, which is damaged, cut short")
        );
        let gzip = FakeKernel::default();
        gzip.has_disk("vda", "rootfs", b"\x1f\x8b");
        assert_eq!(
            error(&gzip, Some(Format::Erofs)).await,
            "/dev/vda has no squashfs, erofs or ext4, but what gzip compressed"
        );
        let unmovable = FakeKernel::default();
        unmovable.has_disk("vda", "rootfs", b"hsqs");
        unmovable.fail("mount point /.kestrel/root/proc", Errno::EROFS);
        assert_eq!(
            error(&unmovable, None).await,
            "cannot make the folder /.kestrel/root/proc: Read-only file system (os error 30)"
        );
    }
}
