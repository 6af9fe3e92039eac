//! Facts on their way to the host, in their order. A fact that the host did not take, as the connection broke or the host
//! was replaced, is told again: it is a fact still.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use volant_proto::agent::v1::report_request::Report;

use crate::{
    host::{Host, HostError},
    logs::Logs,
};

/// Facts that wait at a time; a guest has few.
const QUEUE: usize = 64;
const REPORT_WITHIN: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);
/// A host that was just replaced may refuse what it will take a moment later.
const MOST_REFUSALS: u32 = 5;

/// The queue's end for those who tell. Clones are the same.
#[derive(Clone, Debug)]
pub struct Reports {
    queue: mpsc::Sender<Item>,
    logs: Arc<Logs>,
}

#[derive(Debug)]
enum Item {
    Report(Report),
    /// Answered when all before it is told.
    Mark(oneshot::Sender<()>),
}

impl Reports {
    /// Begins to tell the host, until the runtime ends. Call within one.
    #[must_use]
    pub fn start(host: Host, logs: Arc<Logs>) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        tokio::spawn(tell_all(host, items, Arc::clone(&logs)));
        Self { queue, logs }
    }

    /// Has a fact told, as soon as may be. Never waits.
    pub fn tell(&self, report: Report) {
        if self.queue.try_send(Item::Report(report)).is_err() {
            self.logs
                .say("a report is dropped: too many wait for the host");
        }
    }

    /// Waits until all that was to be told is, and says whether that was `within` the time.
    pub async fn flush(&self, within: Duration) -> bool {
        let told = async {
            let (mark, reached) = oneshot::channel();
            self.queue.send(Item::Mark(mark)).await.ok()?;
            reached.await.ok()
        };
        matches!(timeout(within, told).await, Ok(Some(())))
    }
}

async fn tell_all(host: Host, mut items: mpsc::Receiver<Item>, logs: Arc<Logs>) {
    while let Some(item) = items.recv().await {
        match item {
            Item::Report(report) => insist(&host, &report, &logs).await,
            // Who does not wait any more does not care.
            Item::Mark(mark) => drop(mark.send(())),
        }
    }
}

/// Until the host has it, or has refused it for good.
async fn insist(host: &Host, report: &Report, logs: &Logs) {
    let mut refusals = 0;
    let mut is_said = false;
    while let Err(error) = host.report(report, REPORT_WITHIN).await {
        if !std::mem::replace(&mut is_said, true) {
            logs.say(&format!("cannot report a fact: {error}"));
        }
        if let HostError::Refused(_) = error {
            refusals += 1;
            if refusals == MOST_REFUSALS {
                return;
            }
        }
        sleep(RETRY).await;
    }
}
