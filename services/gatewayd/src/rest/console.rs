//! `GET /api/v1/vms/{name}/console`: the guest's serial console as a WebSocket.

use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::Uri;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use volant_proto::vm::v1::{
    ConsoleOpen, ConsoleRequest, ConsoleResponse, console_request::Message as Ask,
    console_response::Message as Told,
};
use volant_spec::Name;

use super::{
    extract::{Named, query},
    socket::{self, End, Incoming, Outgoing, Said, Upgrade},
};
use crate::{Gateway, Problem, vmd};

const PROTOCOL: &str = "v1.console.volantvm.com";
const AHEAD: usize = 4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct How {
    scrollback: u32,
    write: bool,
    steal: bool,
    follow: bool,
}

impl Default for How {
    fn default() -> Self {
        Self {
            scrollback: 64 * 1024,
            write: false,
            steal: false,
            follow: true,
        }
    }
}

/// A text to the client.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    LostBytes(u64),
    Stolen(bool),
}

pub async fn console(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let how: How = query(&uri)?;
    let upgrade = socket::wanted(upgrade)?;
    let place = gateway.session()?;
    let mut client = gateway.vmd(&name).await?;
    let (asks, asked) = mpsc::channel(AHEAD);
    let open = Ask::Open(ConsoleOpen {
        scrollback_bytes: how.scrollback,
        write: how.write,
        steal: how.steal,
        no_follow: !how.follow,
    });
    let open = ConsoleRequest {
        message: Some(open),
    };
    asks.try_send(open).expect("the channel is empty");
    // Before the upgrade: who may not write is told with a status.
    let told = client.console(ReceiverStream::new(asked)).await;
    let told = told.map_err(|status| vmd::problem(&name, &status))?;
    let told = told.into_inner();
    let work = move |incoming, out| async move {
        // The connection lives as long as this does.
        let _client = client;
        carry_out(name, told, asks, how.write, incoming, out).await
    };
    Ok(socket::accept(&gateway, upgrade, PROTOCOL, place, work))
}

async fn carry_out(
    name: Name,
    mut told: Streaming<ConsoleResponse>,
    // Without `write`, too: a stream of requests that ends is a client that left.
    asks: mpsc::Sender<ConsoleRequest>,
    writes: bool,
    mut incoming: Incoming,
    out: Outgoing,
) -> End {
    let mut waiting: Option<Bytes> = None;
    loop {
        let next = async {
            let room = out.room().await;
            (room, told.message().await)
        };
        let is_waiting = waiting.is_some();
        let sending = async {
            match is_waiting {
                true => asks.reserve().await.ok(),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            (room, message) = next => {
                let Some(room) = room else { return End::Gone };
                match message {
                    Ok(Some(ConsoleResponse { message })) => match message {
                        Some(Told::Output(bytes)) => out.data(room, &[], bytes).await,
                        Some(Told::LostBytes(lost)) => room.text(&Word::LostBytes(lost)),
                        Some(Told::Stolen(_)) => room.text(&Word::Stolen(true)),
                        None => {}
                    },
                    Ok(None) => return End::Done,
                    Err(status) => {
                        drop(room);
                        out.problem(&vmd::problem(&name, &status)).await;
                        return End::Done;
                    }
                }
            }
            room = sending => if let (Some(room), Some(input)) = (room, waiting.take()) {
                room.send(ConsoleRequest { message: Some(Ask::Input(input.into())) });
            },
            said = incoming.next(), if !is_waiting => match said {
                Said::Binary(input) if writes => waiting = Some(input),
                Said::Binary(_) => {
                    let problem = Problem::invalid("this console was opened without write=true");
                    out.problem(&problem).await;
                    return End::Done;
                }
                Said::Text(_) => {}
                Said::Gone => return End::Gone,
            },
        }
        if waiting.is_some() {
            incoming.hold();
        }
    }
}
