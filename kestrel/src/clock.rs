//! The guest's clock, by the host's: it stood still while the guest did, and began with whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{kernel::Kernel, logs::Logs};

/// 2020-01-01: a host that says less does not know the time.
const EARLIEST: Duration = Duration::from_secs(1_577_836_800);
/// A difference that nobody minds, when the guest starts.
pub const CLOSE_ENOUGH: Duration = Duration::from_millis(100);

/// Sets the clock to `host`'s when they differ by more than `slack`.
pub fn follow(kernel: &impl Kernel, host: Duration, slack: Duration, logs: &Logs) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    if host < EARLIEST {
        return logs.say("the host does not know the time: the clock stays as it is");
    }
    if now.abs_diff(host) <= slack {
        return;
    }
    if let Err(errno) = kernel.set_clock(host) {
        logs.say(&format!("cannot set the clock: {errno}"));
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;
    use crate::fake::FakeKernel;

    #[tokio::test]
    async fn the_clock_is_set_when_it_is_wrong_and_the_host_knows_better() {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let minute = Duration::from_secs(60);
        for (host, is_set) in [
            (now() + minute, true),
            (now() - minute, true),
            (now(), false),
            (EARLIEST - minute, false),
            (Duration::ZERO, false),
        ] {
            let kernel = FakeKernel::default();
            follow(&kernel, host, Duration::from_secs(5), &Logs::default());
            let expected = is_set.then(|| format!("clock {}", host.as_nanos()));
            assert_eq!(kernel.calls(), Vec::from_iter(expected));
        }
        let (kernel, logs) = (FakeKernel::default(), Logs::default());
        kernel.fail("clock", Errno::EPERM);
        follow(&kernel, now() + minute, CLOSE_ENOUGH, &logs);
        let said = logs.next().await.unwrap().line;
        assert!(said.starts_with(b"cannot set the clock: EPERM"));
    }
}
