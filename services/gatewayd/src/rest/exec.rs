//! `GET /api/v1/vms/{name}/exec`: a program in the guest as a WebSocket. The messages are here, the session in `program.rs`.

mod program;
mod stdin;

use std::collections::HashMap;

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use volant_proto::vm::v1::{ExecExited, ExecStart, ExecStarted, WindowSize};

use super::{
    extract::{Named, parse},
    socket::{self, End, Incoming, Outgoing, Said, Upgrade},
};
use crate::{Gateway, Problem};

const PROTOCOL: &str = "v1.exec.volantvm.com";
/// Terminals have no more rows or columns.
const MAX_SIZE: u32 = 65_535;
/// The highest number that a signal has.
const MAX_SIGNAL: u32 = 64;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// The client's first message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    /// Empty: a login shell.
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    env: HashMap<String, String>,
    #[serde(default)]
    user: String,
    #[serde(default)]
    workdir: String,
    #[serde(default)]
    tty: bool,
    #[serde(default = "rows")]
    rows: u32,
    #[serde(default = "columns")]
    columns: u32,
    #[serde(default)]
    stdin: bool,
    #[serde(default)]
    detach: bool,
}

fn rows() -> u32 {
    24
}

fn columns() -> u32 {
    80
}

/// The client's other texts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Order {
    Resize { rows: u32, columns: u32 },
    Signal(u32),
    StdinEnd(bool),
}

/// The texts to the client.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Started {
        pid: u32,
    },
    Exited {
        code: u32,
        signal: u32,
        error: Option<String>,
    },
}

impl From<ExecStarted> for Word {
    fn from(started: ExecStarted) -> Self {
        Self::Started { pid: started.pid }
    }
}

impl From<ExecExited> for Word {
    fn from(exited: ExecExited) -> Self {
        Self::Exited {
            code: exited.code,
            signal: exited.signal,
            error: Some(exited.error).filter(|error| !error.is_empty()),
        }
    }
}

impl From<Start> for ExecStart {
    fn from(start: Start) -> Self {
        Self {
            command: start.command,
            env: start.env,
            user: start.user,
            workdir: start.workdir,
            tty: start.tty,
            size: start.tty.then_some(WindowSize {
                rows: start.rows.min(MAX_SIZE),
                columns: start.columns.min(MAX_SIZE),
            }),
            stdin: start.stdin,
            detach: start.detach,
        }
    }
}

pub async fn exec(
    State(gateway): State<Gateway>,
    Named(name): Named,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let upgrade = socket::wanted(upgrade)?;
    let place = gateway.session()?;
    let client = gateway.vmd(&name).await?;
    let this = gateway.clone();
    let work = move |mut incoming: Incoming, out: Outgoing| async move {
        let start = match first(&mut incoming).await {
            Ok(Some(start)) => start,
            Ok(None) => return End::Gone,
            Err(problem) => {
                out.problem(&problem).await;
                return End::Done;
            }
        };
        program::run(&this, &name, client, start.into(), incoming, out).await
    };
    Ok(socket::accept(&gateway, upgrade, PROTOCOL, place, work))
}

/// The first message; `None` when the client went away before it.
async fn first(incoming: &mut Incoming) -> Result<Option<Start>, Problem> {
    match incoming.next().await {
        Said::Text(text) => parse(text.as_bytes()).map(Some),
        Said::Binary(_) => Err(Problem::invalid(
            "the first message must be a text: what to run",
        )),
        Said::Gone => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_needs_nothing_and_has_nothing_unknown() {
        let start: Start = parse(b"{}").unwrap();
        let start = ExecStart::from(start);
        assert!(start.command.is_empty() && !start.stdin && start.size.is_none());
        assert!(parse::<Start>(br#"{"comand":["sh"]}"#).is_err());
        let start: Start = parse(br#"{"tty":true,"rows":4294967295}"#).unwrap();
        let size = ExecStart::from(start).size.unwrap();
        assert_eq!((size.rows, size.columns), (65_535, 80));
    }

    #[test]
    fn the_texts_are_as_the_contract_has_them() {
        let text = |word: Word| serde_json::to_string(&word).unwrap();
        assert_eq!(text(Word::Started { pid: 7 }), r#"{"started":{"pid":7}}"#);
        let exited = Word::from(ExecExited::default());
        assert_eq!(
            text(exited),
            r#"{"exited":{"code":0,"signal":0,"error":null}}"#
        );
        let order = |json: &str| parse::<Order>(json.as_bytes()).unwrap();
        assert!(matches!(order(r#"{"signal":15}"#), Order::Signal(15)));
        assert!(matches!(
            order(r#"{"stdin_end":true}"#),
            Order::StdinEnd(true)
        ));
        assert!(matches!(
            order(r#"{"resize":{"rows":1,"columns":2}}"#),
            Order::Resize {
                rows: 1,
                columns: 2
            }
        ));
    }
}
