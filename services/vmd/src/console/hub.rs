//! What the console said, for any number of readers, and what one writer says to it.
//!
//! Nobody here can hold the guest up: a reader that is too slow loses what the ring does not keep, and input that the guest
//! does not take is dropped.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::ring::Ring;
use crate::text::Lines;

/// Input that waits for the guest, in bytes.
pub const MAX_INPUT: usize = 64 * 1024;
/// What a reader gets at once.
const CHUNK: usize = 32 * 1024;

/// A VM's console, over all of its boots. Clones are the same console.
#[derive(Clone, Debug, Default)]
pub struct Hub(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The ring's end.
    output: watch::Sender<u64>,
    closed: watch::Sender<bool>,
    /// The number of who writes; 0: nobody.
    writer: watch::Sender<u64>,
    /// Bytes of input that wait.
    waiting: watch::Sender<usize>,
    /// Nothing is to be read for now.
    parked: watch::Sender<bool>,
    /// A task is in the middle of what was read.
    busy: watch::Sender<bool>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub ring: Ring,
    /// What came without a newline yet.
    pub lines: Lines,
    pub input: VecDeque<u8>,
    writers: u64,
    dropped: u64,
}

/// A console for the supervisor that takes over: its readers and its writer come back as new ones.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubState {
    ring: Ring,
    line: Vec<u8>,
    input: VecDeque<u8>,
    dropped: u64,
}

/// A reader's place. What it got it does not get again.
#[derive(Debug)]
pub struct Reader {
    hub: Hub,
    position: u64,
    output: watch::Receiver<u64>,
    closed: watch::Receiver<bool>,
}

/// What comes next for a reader.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes before these that this reader was too slow for.
    pub lost: u64,
    pub bytes: Vec<u8>,
}

/// The right to write, until it is stolen or dropped.
#[derive(Debug)]
pub struct Writer {
    hub: Hub,
    number: u64,
    current: watch::Receiver<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("somebody else writes to the console")]
    Taken,
    #[error("somebody took the writing to the console")]
    Stolen,
}

impl Hub {
    /// All that is here of the console.
    #[must_use]
    pub fn save(&self) -> HubState {
        let state = self.state();
        HubState {
            ring: state.ring.clone(),
            line: state.lines.kept().to_vec(),
            input: state.input.clone(),
            dropped: state.dropped,
        }
    }

    /// The console that an earlier supervisor left.
    #[must_use]
    pub fn restore(saved: HubState) -> Self {
        let hub = Self::default();
        let HubState {
            ring,
            line,
            input,
            dropped,
        } = saved;
        hub.0.output.send_replace(ring.end());
        hub.0.waiting.send_replace(input.len());
        *hub.state() = State {
            ring,
            lines: Lines::with_rest(line),
            input,
            writers: 0,
            dropped,
        };
        hub
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader that begins `scrollback` bytes ago.
    #[must_use]
    pub fn reader(&self, scrollback: usize) -> Reader {
        Reader {
            hub: self.clone(),
            position: self.state().ring.back(scrollback),
            output: self.0.output.subscribe(),
            closed: self.0.closed.subscribe(),
        }
    }

    /// The right to write; `steal` takes it from who has it.
    ///
    /// # Errors
    /// Somebody has it.
    pub fn writer(&self, steal: bool) -> Result<Writer, WriteError> {
        let number = {
            let mut state = self.state();
            if *self.0.writer.borrow() != 0 && !steal {
                return Err(WriteError::Taken);
            }
            state.writers += 1;
            state.writers
        };
        self.0.writer.send_replace(number);
        let mut current = self.0.writer.subscribe();
        current.mark_unchanged();
        Ok(Writer {
            hub: self.clone(),
            number,
            current,
        })
    }

    /// Takes what the console said, and gives the lines that are whole now.
    pub(super) fn heard(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (lines, end) = {
            let mut state = self.state();
            state.ring.push(bytes);
            (state.lines.push(bytes), state.ring.end())
        };
        self.0.output.send_replace(end);
        lines
    }

    /// What came without a newline.
    pub(super) fn rest(&self) -> Option<Vec<u8>> {
        self.state().lines.rest()
    }

    /// Puts a line of ours between what the guest says.
    pub fn mark(&self, text: &str) {
        let end = {
            let mut state = self.state();
            state.ring.push(format!("\r\n[{text}]\r\n").as_bytes());
            state.ring.end()
        };
        self.0.output.send_replace(end);
    }

    /// Nothing more comes: readers end once they have read all.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// The next input for the guest, at most `max` bytes; it stays until [`Hub::wrote`]. May be dropped at its await.
    pub(super) async fn input(&self, max: usize) -> Vec<u8> {
        let mut waiting = self.0.waiting.subscribe();
        // Its sender is ours.
        let _ = waiting.wait_for(|bytes| *bytes > 0).await;
        self.state().input.iter().take(max).copied().collect()
    }

    /// The guest took so many bytes of input.
    pub(super) fn wrote(&self, bytes: usize) {
        let left = {
            let mut state = self.state();
            let bytes = bytes.min(state.input.len());
            state.input.drain(..bytes);
            state.input.len()
        };
        self.0.waiting.send_replace(left);
    }

    /// Forgets input that an ended guest did not take.
    pub(super) fn forget_input(&self) {
        self.wrote(usize::MAX);
    }

    /// Has nothing more read of the console, and waits until all that was read is where it belongs.
    pub async fn park(&self) {
        self.0.parked.send_replace(true);
        let mut busy = self.0.busy.subscribe();
        // Its sender is ours.
        let _ = busy.wait_for(|busy| !busy).await;
    }

    /// Has the console read on.
    pub fn unpark(&self) {
        self.0.parked.send_replace(false);
    }

    /// Waits until it is to be parked. May be dropped at its await.
    pub(super) async fn parked(&self) {
        let mut parked = self.0.parked.subscribe();
        let _ = parked.wait_for(|parked| *parked).await;
    }

    /// Says that nothing is under way, until it is not parked any more.
    pub(super) async fn rest_parked(&self) {
        let mut parked = self.0.parked.subscribe();
        self.busy(false);
        let _ = parked.wait_for(|parked| !parked).await;
        self.busy(true);
    }

    pub(super) fn busy(&self, busy: bool) {
        self.0.busy.send_replace(busy);
    }

    /// How many bytes of input were dropped since this was asked last.
    pub(super) fn dropped(&self) -> u64 {
        std::mem::take(&mut self.state().dropped)
    }
}

impl Reader {
    /// What is there beyond this reader's place; empty when it has read all.
    pub fn now(&mut self) -> Chunk {
        let (lost, bytes) = self.hub.state().ring.read(self.position, CHUNK);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.position = self.position.saturating_add(lost).saturating_add(length);
        Chunk { lost, bytes }
    }

