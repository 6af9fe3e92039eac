//! Starts a program without a copy of this process's memory: under emulation, copying its page tables takes longer than most
//! programs run.
//!
//! The child shares the agent's memory until it executes its program, and the calling thread stands still so long
//! (`CLONE_VM` and `CLONE_VFORK`, as in the C library's `posix_spawn`, which can do less). So the child makes system calls
//! alone: it allocates nothing and takes no lock. What changes who it is goes past the C library, whose functions would
//! change the agent's other threads as well.

#![allow(
    unsafe_code,
    reason = "nobody else starts a process so and lets it become another user"
)]

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    ptr,
};

use nix::{
    errno::Errno,
    libc::{self, c_char, c_int, c_void},
    sys::signal::{SigSet, SigmaskHow, pthread_sigmask},
    unistd::Pid,
};

use crate::{child::be_ordinary, user::Identity};

/// Of the child, which needs less than a page of it.
const STACK: usize = 32 * 1024;
const SHELL: &CStr = c"/bin/sh";
/// What the agent handles or ignores: a program has them as they are by default.
const CHANGED: [c_int; 7] = [
    libc::SIGCHLD,
    libc::SIGINT,
    libc::SIGPIPE,
    libc::SIGPWR,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// What is to be started. No string of it has a zero byte.
#[derive(Debug)]
pub struct Plan<'a> {
    pub path: &'a CStr,
    /// With the program's name for itself.
    pub arguments: &'a [CString],
    /// `NAME=VALUE` each.
    pub env: &'a [CString],
    pub workdir: &'a CStr,
    /// Absent: whom this process runs as.
    pub identity: Option<&'a Identity>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Standard input is a terminal, and becomes the program's own.
    pub terminal: bool,
}

/// What the child reads, in the memory that it shares.
struct Child<'a> {
    plan: &'a Plan<'a>,
    stdio: [RawFd; 3],
    /// These end with a null.
    arguments: *const *const c_char,
    env: *const *const c_char,
    /// For a script without an interpreter, which is the shell's.
    script: *const *const c_char,
    /// What failed; 0: nothing.
    errno: c_int,
}

/// Starts the program, as the leader of a session and a group of its own. Whoever reaps must not do so before this returns.
///
/// # Errors
/// The system's, also when only the child met it; no process is left.
pub fn start(plan: &Plan<'_>) -> io::Result<Pid> {
    let pointers = |strings: &mut dyn Iterator<Item = &CString>| -> Vec<*const c_char> {
        let strings = strings.map(|string| string.as_ptr());
        strings.chain([ptr::null()]).collect()
    };
    let arguments = pointers(&mut plan.arguments.iter());
    let env = pointers(&mut plan.env.iter());
    let mut script = vec![SHELL.as_ptr(), plan.path.as_ptr()];
    script.extend(pointers(&mut plan.arguments.iter().skip(1)));
    let mut child = Child {
        plan,
        stdio: plan.stdio.map(|fd| fd.as_raw_fd()),
        arguments: arguments.as_ptr(),
        env: env.as_ptr(),
        script: script.as_ptr(),
        errno: 0,
    };
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    // A signal's handler in the child would act on the agent's memory.
    let mut mask = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut mask),
    )?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack's end is within its allocation and aligned; it, `child` and all that this points at outlive the
    // call, as the thread goes on only when the child has executed its program or ended. `run` keeps to what the module's
    // head says.
    let pid = unsafe {
        let top = stack.as_mut_ptr().add(stack.capacity()).cast();
        libc::clone(run, top, flags, (&raw mut child).cast())
    };
    let cloned = Errno::result(pid);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    let pid = cloned?;
    // SAFETY: `child` is alive; the other process that wrote it is gone, which the compiler cannot know.
    match unsafe { ptr::read_volatile(&raw const child.errno) } {
        0 => Ok(Pid::from_raw(pid)),
        errno => {
            // SAFETY: the call gets no memory. Its own child is all that it waits for.
            while Errno::result(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) })
                == Err(Errno::EINTR)
            {}
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// The child.
extern "C" fn run(child: *mut c_void) -> c_int {
    // SAFETY: `start` gives a `Child`, and touches it only when this has ended.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.errno = become_program(child) as c_int;
    // SAFETY: nothing of the agent's is run at this end.
    unsafe { libc::_exit(127) }
}

/// Returns only what failed.
fn become_program(child: &Child<'_>) -> Errno {
    match prepare(child) {
        Ok(()) => {}
        Err(errno) => return errno,
    }
    // SAFETY: paths and lists end with a null each, and live in the agent, which stands still.
    unsafe {
        libc::execve(child.plan.path.as_ptr(), child.arguments, child.env);
        if Errno::last() == Errno::ENOEXEC {
            libc::execve(SHELL.as_ptr(), child.script, child.env);
        }
    }
    Errno::last()
}

fn prepare(child: &Child<'_>) -> Result<(), Errno> {
    let plan = child.plan;
    // SAFETY: all pointers are to memory of the agent, which stands still; each call makes one system call and no more.
    unsafe {
        let mut usual: libc::sigaction = std::mem::zeroed();
        usual.sa_sigaction = libc::SIG_DFL;
        for signal in CHANGED {
            Errno::result(libc::sigaction(signal, &raw const usual, ptr::null_mut()))?;
        }
        Errno::result(libc::setsid())?;
        for (theirs, ours) in (0..).zip(child.stdio) {
            if ours == theirs {
                // It would be closed with the others.
                Errno::result(libc::fcntl(ours, libc::F_SETFD, 0))?;
            } else {
                Errno::result(libc::dup2(ours, theirs))?;
            }
        }
        be_ordinary();
        if let Some(Identity { uid, gid, groups }) = plan.identity {
            let (uid, gid) = (uid.as_raw(), gid.as_raw());
            Errno::result(libc::syscall(
                libc::SYS_setgroups,
                groups.len(),
                groups.as_ptr(),
            ))?;
            Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        if plan.terminal {
            Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        Errno::result(libc::chdir(plan.workdir.as_ptr()))?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        Errno::result(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut(),
        ))?;
    }
    Ok(())
}
