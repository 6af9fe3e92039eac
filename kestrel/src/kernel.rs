//! The system calls that change the machine, behind a trait: their order and arguments are tested without a machine.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Read as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _, chown},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::AT_FDCWD,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{Signal, kill, killpg},
        stat::Mode,
        statfs::{FsType, TMPFS_MAGIC, statfs},
        time::TimeSpec,
    },
    time::{ClockId, clock_settime},
    unistd::{Pid, chdir, chroot, mkdir, sethostname, symlinkat, sync},
};

use crate::{
    console,
    mounts::Mount,
    root::{Disk, HEAD, ext4_bytes, is_new, sweep},
};

/// `RAMFS_MAGIC` of `linux/magic.h`.
const RAMFS: FsType = FsType(0x8584_58f6);

/// `_IOW('f', 16, __u64)` of `linux/ext4.h`.
const EXT4_IOC_RESIZE_FS: nix::libc::Ioctl = 0x4008_6610;

/// Whose a folder is, and who may do what in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// What only PID 1 of a machine should do.
pub trait Kernel: Clone + Send + 'static {
    /// # Errors
    /// The system's. Also when something is there.
    fn make_dir(&self, path: &str, mode: u32) -> nix::Result<()>;

    /// # Errors
    /// The system's. Also when something is there.
    fn make_link(&self, path: &str, target: &str) -> nix::Result<()>;

    /// Makes sure that a folder is at `path`: anything else there makes way for it.
    ///
    /// # Errors
    /// The system's.
    fn make_mount_point(&self, path: &str) -> io::Result<()>;

    /// Gives the folder `to` the owner and the mode of `from`.
    ///
    /// # Errors
    /// The system's.
    fn copy_owner(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes a folder, and those above it, where there are none.
    ///
    /// # Errors
    /// The system's.
    fn make_dirs(&self, path: &Path) -> io::Result<()>;

    /// # Errors
    /// The system's.
    fn owner(&self, path: &Path) -> io::Result<Owner>;

    /// Gives the folder of a file system that has nothing yet its owner.
    ///
    /// # Errors
    /// The system's.
    fn adopt_if_new(&self, path: &Path, owner: Owner) -> io::Result<()>;

    /// Grows the ext4 of a disk (`vda`), mounted on `target`, if there is more disk. Tells the bytes that it has then.
    ///
    /// # Errors
    /// The system's.
    fn grow(&self, disk: &str, target: &str) -> io::Result<Option<u64>>;

    /// The disks (`vda`) with an ext4 that is mounted somewhere, if only below an overlay.
    fn held_disks(&self) -> Vec<String>;

    /// The virtio disks that there are now.
    ///
    /// # Errors
    /// The system's.
    fn disks(&self) -> io::Result<Vec<Disk>>;

    /// The first [`HEAD`] bytes of a disk, or all of a smaller one.
    ///
    /// # Errors
    /// The system's.
    fn head(&self, device: &str) -> io::Result<Vec<u8>>;

    /// # Errors
    /// The system's.
    fn mount(&self, mount: &Mount) -> nix::Result<()>;

    /// # Errors
    /// The system's, `EBUSY` above all.
    fn unmount(&self, target: &Path) -> nix::Result<()>;

    /// # Errors
    /// The system's.
    fn remount_read_only(&self, target: &Path) -> nix::Result<()>;

    /// Moves a mount, with all that is mounted below it.
    ///
    /// # Errors
    /// The system's.
    fn move_mount(&self, from: &str, to: &str) -> nix::Result<()>;

    /// Removes all files of the initramfs that this process began in.
    ///
    /// # Errors
    /// The root is no initramfs, or cannot be listed.
    fn empty_initramfs(&self) -> io::Result<()>;

    /// Makes the mount on `root` the root of this process, and its working directory.
    ///
    /// # Errors
    /// The system's.
    fn change_root(&self, root: &str) -> nix::Result<()>;

    /// Sets a parameter below `/proc/sys`.
    ///
    /// # Errors
    /// The system's.
    fn set_parameter(&self, name: &str, value: &str) -> io::Result<()>;

    /// # Errors
    /// The system's.
    fn set_hostname(&self, name: &str) -> nix::Result<()>;

    /// Puts the console on standard input, output and error.
    ///
    /// # Errors
    /// There is no console; what is open stays so.
    fn adopt_console(&self) -> io::Result<()>;

    /// Has control-alt-delete arrive as `SIGINT` rather than reset the machine.
    ///
    /// # Errors
    /// The system's.
    fn catch_ctrl_alt_del(&self) -> nix::Result<()>;

    /// Sends `signal` to all of a process group.
    ///
    /// # Errors
    /// The system's: `ESRCH` when nobody is left in it.
    fn signal_group(&self, group: Pid, signal: Signal) -> nix::Result<()>;

    /// Sends the signal of that number to PID 1.
    ///
    /// # Errors
    /// The system's.
    fn signal_init(&self, number: i32) -> nix::Result<()>;

    /// Sets the clock, given the time since the epoch.
    ///
    /// # Errors
    /// The system's.
    fn set_clock(&self, time: Duration) -> nix::Result<()>;

    /// Makes `program` what this process runs, with that environment alone. Returns only when that failed.
    fn become_program(&self, program: &Path, env: &BTreeMap<String, String>) -> io::Error;

    /// Kills every process but this one.
    fn kill_all(&self);

    /// Writes out what is cached. May take as long as the disks do.
    fn sync(&self);

    /// Ends the machine; returns only when that failed.
    fn reboot(&self, how: RebootMode) -> Errno;
}

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

