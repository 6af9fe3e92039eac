//! The one place that waits for processes: it reaps whatever ends and routes the exit to who waits for that pid.
//!
//! Nothing else in this process may call `wait`; orphans that come to PID 1 are reaped and forgotten.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, unistd::Pid};
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
    fn of(status: ExitStatus) -> Option<Self> {
        match (status.code(), status.signal()) {
            (Some(code), _) => Some(Self {
                code: u32::try_from(code).unwrap_or(u32::MAX),
                signal: 0,
            }),
            (None, Some(signal)) => {
                let signal = u32::try_from(signal).unwrap_or(0);
                Some(Self {
                    code: 128 + signal,
                    signal,
                })
            }
            (None, None) => None,
        }
    }
}

/// Whatever child has ended, with how; `None` while all of them live.
///
/// nix's `waitpid` reaps a child that a real-time signal ended, and then fails, as it has no name for the signal: the
/// exit would be lost.
fn wait_any() -> Result<Option<(Pid, ExitStatus)>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for one int, and outlives the call.
    #[allow(unsafe_code, reason = "the system call that knows every signal")]
    let pid = unsafe { nix::libc::waitpid(-1, &raw mut status, nix::libc::WNOHANG) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid), ExitStatus::from_raw(status)))),
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
        self.promise(|| {
            let child = command.spawn()?;
            // As the agent the kernel would never end it for want of memory. It is no more than a hint, and the process may
            // have ended.
            let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
            // Linux's process numbers are below 2^22.
            let pid = Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX));
            Ok((child, pid))
        })
    }

    /// Promises the exit of the process that `start` starts, which gives its number, too.
    ///
    /// # Errors
    /// Those of `start`.
    pub fn promise<T>(
        &self,
        start: impl FnOnce() -> io::Result<(T, Pid)>,
    ) -> io::Result<(T, oneshot::Receiver<Exit>)> {
        // Held from before the process exists: an exit cannot come before its route.
        let mut routes = self.routes();
        let (started, pid) = start()?;
        let (sender, exit) = oneshot::channel();
        routes.insert(pid, sender);
        self.childless.send_replace(false);
        Ok((started, exit))
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
            match wait_any() {
                Ok(None) => {
                    self.childless.send_replace(false);
                    return;
                }
                Ok(Some((pid, status))) => {
                    let exit = Exit::of(status).and_then(|exit| Some((routes.remove(&pid)?, exit)));
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
    use super::*;

    #[test]
    fn an_exit_is_told_as_a_shell_does() {
        // As `waitpid` gives them: the code in the second byte, or the signal in the first.
        let cases = [
            (3 << 8, Some((3, 0))),
            (9, Some((137, 9))),
            (11 | 0x80, Some((139, 11))),
            (34, Some((162, 34))),
            (0x7f | (19 << 8), None),
        ];
        for (status, expected) in cases {
            let expected = expected.map(|(code, signal)| Exit { code, signal });
            assert_eq!(
                Exit::of(ExitStatus::from_raw(status)),
                expected,
                "{status:#x}"
            );
        }
    }

    #[tokio::test]
    async fn an_exit_by_a_real_time_signal_is_not_lost() {
        let reaper = Reaper::start().unwrap();
        let (_, exit) = reaper
            .spawn(Command::new("/bin/sh").args(["-c", "kill -34 $$"]))
            .unwrap();
        let exit = tokio::time::timeout(std::time::Duration::from_secs(30), exit).await;
        assert_eq!(
            exit.unwrap().unwrap(),
            Exit {
                code: 162,
                signal: 34
            }
        );
    }
}
