//! The end of a guest. Every step is bounded, and the next one comes whatever became of it.

use std::{fs, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use volant_proto::agent::v1::{self, report_request::Report};

use crate::{
    cause::chain,
    console,
    kernel::{Ending, Kernel},
    life::Reason,
    logs::Logs,
    mounts::release_all,
    reap::Reaper,
    reports::Reports,
    supervise::GONE_WITHIN,
};

/// The last words are not worth more: the machine goes down with them or without.
pub const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);
const DRAINED_WITHIN: Duration = Duration::from_secs(1);
const SHIPPED_WITHIN: Duration = Duration::from_secs(3);
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

/// What there is to end besides processes; most of it once the host has been met.
#[derive(Debug, Default)]
pub struct Remains {
    pub reaper: Option<Arc<Reaper>>,
    pub shipping: Option<JoinHandle<()>>,
    /// The readers of the workload's pipes.
    pub readers: JoinSet<()>,
    pub exit: Option<v1::WorkloadExited>,
}

/// Ends all but the machine, and says how that should end.
pub async fn end<K: Kernel>(
    kernel: &K,
    logs: &Logs,
    reports: &Reports,
    reason: Reason,
    mut remains: Remains,
) -> Ending {
    if let Some(exit) = remains.exit {
        reports.tell(Report::WorkloadExited(exit));
    }
    if !reports.flush(LAST_WORD_WITHIN).await {
        console::say("the host did not take the reports on the workload");
    }
    kernel.kill_all();
    if let Some(reaper) = &remains.reaper
        && timeout(GONE_WITHIN, reaper.childless()).await.is_err()
    {
        console::say("some processes did not end when they were killed");
    }
    let drained = async { while remains.readers.join_next().await.is_some() {} };
    if timeout(DRAINED_WITHIN, drained).await.is_err() {
        logs.say("the workload's output did not end with it");
    }
    logs.close();
    if let Some(shipping) = remains.shipping
        && timeout(SHIPPED_WITHIN, shipping).await.is_err()
    {
        console::say("the host did not take the last lines of the workload's output");
    }
    release(kernel).await;
    reports.tell(Report::GoingDown(v1::GoingDown {
        reason: v1::going_down::Reason::from(reason).into(),
    }));
    if !reports.flush(LAST_WORD_WITHIN).await {
        console::say(&format!(
            "going down ({reason:?}), and the host did not take that"
        ));
    }
    match reason {
        Reason::GuestReboot => Ending::Reset,
        Reason::Requested
        | Reason::WorkloadExited
        | Reason::PowerButton
        | Reason::GuestPowerOff
        | Reason::Fatal
        | Reason::Unhealthy => Ending::PowerOff,
    }
}

/// In a thread of its own: a dead disk holds who writes to it, and must not hold the rest.
async fn release<K: Kernel>(kernel: &K) {
    let kernel = kernel.clone();
    let released = tokio::task::spawn_blocking(move || {
        let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
        release_all(&kernel, &mounts)
    });
    match timeout(RELEASED_WITHIN, released).await {
        Ok(Ok(failed)) => failed.iter().for_each(|error| console::say(&chain(error))),
        Ok(Err(error)) => console::say(&format!("cannot release the file systems: {error}")),
        Err(_) => console::say("the file systems could not be written out in time"),
    }
}
