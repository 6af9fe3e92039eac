//! `volar vms console`: the serial console of a VM, as if one sat at it.

use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    args::{Console, Escape},
    client::{Client, Receiver, Said, Sender},
    failure::Failure,
    output::Output,
    signals::Signals,
    stdio::{self, Out},
    terminal::{self, Raw},
};

const PROTOCOL: &str = "v1.console.volantvm.com";

/// Gives the exit code.
pub async fn attach(console: Console, client: &Client, output: &Output) -> Result<u8, Failure> {
    let writes = !console.read_only && !console.no_follow;
    let opened = open(&console, client, console.scrollback).await;
    let may_steal = writes && !console.steal;
    let (mut sender, mut receiver) = opened.map_err(|failure| taken(failure, may_steal))?;
    let typed = terminal::is_typed();
    let escape = console.escape.0.filter(|_| typed);
    if !output.quiet && typed && !console.no_follow {
        match console.escape.shown() {
            Some(key) => eprintln!("attached to VM {}; {key} detaches", console.name),
            None => eprintln!("attached to VM {}", console.name),
        }
    }
    let raw = (typed && !console.no_follow).then(Raw::enter).transpose()?;
    // Without writing the keys are read all the same: one of them detaches.
    let keys = if writes || raw.is_some() {
        Keys::Read(stdio::input()?)
    } else {
        Keys::None
    };
    let mut keyboard = Keyboard {
        keys,
        writes,
        escape: Escape(escape),
    };
    let (mut out, mut signals) = (Out::stdout()?, Signals::listen()?);
    let ended = loop {
        let ended = tokio::select! {
            ended = keyboard.typing(&mut sender) => ended.map(|()| 0),
            ended = show(receiver, &mut out, raw.is_some()) => ended.map(|()| 0),
            number = signals.end() => Ok(128 + number),
        };
        let moved = match ended {
            Err(Failure::Problem(problem)) if follows(&console, problem.slug()) => problem,
            ended => break ended,
        };
        let again = tokio::select! {
            // What was shown is not shown again.
            again = open(&console, client, 0) => again,
            number = signals.end() => break Ok(128 + number),
        };
        let Ok(again) = again else {
            break Err(Failure::Problem(moved));
        };
        (sender, receiver) = again;
        if !output.quiet {
            let end = if raw.is_some() { "\r\n" } else { "\n" };
            eprint!("{end}[the VM's supervisor was replaced; attached again]{end}");
        }
    };
    let written = if matches!(ended, Ok(0)) {
        out.finish().await
    } else {
        Ok(())
    };
    let was_raw = raw.is_some();
    drop(raw);
    if was_raw && !output.quiet {
        eprintln!("\ndetached from VM {}", console.name);
    }
    written.and(ended.map_err(|failure| taken(failure, may_steal)))
}

async fn open(
    console: &Console,
    client: &Client,
    scrollback: u32,
) -> Result<(Sender, Receiver), Failure> {
    let writes = !console.read_only && !console.no_follow;
    let query = [
        ("scrollback", scrollback.to_string()),
        ("write", writes.to_string()),
        ("steal", console.steal.to_string()),
        ("follow", (!console.no_follow).to_string()),
    ];
    let path = format!("/vms/{}/console", console.name);
    client.socket(&path, &query, PROTOCOL).await
}

/// Whether this problem of an open console is one that a new connection may not have: its supervisor is being replaced.
fn follows(console: &Console, problem: &str) -> bool {
    problem == "unavailable" && !console.no_follow
}

/// A console that somebody else writes to is refused before it is open, or as the first that is said.
fn taken(failure: Failure, may_steal: bool) -> Failure {
    match failure {
        Failure::Problem(problem)
            if may_steal && matches!(problem.slug(), "not-possible" | "unusable-in-guest") =>
        {
            Failure::ConsoleTaken(problem)
        }
        failure => failure,
    }
}

async fn show(mut receiver: Receiver, out: &mut Out, raw: bool) -> Result<(), Failure> {
    let end = if raw { "\r\n" } else { "\n" };
    while let Some(said) = receiver.next().await? {
        match said {
            Said::Data(data) => {
                if out.write(data).await.is_err() {
                    return Ok(());
                }
            }
            Said::Word(word) => {
                if let Some(lost) = word.get("lost_bytes").and_then(Value::as_u64) {
                    eprint!("{end}[{lost} bytes are missing here]{end}");
                }
                if word.get("stolen").is_some() {
                    eprint!("{end}[somebody else has the keyboard now; you look on]{end}");
                }
            }
        }
    }
    Ok(())
}

enum Keys {
    Read(mpsc::Receiver<Bytes>),
    None,
}

/// What is typed, over all connections.
struct Keyboard {
    keys: Keys,
    writes: bool,
    escape: Escape,
}

impl Keyboard {
    /// Sends what is typed; comes back when the key that detaches was.
    async fn typing(&mut self, sender: &mut Sender) -> Result<(), Failure> {
        if let Keys::Read(keys) = &mut self.keys {
            while let Some(chunk) = keys.recv().await {
                let end = self.escape.0.and_then(|key| find(&chunk, key));
                let typed = chunk.slice(..end.unwrap_or(chunk.len()));
                if self.writes && !typed.is_empty() {
                    // A connection that broke is told by the half that listens.
                    if sender.send(Message::Binary(typed)).await.is_err() {
                        break;
                    }
                }
                if end.is_some() {
                    let _ = sender.close().await;
                    return Ok(());
                }
            }
        }
        // There is nothing more to type; the guest may have something to say.
        std::future::pending().await
    }
}

fn find(chunk: &[u8], key: u8) -> Option<usize> {
    chunk.iter().position(|byte| *byte == key)
}