    /// Waits for more; none at the console's end. May be dropped at its await.
    pub async fn next(&mut self) -> Option<Chunk> {
        loop {
            let closed = *self.closed.borrow();
            self.output.mark_unchanged();
            let chunk = self.now();
            if !chunk.bytes.is_empty() {
                return Some(chunk);
            }
            if closed {
                return None;
            }
            tokio::select! {
                _ = self.output.changed() => {}
                _ = self.closed.changed() => {}
            }
        }
    }
}

impl Writer {
    /// Has the guest read these bytes, without waiting for it. What it leaves unread is dropped beyond [`MAX_INPUT`].
    ///
    /// # Errors
    /// Somebody else writes now.
    pub fn write(&self, bytes: &[u8]) -> Result<(), WriteError> {
        if *self.current.borrow() != self.number {
            return Err(WriteError::Stolen);
        }
        let waiting = {
            let mut state = self.hub.state();
            let room = MAX_INPUT - state.input.len().min(MAX_INPUT);
            let taken = bytes.get(..room).unwrap_or(bytes);
            state.input.extend(taken);
            let dropped = u64::try_from(bytes.len() - taken.len()).unwrap_or(u64::MAX);
            state.dropped = state.dropped.saturating_add(dropped);
            state.input.len()
        };
        self.hub.0.waiting.send_replace(waiting);
        Ok(())
    }

    /// Resolves when somebody else took the writing. May be dropped at its await.
    pub async fn stolen(&mut self) {
        let number = self.number;
        // Its sender is the hub's.
        let _ = self.current.wait_for(|current| *current != number).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let number = self.number;
        self.hub.0.writer.send_if_modified(|current| {
            let ours = *current == number;
            if ours {
                *current = 0;
            }
            ours
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_reader_has_its_own_place_and_a_slow_one_is_told_what_it_lost() {
        let hub = Hub::default();
        hub.heard(b"before\n");
        let mut fast = hub.reader(3);
        let mut slow = hub.reader(0);
        assert_eq!(fast.next().await.unwrap().bytes, b"re\n");
        hub.heard(&vec![b'x'; Ring::KEPT]);
        hub.heard(b"end");
        assert_eq!(slow.next().await.unwrap().lost, 3);
        hub.close();
        let mut got = 0;
        while let Some(chunk) = fast.next().await {
            got += chunk.lost + chunk.bytes.len() as u64;
        }
        assert_eq!(got, Ring::KEPT as u64 + 3);
    }

    #[tokio::test]
    async fn one_writes_and_another_must_steal() {
        let hub = Hub::default();
        let mut first = hub.writer(false).unwrap();
        first.write(b"a").unwrap();
        assert_eq!(hub.writer(false).unwrap_err(), WriteError::Taken);
        let second = hub.writer(true).unwrap();
        first.stolen().await;
        assert_eq!(first.write(b"b"), Err(WriteError::Stolen));
        drop(first);
        assert_eq!(hub.writer(false).unwrap_err(), WriteError::Taken);
        second.write(b"c").unwrap();
        drop(second);
        hub.writer(false).unwrap();
        assert_eq!(hub.input(10).await, b"ac");
        hub.wrote(1);
        assert_eq!(hub.input(10).await, b"c");
    }

    #[tokio::test]
    async fn a_console_goes_on_where_it_was_left() {
        let left = Hub::default();
        assert_eq!(left.heard(b"one\ntw"), [b"one"]);
        left.writer(false).unwrap().write(b"typed").unwrap();
        let text = serde_json::to_string(&left.save()).unwrap();
        let hub = Hub::restore(serde_json::from_str(&text).unwrap());
        assert_eq!(hub.input(100).await, b"typed");
        assert_eq!(hub.heard(b"o\n"), [b"two"]);
        let mut reader = hub.reader(100);
        assert_eq!(reader.next().await.unwrap().bytes, b"one\ntwo\n");
        hub.writer(false).unwrap();
    }

    #[test]
    fn input_that_the_guest_does_not_read_is_bounded() {
        let hub = Hub::default();
        let writer = hub.writer(false).unwrap();
        for _ in 0..10 {
            writer.write(&[b'x'; MAX_INPUT / 4]).unwrap();
        }
        assert_eq!(hub.state().input.len(), MAX_INPUT);
        assert_eq!(hub.dropped(), (MAX_INPUT / 4 * 6) as u64);
        assert_eq!(hub.dropped(), 0);
    }
}
