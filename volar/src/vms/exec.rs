//! `volar vms exec` and `shell`: a program in a guest, with the input, the output and the end of one here.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use volant_spec::Name;

use crate::{
    args::{Exec, Shell},
    client::{Client, Receiver, Said, Sender, text},
    failure::{Failure, Problem},
    output::Output,
    signals::{Came, Signals},
    stdio::{self, Out},
    terminal::{self, Raw, Size},
};

const PROTOCOL: &str = "v1.exec.volantvm.com";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// volar or Volant failed, as `docker exec` has it.
const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What a program has whose reader is gone: 128 + SIGPIPE.
const NOBODY_READS: u8 = 128 + 13;
/// How long the server has to take note that this ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is to be run.
#[derive(Debug, Default)]
struct Wanted {
    command: Vec<String>,
    env: Vec<(String, String)>,
    user: Option<String>,
    workdir: Option<String>,
    tty: bool,
    stdin: bool,
    detach: bool,
}

/// How a program ended.
#[derive(Debug, Deserialize)]
struct Exited {
    code: u32,
    #[serde(default)]
    signal: u32,
    #[serde(default)]
    error: Option<String>,
}

/// Gives the exit code: the program's.
pub async fn exec(exec: Exec, client: &Client, output: &Output) -> Result<u8, (u8, Failure)> {
    let typed = terminal::is_typed();
    if exec.tty && !typed && !exec.interactive {
        let why = "standard input is no terminal; -i -t gives the program one that nobody types at";
        return Err((FAILED, Failure::Usage(why.to_owned())));
    }
    let wanted = Wanted {
        command: exec.command,
        env: exec.env,
        user: exec.user,
        workdir: exec.workdir,
        tty: exec.tty,
        stdin: !exec.detach && (exec.interactive || exec.tty || !typed),
        detach: exec.detach,
    };
    run(&exec.name, wanted, client, output).await
}

/// A login shell; without a terminal here it reads its commands from standard input.
pub async fn shell(shell: Shell, client: &Client, output: &Output) -> Result<u8, (u8, Failure)> {
    let term = std::env::var("TERM").ok().filter(|_| terminal::is_typed());
    let wanted = Wanted {
        env: term
            .map(|term| ("TERM".to_owned(), term))
            .into_iter()
            .collect(),
        user: shell.user,
        tty: terminal::is_typed(),
        stdin: true,
        ..Wanted::default()
    };
    run(&shell.name, wanted, client, output).await
}

async fn run(
    name: &Name,
    wanted: Wanted,
    client: &Client,
    output: &Output,
) -> Result<u8, (u8, Failure)> {
    let path = format!("/vms/{name}/exec");
    let socket = client.socket(&path, &[], PROTOCOL).await;
    let (sender, receiver) = socket.map_err(|failure| (FAILED, failure))?;
    let (say, said) = mpsc::channel(16);
    let here = Here {
        signals: Signals::listen().map_err(|failure| (FAILED, failure))?,
        say,
        tty: wanted.tty,
    };
    let session = Session {
        receiver,
        stdout: Out::stdout().map_err(|failure| (FAILED, failure))?,
        stderr: Out::stderr().map_err(|failure| (FAILED, failure))?,
        here,
    };
    // Until the program is gone, and its last words are written.
    let raw = if wanted.tty && terminal::is_typed() {
        Some(Raw::enter().map_err(|failure| (FAILED, failure))?)
    } else {
        None
    };
    let speaking = tokio::spawn(speak(sender, opening(&wanted), wanted.stdin, said));
    let ended = session.follow(wanted.detach, output).await;
    // Else it is cut off with this process; the server ends the program all the same.
    let _ = tokio::time::timeout(FAREWELL, speaking).await;
    drop(raw);
    ended.map_err(|failure| (failed_with(&failure), failure))
}

fn opening(wanted: &Wanted) -> Value {
    let size = terminal::size().unwrap_or(Size {
        rows: 24,
        columns: 80,
    });
    let env: serde_json::Map<String, Value> = wanted
        .env
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    json!({
        "command": wanted.command,
        "env": env,
        "user": wanted.user.as_deref().unwrap_or_default(),
        "workdir": wanted.workdir.as_deref().unwrap_or_default(),
        "tty": wanted.tty,
        "rows": size.rows,
        "columns": size.columns,
        "stdin": wanted.stdin,
        "detach": wanted.detach,
    })
}

