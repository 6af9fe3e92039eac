//! Children that do not outlive their parent.

use std::{os::unix::process::CommandExt, process::Command};

use nix::{
    errno::Errno,
    sys::{prctl, signal::Signal},
    unistd::{Pid, getpid, getppid},
};

/// Has the kernel kill the child (`SIGKILL`) when the thread that spawns it ends, however it ends.
///
/// Spawn from a thread that lives as long as the parent: the main one.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = getpid();
    let ask = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the request.
        if parent == getppid() || getppid() == Pid::from_raw(0) {
            Ok(())
        } else {
            Err(Errno::ESRCH.into())
        }
    };
    #[allow(
        unsafe_code,
        reason = "PR_SET_PDEATHSIG must be asked for in the child"
    )]
    // SAFETY: `ask` makes three system calls, which are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(ask)
    }
}
