//! What a guest says, on its way to the journal: bounded in rate, made harmless, in one order.
//!
//! A journal that is slow holds the guest back; a guest that says too much loses lines, and is told on for it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    bucket::{Bucket, Rate},
    ended::Ended,
    happening::Happening,
    journal::Journal,
    text::{MAX_LINE, printable},
};

/// How often a guest that says too much is told on.
const TELL: Duration = Duration::from_secs(5);
/// Lines on their way; each has [`MAX_LINE`] bytes at most.
const QUEUE: usize = 64;
/// What a line costs beside its bytes: an entry's fields.
const OVERHEAD: u32 = 64;
/// A guest that had so many lines dropped is held back for [`PAUSE`], so that it does not eat the host's time.
const DROPS_A_PAUSE: u64 = 256;
const PAUSE: Duration = Duration::from_millis(20);
/// What the supervisor waits for a journal that is behind.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes and lines that a guest may write.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes: Rate,
    pub lines: Rate,
}

impl Default for Limits {
    /// 4 MiB or 20,000 lines at once, 1 MiB or 5,000 lines a second.
    fn default() -> Self {
        Self {
            bytes: Rate {
                burst: 4 << 20,
                per_second: 1 << 20,
            },
            lines: Rate {
                burst: 20_000,
                per_second: 5_000,
            },
        }
    }
}

/// Whom the entries are about.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Labels {
    pub vm: String,
    pub uuid: String,
    /// The workload's program, without its folder.
    pub workload: String,
}

/// Where a line of the guest came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
    Console,
    Agent,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Console => "console",
            Self::Agent => "agent",
        }
    }

    /// Programs write progress to standard error as well: notice, not warning.
    fn priority(self) -> &'static str {
        match self {
            Self::Stdout | Self::Console | Self::Agent => "6",
            Self::Stderr => "5",
        }
    }
}

#[derive(Debug)]
enum Item {
    Guest {
        stream: Stream,
        text: String,
    },
    /// Our own word about the guest.
    Note {
        priority: &'static str,
        text: String,
        /// What it is, by name and by the journal's `MESSAGE_ID=`.
        event: Option<(&'static str, &'static str)>,
    },
    Happened {
        happening: Happening,
        message_id: &'static str,
    },
    Ended(Ended),
    /// All that came before is written when this is answered.
    Flush(oneshot::Sender<()>),
    /// Nothing that comes later is written.
    Finish,
}

/// The way to the journal for all that has to do with one guest. Clones share it.
#[derive(Clone, Debug)]
pub struct Logs {
    items: mpsc::Sender<Item>,
    gate: Arc<Mutex<Gate>>,
    begun: Instant,
}

#[derive(Debug)]
struct Gate {
    bytes: Bucket,
    lines: Bucket,
    /// Since it was last told.
    dropped: u64,
    dropped_in_guest: u64,
    /// Since the guest was last held back.
    unpaid: u64,
}

/// The task that writes.
#[derive(Debug)]
pub struct Writer {
    task: JoinHandle<()>,
    items: mpsc::Sender<Item>,
}

impl Logs {
    /// Begins to write to `journal`.
    #[must_use]
    pub fn open(journal: Journal, labels: Labels, limits: Limits) -> (Self, Writer) {
        let (items, queue) = mpsc::channel(QUEUE);
        let gate = Arc::new(Mutex::new(Gate {
            bytes: Bucket::new(limits.bytes, Duration::ZERO),
            lines: Bucket::new(limits.lines, Duration::ZERO),
            dropped: 0,
            dropped_in_guest: 0,
            unpaid: 0,
        }));
        let task = tokio::spawn(write(journal, labels, queue, Arc::clone(&gate)));
        let logs = Self {
            items: items.clone(),
            gate,
            begun: Instant::now(),
        };
        (logs, Writer { task, items })
    }

    /// Takes a line of the guest. Waits while the journal is behind.
    pub async fn put(&self, stream: Stream, line: &[u8]) {
        if !self.admit(line.len()) {
            let pause = {
                let mut gate = lock(&self.gate);
                let pause = gate.unpaid >= DROPS_A_PAUSE;
                if pause {
                    gate.unpaid = 0;
                }
                pause
            };
            if pause {
                tokio::time::sleep(PAUSE).await;
            }
            return;
        }
        let text = printable(line, MAX_LINE);
        self.send(Item::Guest { stream, text }).await;
    }

    /// Counts lines that the guest itself had to drop.
    pub fn dropped_in_guest(&self, lines: u64) {
        let mut gate = lock(&self.gate);
        gate.dropped_in_guest = gate.dropped_in_guest.saturating_add(lines);
    }

    /// Says something about the guest, as a warning; dropped when the journal is far behind.
    pub fn warn(&self, text: String) {
        self.note(text, None);
    }

    /// As [`Logs::warn`], of something that has a name and a message of its own.
    pub fn warn_of(&self, event: &'static str, message_id: &'static str, text: String) {
        self.note(text, Some((event, message_id)));
    }

    fn note(&self, text: String, event: Option<(&'static str, &'static str)>) {
        // A full queue means that the journal is behind, which the writer tells.
        let _ = self.items.try_send(Item::Note {
            priority: "4",
            text,
            event,
        });
    }

    /// Says what happened, where that has a message. Waits a little for a journal that is behind, and gives up then.
    pub async fn happened(&self, happening: Happening) {
        let Some(message_id) = happening.message_id else {
            return;
        };
        let item = Item::Happened {
            happening,
            message_id,
        };
        let _ = tokio::time::timeout(PATIENCE, self.send(item)).await;
    }

