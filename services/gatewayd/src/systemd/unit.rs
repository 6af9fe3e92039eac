//! A unit's state as systemd tells it, and how its last run failed, in words.

/// systemd's `ActiveState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActiveState {
    Active,
    Reloading,
    Refreshing,
    Inactive,
    Failed,
    Activating,
    Deactivating,
    Maintenance,
}

impl ActiveState {
    /// The state of that name; `None` for one that this build does not know.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "active" => Self::Active,
            "reloading" => Self::Reloading,
            "refreshing" => Self::Refreshing,
            "inactive" => Self::Inactive,
            "failed" => Self::Failed,
            "activating" => Self::Activating,
            "deactivating" => Self::Deactivating,
            "maintenance" => Self::Maintenance,
            _ => return None,
        })
    }

    /// Whether no process of the unit runs, nor will by itself.
    #[must_use]
    pub fn is_down(self) -> bool {
        match self {
            Self::Inactive | Self::Failed | Self::Maintenance => true,
            Self::Active
            | Self::Reloading
            | Self::Refreshing
            | Self::Activating
            | Self::Deactivating => false,
        }
    }
}

/// What is known of a VM's unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitState {
    pub active: ActiveState,
    /// `auto-restart` and the like.
    pub sub: String,
    /// Started at boot.
    pub enabled: bool,
    /// How the last run ended; `success` while it did not fail.
    pub result: String,
    /// How often systemd started it again by itself.
    pub restarts: u32,
    /// The service's own words; empty without any.
    pub status_text: String,
    /// How the main process ended.
    pub exit: Exit,
}

/// How a main process ended, as the kernel tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// `CLD_EXITED` (1), `CLD_KILLED` (2), `CLD_DUMPED` (3); 0 while it runs.
    pub code: i32,
    /// The exit code or the signal.
    pub status: i32,
}

impl UnitState {
    /// The state of a unit that systemd has not loaded, as nothing asked for it.
    #[must_use]
    pub fn unloaded() -> Self {
        Self {
            active: ActiveState::Inactive,
            sub: "dead".to_owned(),
            enabled: false,
            result: "success".to_owned(),
            restarts: 0,
            status_text: String::new(),
            exit: Exit::default(),
        }
    }

    /// Whether the last run failed and systemd will start the unit again.
    #[must_use]
    pub fn is_restarting(&self) -> bool {
        self.active == ActiveState::Activating && self.sub.starts_with("auto-restart")
    }

    /// Why the last run failed: systemd's verdict, then the service's own last words.
    #[must_use]
    pub fn failure(&self) -> String {
        let verdict = match (self.result.as_str(), self.exit.code) {
            ("exit-code", _) => format!("the supervisor exited with code {}", self.exit.status),
            ("signal" | "core-dump", _) => {
                format!("the supervisor was ended by signal {}", self.exit.status)
            }
            ("timeout", _) => "it was not ready, or not down, in time".to_owned(),
            ("watchdog", _) => "the guest's agent or the supervisor fell silent".to_owned(),
            ("oom-kill", _) => "the host ran out of memory for it".to_owned(),
            ("start-limit-hit", _) => "it failed too often in a short time".to_owned(),
            ("protocol", _) => "the supervisor ended before the guest was ready".to_owned(),
            ("resources", _) => "systemd could not start the supervisor".to_owned(),
            ("success", _) => "the supervisor did not say why".to_owned(),
            (other, _) => format!("systemd calls it '{other}'"),
        };
        match self.status_text.as_str() {
            "" => verdict,
            words => format!("{words} ({verdict})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_has_the_services_words_and_systemds_verdict() {
        let unit = |result: &str, status_text: &str, code, status| UnitState {
            active: ActiveState::Failed,
            sub: "failed".to_owned(),
            enabled: false,
            result: result.to_owned(),
            restarts: 0,
            status_text: status_text.to_owned(),
            exit: Exit { code, status },
        };
        let cases = [
            (
                unit("exit-code", "no agent called within 60 s", 1, 1),
                "no agent called within 60 s (the supervisor exited with code 1)",
            ),
            (
                unit("signal", "", 2, 9),
                "the supervisor was ended by signal 9",
            ),
            (
                unit("start-limit-hit", "", 0, 0),
                "it failed too often in a short time",
            ),
            (
                unit("moon-phase", "", 0, 0),
                "systemd calls it 'moon-phase'",
            ),
        ];
        for (unit, expected) in cases {
            assert_eq!(unit.failure(), expected);
        }
    }
}
