//! How an init is asked to end the machine, and how it is seen doing so.

use std::{fs, io, path::Path};

use crate::life::Reason;

/// What PID 1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Systemd,
    Other,
}

impl Kind {
    /// Of a program: what it is once its links are followed.
    ///
    /// # Errors
    /// It is not there.
    pub fn of(program: &Path) -> io::Result<Self> {
        let real = fs::canonicalize(program)?;
        Ok(if real.file_name().is_some_and(|name| name == "systemd") {
            Self::Systemd
        } else {
            Self::Other
        })
    }
}

/// One way to ask for power-off. The next is tried when one cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// A real-time signal to PID 1, counted from the first one.
    RealTime(i32),
    Signal(i32),
    Program(&'static str),
}

impl Kind {
    /// The ways that this init knows, the best first.
    #[must_use]
    pub fn ways(self) -> &'static [PowerOff] {
        match self {
            // As poweroff.target.
            Self::Systemd => &[PowerOff::RealTime(4)],
            // SIGUSR2 is busybox's word for it.
            Self::Other => &[
                PowerOff::Program("/sbin/poweroff"),
                PowerOff::Program("/usr/sbin/poweroff"),
                PowerOff::Program("/bin/poweroff"),
                PowerOff::Signal(nix::libc::SIGUSR2),
            ],
        }
    }
}

/// Whether PID 1 is ending all processes, and what it will do then, by its own command line: systemd executes
/// `systemd-shutdown VERB` in its place. Others do not tell: for them a request to end is one.
#[must_use]
pub fn going_down(kind: Kind, command_line: &[u8]) -> Option<Reason> {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    match kind {
        Kind::Other => Some(Reason::GuestPowerOff),
        Kind::Systemd if program.ends_with(b"systemd-shutdown") => match words.next() {
            Some(b"reboot" | b"kexec" | b"soft-reboot") => Some(Reason::GuestReboot),
            _ => Some(Reason::GuestPowerOff),
        },
        Kind::Systemd => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_init_is_what_its_links_lead_to() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("systemd"), "").unwrap();
        fs::write(path("busybox"), "").unwrap();
        symlink("systemd", path("init")).unwrap();
        assert_eq!(Kind::of(&path("init")).unwrap(), Kind::Systemd);
        assert_eq!(Kind::of(&path("busybox")).unwrap(), Kind::Other);
        assert!(Kind::of(&path("gone")).is_err());
    }

    #[test]
    fn what_systemd_will_do_is_in_its_last_command_line() {
        for (line, reason) in [
            (
                &b"/lib/systemd/systemd-shutdown\0poweroff\0--log-level\0"[..],
                Some(Reason::GuestPowerOff),
            ),
            (
                b"/usr/lib/systemd/systemd-shutdown\0reboot\0",
                Some(Reason::GuestReboot),
            ),
            (
                b"/lib/systemd/systemd-shutdown\0kexec\0",
                Some(Reason::GuestReboot),
            ),
            (
                b"/lib/systemd/systemd-shutdown\0halt\0",
                Some(Reason::GuestPowerOff),
            ),
            (b"/sbin/init\0splash\0", None),
            (b"", None),
        ] {
            assert_eq!(going_down(Kind::Systemd, line), reason);
        }
        assert_eq!(
            going_down(Kind::Other, b"init\0"),
            Some(Reason::GuestPowerOff)
        );
    }
}
