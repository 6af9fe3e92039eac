//! What is mounted when a guest starts, and unmounted when it ends.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, mount::MsFlags};

use crate::kernel::Kernel;

/// A file system to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The device; the kind once more where there is none.
    pub source: &'a str,
    pub kind: &'a str,
    pub target: &'a str,
    pub flags: MsFlags,
    pub data: &'a str,
    /// Without it the guest does not start. The others depend on how the kernel was built.
    pub needed: bool,
}

impl<'a> Mount<'a> {
    /// One that has no device, and that is needed.
    #[must_use]
    pub const fn new(kind: &'a str, target: &'a str, flags: MsFlags, data: &'a str) -> Self {
        Self {
            source: kind,
            kind,
            target,
            flags,
            data,
            needed: true,
        }
    }

    const fn if_possible(self) -> Self {
        Self {
            needed: false,
            ..self
        }
    }
}

pub const TAME: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const SAFE: MsFlags = TAME.union(MsFlags::MS_NOEXEC);
const TERMINALS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// What every guest has, in the order of mounting.
pub const EARLY: &[Mount] = &[
    Mount::new("proc", "/proc", SAFE, ""),
    Mount::new("sysfs", "/sys", SAFE, ""),
    Mount::new("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    Mount::new(
        "devpts",
        "/dev/pts",
        TERMINALS,
        "mode=0620,gid=5,ptmxmode=0666",
    )
    .if_possible(),
    Mount::new("tmpfs", "/dev/shm", TAME, "mode=1777"),
    Mount::new("mqueue", "/dev/mqueue", SAFE, "").if_possible(),
    Mount::new("cgroup2", "/sys/fs/cgroup", SAFE, "").if_possible(),
];

/// What a guest has besides whose initramfs is its root.
pub const SCRATCH: &[Mount] = &[
    Mount::new("tmpfs", "/run", TAME, "mode=0755"),
    Mount::new("tmpfs", "/tmp", TAME, "mode=1777"),
];

/// The links in `/dev` that the kernel does not make, and what they point at.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Why a guest's file systems are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot make the folder {target}")]
    MakeDir { target: String, source: io::Error },
    #[error("cannot mount {kind} on {target}")]
    Mount {
        kind: String,
        target: String,
        source: io::Error,
    },
    #[error("cannot make the link {path}")]
    Link { path: String, source: io::Error },
    #[error("cannot unmount {target}")]
    Unmount { target: String, source: io::Error },
    #[error("cannot make {target} read-only")]
    ReadOnly { target: String, source: io::Error },
}

/// Mounts `table` in its order. What is mounted already stays as it is. Returns what failed and is not needed.
///
/// # Errors
/// The first that failed and is needed; the ones before it are mounted.
pub fn mount_all(kernel: &impl Kernel, table: &[Mount]) -> Result<Vec<MountError>, MountError> {
    let mut missing = Vec::new();
    for wanted in table {
        match mount_one(kernel, wanted) {
            Err(error) if wanted.needed => return Err(error),
            Err(error) => missing.push(error),
            Ok(()) => {}
        }
    }
    Ok(missing)
}

/// Makes what programs look for in `/dev`. Returns what failed; nothing needs it to start.
pub fn link_all(kernel: &impl Kernel) -> Vec<MountError> {
    let link = |(path, target): &(&str, &str)| match kernel.make_link(path, target) {
        Ok(()) | Err(Errno::EEXIST) => None,
        Err(errno) => Some(MountError::Link {
            path: (*path).to_owned(),
            source: errno.into(),
        }),
    };
    LINKS.iter().filter_map(link).collect()
}

/// Mounts one, on a folder that is made where there is none. What is mounted already stays as it is.
///
/// # Errors
/// The folder cannot be made, or nothing can be mounted on it.
pub fn mount_one(kernel: &impl Kernel, wanted: &Mount) -> Result<(), MountError> {
    match kernel.make_dir(wanted.target, 0o755) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => {
            return Err(MountError::MakeDir {
                target: wanted.target.to_owned(),
                source: errno.into(),
            });
        }
    }
    match kernel.mount(wanted) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(MountError::Mount {
            kind: wanted.kind.to_owned(),
            target: wanted.target.to_owned(),
            source: errno.into(),
        }),
    }
}

