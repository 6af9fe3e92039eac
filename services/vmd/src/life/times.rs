//! How long each step of a life may last. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often the power button is pressed.
pub const BUTTON_PRESSES: u8 = 3;
/// What a unit's `TimeoutStopSec=` is where nobody told.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(90);

/// How long each step may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// From the VMM's start to the agent's hello.
    pub boot: Duration,
    /// From the hello to the workload's readiness.
    pub workload_start: Duration,
    /// Between two heartbeats.
    pub silence: Duration,
    /// What the workload may take from its stop signal to its end.
    pub grace: Duration,
    /// What the agent may take beyond the workload's grace.
    pub agent: Duration,
    /// Between two presses of the power button.
    pub button: Duration,
    /// What a guest may take that goes down by itself.
    pub guest: Duration,
    /// From SIGKILL to the VMM's end.
    pub kill: Duration,
}

impl Times {
    /// A guest that says hello within `boot` and is ready `workload_start` later, with the stop ladder of a unit that systemd kills
    /// after `stop_timeout` (`None`: never): the rungs together take less. The workload has its `grace` as far as
    /// that allows.
    #[must_use]
    pub fn new(
        boot: Duration,
        workload_start: Duration,
        grace: Duration,
        stop_timeout: Option<Duration>,
    ) -> Self {
        let share = |most: u64, part: u32| {
            let most = Duration::from_secs(most);
            stop_timeout.map_or(most, |timeout| most.min(timeout / part))
        };
        let (agent, button, kill) = (share(5, 10), share(2, 20), share(10, 10));
        // The last is for what vmd does itself: the journal, and the folder of its sockets.
        let others = agent + button * u32::from(BUTTON_PRESSES) + kill + share(5, 10);
        let left = |wanted: Duration, others: Duration| {
            stop_timeout.map_or(wanted, |timeout| wanted.min(timeout.saturating_sub(others)))
        };
        Self {
            boot,
            workload_start,
            silence: Duration::from_secs(30),
            grace: left(grace, others),
            agent,
            button,
            guest: left(Duration::from_secs(30), kill + share(5, 10)),
            kill,
        }
    }

    /// What a stop takes at most, from its first rung to its last.
    #[must_use]
    pub fn ladder(&self) -> Duration {
        let asked = self.grace.saturating_add(self.agent);
        let pressed = self.button * u32::from(BUTTON_PRESSES);
        asked
            .saturating_add(pressed)
            .max(self.guest)
            .saturating_add(self.kill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rungs_of_a_stop_share_what_systemd_gives_it() {
        let cases: [(Option<u64>, u64, u64, u64, u64); 6] = [
            // timeout, wanted grace: grace, agent, button in milliseconds
            (Some(90), 10, 10_000, 5_000, 2_000),
            (Some(90), 600, 65_000, 5_000, 2_000),
            (Some(20), 10, 10_000, 2_000, 1_000),
            (Some(10), 10, 5_500, 1_000, 500),
            (Some(1), 10, 550, 100, 50),
            (None, 600, 600_000, 5_000, 2_000),
        ];
        for (timeout, grace, expected, agent, button) in cases {
            let timeout = timeout.map(Duration::from_secs);
            let boot = Duration::from_secs(60);
            let times = Times::new(boot, boot, Duration::from_secs(grace), timeout);
            let millis = |millis| Duration::from_millis(millis);
            assert_eq!(times.grace, millis(expected), "{timeout:?}");
            assert_eq!(times.agent, millis(agent), "{timeout:?}");
            assert_eq!(times.button, millis(button), "{timeout:?}");
            if let Some(timeout) = timeout {
                assert!(times.ladder() < timeout, "{times:?}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_ladder_always_ends_before_systemd_ends_it(timeout in 1u64..10_000_000, grace in 0u64..10_000_000) {
            let timeout = Duration::from_millis(timeout);
            let boot = Duration::from_secs(60);
            let times = Times::new(boot, boot, Duration::from_millis(grace), Some(timeout));
            proptest::prop_assert!(times.ladder() < timeout, "{:?}", times);
        }
    }
}
