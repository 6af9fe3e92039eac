//! The guest's sign of life.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{host::Host, logs::Logs, usage};

/// The host has heard hello just before, and people wait for the workload: what is measured for a heartbeat comes after its
/// start.
const FIRST: Duration = Duration::from_millis(250);

/// Sends heartbeats for as long as the guest lives. A host that misses some says so by itself.
pub async fn beat(host: Host, every: Duration, logs: Arc<Logs>) {
    let mut ticks = interval_at(Instant::now() + every.min(FIRST), every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_heard = true;
    loop {
        ticks.tick().await;
        let result = host.heartbeat(usage::measure()).await;
        // Once, not at every beat.
        if let (true, Err(error)) = (is_heard, &result) {
            logs.say(&format!("cannot send a heartbeat: {error}"));
        }
        is_heard = result.is_ok();
    }
}