impl Kernel for Linux {
    fn make_dir(&self, path: &str, mode: u32) -> nix::Result<()> {
        mkdir(path, Mode::from_bits_truncate(0o755))?;
        // Whatever the umask is.
        let set = fs::set_permissions(path, Permissions::from_mode(mode));
        set.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    fn make_link(&self, path: &str, target: &str) -> nix::Result<()> {
        symlinkat(target, AT_FDCWD, path)
    }

    fn make_mount_point(&self, path: &str) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => return Ok(()),
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::create_dir(path)
    }

    fn copy_owner(&self, from: &str, to: &str) -> io::Result<()> {
        let meta = fs::metadata(from)?;
        chown(to, Some(meta.uid()), Some(meta.gid()))?;
        fs::set_permissions(to, meta.permissions())
    }

    fn make_dirs(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn owner(&self, path: &Path) -> io::Result<Owner> {
        let meta = fs::metadata(path)?;
        Ok(Owner {
            uid: meta.uid(),
            gid: meta.gid(),
            mode: meta.mode() & 0o7777,
        })
    }

    fn adopt_if_new(&self, path: &Path, owner: Owner) -> io::Result<()> {
        if !is_new(path)? {
            return Ok(());
        }
        chown(path, Some(owner.uid), Some(owner.gid))?;
        fs::set_permissions(path, Permissions::from_mode(owner.mode))
    }

    fn grow(&self, disk: &str, target: &str) -> io::Result<Option<u64>> {
        let (block, has) = ext4_bytes(&self.head(&format!("/dev/{disk}"))?)?;
        let sectors = fs::read_to_string(format!("/sys/class/block/{disk}/size"))?;
        let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
        let blocks = sectors.saturating_mul(512) / block;
        if blocks * block <= has {
            return Ok(None);
        }
        let folder = File::open(target)?;
        // SAFETY: the request reads one number of 64 bits, which outlives the call.
        #[allow(unsafe_code, reason = "an ioctl of ext4 that no crate has")]
        let grown =
            unsafe { nix::libc::ioctl(folder.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
        Errno::result(grown)?;
        Ok(Some(blocks * block))
    }

    fn held_disks(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir("/sys/fs/ext4") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| Path::new("/sys/class/block").join(name).exists())
            .collect()
    }

    fn disks(&self) -> io::Result<Vec<Disk>> {
        let entries = match fs::read_dir("/sys/block") {
            Ok(entries) => entries,
            // A kernel without block devices.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut disks = Vec::new();
        for entry in entries {
            let entry = entry?;
            // Other disks have no serial number here.
            if let Ok(serial) = fs::read(entry.path().join("serial")) {
                disks.push(Disk {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    serial: String::from_utf8_lossy(&serial)
                        .trim_end_matches(['\n', '\0'])
                        .to_owned(),
                });
            }
        }
        disks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(disks)
    }

    fn head(&self, device: &str) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        File::open(device)?.take(HEAD).read_to_end(&mut head)?;
        Ok(head)
    }

    fn move_mount(&self, from: &str, to: &str) -> nix::Result<()> {
        mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
    }

    fn empty_initramfs(&self) -> io::Result<()> {
        let kind = statfs("/")?.filesystem_type();
        if ![RAMFS, TMPFS_MAGIC].contains(&kind) {
            return Err(io::Error::other("the root is no initramfs"));
        }
        sweep(Path::new("/"))
    }

    fn change_root(&self, root: &str) -> nix::Result<()> {
        chdir(root)?;
        self.move_mount(".", "/")?;
        chroot(".")?;
        chdir("/")
    }

    fn set_parameter(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(Path::new("/proc/sys").join(name), value)
    }

    fn mount(&self, wanted: &Mount) -> nix::Result<()> {
        mount(
            Some(wanted.source),
            wanted.target,
            Some(wanted.kind),
            wanted.flags,
            Some(wanted.data),
        )
    }

    fn unmount(&self, target: &Path) -> nix::Result<()> {
        umount2(target, MntFlags::UMOUNT_NOFOLLOW)
    }

    fn remount_read_only(&self, target: &Path) -> nix::Result<()> {
        mount(
            None::<&str>,
            target,
            None::<&str>,
            MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
            None::<&str>,
        )
    }

    fn set_hostname(&self, name: &str) -> nix::Result<()> {
        sethostname(name)
    }

    fn adopt_console(&self) -> io::Result<()> {
        console::adopt()
    }

    fn catch_ctrl_alt_del(&self) -> nix::Result<()> {
        set_cad_enabled(false)
    }

    fn signal_group(&self, group: Pid, signal: Signal) -> nix::Result<()> {
        killpg(group, signal)
    }

    fn signal_init(&self, number: i32) -> nix::Result<()> {
        // SAFETY: the call takes two numbers.
        #[allow(unsafe_code, reason = "nix has no name for real-time signals")]
        let sent = unsafe { nix::libc::kill(1, number) };
        Errno::result(sent).map(drop)
    }

    fn set_clock(&self, time: Duration) -> nix::Result<()> {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time))
    }

