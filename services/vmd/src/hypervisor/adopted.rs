//! A child that this process started before it executed another program in its place: nothing here knows it but by its number.

use std::io;

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal as Number, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::process::Exit;

/// The child. Killed when dropped.
#[derive(Debug)]
pub(super) struct Adopted {
    pid: Pid,
    /// Resolves when some child ended.
    ends: Signal,
    exit: Option<Exit>,
}

impl Adopted {
    /// Takes child `pid` over. Its number is its own until its end is seen here.
    pub(super) fn new(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
        Ok(Self {
            pid: Pid::from_raw(pid.ok_or(io::ErrorKind::InvalidData)?),
            ends: signal(SignalKind::child())?,
            exit: None,
        })
    }

    /// The process id; 0 after the end.
    pub(super) fn pid(&self) -> u32 {
        match self.exit {
            None => u32::try_from(self.pid.as_raw()).unwrap_or(0),
            Some(_) => 0,
        }
    }

    /// Resolves at the end. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.look() {
                return exit;
            }
            if self.ends.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Kills it, if it still runs, and waits for its end.
    pub(super) async fn kill(&mut self) {
        self.send_kill();
        self.wait().await;
    }

    fn send_kill(&mut self) {
        if self.look().is_none() {
            // It is our child until its end is seen, so no other process has its number.
            let _ = kill(self.pid, Number::SIGKILL);
        }
    }

    fn look(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(Exit::Code(code)),
                Ok(WaitStatus::Signaled(_, number, _)) => Some(Exit::Signal(number as i32)),
                Ok(_) | Err(Errno::EINTR) => None,
                // It is no child of ours any more: all that is known is that it ended.
                Err(_) => Some(Exit::Code(-1)),
            };
        }
        self.exit
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        self.send_kill();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn child(script: &str) -> u32 {
        Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap()
            .id()
    }

    #[tokio::test]
    async fn its_end_is_seen_however_and_whenever_it_ends() {
        for (script, expected) in [
            ("exit 7", Exit::Code(7)),
            ("kill -9 $$", Exit::Signal(9)),
            ("sleep 0.1; exit 3", Exit::Code(3)),
        ] {
            let mut adopted = Adopted::new(child(script)).unwrap();
            assert_eq!(adopted.wait().await, expected, "{script}");
            assert_eq!(adopted.wait().await, expected, "{script}");
            assert_eq!(adopted.pid(), 0);
        }
    }

    #[tokio::test]
    async fn it_is_killed_once_and_does_not_outlive_who_adopted_it() {
        let mut adopted = Adopted::new(child("exec sleep 1000")).unwrap();
        assert!(adopted.pid() > 0);
        adopted.kill().await;
        assert_eq!(adopted.exit, Some(Exit::Signal(9)));
        adopted.kill().await;

        let number = child("exec sleep 1000");
        drop(Adopted::new(number).unwrap());
        let pid = Pid::from_raw(i32::try_from(number).unwrap());
        assert!(matches!(
            waitpid(pid, None).unwrap(),
            WaitStatus::Signaled(_, Number::SIGKILL, _)
        ));
    }

    #[tokio::test]
    async fn what_is_no_child_has_ended() {
        let mut nobody = Adopted::new(1).unwrap();
        assert_eq!(nobody.wait().await, Exit::Code(-1));
        assert!(Adopted::new(0).is_err());
        assert!(Adopted::new(u32::MAX).is_err());
    }
}
