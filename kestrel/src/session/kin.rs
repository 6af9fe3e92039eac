//! The processes of a terminal's session, however many groups they made: who hears that it is closed.

use std::{fs, io, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

/// From SIGHUP to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Whoever forks faster than it is killed is met again by the next pass.
const PASSES: usize = 50;

/// Sends SIGHUP to all of the session that `leader` began.
pub fn hang_up(leader: Pid) {
    for pid in members(leader) {
        let _ = kill(pid, Signal::SIGHUP);
        // One that is stopped would not hear it.
        let _ = kill(pid, Signal::SIGCONT);
    }
}

/// Sends SIGHUP to all of the session, and after a while SIGKILL to those that are left.
pub async fn end(leader: Pid) {
    hang_up(leader);
    let deadline = Instant::now() + GRACE;
    while !members(leader).is_empty() {
        if Instant::now() >= deadline {
            return kill_all(leader).await;
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn kill_all(leader: Pid) {
    for _ in 0..PASSES {
        let members = members(leader);
        if members.is_empty() {
            return;
        }
        for pid in members {
            let _ = kill(pid, Signal::SIGKILL);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The living processes of the session. As long as there is one, the kernel gives the session's number to nobody else.
fn members(session: Pid) -> Vec<Pid> {
    pids()
        .unwrap_or_default()
        .into_iter()
        .filter(|pid| {
            let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
            Status::of(&stat).is_some_and(|stat| stat.session == session.as_raw() && !stat.is_dead)
        })
        .collect()
}

/// All processes that there are.
///
/// # Errors
/// There is no `/proc`.
pub fn pids() -> io::Result<Vec<Pid>> {
    Ok(fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect())
}

/// What a line of `/proc/PID/stat` says that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub is_dead: bool,
    pub session: i32,
    /// In user and kernel mode, in the kernel's ticks.
    pub ticks: u64,
    pub resident_pages: u64,
}

impl Status {
    /// The program's name before the fields may hold anything, parentheses and spaces too.
    pub fn of(stat: &[u8]) -> Option<Self> {
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let text = std::str::from_utf8(&stat[end + 1..]).ok()?;
        let mut fields = text.split_ascii_whitespace();
        let state = fields.next()?;
        // Fields 6, 14, 15 and 24 of proc(5), of which the third is the state.
        let session = fields.nth(2)?.parse().ok()?;
        let user: u64 = fields.nth(7)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let resident_pages = fields.nth(8)?.parse().ok()?;
        Some(Self {
            is_dead: matches!(state, "Z" | "X"),
            session,
            ticks: user.saturating_add(system),
            resident_pages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_whatever_it_is_called() {
        let tail = "S 1 22 33 34816 22 4194304 95 0 0 0 7 5 0 0 20 0 1 0 4079 2461696 217 18446744073709551615";
        for name in ["sh", "a) Z 1 (b", ") ) 9"] {
            let stat = format!("22 ({name}) {tail}");
            let expected = Status {
                is_dead: false,
                session: 33,
                ticks: 12,
                resident_pages: 217,
            };
            assert_eq!(Status::of(stat.as_bytes()), Some(expected), "{name}");
        }
        for stat in ["", "22 (sh", "22 (sh) S 1", "22 (sh) S a b c d"] {
            assert_eq!(Status::of(stat.as_bytes()), None, "{stat}");
        }
    }

    #[test]
    fn this_process_is_in_its_session() {
        let session = nix::unistd::getsid(None).unwrap();
        assert!(members(session).contains(&Pid::this()));
    }
}
