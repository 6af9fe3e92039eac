//! A program in the guest and its client: what each says passed on to the other, also across a change of the supervisor.

use std::time::Duration;

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use volant_proto::vm::v1::{
    ExecAttach, ExecExited, ExecMoved, ExecRequest, ExecResponse, ExecStart, StdinEnd, WindowSize,
    exec_request::Message as Ask, exec_response::Message as Told,
};
use volant_spec::Name;

use super::{
    MAX_SIGNAL, MAX_SIZE, Order, STDERR, STDIN, STDOUT, Word,
    stdin::{Next, Stdin},
};
use crate::{
    Gateway, Kind, Problem,
    rest::{
        extract::parse,
        socket::{End, Incoming, Outgoing, Room, Said},
    },
    vmd,
};

/// Messages that wait for the supervisor; then the client waits.
const AHEAD: usize = 2;
/// What a new supervisor may take to answer after the old one said goodbye.
const MOVING: Duration = Duration::from_secs(15);
/// Between the tries to reach it.
const TRIES: Duration = Duration::from_millis(100);

/// What the client said last, and is to be sent.
#[derive(Debug, Default)]
struct Orders {
    stdin: Stdin,
    /// The newest alone counts.
    size: Option<WindowSize>,
    signal: Option<u32>,
}

impl Orders {
    fn is_waiting(&self) -> bool {
        self.size.is_some() || self.signal.is_some() || self.stdin.is_waiting()
    }

    fn next(&mut self) -> Option<Ask> {
        if let Some(signal) = self.signal.take() {
            return Some(Ask::Signal(signal));
        }
        if let Some(size) = self.size.take() {
            return Some(Ask::Resize(size));
        }
        self.stdin.send().map(|next| match next {
            Next::Data(data) => Ask::Stdin(data.into()),
            Next::End => Ask::StdinEnd(StdinEnd {}),
        })
    }
}

/// A stream to one supervisor.
struct Stream {
    asks: mpsc::Sender<ExecRequest>,
    told: Streaming<ExecResponse>,
    /// The connection lives as long as this does.
    _client: vmd::Client,
}

/// How passing on ended.
enum Pass {
    End(End),
    /// Another supervisor has the program.
    Moved(ExecMoved),
    Failed(Problem),
}

/// The program, as far as it is known.
#[derive(Debug, Default)]
struct Known {
    id: Option<String>,
    detached: bool,
}

/// Runs a program until it ends, or its client goes away.
pub async fn run(
    gateway: &Gateway,
    name: &Name,
    client: vmd::Client,
    start: ExecStart,
    mut incoming: Incoming,
    out: Outgoing,
) -> End {
    let mut known = Known {
        id: None,
        detached: start.detach,
    };
    let mut orders = Orders::default();
    let mut stream = match open(client, Ask::Start(start)).await {
        Ok(stream) => stream,
        Err(status) => {
            out.problem(&vmd::problem(name, &status)).await;
            return End::Done;
        }
    };
    loop {
        let passed = pass(
            name,
            &mut stream,
            &mut orders,
            &mut known,
            &mut incoming,
            &out,
        )
        .await;
        let problem = match passed {
            Pass::End(end) => return end,
            Pass::Failed(problem) => problem,
            Pass::Moved(moved) => match known.id.clone() {
                None => Problem::internal("a program moved that was not started"),
                Some(id) => match orders.stdin.again(moved.stdin_bytes) {
                    Err(lost) => Problem::internal(lost.to_string()),
                    Ok(()) => match attach(gateway, name, id).await {
                        Ok(attached) => {
                            stream = attached;
                            incoming.hold();
                            continue;
                        }
                        Err(problem) => problem,
                    },
                },
            },
        };
        out.problem(&problem).await;
        return End::Done;
    }
}

async fn open(mut client: vmd::Client, first: Ask) -> Result<Stream, Status> {
    let (asks, asked) = mpsc::channel(AHEAD);
    let first = ExecRequest {
        message: Some(first),
    };
    asks.try_send(first).expect("the channel is empty");
    let told = client.exec(ReceiverStream::new(asked)).await?.into_inner();
    Ok(Stream {
        asks,
        told,
        _client: client,
    })
}

