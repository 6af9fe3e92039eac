//! `volar vms forward`: TCP ports here that lead into a guest, a WebSocket for each connection.

use std::{io, net::SocketAddr, rc::Rc};

use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::{JoinSet, LocalSet},
};
use tokio_tungstenite::tungstenite::Message;
use volant_spec::Name;

use crate::{
    args::{Forward, Spec},
    client::{Client, Receiver, Said, Sender, text},
    failure::Failure,
    output::Output,
};

const PROTOCOL: &str = "v1.forward.volantvm.com";
const CHUNK: usize = 32 * 1024;
/// Connections at the same time of one port; others wait to be accepted.
const MOST: usize = 512;

/// A port that is open here.
struct Open {
    listener: TcpListener,
    name: Name,
    spec: Spec,
}

/// Goes on until it is interrupted.
pub async fn forward(forward: Forward, client: Rc<Client>, output: &Output) -> Result<(), Failure> {
    // A VM that is not there is told now, and not with the first connection.
    client.vm(&forward.name).await?;
    let mut open = Vec::new();
    for spec in forward.ports {
        let address = SocketAddr::new(spec.bind, spec.local);
        let failed = |source| Failure::Io {
            act: format!("cannot listen at {address}"),
            source,
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        tell(&forward.name, local, &spec, output)?;
        open.push(Open {
            listener,
            name: forward.name.clone(),
            spec,
        });
    }
    let local = LocalSet::new();
    for open in open {
        let client = Rc::clone(&client);
        local.spawn_local(accept(open, client));
    }
    local.await;
    Ok(())
}

fn tell(name: &Name, local: SocketAddr, spec: &Spec, output: &Output) -> Result<(), Failure> {
    let Spec { host, port, .. } = spec;
    if output.is_json() {
        let told = json!({"local": local.to_string(), "host": host, "port": port});
        return output.json_line(&told).map(drop);
    }
    if output.quiet {
        return output.text(&local.to_string());
    }
    let there = if host.is_empty() {
        format!("port {port} of VM {name}")
    } else {
        format!("{host}:{port} in VM {name}")
    };
    output.text(&format!("{local} leads to {there}"))
}

async fn accept(open: Open, client: Rc<Client>) {
    let open = Rc::new(open);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = open.listener.accept(), if connections.len() < MOST => match accepted {
                Ok((stream, peer)) => {
                    let (open, client) = (Rc::clone(&open), Rc::clone(&client));
                    connections.spawn_local(async move {
                        if let Err(failure) = carry(stream, &open, &client).await {
                            eprintln!("connection of {peer}:");
                            failure.tell();
                        }
                    });
                }
                // As with too many open files: one that ends makes room.
                Err(error) => {
                    eprintln!("warning: cannot accept a connection: {error}");
                    if connections.join_next().await.is_none() {
                        return;
                    }
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to its end.
async fn carry(stream: TcpStream, open: &Open, client: &Client) -> Result<(), Failure> {
    let query = [
        ("port", open.spec.port.to_string()),
        ("host", open.spec.host.clone()),
    ];
    let path = format!("/vms/{}/forward", open.name);
    let (sender, receiver) = client.socket(&path, &query, PROTOCOL).await?;
    let _ = stream.set_nodelay(true);
    let (from, to) = stream.into_split();
    let (inward, outward) = (inward(from, sender), outward(receiver, to));
    tokio::pin!(inward, outward);
    tokio::select! {
        // The guest said all, or the connection broke: whatever is said here reaches nobody.
        ended = &mut outward => ended,
        sent = &mut inward => match sent {
            // Only this side is done.
            Ok(_sender) => outward.await,
            // Whoever connected here is gone.
            Err(_) => Ok(()),
        },
    }
}

/// Sends what comes from here, and that it ends. The sender is kept: dropped, it would end both ways.
async fn inward(mut from: OwnedReadHalf, mut sender: Sender) -> io::Result<Sender> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = from.read(&mut buffer).await?;
        let message = if read == 0 {
            text(&json!({"end": true}))
        } else {
            Message::Binary(Bytes::copy_from_slice(&buffer[..read]))
        };
        if sender.send(message).await.is_err() || read == 0 {
            return Ok(sender);
        }
    }
}

/// Writes what comes from the guest until the connection is over.
async fn outward(mut receiver: Receiver, mut to: OwnedWriteHalf) -> Result<(), Failure> {
    while let Some(said) = receiver.next().await? {
        match said {
            Said::Data(data) => {
                // Whoever connected here is gone.
                if to.write_all(&data).await.is_err() {
                    return Ok(());
                }
            }
            Said::Word(word) => {
                if word.get("end").is_some() && to.shutdown().await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}
