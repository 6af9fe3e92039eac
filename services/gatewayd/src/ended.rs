//! How a VM's last run ended, by what outlives its supervisor: what systemd keeps of the unit. Pure.
//!
//! The supervisor's exit code alone cannot tell: a workload may exit with any. Its last words (`STATUS=`) can; they are
//! those of `vmd`'s `Ended`. The journal's `VOLANT_ENDED` has them all for who looks later.

use crate::systemd::{ActiveState, UnitState};

/// How the last run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// vmd's name for it.
    pub how: Option<String>,
    /// Of the workload, if it ended by itself.
    pub exit_code: Option<i32>,
}

const EXITED: &str = "the workload exited with code ";
const KILLED: &str = "the workload was killed by signal ";

/// How the last run of a unit ended; nothing of it is known while it runs, or once systemd forgot the unit.
#[must_use]
pub fn of(unit: &UnitState) -> Ended {
    let ran = unit.exit.code != 0;
    let down = matches!(unit.active, ActiveState::Inactive | ActiveState::Failed);
    if !ran || !(down || unit.is_restarting()) {
        return Ended::default();
    }
    let words = unit.status_text.as_str();
    if let Some(code) = number_behind(words, EXITED) {
        return workload(code);
    }
    if let Some(signal) = number_behind(words, KILLED) {
        return workload(128 + signal);
    }
    let how = match unit.result.as_str() {
        "oom-kill" => Some("out-of-memory"),
        "watchdog" => Some("watchdog"),
        "timeout" => Some("timeout"),
        "signal" | "core-dump" => Some("supervisor-killed"),
        _ => by_code(words, unit.exit.status),
    };
    Ended {
        how: how.map(str::to_owned),
        exit_code: None,
    }
}

fn workload(code: i32) -> Ended {
    Ended {
        how: Some("workload-exited".to_owned()),
        exit_code: Some(code),
    }
}

/// The table at the head of vmd's `ended.rs`; codes of several names are told apart by the words.
fn by_code(words: &str, code: i32) -> Option<&'static str> {
    Some(match code {
        0 if words.starts_with("the guest powered off") => "guest-power-off",
        0 => "stopped",
        69 => "vmm-missing",
        70 if words.contains("did not") || words.contains("cannot") => "vmm-failed",
        70 => "vmm-crashed",
        71 => "kernel-panic",
        72 if words.starts_with("no agent") => "no-agent",
        72 => "no-workload",
        73 => "agent-fatal",
        74 => "agent-silent",
        75 | 78 => "not-started",
        76 => "out-of-memory",
        77 => "reboot-loop",
        _ => return None,
    })
}

fn number_behind(words: &str, prefix: &str) -> Option<i32> {
    let rest = words.strip_prefix(prefix)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // What is no code or signal is not one.
    digits
        .parse()
        .ok()
        .filter(|number| (0..=255).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systemd::Exit;

    fn unit(active: ActiveState, result: &str, words: &str, code: i32, status: i32) -> UnitState {
        UnitState {
            active,
            result: result.to_owned(),
            status_text: words.to_owned(),
            exit: Exit { code, status },
            ..UnitState::unloaded()
        }
    }

    #[test]
    fn the_words_and_the_code_tell_the_end() {
        use ActiveState::{Active, Failed, Inactive};
        let cases = [
            (
                unit(Failed, "exit-code", "the workload exited with code 7", 1, 7),
                Some("workload-exited"),
                Some(7),
            ),
            (
                unit(Inactive, "success", "the workload exited with code 0", 1, 0),
                Some("workload-exited"),
                Some(0),
            ),
            // vmd exits with 1 for 69 and 78 of a workload.
            (
                unit(
                    Failed,
                    "exit-code",
                    "the workload exited with code 78",
                    1,
                    1,
                ),
                Some("workload-exited"),
                Some(78),
            ),
            (
                unit(
                    Failed,
                    "exit-code",
                    "the workload was killed by signal 9",
                    1,
                    137,
                ),
                Some("workload-exited"),
                Some(137),
            ),
            (
                unit(
                    Failed,
                    "exit-code",
                    "the workload exited with code 99999999999",
                    1,
                    1,
                ),
                None,
                None,
            ),
            (
                unit(Failed, "exit-code", "the guest's kernel panicked: x", 1, 71),
                Some("kernel-panic"),
                None,
            ),
            (
                unit(Inactive, "success", "stopped: the workload", 1, 0),
                Some("stopped"),
                None,
            ),
            (
                unit(Inactive, "success", "the guest powered off", 1, 0),
                Some("guest-power-off"),
                None,
            ),
            (
                unit(Failed, "oom-kill", "running", 2, 9),
                Some("out-of-memory"),
                None,
            ),
            (
                unit(Failed, "signal", "running", 2, 9),
                Some("supervisor-killed"),
                None,
            ),
            (
                unit(Active, "success", "the workload exited with code 7", 0, 0),
                None,
                None,
            ),
            (UnitState::unloaded(), None, None),
        ];
        for (unit, how, exit_code) in cases {
            let ended = of(&unit);
            assert_eq!(
                (ended.how.as_deref(), ended.exit_code),
                (how, exit_code),
                "{unit:?}"
            );
        }
    }
}
