//! The guest's sign of life.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::{host::Host, logs::Logs, usage};

/// Sends heartbeats for as long as the guest lives. A host that misses some says so by itself.
pub async fn beat(host: Host, every: Duration, logs: Arc<Logs>) {
    let mut ticks = interval(every);
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
