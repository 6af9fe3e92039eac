//! The guest's serial console: every line to the journal, a kernel panic to the supervisor.

use std::time::Duration;

use tokio::{io::AsyncReadExt, net::UnixStream, sync::mpsc};

use crate::{
    logs::{Logs, Stream},
    text::{Lines, printable},
};

const PANIC: &[u8] = b"Kernel panic - not syncing";
/// How long a line without newline (a prompt) may stay unseen.
const IDLE: Duration = Duration::from_secs(1);

/// Reads a console until its end. The first panic of the guest's kernel is told to `panics`.
pub async fn read(mut console: UnixStream, logs: Logs, panics: mpsc::Sender<String>) {
    let mut lines = Lines::default();
    let mut chunk = [0; 4096];
    loop {
        match tokio::time::timeout(IDLE, console.read(&mut chunk)).await {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(length)) => {
                for line in lines.push(&chunk[..length]) {
                    take(&line, &logs, &panics).await;
                }
            }
            Err(_) => {
                if let Some(line) = lines.rest() {
                    take(&line, &logs, &panics).await;
                }
            }
        }
    }
    if let Some(line) = lines.rest() {
        take(&line, &logs, &panics).await;
    }
}

async fn take(line: &[u8], logs: &Logs, panics: &mpsc::Sender<String>) {
    if let Some(start) = line.windows(PANIC.len()).position(|window| window == PANIC) {
        // The supervisor needs the first one alone.
        let _ = panics.try_send(printable(&line[start..], 200));
    }
    logs.put(Stream::Console, line).await;
}
