//! What a VM does now: its unit's state, and what its supervisor says. Pure.

use serde::Serialize;

use crate::systemd::{ActiveState, UnitState};

/// What a VM does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Stopped,
    Starting,
    Running,
    Stopping,
    Failed,
    Deleting,
}

/// The phase of a VM. systemd has the last word; the supervisor's own (`live`) tells apart what systemd cannot: a VM
/// that goes down by itself is `active` to systemd until its supervisor ended, and one whose guest reboots all the time.
#[must_use]
pub fn of(deleting: bool, unit: &UnitState, live: Option<&str>) -> Phase {
    if deleting {
        return Phase::Deleting;
    }
    match unit.active {
        ActiveState::Active | ActiveState::Reloading | ActiveState::Refreshing => match live {
            Some("stopping" | "ended") => Phase::Stopping,
            Some("starting" | "booting") => Phase::Starting,
            _ => Phase::Running,
        },
        ActiveState::Activating => Phase::Starting,
        ActiveState::Deactivating => Phase::Stopping,
        ActiveState::Inactive | ActiveState::Maintenance => Phase::Stopped,
        ActiveState::Failed => Phase::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systemd::Exit;

    #[test]
    fn the_unit_tells_the_phase() {
        use ActiveState as A;
        let cases = [
            (false, A::Inactive, "dead", None, Phase::Stopped),
            (
                false,
                A::Activating,
                "start",
                Some("booting"),
                Phase::Starting,
            ),
            (false, A::Activating, "auto-restart", None, Phase::Starting),
            (false, A::Active, "running", Some("running"), Phase::Running),
            (false, A::Active, "running", None, Phase::Running),
            (
                false,
                A::Active,
                "running",
                Some("stopping"),
                Phase::Stopping,
            ),
            (false, A::Active, "running", Some("ended"), Phase::Stopping),
            (
                false,
                A::Active,
                "running",
                Some("starting"),
                Phase::Starting,
            ),
            (
                false,
                A::Active,
                "running",
                Some("booting"),
                Phase::Starting,
            ),
            (
                false,
                A::Reloading,
                "reload",
                Some("running"),
                Phase::Running,
            ),
            (false, A::Refreshing, "refresh", None, Phase::Running),
            (
                false,
                A::Deactivating,
                "stop-sigterm",
                Some("running"),
                Phase::Stopping,
            ),
            (false, A::Failed, "failed", None, Phase::Failed),
            (false, A::Maintenance, "", None, Phase::Stopped),
            (true, A::Active, "running", Some("running"), Phase::Deleting),
            (true, A::Inactive, "dead", None, Phase::Deleting),
        ];
        for (deleting, active, sub, live, expected) in cases {
            let unit = UnitState {
                active,
                sub: sub.to_owned(),
                enabled: false,
                result: "success".to_owned(),
                restarts: 0,
                status_text: String::new(),
                exit: Exit::default(),
            };
            let phase = of(deleting, &unit, live);
            assert_eq!(phase, expected, "{deleting} {active:?} {sub} {live:?}");
        }
    }
}