/// Goes on with a program at the new supervisor.
async fn attach(gateway: &Gateway, name: &Name, id: String) -> Result<Stream, Problem> {
    let begun = Instant::now();
    loop {
        let attached = match gateway.vmd(name).await {
            Err(problem) => Err(problem),
            Ok(client) => {
                let attach = Ask::Attach(ExecAttach { id: id.clone() });
                let opened = open(client, attach).await;
                opened.map_err(|status| vmd::problem(name, &status))
            }
        };
        match attached {
            Err(problem) if problem.kind == Kind::GuestAway && begun.elapsed() < MOVING => {
                tokio::time::sleep(TRIES).await;
            }
            other => return other,
        }
    }
}

/// Passes on what both sides say.
async fn pass(
    name: &Name,
    stream: &mut Stream,
    orders: &mut Orders,
    known: &mut Known,
    incoming: &mut Incoming,
    out: &Outgoing,
) -> Pass {
    loop {
        let Stream { asks, told, .. } = stream;
        let next = async {
            let room = out.room().await;
            (room, told.message().await)
        };
        let is_waiting = orders.is_waiting();
        let sending = async {
            match is_waiting {
                true => asks.reserve().await.ok(),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            (room, message) = next => {
                let Some(room) = room else { return Pass::End(End::Gone) };
                if let Some(end) = tell(name, known, out, room, message).await {
                    return end;
                }
            }
            room = sending => match room {
                Some(room) => {
                    let message = orders.next();
                    room.send(ExecRequest { message });
                }
                // The supervisor takes no more, and says why at once.
                None => {
                    let room = out.room().await;
                    let message = told.message().await;
                    let Some(room) = room else { return Pass::End(End::Gone) };
                    if let Some(end) = tell(name, known, out, room, message).await {
                        return end;
                    }
                }
            },
            said = incoming.next(), if !is_waiting => match take(orders, said) {
                Ok(true) => {}
                Ok(false) => return Pass::End(End::Gone),
                Err(problem) => return Pass::Failed(problem),
            },
        }
        if orders.is_waiting() {
            incoming.hold();
        }
    }
}

/// Passes on what the supervisor says.
async fn tell(
    name: &Name,
    known: &mut Known,
    out: &Outgoing,
    room: Room<'_>,
    message: Result<Option<ExecResponse>, Status>,
) -> Option<Pass> {
    match message {
        Ok(Some(ExecResponse { message })) => match message? {
            Told::Started(started) => {
                // A program that is attached to was told of before.
                if known.id.replace(started.id.clone()).is_none() {
                    room.text(&Word::from(started));
                }
            }
            Told::Stdout(data) => out.data(room, &[STDOUT], data).await,
            Told::Stderr(data) => out.data(room, &[STDERR], data).await,
            Told::Exited(exited) => {
                room.text(&Word::from(exited));
                return Some(Pass::End(End::Done));
            }
            Told::Moved(moved) => return Some(Pass::Moved(moved)),
        },
        Ok(None) if known.detached && known.id.is_some() => {
            room.text(&Word::from(ExecExited::default()));
            return Some(Pass::End(End::Done));
        }
        Ok(None) => {
            let status = Status::new(Code::Unavailable, "the supervisor ended the session");
            return Some(Pass::Failed(vmd::problem(name, &status)));
        }
        Err(status) => return Some(Pass::Failed(vmd::problem(name, &status))),
    }
    None
}

/// Takes what the client says; false when it is gone.
fn take(orders: &mut Orders, said: Said) -> Result<bool, Problem> {
    match said {
        Said::Gone => return Ok(false),
        Said::Binary(mut bytes) => {
            if bytes.is_empty() || bytes.split_to(1)[0] != STDIN {
                let detail = "a binary message begins with 0, standard input's number";
                return Err(Problem::invalid(detail));
            }
            orders.stdin.push(bytes);
        }
        Said::Text(text) => match parse(text.as_bytes())? {
            Order::Resize { rows, columns } => {
                orders.size = Some(WindowSize {
                    rows: rows.min(MAX_SIZE),
                    columns: columns.min(MAX_SIZE),
                });
            }
            Order::Signal(signal) if (1..=MAX_SIGNAL).contains(&signal) => {
                orders.signal = Some(signal);
            }
            Order::Signal(signal) => {
                return Err(Problem::invalid(format!("{signal} is no signal's number")));
            }
            Order::StdinEnd(true) => orders.stdin.end(),
            Order::StdinEnd(false) => {}
        },
    }
    Ok(true)
}
