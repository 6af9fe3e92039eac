//! A token bucket: so much at once, so much in a second. Pure: the caller has the clock.

use std::time::Duration;

/// What a bucket holds at most, and what it gets in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub per_second: u32,
}

/// Tokens that are left.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    /// In billionths of a token, so that no rounding loses any.
    left: u128,
    filled: Duration,
}

const NANO: u128 = 1_000_000_000;

impl Bucket {
    /// A full bucket. `now` is on any clock that does not go back, the same for all calls.
    #[must_use]
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self {
            rate,
            left: u128::from(rate.burst) * NANO,
            filled: now,
        }
    }

    /// Takes `tokens`, or nothing and answers false.
    pub fn take(&mut self, tokens: u32, now: Duration) -> bool {
        let since = now.saturating_sub(self.filled);
        let gained = since.as_nanos().saturating_mul(self.rate.per_second.into());
        self.left = self
            .left
            .saturating_add(gained)
            .min(u128::from(self.rate.burst) * NANO);
        self.filled = self.filled.max(now);
        match self.left.checked_sub(u128::from(tokens) * NANO) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let rate = Rate {
            burst: 10,
            per_second: 2,
        };
        let mut bucket = Bucket::new(rate, Duration::ZERO);
        assert!(bucket.take(10, Duration::ZERO));
        assert!(!bucket.take(1, Duration::ZERO));
        assert!(bucket.take(1, Duration::from_millis(500)));
        assert!(!bucket.take(1, Duration::from_millis(999)));
        assert!(bucket.take(10, Duration::from_secs(3600)));
        assert!(!bucket.take(1, Duration::from_secs(3600)));
    }

    proptest! {
        #[test]
        fn no_more_passes_than_burst_and_rate_allow(
            takes in prop::collection::vec((0..20u32, 0..300u64), 0..200),
        ) {
            let rate = Rate { burst: 50, per_second: 30 };
            let mut bucket = Bucket::new(rate, Duration::ZERO);
            let mut now = Duration::ZERO;
            let mut passed = 0;
            for (tokens, wait) in takes {
                now += Duration::from_millis(wait);
                if bucket.take(tokens, now) {
                    passed += u128::from(tokens);
                }
                prop_assert!(passed * 1000 <= 50_000 + now.as_millis() * 30);
            }
        }
    }
}
