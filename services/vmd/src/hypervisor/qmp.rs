//! QEMU's machine protocol: the few words of it that we speak and understand.

use std::{
    io,
    os::{fd::RawFd, unix::net::UnixStream as StdUnixStream},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::UnixStream};
use volant_service::{Heirlooms, inherited};

use super::frames::Frames;

/// Messages are lines.
const MARK: &[u8] = b"\n";

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    frames: Frames<UnixStream>,
    commands: u64,
    shutdown: Option<Shutdown>,
}

/// A connection for the supervisor that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QmpState {
    monitor: RawFd,
    rest: Vec<u8>,
    commands: u64,
    shutdown: Option<Shutdown>,
}

/// Why QEMU stops the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Shutdown {
    GuestPowerOff,
    GuestReset,
    /// Not the guest: a signal, a failure, our own word.
    Host,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("its monitor is closed")]
    Closed,
    #[error("its monitor fails: {0}")]
    Io(#[from] io::Error),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("it does not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Greeting,
    Done { id: u64 },
    Refused { id: u64, reason: String },
    Shutdown(Shutdown),
    Other,
}

impl Qmp {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            frames: Frames::new(stream, MARK),
            commands: 0,
            shutdown: None,
        }
    }

    /// What a supervisor needs that takes over in this process.
    pub(super) fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<QmpState> {
        Ok(QmpState {
            monitor: heirlooms.keep(self.frames.get_ref())?,
            rest: self.frames.rest().to_vec(),
            commands: self.commands,
            shutdown: self.shutdown.clone(),
        })
    }

    /// The connection that an earlier supervisor left.
    pub(super) fn restore(state: QmpState) -> io::Result<Self> {
        let stream = StdUnixStream::from(inherited(state.monitor)?);
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        Ok(Self {
            frames: Frames::with_rest(stream, MARK, state.rest),
            commands: state.commands,
            shutdown: state.shutdown,
        })
    }

    /// Waits for QEMU's greeting, which comes when its machine is built, and begins.
    pub(super) async fn greet(&mut self) -> Result<(), QmpError> {
        while self.next().await? != Message::Greeting {}
        self.execute("qmp_capabilities").await
    }

    /// Has QEMU carry out a command without arguments within `deadline`.
    pub(super) async fn command(&mut self, name: &str, deadline: Duration) -> Result<(), QmpError> {
        tokio::time::timeout(deadline, self.execute(name))
            .await
            .unwrap_or(Err(QmpError::Timeout(deadline)))
    }

    /// Reads on until the monitor closes. May be dropped and called again.
    pub(super) async fn closed(&mut self) {
        while self.next().await.is_ok() {}
    }

    /// The last reason that was heard of.
    pub(super) fn shutdown(&self) -> Option<&Shutdown> {
        self.shutdown.as_ref()
    }

    async fn execute(&mut self, name: &str) -> Result<(), QmpError> {
        self.commands += 1;
        let sent = self.commands;
        let text = format!("{}\n", json!({ "execute": name, "id": sent }));
        self.frames.get_mut().write_all(text.as_bytes()).await?;
        loop {
            // The answer to a command that was given up on may come late.
            match self.next().await? {
                Message::Done { id } if id == sent => return Ok(()),
                Message::Refused { id, reason } if id == sent => {
                    return Err(QmpError::Refused(reason));
                }
                _ => {}
            }
        }
    }

    async fn next(&mut self) -> Result<Message, QmpError> {
        let message = parse(&self.frames.next().await?.ok_or(QmpError::Closed)?);
        if let Message::Shutdown(why) = &message {
            self.shutdown = Some(why.clone());
        }
        Ok(message)
    }
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    done: Option<Value>,
    error: Option<WireError>,
    id: Option<u64>,
    event: Option<String>,
    data: Option<WireData>,
}

#[derive(Deserialize)]
struct WireError {
    desc: String,
}

#[derive(Deserialize)]
struct WireData {
    reason: Option<String>,
}

/// What a line says to us. A line that is no message of QMP says nothing.
fn parse(line: &[u8]) -> Message {
    let Ok(wire) = serde_json::from_slice::<Wire>(line) else {
        return Message::Other;
    };
    let id = wire.id.unwrap_or(0);
    if wire.greeting.is_some() {
        return Message::Greeting;
    }
    if let Some(error) = wire.error {
        return Message::Refused {
            id,
            reason: error.desc,
        };
    }
    if wire.done.is_some() {
        return Message::Done { id };
    }
    if wire.event.as_deref() != Some("SHUTDOWN") {
        return Message::Other;
    }
    let reason = wire.data.and_then(|data| data.reason).unwrap_or_default();
    Message::Shutdown(match reason.as_str() {
        "guest-shutdown" => Shutdown::GuestPowerOff,
        "guest-reset" | "guest-panic" => Shutdown::GuestReset,
        _ => Shutdown::Host,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    #[test]
    fn lines_of_a_real_qemu_are_understood() {
        let shutdown = |reason: &str| {
            format!(
                r#"{{"timestamp": {{"seconds": 1, "microseconds": 2}}, "event": "SHUTDOWN", "data": {{"guest": true, "reason": "{reason}"}}}}"#
            )
        };
        let cases = [
            (r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#.to_owned(), Message::Greeting),
            ("{\"return\": {}, \"id\": 3}\r".to_owned(), Message::Done { id: 3 }),
            (r#"{"id": 4, "error": {"class": "CommandNotFound", "desc": "no such"}}"#.to_owned(),
                Message::Refused { id: 4, reason: "no such".to_owned() }),
            (shutdown("guest-shutdown"), Message::Shutdown(Shutdown::GuestPowerOff)),
            (shutdown("guest-reset"), Message::Shutdown(Shutdown::GuestReset)),
            (shutdown("host-signal"), Message::Shutdown(Shutdown::Host)),
            (r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "POWERDOWN"}"#.to_owned(), Message::Other),
            ("nonsense".to_owned(), Message::Other),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&line);
        }
    }

    /// Stands in for QEMU's monitor: sends a greeting, then each answer after one more line was read.
    async fn fake_monitor(stream: UnixStream, answers: Vec<&'static str>) {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let mut line = String::new();
        for answer in answers {
            stream.read_line(&mut line).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_command_waits_for_its_own_answer_and_keeps_the_events_between() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours);
        let monitor = fake_monitor(
            theirs,
            vec![
                "{\"return\": {}, \"id\": 1}\n",
                concat!(
                    "{\"return\": {}, \"id\": 1}\n",
                    "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n",
                    "{\"error\": {\"desc\": \"too late\"}, \"id\": 2}\n",
                ),
            ],
        );
        let talk = async {
            qmp.greet().await.unwrap();
            let refused = qmp
                .command("system_powerdown", Duration::from_secs(5))
                .await
                .unwrap_err();
            assert_eq!(refused.to_string(), "it refuses: too late");
            assert_eq!(qmp.shutdown(), Some(&Shutdown::GuestReset));
            qmp.closed().await;
            let closed = qmp
                .command("system_powerdown", Duration::from_secs(5))
                .await
                .unwrap_err();
            assert!(
                matches!(closed, QmpError::Closed | QmpError::Io(_)),
                "{closed}"
            );
        };
        tokio::join!(monitor, talk);
    }

    #[tokio::test]
    async fn a_silent_monitor_is_given_up_on() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let deadline = Duration::from_millis(20);
        let error = Qmp::new(ours)
            .command("system_powerdown", deadline)
            .await
            .unwrap_err();
        assert!(matches!(error, QmpError::Timeout(_)), "{error}");
    }
}
