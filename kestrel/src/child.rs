//! What a process of this agent does between its beginning and its program: a session of its own, limits, and whom it runs as.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use nix::{
    errno::Errno,
    sys::resource::setrlimit,
    unistd::{setgroups, setresgid, setresuid, setsid},
};

use crate::{config::Rlimit, user::Identity};

/// Where the kernel keeps how soon it kills a process when memory is short, and what it is for those that are not the agent.
const OOM_SCORE: &std::ffi::CStr = c"/proc/self/oom_score_adj";
const ORDINARY: &[u8] = b"0";

/// Has the child begin a session, and a process group, of its own, and become whom it runs as: the user last, who may do
/// none of the rest.
pub fn prepare(command: &mut Command, identity: Option<Identity>, rlimits: Vec<Rlimit>) {
    // SAFETY: the closure makes system calls alone, which are async-signal-safe, and allocates nothing.
    #[allow(unsafe_code, reason = "only the child can change what it is")]
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            be_ordinary();
            for limit in &rlimits {
                setrlimit(limit.resource, limit.soft, limit.hard)?;
            }
            if let Some(Identity { uid, gid, groups }) = &identity {
                setgroups(groups)?;
                setresgid(*gid, *gid, *gid)?;
                setresuid(*uid, *uid, *uid)?;
            }
            Ok(())
        });
    }
}

/// The agent is never killed for want of memory; what it starts may be. Does what it can: there is nobody to tell.
///
/// Async-signal-safe.
pub fn be_ordinary() {
    // SAFETY: the path is a C string and the bytes are as many as is said; the descriptor is closed once.
    #[allow(unsafe_code, reason = "std's files allocate, which a child must not")]
    unsafe {
        let file = nix::libc::open(
            OOM_SCORE.as_ptr(),
            nix::libc::O_WRONLY | nix::libc::O_CLOEXEC,
        );
        if file >= 0 {
            nix::libc::write(file, ORDINARY.as_ptr().cast(), ORDINARY.len());
            nix::libc::close(file);
        }
    }
    Errno::clear();
}

/// Has the kernel never kill this process for want of memory.
///
/// # Errors
/// The system's: it takes root.
pub fn spare_agent() -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", "-1000")
}
