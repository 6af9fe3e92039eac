//! Descriptors that a program gets which is executed in the place of this one.

use std::{
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
};

/// Copies of descriptors that stay open over `execve`. They are closed when this is dropped, as they are when it failed.
///
/// Children that are started while it lives get them too: make it last.
#[derive(Debug, Default)]
pub struct Heirlooms(Vec<OwnedFd>);

impl Heirlooms {
    /// Keeps a copy of `fd`, and tells the number that it has, now and then.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn keep(&mut self, fd: impl AsFd) -> io::Result<RawFd> {
        // Not the lowest numbers: those are standard input, output and error.
        let number = fcntl(&fd, FcntlArg::F_DUPFD(3))?;
        #[allow(unsafe_code, reason = "a duplicated descriptor comes as a number")]
        // SAFETY: the descriptor was made by the call before, and nobody else knows of it.
        let copy = unsafe { OwnedFd::from_raw_fd(number) };
        self.0.push(copy);
        Ok(number)
    }
}

/// Takes a descriptor that a program of [`Heirlooms`] left under this number; it is closed on exec again. Take each once.
///
/// # Errors
/// Nothing is open under that number.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // Standard input, output and error are nobody's to take.
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    #[allow(unsafe_code, reason = "only the kernel knows whether it is open")]
    // SAFETY: F_GETFD reads a flag of a number, whatever it is.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(unsafe_code, reason = "an inherited descriptor comes as a number")]
    // SAFETY: it is open, and by contract it is taken once: nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        process::Command,
    };

    use super::*;

    /// A shell's own way to name a descriptor ends at 9 (POSIX promises no more), and a test that
    /// runs beside others has higher ones.
    fn path(number: RawFd) -> String {
        format!("/proc/self/fd/{number}")
    }

    #[test]
    fn what_is_kept_stays_open_over_exec_and_is_closed_without_one() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut kept = Heirlooms::default();
        let number = kept.keep(&writer).unwrap();
        let heir = Command::new("sh")
            .args(["-c", &format!("echo heir >{}", path(number))])
            .status()
            .unwrap();
        assert!(heir.success());
        drop(kept);
        drop(writer);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "heir\n");
    }

    #[test]
    fn what_is_inherited_is_closed_on_exec_again_and_what_is_not_there_is_told() {
        let (reader, writer) = io::pipe().unwrap();
        let mut kept = Heirlooms::default();
        let number = kept.keep(&writer).unwrap();
        std::mem::forget(kept);
        drop(writer);
        let mut inherited = File::from(inherited(number).unwrap());
        let child = Command::new("sh")
            .args(["-c", &format!("echo child >{}", path(number))])
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!child.success());
        inherited.write_all(b"ours").unwrap();
        drop(inherited);
        let mut said = String::new();
        File::from(OwnedFd::from(reader))
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said, "ours");
        for number in [-1, 0, 2, 65_000] {
            assert!(super::inherited(number).is_err(), "{number}");
        }
    }
}