    fn become_program(&self, program: &Path, env: &BTreeMap<String, String>) -> io::Error {
        // The kernel spares the agent when memory is short, and nothing that takes its place.
        if let Err(error) = fs::write("/proc/self/oom_score_adj", "0") {
            return error;
        }
        Command::new(program).env_clear().envs(env).exec()
    }

    fn kill_all(&self) {
        // ESRCH: there is nobody left, which is what was asked for.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    }

    fn sync(&self) {
        sync();
    }

    fn reboot(&self, how: RebootMode) -> Errno {
        match reboot(how) {
            Err(errno) => errno,
        }
    }
}

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Reset,
}

impl Ending {
    /// The reboot call for this end. Without ACPI nothing can switch the power off; the machine is told to reset, which its VMM
    /// takes as the end.
    #[must_use]
    pub fn mode(self, has_acpi: bool) -> RebootMode {
        match (self, has_acpi) {
            (Self::PowerOff, true) => RebootMode::RB_POWER_OFF,
            (Self::PowerOff, false) | (Self::Reset, _) => RebootMode::RB_AUTOBOOT,
        }
    }
}

/// Ends the machine. Returns only when no call could, with the last error.
#[must_use]
pub fn end_machine(kernel: &impl Kernel, ending: Ending) -> io::Error {
    let has_acpi = Path::new("/sys/firmware/acpi").exists();
    let first = ending.mode(has_acpi);
    let mut errno = kernel.reboot(first);
    if first != RebootMode::RB_AUTOBOOT {
        errno = kernel.reboot(RebootMode::RB_AUTOBOOT);
    }
    errno.into()
}

#[cfg(test)]
mod tests {
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn whatever_is_in_the_way_of_a_mount_point_goes_but_a_folder_stays() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("folder/kept"), "").unwrap();
        fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("folder", path("link")).unwrap();
        mkfifo(path("pipe").as_str(), Mode::S_IRWXU).unwrap();
        for name in ["folder", "file", "link", "pipe", "new"] {
            Linux.make_mount_point(&path(name)).unwrap();
            assert!(fs::symlink_metadata(path(name)).unwrap().is_dir(), "{name}");
        }
        assert!(fs::exists(path("folder/kept")).unwrap());
    }

    #[test]
    fn a_folder_has_the_mode_that_was_asked_for_or_copied() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        let mode = |name: &str| fs::metadata(path(name)).unwrap().mode() & 0o7777;
        Linux.make_dir(&path("one"), 0o1777).unwrap();
        Linux.make_dir(&path("two"), 0o751).unwrap();
        assert_eq!((mode("one"), mode("two")), (0o1777, 0o751));
        assert_eq!(Linux.make_dir(&path("two"), 0o700), Err(Errno::EEXIST));
        Linux.copy_owner(&path("one"), &path("two")).unwrap();
        assert_eq!(mode("two"), 0o1777);
    }

    #[test]
    fn a_machine_without_acpi_powers_off_by_a_reset() {
        for (ending, has_acpi, mode) in [
            (Ending::PowerOff, true, RebootMode::RB_POWER_OFF),
            (Ending::PowerOff, false, RebootMode::RB_AUTOBOOT),
            (Ending::Reset, true, RebootMode::RB_AUTOBOOT),
            (Ending::Reset, false, RebootMode::RB_AUTOBOOT),
        ] {
            assert_eq!(ending.mode(has_acpi), mode, "{ending:?} {has_acpi}");
        }
    }
}
