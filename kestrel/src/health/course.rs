//! What answers to a health check amount to, and when to ask next. Pure.

use std::time::Duration;

use crate::config::{HealthConfig, Probe};

/// Until the first success the next question comes soon, so that nobody waits long for a workload that is ready.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
/// A program costs more to ask than a port.
const FIRST_PAUSE_OF_PROGRAM: Duration = Duration::from_millis(250);

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answered well for the first time.
    Healthy,
    /// It failed too often. The last verdict.
    Unhealthy,
}

#[derive(Clone, Debug)]
pub struct Course {
    interval: Duration,
    retries: u32,
    start_period: Duration,
    /// `None` after the first success.
    quick: Option<Duration>,
    failures: u32,
}

impl Course {
    #[must_use]
    pub fn new(config: &HealthConfig) -> Self {
        Self {
            interval: config.interval,
            retries: config.retries.max(1),
            start_period: config.start_period,
            quick: Some(match config.probe {
                Probe::Exec(_) => FIRST_PAUSE_OF_PROGRAM,
                Probe::Http(_) | Probe::Tcp(_) => FIRST_PAUSE,
            }),
            failures: 0,
        }
    }

    /// Until the next question.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.quick
            .map_or(self.interval, |quick| quick.min(self.interval))
    }

    /// Takes an answer, so long after the workload's start.
    pub fn on(&mut self, success: bool, since_start: Duration) -> Option<Verdict> {
        if success {
            self.failures = 0;
            return self.quick.take().map(|_| Verdict::Healthy);
        }
        if let Some(quick) = &mut self.quick {
            *quick = (*quick * 2).min(self.interval);
            // Questions that come early do not count more: a failure an interval, after the start period, as if they came
            // at the interval's pace.
            let counts_from = self.start_period + self.interval * (self.failures + 1);
            if since_start < counts_from {
                return None;
            }
        }
        self.failures += 1;
        (self.failures >= self.retries).then_some(Verdict::Unhealthy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(interval: u64, retries: u32, start_period: u64) -> HealthConfig {
        HealthConfig {
            probe: Probe::Tcp(80),
            interval: Duration::from_millis(interval),
            timeout: Duration::from_secs(1),
            retries,
            start_period: Duration::from_millis(start_period),
        }
    }

    /// Asks until the verdict; answers are by the time since the start. Gives when it came.
    fn verdict(config: &HealthConfig, answer: impl Fn(Duration) -> bool) -> (Verdict, Duration) {
        let mut course = Course::new(config);
        let mut now = Duration::ZERO;
        loop {
            now += course.pause();
            if let Some(verdict) = course.on(answer(now), now) {
                return (verdict, now);
            }
        }
    }

    #[test]
    fn a_workload_that_is_ready_soon_is_known_soon() {
        let ready = Duration::from_millis(600);
        let (found, at) = verdict(&config(30_000, 3, 0), |now| now >= ready);
        assert_eq!(found, Verdict::Healthy);
        assert!(at < 2 * ready, "{at:?}");
    }

    #[test]
    fn one_that_never_gets_ready_has_its_start_period_and_its_retries() {
        for (interval, retries, start_period, at) in [
            (10_000, 3, 0, 30_000),
            (10_000, 3, 60_000, 90_000),
            (100, 1, 0, 100),
        ] {
            let (found, when) = verdict(&config(interval, retries, start_period), |_| false);
            assert_eq!(found, Verdict::Unhealthy);
            let (at, slack) = (Duration::from_millis(at), Duration::from_millis(interval));
            assert!(when >= at && when <= at + 2 * slack, "{when:?} {at:?}");
        }
    }

    #[test]
    fn failures_count_in_a_row_and_a_success_ends_the_start_period() {
        let mut course = Course::new(&config(1000, 2, 60_000));
        let at = Duration::from_secs(1);
        let answers = [
            (false, None),
            (true, Some(Verdict::Healthy)),
            (false, None),
            (true, None),
            (false, None),
            (false, Some(Verdict::Unhealthy)),
        ];
        for (success, expected) in answers {
            assert_eq!(course.on(success, at), expected);
        }
        assert_eq!(course.pause(), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn the_pause_is_never_longer_than_the_interval_nor_none(
            answers in prop::collection::vec(any::<bool>(), 0..40),
            interval in 100_u64..60_000,
        ) {
            let mut course = Course::new(&config(interval, 1000, 0));
            for success in answers {
                course.on(success, Duration::ZERO);
                prop_assert!(course.pause() <= Duration::from_millis(interval));
                prop_assert!(course.pause() >= FIRST_PAUSE);
            }
        }
    }
}