/// What has to happen to a mount before the machine ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Release {
    Unmount(PathBuf),
    /// The root cannot be unmounted.
    ReadOnly(PathBuf),
}

/// File systems that keep nothing: they need no unmounting.
const KEEPS_NOTHING: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "securityfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// What to release, given the text of `/proc/self/mounts`: the last mounted first. Lines that make no sense are passed over.
#[must_use]
pub fn release_plan(mounts: &[u8]) -> Vec<Release> {
    let mut plan: Vec<_> = mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(1);
            let target = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
            let kind = fields.next()?;
            if !target.is_absolute()
                || KEEPS_NOTHING
                    .iter()
                    .any(|nothing| nothing.as_bytes() == kind)
            {
                return None;
            }
            Some(if target == Path::new("/") {
                Release::ReadOnly(target)
            } else {
                Release::Unmount(target)
            })
        })
        .collect();
    plan.reverse();
    plan
}

/// `/proc/self/mounts` writes blanks and backslashes as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if byte == b'\\' => {
                let value = digits
                    .iter()
                    .fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                plain.push(value.to_le_bytes()[0]);
                rest = &after[3..];
            }
            _ => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    plain
}

/// Where the disks below an overlay are mounted once more at the very end: it is there, and nobody needs what it hides then.
const LAST: &str = "/dev";

/// Makes the disks read-only that no path leads to, as an overlay has them: else they are not closed properly, and need their
/// journal at the next start.
fn close_disks(kernel: &impl Kernel) -> Vec<MountError> {
    let mut failed = Vec::new();
    for disk in kernel.held_disks() {
        let device = format!("/dev/{disk}");
        let mount = Mount {
            source: &device,
            ..Mount::new("ext4", LAST, MsFlags::empty(), "")
        };
        let closed = kernel.mount(&mount).and_then(|()| {
            let closed = kernel.remount_read_only(Path::new(LAST));
            kernel.unmount(Path::new(LAST)).and(closed)
        });
        if let Err(errno) = closed {
            failed.push(MountError::ReadOnly {
                target: device,
                source: errno.into(),
            });
        }
    }
    failed
}

