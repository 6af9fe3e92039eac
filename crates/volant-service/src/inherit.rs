//! Descriptors that a child gets under the number that they have here.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Has the command's children inherit `fd`, and tells the number that it has in them: the same as here.
///
/// The descriptor stays closed to every other child, and open here until the command is dropped.
pub fn inherit(command: &mut Command, fd: OwnedFd) -> RawFd {
    let number = fd.as_raw_fd();
    let keep = move || -> io::Result<()> {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    #[allow(
        unsafe_code,
        reason = "close-on-exec must be cleared in the child alone, else other children inherit too"
    )]
    // SAFETY: `keep` makes one system call, which is async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(keep);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_reads_what_it_inherits_and_another_does_not() {
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        let mut heir = Command::new("cat");
        let number = inherit(&mut heir, reader.into());
        let path = format!("/proc/self/fd/{number}");
        assert!(heir.arg(&path).status().unwrap().success());
        let stranger = Command::new("cat").arg(&path).output().unwrap();
        assert!(!stranger.status.success());
    }
}
