//! The guest's serial console: every line to the journal, a kernel panic to the supervisor, all of it to who watches, and
//! input of who writes to the guest.

mod hub;
mod ring;

pub use hub::{Chunk, Hub, HubState, MAX_INPUT, Reader, WriteError, Writer};
pub use ring::Ring;

use std::time::Duration;

use tokio::{
    io::AsyncReadExt,
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    logs::{Logs, Stream},
    text::printable,
};

const PANIC: &[u8] = b"Kernel panic - not syncing";
/// How long a line without newline (a prompt) may stay unseen.
const IDLE: Duration = Duration::from_secs(1);
/// How often it is told that input was dropped.
const TELL: Duration = Duration::from_secs(5);
/// What is written at once.
const CHUNK: usize = 4096;

/// Reads a console until its end, and writes what the hub's writer says. The first panic of the guest's kernel is told to
/// `panics`.
pub async fn serve(console: UnixStream, hub: Hub, logs: Logs, panics: mpsc::Sender<String>) {
    let (output, input) = console.into_split();
    hub.busy(true);
    tokio::select! {
        () = read(output, &hub, &logs, &panics) => {}
        () = write(input, &hub) => {}
        () = tell(&hub, &logs) => {}
    }
    hub.forget_input();
    hub.busy(false);
}

async fn read(mut console: OwnedReadHalf, hub: &Hub, logs: &Logs, panics: &mpsc::Sender<String>) {
    let mut chunk = [0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            () = hub.parked() => {
                hub.rest_parked().await;
                continue;
            }
            read = timeout(IDLE, console.read(&mut chunk)) => read,
        };
        match read {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(length)) => {
                for line in hub.heard(&chunk[..length]) {
                    take(&line, logs, panics).await;
                }
            }
            Err(_) => {
                if let Some(line) = hub.rest() {
                    take(&line, logs, panics).await;
                }
            }
        }
    }
    if let Some(line) = hub.rest() {
        take(&line, logs, panics).await;
    }
}

/// Never ends: a console that takes nothing may still say something.
async fn write(console: OwnedWriteHalf, hub: &Hub) {
    loop {
        let bytes = hub.input(CHUNK).await;
        let written = match console.writable().await {
            Ok(()) => console.try_write(&bytes),
            Err(error) => Err(error),
        };
        match written {
            Ok(count) => hub.wrote(count),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => std::future::pending().await,
        }
    }
}

async fn tell(hub: &Hub, logs: &Logs) {
    let mut tick = interval(TELL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let dropped = hub.dropped();
        if dropped > 0 {
            logs.warn(format!(
                "dropped {dropped} bytes of the console's input: the guest does not read them"
            ));
        }
    }
}

async fn take(line: &[u8], logs: &Logs, panics: &mpsc::Sender<String>) {
    if let Some(start) = line.windows(PANIC.len()).position(|window| window == PANIC) {
        // The supervisor needs the first one alone.
        let _ = panics.try_send(printable(&line[start..], 200));
    }
    logs.put(Stream::Console, line).await;
}
