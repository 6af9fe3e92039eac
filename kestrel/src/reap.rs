//! The one place that waits for processes: it reaps whatever ends and routes the exit to who waits for that pid.
//!
//! Nothing else in this process may call `wait`; orphans that come to PID 1 are reaped and forgotten.

use std::{
    collections::HashMap,
    io,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

/// How a process ended, as a shell tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub code: u32,
    /// The signal's number where one ended it, else 0.
    pub signal: u32,
}

impl Exit {
    /// `None` when the process has not ended.
    fn of(status: WaitStatus) -> Option<(Pid, Self)> {
        match status {
            WaitStatus::Exited(pid, code) => Some((
                pid,
                Self {
                    code: u32::try_from(code).unwrap_or(u32::MAX),
                    signal: 0,
                },
            )),
            WaitStatus::Signaled(pid, signal, _) => {
                let signal = u32::try_from(signal as i32).unwrap_or(0);
                Some((
                    pid,
                    Self {
                        code: 128 + signal,
                        signal,
                    },
                ))
            }
            _ => None,
        }
    }
}

type Routes = HashMap<Pid, oneshot::Sender<Exit>>;

/// See the module's head. One per process.
#[derive(Debug)]
pub struct Reaper {
    routes: Mutex<Routes>,
    childless: watch::Sender<bool>,
}

impl Reaper {
    /// Begins to reap, until the runtime ends.
    ///
    /// # Errors
    /// The signal cannot be handled.
    pub fn start() -> io::Result<Arc<Self>> {
        let mut child = signal(SignalKind::child())?;
        let reaper = Arc::new(Self {
            routes: Mutex::default(),
            childless: watch::Sender::new(true),
        });
        tokio::spawn({
            let reaper = Arc::clone(&reaper);
            async move {
                // What ended before the handler was installed sent its signal to nobody.
                reaper.reap();
                while child.recv().await.is_some() {
                    reaper.reap();
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a process and promises its exit.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        // Held from before the process exists: an exit cannot come before its route.
        let mut routes = self.routes();
        let child = command.spawn()?;
        let (sender, exit) = oneshot::channel();
        // Linux's process numbers are below 2^22.
        let pid = Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX));
        routes.insert(pid, sender);
        self.childless.send_replace(false);
        Ok((child, exit))
    }

    /// Resolves when this process has no child, dead or alive.
    pub async fn childless(&self) {
        // An error says that the sender is gone; it is `self`.
        let _ = self
            .childless
            .subscribe()
            .wait_for(|childless| *childless)
            .await;
    }

    fn reap(&self) {
        let mut routes = self.routes();
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    self.childless.send_replace(false);
                    return;
                }
                Ok(status) => {
                    let exit =
                        Exit::of(status).and_then(|(pid, exit)| Some((routes.remove(&pid)?, exit)));
                    if let Some((route, exit)) = exit {
                        // Who does not wait any more does not care.
                        let _ = route.send(exit);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => {
                    // ECHILD: nobody is left.
                    self.childless.send_replace(true);
                    return;
                }
            }
        }
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn an_exit_is_told_as_a_shell_does() {
        let pid = Pid::from_raw(7);
        for (status, expected) in [
            (WaitStatus::Exited(pid, 3), Some((3, 0))),
            (
                WaitStatus::Signaled(pid, Signal::SIGKILL, false),
                Some((137, 9)),
            ),
            (
                WaitStatus::Signaled(pid, Signal::SIGSEGV, true),
                Some((139, 11)),
            ),
            (WaitStatus::Stopped(pid, Signal::SIGSTOP), None),
            (WaitStatus::StillAlive, None),
        ] {
            let expected = expected.map(|(code, signal)| (pid, Exit { code, signal }));
            assert_eq!(Exit::of(status), expected, "{status:?}");
        }
    }
}
