//! The workload's lines: read from pipes, and kept in a bounded queue until they are sent ([`crate::ship`]).
//!
//! The workload is never slowed down by a host that reads slowly: what does not fit is dropped, and counted.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{io::AsyncReadExt as _, net::unix::pipe, sync::Notify};
use volant_proto::agent::v1::{SendLogsRequest, send_logs_request::Stream};

use crate::lines::{MAX_LINE, Splitter};

/// The most that waits for the host, in bytes.
const QUEUE_BYTES: usize = 256 * 1024;
/// What a line costs beside its bytes.
pub const LINE_COST: usize = 96;

/// Lines that wait for the host. Any number of writers, one reader.
#[derive(Debug, Default)]
pub struct Logs {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<SendLogsRequest>,
    bytes: usize,
    dropped: u64,
    closed: bool,
}

impl Logs {
    /// Queues a line, or drops and counts it when there is no room.
    pub fn push(&self, stream: Stream, line: Vec<u8>) {
        let mut queue = self.queue();
        let cost = line.len() + LINE_COST;
        if queue.bytes + cost > QUEUE_BYTES {
            queue.dropped = queue.dropped.saturating_add(1);
            return;
        }
        queue.bytes += cost;
        let request = request(stream, line, std::mem::take(&mut queue.dropped));
        queue.lines.push_back(request);
        drop(queue);
        self.changed.notify_one();
    }

    /// Queues words of the agent's own.
    pub fn say(&self, words: &str) {
        let mut bytes = words.as_bytes().to_vec();
        bytes.truncate(MAX_LINE);
        self.push(Stream::Agent, bytes);
    }

    /// No line will come any more: [`Logs::next`] ends when the queue is empty.
    pub fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        // Nobody is told by a next line.
        let dropped = std::mem::take(&mut queue.dropped);
        if dropped > 0 {
            let words = format!("the last {dropped} lines were dropped: the host read too slowly");
            queue
                .lines
                .push_back(request(Stream::Agent, words.into_bytes(), dropped));
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// The next line; `None` after the last one.
    pub async fn next(&self) -> Option<SendLogsRequest> {
        loop {
            {
                let mut queue = self.queue();
                if let Some(line) = queue.lines.pop_front() {
                    queue.bytes = queue.bytes.saturating_sub(line.line.len() + LINE_COST);
                    return Some(line);
                }
                if queue.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn request(stream: Stream, line: Vec<u8>, dropped: u64) -> SendLogsRequest {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    SendLogsRequest {
        stream: stream.into(),
        line,
        time_unix_ms: since_epoch.as_millis().try_into().unwrap_or(u64::MAX),
        dropped,
    }
}

/// Reads a pipe to its end, line by line.
pub async fn read(pipe: OwnedFd, stream: Stream, logs: &Logs) {
    let mut pipe = match pipe::Receiver::from_owned_fd(pipe) {
        Ok(pipe) => pipe,
        Err(error) => {
            return logs.say(&format!(
                "cannot read the workload's {}: {error}",
                stream.as_str_name()
            ));
        }
    };
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; MAX_LINE];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => splitter.push(&buffer[..count], |line| logs.push(stream, line)),
            Err(error) => {
                logs.say(&format!(
                    "cannot read the workload's {}: {error}",
                    stream.as_str_name()
                ));
                break;
            }
        }
    }
    if let Some(line) = splitter.finish() {
        logs.push(stream, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_drops_and_the_next_line_says_how_many() {
        let logs = Logs::default();
        let fit = QUEUE_BYTES / (MAX_LINE + LINE_COST);
        for _ in 0..fit + 3 {
            logs.push(Stream::Stdout, vec![b'x'; MAX_LINE]);
        }
        for _ in 0..fit {
            assert_eq!(logs.next().await.unwrap().dropped, 0);
        }
        logs.push(Stream::Stdout, b"after".to_vec());
        logs.push(Stream::Stdout, b"then".to_vec());
        assert_eq!(logs.next().await.unwrap().dropped, 3);
        assert_eq!(logs.next().await.unwrap().dropped, 0);
    }

    #[tokio::test]
    async fn empty_lines_fill_the_queue_too() {
        let logs = Logs::default();
        for _ in 0..QUEUE_BYTES {
            logs.push(Stream::Stderr, Vec::new());
        }
        assert!(logs.queue().lines.len() <= QUEUE_BYTES / LINE_COST);
    }

    #[tokio::test]
    async fn a_closed_queue_gives_what_it_has_and_tells_what_it_dropped() {
        let logs = Logs::default();
        logs.push(Stream::Stdout, b"first".to_vec());
        logs.queue().dropped = 2;
        logs.close();
        assert_eq!(logs.next().await.unwrap().line, b"first");
        let last = logs.next().await.unwrap();
        assert_eq!((last.stream(), last.dropped), (Stream::Agent, 2));
        assert_eq!(logs.next().await, None);
    }
}