/// Writes out and releases all that `mounts` (`/proc/self/mounts`) names. Goes on after a failure and returns all of them.
pub fn release_all(kernel: &impl Kernel, mounts: &[u8]) -> Vec<MountError> {
    kernel.sync();
    let mut failed = Vec::new();
    for release in release_plan(mounts) {
        let target = match release {
            Release::Unmount(target) => match kernel.unmount(&target) {
                Ok(()) => continue,
                Err(errno) => {
                    failed.push(MountError::Unmount {
                        target: target.display().to_string(),
                        source: errno.into(),
                    });
                    target
                }
            },
            Release::ReadOnly(target) => target,
        };
        if let Err(errno) = kernel.remount_read_only(&target) {
            failed.push(MountError::ReadOnly {
                target: target.display().to_string(),
                source: errno.into(),
            });
        }
    }
    failed.extend(close_disks(kernel));
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;

    #[test]
    fn folders_are_made_and_mounted_in_the_table_s_order() {
        let kernel = FakeKernel::default();
        assert!(mount_all(&kernel, EARLY).unwrap().is_empty());
        let calls = kernel.calls();
        assert_eq!(calls[0], "mkdir /proc 755");
        assert_eq!(
            calls[1],
            "mount proc on /proc MS_NOSUID | MS_NODEV | MS_NOEXEC ''"
        );
        assert_eq!(calls[5], "mount devtmpfs on /dev MS_NOSUID 'mode=0755'");
        assert_eq!(calls.len(), 2 * EARLY.len());
        // A parent comes before what is mounted below it, or would hide it.
        for (index, mount) in EARLY.iter().enumerate() {
            let hidden = EARLY[..index]
                .iter()
                .find(|before| before.target.starts_with(&format!("{}/", mount.target)));
            assert_eq!(hidden, None, "{} hides", mount.target);
        }
    }

    #[test]
    fn what_is_mounted_or_made_already_is_fine() {
        let kernel = FakeKernel::default();
        for mount in EARLY {
            kernel.fail(&format!("mkdir {}", mount.target), Errno::EEXIST);
            kernel.fail(
                &format!("mount {} on {}", mount.kind, mount.target),
                Errno::EBUSY,
            );
        }
        assert!(mount_all(&kernel, EARLY).unwrap().is_empty());
    }

    #[test]
    fn a_needed_mount_that_fails_ends_the_mounting_and_is_named() {
        let kernel = FakeKernel::default();
        kernel.fail("mount devtmpfs", Errno::ENODEV);
        let error = mount_all(&kernel, EARLY).unwrap_err();
        assert_eq!(error.to_string(), "cannot mount devtmpfs on /dev");
        assert_eq!(
            kernel.calls().last().unwrap(),
            "mount devtmpfs on /dev MS_NOSUID 'mode=0755'"
        );
    }

    #[test]
    fn a_mount_that_the_kernel_lacks_and_nobody_needs_is_only_told() {
        let kernel = FakeKernel::default();
        kernel.fail("mount cgroup2", Errno::ENODEV);
        kernel.fail("mount devpts", Errno::ENODEV);
        let missing: Vec<_> = mount_all(&kernel, EARLY)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            missing,
            [
                "cannot mount devpts on /dev/pts",
                "cannot mount cgroup2 on /sys/fs/cgroup"
            ]
        );
    }

    #[test]
    fn a_link_that_cannot_be_made_does_not_keep_the_others_from_it() {
        let kernel = FakeKernel::default();
        kernel.fail("link /dev/fd", Errno::EEXIST);
        kernel.fail("link /dev/stdin", Errno::EROFS);
        let failed: Vec<_> = link_all(&kernel).iter().map(ToString::to_string).collect();
        assert_eq!(failed, ["cannot make the link /dev/stdin"]);
        assert_eq!(
            kernel.calls()[2..],
            [
                "link /dev/stdout to /proc/self/fd/1",
                "link /dev/stderr to /proc/self/fd/2"
            ]
        );
    }

    const MOUNTS: &[u8] = b"rootfs / rootfs rw 0 0\n\
        proc /proc proc rw 0 0\n\
        /dev/vda /data ext4 rw 0 0\n\
        /dev/vdb /data/my\\040disk\\134 xfs rw 0 0\n\
        tmpfs /tmp tmpfs rw 0 0\n\
        garbage\n";

    #[test]
    fn file_systems_that_keep_something_are_released_last_first() {
        assert_eq!(
            release_plan(MOUNTS),
            [
                Release::Unmount("/data/my disk\\".into()),
                Release::Unmount("/data".into()),
            ]
        );
        assert_eq!(
            release_plan(b"/dev/vda / ext4 rw 0 0\n"),
            [Release::ReadOnly("/".into())]
        );
        assert_eq!(release_plan(b"\xff\xfe\n \n  \nx \\77 "), []);
    }

    #[test]
    fn a_disk_below_an_overlay_is_closed_last() {
        let kernel = FakeKernel::default();
        kernel.holds("vdb");
        kernel.holds("vdc");
        kernel.fail("mount ext4 /dev/vdb", Errno::EBUSY);
        let failed = release_all(&kernel, b"overlay / overlay rw 0 0\n");
        assert_eq!(failed[0].to_string(), "cannot make /dev/vdb read-only");
        assert_eq!(
            kernel.calls(),
            [
                "sync",
                "read-only /",
                "mount ext4 /dev/vdb on /dev  ''",
                "mount ext4 /dev/vdc on /dev  ''",
                "read-only /dev",
                "umount /dev",
            ]
        );
    }

    #[test]
    fn what_cannot_be_unmounted_is_made_read_only_and_the_rest_goes_on() {
        let kernel = FakeKernel::default();
        kernel.fail("umount /data/my", Errno::EBUSY);
        let failed = release_all(&kernel, MOUNTS);
        assert_eq!(failed.len(), 1);
        assert_eq!(
            kernel.calls(),
            [
                "sync",
                "umount /data/my disk\\",
                "read-only /data/my disk\\",
                "umount /data"
            ]
        );
    }
}
