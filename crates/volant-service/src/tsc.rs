//! How fast this processor's time stamp counter runs.

use std::{arch::x86_64::_rdtsc, time::Instant};

/// The counter at one moment. Two of them give its rate.
#[derive(Clone, Copy, Debug)]
pub struct TscSample {
    ticks: u64,
    at: Instant,
}

impl TscSample {
    /// Reads counter and clock together, as closely as a few tries allow.
    #[must_use]
    pub fn take() -> Self {
        let tries = (0..8).map(|_| {
            let before = read();
            let at = Instant::now();
            let after = read();
            let width = after.wrapping_sub(before);
            (
                width,
                Self {
                    ticks: before.wrapping_add(width / 2),
                    at,
                },
            )
        });
        tries.min_by_key(|(width, _)| *width).map_or_else(
            || Self {
                ticks: read(),
                at: Instant::now(),
            },
            |(_, sample)| sample,
        )
    }

    #[must_use]
    pub fn taken_at(&self) -> Instant {
        self.at
    }

    /// The counter's rate from this sample to a later one, in kHz; nothing when it did not move on as a counter does.
    ///
    /// Ten milliseconds between the two give about ten parts in a million.
    #[must_use]
    pub fn khz_until(&self, later: &Self) -> Option<u64> {
        let nanos = later.at.checked_duration_since(self.at)?.as_nanos();
        let ticks = later.ticks.checked_sub(self.ticks)?;
        let khz = (u128::from(ticks) * 1_000_000).checked_div(nanos)?;
        u64::try_from(khz).ok().filter(|khz| *khz > 0)
    }
}

fn read() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it open to processes.
    #[allow(unsafe_code, reason = "the counter is read by an instruction")]
    unsafe {
        _rdtsc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_rate_is_ticks_over_time() {
        let at = Instant::now();
        let sample = |ticks, ms| TscSample {
            ticks,
            at: at + Duration::from_millis(ms),
        };
        let first = sample(1_000, 0);
        assert_eq!(first.khz_until(&sample(24_501_000, 10)), Some(2_450_000));
        assert_eq!(first.khz_until(&sample(24_501_000, 0)), None);
        assert_eq!(first.khz_until(&sample(10, 10)), None);
        assert_eq!(sample(0, 10).khz_until(&sample(1_000_000, 0)), None);
    }

    #[test]
    fn two_measures_of_one_processor_agree() {
        let wait = |since: Instant| while since.elapsed() < Duration::from_millis(20) {};
        let [first, second, third] = [(); 3].map(|()| {
            let sample = TscSample::take();
            wait(sample.taken_at());
            sample
        });
        let (one, two) = (
            first.khz_until(&second).unwrap(),
            second.khz_until(&third).unwrap(),
        );
        assert!(one.abs_diff(two) < one / 1000, "{one} kHz, {two} kHz");
    }
}