/// Sends what is typed and what is said, until nobody says anything any more. A signal overtakes what was typed.
async fn speak(
    mut sender: Sender,
    opening: Value,
    with_input: bool,
    mut said: mpsc::Receiver<Value>,
) {
    if sender.send(text(&opening)).await.is_err() {
        return;
    }
    // That there is no thread is found by the receiving half's end.
    let mut input = with_input.then(stdio::input).and_then(Result::ok);
    loop {
        let message = tokio::select! {
            biased;
            word = said.recv() => match word {
                Some(word) => text(&word),
                None => break,
            },
            chunk = next(&mut input) => match chunk {
                Some(chunk) => on_channel(STDIN, &chunk),
                None => {
                    input = None;
                    text(&json!({"stdin_end": true}))
                }
            },
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
    let _ = sender.close().await;
}

async fn next(input: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

fn on_channel(channel: u8, data: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(data.len() + 1);
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(message.freeze())
}

/// The half that listens.
struct Session {
    receiver: Receiver,
    stdout: Out,
    stderr: Out,
    here: Here,
}

/// What comes from here, besides what is typed.
struct Here {
    signals: Signals,
    say: mpsc::Sender<Value>,
    tty: bool,
}

/// How a session ended; the exit code.
enum End {
    Exited(u8),
    /// By this side.
    Left(u8),
}

impl Session {
    /// Follows the program to its end, and writes all that it wrote.
    async fn follow(mut self, detach: bool, output: &Output) -> Result<u8, Failure> {
        let ended = match self.listen(detach, output).await {
            // Whoever reads may never come to it.
            Ok(End::Left(code)) => return Ok(code),
            Ok(End::Exited(code)) => Ok(code),
            Err(failure) => Err(failure),
        };
        self.stdout.finish().await?;
        self.stderr.finish().await?;
        ended
    }

    async fn listen(&mut self, detach: bool, output: &Output) -> Result<End, Failure> {
        loop {
            let said = tokio::select! {
                said = self.receiver.next() => said?.ok_or(Failure::Unfinished)?,
                code = self.here.left(usize::MAX) => return Ok(End::Left(code)),
                () = self.stdout.gone() => return Ok(End::Left(NOBODY_READS)),
            };
            match said {
                Said::Data(data) => {
                    let (channel, data) = split(data)?;
                    let out = if channel == STDOUT {
                        &mut self.stdout
                    } else {
                        &mut self.stderr
                    };
                    tokio::select! {
                        // That nobody reads is found before the next message.
                        _ = out.write(data) => {}
                        // Nobody reads, and the program waits for that: the first signal is its own, the second ours.
                        code = self.here.left(1) => return Ok(End::Left(code)),
                    }
                }
                Said::Word(word) => {
                    if let Some(exited) = word.get("exited") {
                        return ended(exited).map(End::Exited);
                    }
                    if let Some(pid) = word.pointer("/started/pid").filter(|_| detach) {
                        output.done(&format!("process {pid} runs by itself"))?;
                        if output.is_json() {
                            output.json(&json!({"pid": pid}))?;
                        }
                    }
                }
            }
        }
    }
}

impl Here {
    /// Passes on what comes; gives the exit code once this is to end itself: on a signal when the program has this
    /// terminal, else after so many that the program got.
    async fn left(&mut self, most: usize) -> u8 {
        let mut passed = 0;
        loop {
            let word = match self.signals.next().await {
                Came::End(number) if self.tty || passed == most => return 128 + number,
                Came::End(number) => {
                    passed += 1;
                    json!({"signal": number})
                }
                Came::Resized => match terminal::size().filter(|_| self.tty) {
                    Some(Size { rows, columns }) => {
                        json!({"resize": {"rows": rows, "columns": columns}})
                    }
                    None => continue,
                },
            };
            // What does not fit any more is more than a person does. A speaker that is gone is found by the listener.
            let _ = self.say.try_send(word);
        }
    }
}

fn split(mut data: Bytes) -> Result<(u8, Bytes), Failure> {
    match data.first().copied() {
        Some(channel @ (STDOUT | STDERR)) => {
            let data = data.split_off(1);
            Ok((channel, data))
        }
        _ => Err(Failure::Answer("output of no channel".to_owned())),
    }
}

fn ended(exited: &Value) -> Result<u8, Failure> {
    let exited = Exited::deserialize(exited).map_err(|error| Failure::Answer(error.to_string()))?;
    if let Some(error) = exited.error.filter(|error| !error.is_empty()) {
        return Err(Failure::Session(error));
    }
    let code = if exited.signal > 0 {
        128 + (exited.signal & 0x7f)
    } else {
        exited.code & 0xff
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The exit code of a program that never ran.
fn failed_with(failure: &Failure) -> u8 {
    match failure {
        Failure::Problem(problem) => never_ran(problem),
        _ => FAILED,
    }
}

fn never_ran(problem: &Problem) -> u8 {
    match problem.slug() {
        "not-in-guest" => NOT_FOUND,
        "unusable-in-guest" => NOT_EXECUTABLE,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_as_shells_do() {
        for (exited, expected) in [
            (json!({"code": 0, "signal": 0, "error": null}), 0),
            (json!({"code": 7}), 7),
            (json!({"code": 0, "signal": 9}), 137),
            // What a guest says is no exit code of ours.
            (json!({"code": 256 + 5, "signal": 0}), 5),
            (json!({"code": 0, "signal": 4_000_000_000_u32}), 128),
        ] {
            assert_eq!(ended(&exited).unwrap(), expected, "{exited}");
        }
        assert!(ended(&json!({"code": 0, "error": "the agent is gone"})).is_err());
        assert!(ended(&json!({"code": -1})).is_err());
    }
}
