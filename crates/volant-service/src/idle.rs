//! When a daemon may exit: nothing under way, and nothing asked for some time.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

/// Counts what is under way. Clones share the count.
#[derive(Clone, Debug)]
pub struct Idle(Arc<watch::Sender<Activity>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Activity {
    running: usize,
    /// Grows with every beginning and end, so that a waiter sees what came and went between two looks.
    generation: u64,
}

/// Something that is under way, for as long as this value lives.
#[derive(Debug)]
pub struct Busy(Arc<watch::Sender<Activity>>);

impl Idle {
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Activity::default())))
    }

    /// Marks something as under way until the answer is dropped.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.0.send_modify(|activity| {
            activity.running += 1;
            activity.generation += 1;
        });
        Busy(Arc::clone(&self.0))
    }

    /// Resolves once nothing has been under way for `quiet`, without a break.
    pub async fn wait(&self, quiet: Duration) {
        let mut changes = self.0.subscribe();
        loop {
            if changes
                .wait_for(|activity| activity.running == 0)
                .await
                .is_err()
            {
                return; // cannot be: `self` holds the sender
            }
            if tokio::time::timeout(quiet, changes.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

impl Default for Idle {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|activity| {
            activity.running -= 1;
            activity.generation += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idle_is_told_only_after_a_quiet_time() {
        let idle = Idle::new();
        let quiet = Duration::from_secs(30);
        let begun = tokio::time::Instant::now();
        let busy = idle.busy();
        let waiter = tokio::spawn({
            let idle = idle.clone();
            async move { idle.wait(quiet).await }
        });
        tokio::time::advance(Duration::from_secs(100)).await;
        drop(busy);
        waiter.await.unwrap();
        assert!(
            begun.elapsed() >= Duration::from_secs(130),
            "{:?}",
            begun.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_call_begins_the_quiet_time_again() {
        let idle = Idle::new();
        let begun = tokio::time::Instant::now();
        let waiter = tokio::spawn({
            let idle = idle.clone();
            async move { idle.wait(Duration::from_secs(30)).await }
        });
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(20)).await;
            tokio::task::yield_now().await;
            drop(idle.busy());
            tokio::task::yield_now().await;
        }
        waiter.await.unwrap();
        assert!(
            begun.elapsed() >= Duration::from_secs(90),
            "{:?}",
            begun.elapsed()
        );
    }
}
