//! When a workload that ended is started again, and how soon. Pure: times are since any moment, as long as it is the same.

use std::{collections::VecDeque, time::Duration};

use crate::config::Restart;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A workload that ran so long is taken for one that works: its next delay is the first again.
const RAN_WELL: Duration = Duration::from_secs(60);
/// So many restarts for bad health are allowed in [`CURES_WITHIN`]: more would hide that it does not get well.
const MOST_CURES: usize = 5;
const CURES_WITHIN: Duration = Duration::from_secs(600);

/// What is known of the earlier starts.
#[derive(Clone, Debug)]
pub struct Restarts {
    policy: Restart,
    count: u32,
    delay: Duration,
    started: Duration,
    /// When it was ended for its health, the latest last; never more than [`MOST_CURES`].
    cures: VecDeque<Duration>,
}

impl Restarts {
    #[must_use]
    pub fn new(policy: Restart) -> Self {
        Self {
            policy,
            count: 0,
            delay: FIRST_DELAY,
            started: Duration::ZERO,
            cures: VecDeque::new(),
        }
    }

    /// How often it was started again.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn started(&mut self, now: Duration) {
        self.started = now;
    }

    /// It ended by itself: how long until it is started again; `None`: it is not.
    pub fn after_exit(&mut self, success: bool, now: Duration) -> Option<Duration> {
        let again = match self.policy {
            Restart::Never => false,
            Restart::OnFailure => !success,
            Restart::Always => true,
        };
        again.then(|| self.again(now))
    }

    /// It is not healthy: whether it may be ended and started again.
    pub fn may_cure(&mut self, now: Duration) -> bool {
        if self.policy == Restart::Never {
            return false;
        }
        self.cures
            .retain(|cure| now.saturating_sub(*cure) < CURES_WITHIN);
        let allowed = self.cures.len() < MOST_CURES;
        if allowed {
            self.cures.push_back(now);
        }
        allowed
    }

    /// It will be started again: how long until then.
    pub fn again(&mut self, now: Duration) -> Duration {
        if now.saturating_sub(self.started) >= RAN_WELL {
            self.delay = FIRST_DELAY;
        }
        self.count = self.count.saturating_add(1);
        let delay = self.delay;
        self.delay = (delay * 2).min(LONGEST_DELAY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_policy_decides_by_how_it_ended() {
        for (policy, success, again) in [
            (Restart::Never, true, false),
            (Restart::Never, false, false),
            (Restart::OnFailure, true, false),
            (Restart::OnFailure, false, true),
            (Restart::Always, true, true),
            (Restart::Always, false, true),
        ] {
            let delay = Restarts::new(policy).after_exit(success, seconds(1));
            assert_eq!(delay, again.then_some(FIRST_DELAY), "{policy:?} {success}");
        }
    }

    #[test]
    fn delays_double_to_a_bound_and_begin_anew_after_a_minute_of_work() {
        let mut restarts = Restarts::new(Restart::Always);
        let mut now = Duration::ZERO;
        let mut delays = Vec::new();
        for _ in 0..12 {
            restarts.started(now);
            now += seconds(59);
            delays.push(restarts.after_exit(true, now).unwrap().as_millis());
        }
        assert_eq!(
            delays,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000
            ]
        );
        restarts.started(now);
        assert_eq!(
            restarts.after_exit(true, now + seconds(60)),
            Some(FIRST_DELAY)
        );
        assert_eq!(restarts.count(), 13);
    }

    #[test]
    fn five_cures_in_ten_minutes_are_enough() {
        let mut restarts = Restarts::new(Restart::OnFailure);
        for at in 0..5 {
            assert!(restarts.may_cure(seconds(at * 60)));
        }
        assert!(!restarts.may_cure(seconds(599)));
        assert!(restarts.may_cure(seconds(600)));
        assert!(!restarts.may_cure(seconds(601)));
        assert!(!Restarts::new(Restart::Never).may_cure(seconds(1)));
    }
}
