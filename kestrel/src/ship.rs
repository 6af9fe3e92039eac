//! Sends the lines to the host, each once, though hosts come and go.
//!
//! The host says how many lines of a stream it took when the stream ends. So a stream carries a bounded piece of the log, and
//! its lines are kept until then: what a host that ended it early did not take goes first by the next one. A stream that
//! broke without an answer is sent again as a whole: rather a line twice than none.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use volant_proto::agent::v1::SendLogsRequest;

use crate::{
    host::{Host, HostError},
    logs::{LINE_COST, Logs},
};

/// The most that one stream carries, and that is kept until the host's answer.
const PIECE: usize = 256 * 1024;
/// A host takes so many calls a second and no more.
const SHORTEST_STREAM: Duration = Duration::from_millis(100);
/// A stream that carried something and has nothing more ends after this, for its answer.
const IDLE: Duration = Duration::from_secs(1);
/// Lines that are on their way from here to the connection at a time.
const WINDOW: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Sends the lines until the last one has arrived.
pub async fn ship(host: Host, logs: &Logs) {
    let mut piece = Piece::default();
    let mut pause = FIRST_PAUSE;
    loop {
        if piece.lines.is_empty() && !piece.take_next(logs).await {
            return;
        }
        piece.sent = 0;
        let (sender, receiver) = mpsc::channel(WINDOW);
        let mut call = std::pin::pin!(host.send_logs(receiver));
        let answer = tokio::select! {
            answer = &mut call => answer,
            () = piece.feed(sender, logs) => call.await,
        };
        if matches!(answer, Ok(taken) if piece.taken(taken)) {
            pause = FIRST_PAUSE;
            continue;
        }
        if let Err(HostError::Refused(_)) = answer {
            // Perhaps it is another host, which does not know this connection; the watch for commands says hello as well.
            let _ = host.greet(host.hellos(), LONGEST_PAUSE).await;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lines that the host is not known to have.
#[derive(Debug, Default)]
struct Piece {
    lines: VecDeque<SendLogsRequest>,
    bytes: usize,
    /// How many of them went by this stream.
    sent: usize,
}

impl Piece {
    /// Takes the next line of the log; false after the last one.
    async fn take_next(&mut self, logs: &Logs) -> bool {
        let Some(line) = logs.next().await else {
            return false;
        };
        self.bytes += line.line.len() + LINE_COST;
        self.lines.push_back(line);
        true
    }

    /// The host took so many of those that were sent. False when it took none.
    fn taken(&mut self, lines: u64) -> bool {
        let taken = usize::try_from(lines).map_or(self.sent, |lines| lines.min(self.sent));
        for line in self.lines.drain(..taken) {
            self.bytes = self.bytes.saturating_sub(line.line.len() + LINE_COST);
        }
        taken > 0
    }

    /// Sends what it has, and what comes, until the stream carried enough; ends it then.
    async fn feed(&mut self, sender: mpsc::Sender<SendLogsRequest>, logs: &Logs) {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.lines.get(self.sent) {
                let Ok(permit) = sender.reserve().await else {
                    // The stream has ended; its call says how.
                    return;
                };
                permit.send(line.clone());
                self.sent += 1;
            } else if self.bytes >= PIECE {
                sleep_until(begun + SHORTEST_STREAM).await;
                return;
            } else {
                match timeout(IDLE, self.take_next(logs)).await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(count: u8) -> Piece {
        let line = |byte| SendLogsRequest {
            line: vec![byte],
            ..SendLogsRequest::default()
        };
        Piece {
            lines: (0..count).map(line).collect(),
            bytes: usize::from(count) * (1 + LINE_COST),
            sent: usize::from(count),
        }
    }

    #[test]
    fn what_the_host_took_goes_and_the_rest_stays_in_its_order() {
        let mut piece = piece(5);
        assert!(piece.taken(2));
        let left: Vec<_> = piece.lines.iter().map(|line| line.line[0]).collect();
        assert_eq!((left, piece.bytes), (vec![2, 3, 4], 3 * (1 + LINE_COST)));
        piece.sent = 1;
        assert!(!piece.taken(0));
        // A host that claims more than there was.
        assert!(piece.taken(u64::MAX));
        assert_eq!(piece.lines.len(), 2);
    }
}
