//! The system calls that change the machine, behind a trait: their order and arguments are tested without a machine.

use std::{io, path::Path};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{Signal, kill, killpg},
        stat::Mode,
    },
    unistd::{Pid, mkdir, sethostname, sync},
};

use crate::{console, mounts::Mount};

/// What only PID 1 of a machine should do.
pub trait Kernel: Clone + Send + 'static {
    /// # Errors
    /// The system's. Also when the folder exists.
    fn make_dir(&self, path: &str) -> nix::Result<()>;

    /// # Errors
    /// The system's.
    fn mount(&self, mount: &Mount) -> nix::Result<()>;

    /// # Errors
    /// The system's, `EBUSY` above all.
    fn unmount(&self, target: &Path) -> nix::Result<()>;

    /// # Errors
    /// The system's.
    fn remount_read_only(&self, target: &Path) -> nix::Result<()>;

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
    fn make_dir(&self, path: &str) -> nix::Result<()> {
        mkdir(path, Mode::from_bits_truncate(0o755))
    }

    fn mount(&self, wanted: &Mount) -> nix::Result<()> {
        mount(
            Some(wanted.kind),
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
    use super::*;

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
