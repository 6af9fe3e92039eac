//! `GET /api/v1/vms/{name}/forward`: a TCP connection in the guest as a WebSocket.

use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::Uri;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use volant_proto::vm::v1::{
    ConnectRequest, ConnectResponse, ConnectTarget, connect_request::Message as Ask,
    connect_response::Message as Told,
};
use volant_spec::Name;

use super::{
    extract::{Named, parse, query},
    socket::{self, End, Incoming, Outgoing, Said, Upgrade},
};
use crate::{Gateway, Problem, vmd};

const PROTOCOL: &str = "v1.forward.volantvm.com";
/// Pieces that wait for the guest; then the client waits.
const AHEAD: usize = 4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Where {
    port: u16,
    #[serde(default)]
    host: String,
}

/// A text of either side.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Word {
    Connected(bool),
    /// No more data comes from the one who says it.
    End(bool),
}

pub async fn forward(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
    upgrade: Upgrade,
) -> Result<Response, Problem> {
    let Where { port, host } = query(&uri)?;
    if port == 0 {
        return Err(Problem::invalid("0 is no port"));
    }
    let upgrade = socket::wanted(upgrade)?;
    let place = gateway.session()?;
    let client = gateway.vmd(&name).await?;
    let target = ConnectTarget {
        host,
        port: port.into(),
    };
    let work = move |incoming, out| carry_out(name, client, target, incoming, out);
    Ok(socket::accept(&gateway, upgrade, PROTOCOL, place, work))
}

async fn carry_out(
    name: Name,
    mut client: vmd::Client,
    target: ConnectTarget,
    mut incoming: Incoming,
    out: Outgoing,
) -> End {
    let (asks, asked) = mpsc::channel(AHEAD);
    let first = ConnectRequest {
        message: Some(Ask::Target(target)),
    };
    asks.try_send(first).expect("the channel is empty");
    let call = client.connect(ReceiverStream::new(asked));
    let mut told = match call.await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            out.problem(&vmd::problem(&name, &status)).await;
            return End::Done;
        }
    };
    let mut asks = Some(asks);
    let mut ended = false;
    let mut waiting: Option<Bytes> = None;
    loop {
        let next = async {
            let room = out.room().await;
            (room, told.message().await)
        };
        let sender = asks.clone().filter(|_| waiting.is_some());
        let sending = async move {
            match sender {
                Some(sender) => sender.reserve_owned().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (room, message) = next => {
                let Some(room) = room else { return End::Gone };
                match message {
                    Ok(Some(ConnectResponse { message })) => match message {
                        Some(Told::Connected(_)) => room.text(&Word::Connected(true)),
                        // The guest's side ended; the client may go on.
                        Some(Told::Data(data)) if data.is_empty() => {
                            ended = true;
                            room.text(&Word::End(true));
                        }
                        Some(Told::Data(data)) => out.data(room, &[], data).await,
                        None => {}
                    },
                    Ok(None) => {
                        if !ended {
                            room.text(&Word::End(true));
                        }
                        return End::Done;
                    }
                    Err(status) => {
                        drop(room);
                        out.problem(&vmd::problem(&name, &status)).await;
                        return End::Done;
                    }
                }
            }
            room = sending => match (room, waiting.take()) {
                (Some(room), Some(data)) => {
                    room.send(ConnectRequest { message: Some(Ask::Data(data.into())) });
                }
                // The guest takes no more; it may still give.
                _ => asks = None,
            },
            said = incoming.next(), if waiting.is_none() => match said {
                Said::Binary(data) if asks.is_some() => waiting = Some(data),
                Said::Binary(_) => {}
                Said::Text(text) => match parse::<Word>(text.as_bytes()) {
                    Ok(Word::End(true)) => asks = None,
                    Ok(_) => {}
                    Err(problem) => {
                        out.problem(&problem).await;
                        return End::Done;
                    }
                },
                Said::Gone => return End::Gone,
            },
        }
        if waiting.is_some() {
            incoming.hold();
        }
    }
}