    /// Says how the VM ended.
    pub async fn ended(&self, ended: Ended) {
        self.send(Item::Ended(ended)).await;
    }

    /// Waits until all is written that was said until now; not long for a journal that is behind.
    pub async fn flush(&self) {
        let (written, all_written) = oneshot::channel();
        let flush = async {
            self.send(Item::Flush(written)).await;
            let _ = all_written.await;
        };
        let _ = tokio::time::timeout(PATIENCE, flush).await;
    }

    fn admit(&self, bytes: usize) -> bool {
        let now = self.begun.elapsed();
        let cost = u32::try_from(bytes)
            .unwrap_or(u32::MAX)
            .saturating_add(OVERHEAD);
        let mut gate = lock(&self.gate);
        let admitted = gate.lines.take(1, now) && gate.bytes.take(cost, now);
        if !admitted {
            gate.dropped = gate.dropped.saturating_add(1);
            gate.unpaid += 1;
        }
        admitted
    }

    async fn send(&self, item: Item) {
        // After the writer's end nobody is left to tell.
        let _ = self.items.send(item).await;
    }
}

impl Writer {
    /// Waits until all is written that was said until now, but no longer than `limit`.
    pub async fn finish(self, limit: Duration) {
        let Self { task, items } = self;
        let finished = async {
            if items.send(Item::Finish).await.is_ok() {
                // It was not cancelled, and a panic of it is no reason for another.
                let _ = task.await;
            }
        };
        if tokio::time::timeout(limit, finished).await.is_err() {
            tracing::warn!("the journal did not take the guest's last words");
        }
    }
}

fn lock(gate: &Mutex<Gate>) -> MutexGuard<'_, Gate> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(
    journal: Journal,
    labels: Labels,
    mut queue: mpsc::Receiver<Item>,
    gate: Arc<Mutex<Gate>>,
) {
    let mut tell = interval(TELL);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let item = tokio::select! {
            item = queue.recv() => item,
            _ = tell.tick() => {
                for note in notes(&gate) {
                    entry(&journal, &labels, &note).await;
                }
                continue;
            }
        };
        let Some(item) = item else { break };
        let item = match item {
            Item::Finish => break,
            Item::Flush(written) => {
                // What was dropped is told, as nobody else knows of it.
                for note in notes(&gate) {
                    entry(&journal, &labels, &note).await;
                }
                let _ = written.send(());
                continue;
            }
            item => item,
        };
        if !entry(&journal, &labels, &item).await {
            let mut gate = lock(&gate);
            gate.dropped = gate.dropped.saturating_add(1);
        }
    }
    for note in notes(&gate) {
        entry(&journal, &labels, &note).await;
    }
}

/// What is to be told of lines that are lost.
fn notes(gate: &Mutex<Gate>) -> Vec<Item> {
    let (dropped, in_guest) = {
        let mut gate = lock(gate);
        (
            std::mem::take(&mut gate.dropped),
            std::mem::take(&mut gate.dropped_in_guest),
        )
    };
    let mut notes = Vec::new();
    let mut note = |text| {
        notes.push(Item::Note {
            priority: "4",
            text,
            event: None,
        });
    };
    if dropped > 0 {
        note(format!(
            "dropped {dropped} lines of the guest: it writes faster than it may"
        ));
    }
    if in_guest > 0 {
        note(format!(
            "the agent dropped {in_guest} lines of the workload: the host took them too slowly"
        ));
    }
    notes
}

async fn entry(journal: &Journal, labels: &Labels, item: &Item) -> bool {
    let mut fields = vec![
        ("VOLANT_VM", labels.vm.as_str()),
        ("VOLANT_VM_UUID", labels.uuid.as_str()),
    ];
    let text;
    match item {
        Item::Guest { stream, text } => {
            let identifier = match stream {
                Stream::Stdout | Stream::Stderr => labels.workload.as_str(),
                Stream::Console => "kernel",
                Stream::Agent => "kestrel",
            };
            fields.extend([
                ("MESSAGE", text.as_str()),
                ("PRIORITY", stream.priority()),
                ("SYSLOG_IDENTIFIER", identifier),
                ("VOLANT_STREAM", stream.as_str()),
            ]);
        }
        Item::Note {
            priority,
            text,
            event,
        } => {
            fields.extend([
                ("MESSAGE", text.as_str()),
                ("PRIORITY", *priority),
                ("SYSLOG_IDENTIFIER", "vmd"),
            ]);
            if let Some((event, message_id)) = event {
                fields.extend([("VOLANT_EVENT", *event), ("MESSAGE_ID", *message_id)]);
            }
        }
        Item::Happened {
            happening,
            message_id,
        } => fields.extend([
            ("MESSAGE", happening.text.as_str()),
            ("PRIORITY", happening.priority),
            ("SYSLOG_IDENTIFIER", "vmd"),
            ("MESSAGE_ID", *message_id),
            ("VOLANT_EVENT", happening.what),
        ]),
        Item::Finish | Item::Flush(_) => return true,
        Item::Ended(ended) => {
            text = ended.to_string();
            fields.extend([
                ("MESSAGE", text.as_str()),
                ("PRIORITY", if ended.exit_code() == 0 { "6" } else { "3" }),
                ("SYSLOG_IDENTIFIER", "vmd"),
                ("MESSAGE_ID", ended.message_id()),
                ("VOLANT_EVENT", "ended"),
                ("VOLANT_ENDED", ended.name()),
            ]);
            if let Ended::Stopped(rung) = ended {
                fields.push(("VOLANT_RUNG", rung.name()));
            }
        }
    }
    journal.write(&fields).await
}
