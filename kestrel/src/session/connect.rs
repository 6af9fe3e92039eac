//! Connections to TCP ports of the guest.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd as _;
use tokio::{io::AsyncWrite, net::TcpStream, time::timeout};
use volant_proto::agent::v1::{
    ConnectSession, SessionEnd, SessionOpened, session_refused::Kind as Why,
};
use volant_session::{Frame, Kind};

use super::{
    Ended, Input, Output, Refusal, answer, descriptor::Descriptor, failed, feed::feed, names,
};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// The most of one OUTPUT.
const CHUNK: usize = 64 * 1024;

/// Connects, and carries data both ways until both sides have ended or the host is gone.
///
/// # Errors
/// There is nobody to connect to.
pub async fn run(
    wanted: &ConnectSession,
    input: &mut Input,
    output: &mut Output,
    root: &Path,
) -> Result<Ended, Refusal> {
    let peer = connect(wanted, root).await?;
    if !answer(output, &SessionOpened::default()).await {
        return Ok(None);
    }
    let connection = output.0.clone();
    let (sent, all_sent) = tokio::sync::oneshot::channel();
    let sink = Sender {
        peer: peer.clone(),
        sent: Some(sent),
    };
    let back = async {
        let result = carry(&peer, output).await?;
        // The host has been told of the peer's end, or the connection is broken both ways.
        if result.is_ok() {
            // Gone with the sink when the peer takes no more.
            let _ = all_sent.await;
        }
        Some(result)
    };
    let ended = tokio::select! {
        ended = back => ended,
        _gone = feed(input, &connection, Some(sink), |_| {}) => None,
    };
    Ok(match ended {
        Some(Ok(())) => Some(SessionEnd::default()),
        Some(Err(error)) => failed(format!(
            "the connection to {} broke: {error}",
            shown(wanted)
        )),
        None => None,
    })
}

/// Carries what the peer sends; `None`: the host is gone.
async fn carry(peer: &Descriptor, output: &mut Output) -> Option<io::Result<()>> {
    loop {
        let frame = match peer.chunk(CHUNK).await {
            Ok(bytes) if bytes.is_empty() => {
                let end = Frame::new(Kind::OutputEnd, Vec::new());
                return output.send(&end).await.ok().map(Ok);
            }
            Ok(bytes) => Frame::new(Kind::Output, bytes),
            Err(error) => return Some(Err(error)),
        };
        output.send(&frame).await.ok()?;
    }
}

async fn connect(wanted: &ConnectSession, root: &Path) -> Result<Descriptor, Refusal> {
    let act = format!("cannot connect to {}", shown(wanted));
    let port = u16::try_from(wanted.port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Refusal::new(Why::Invalid, format!("{act}: a port is 1 to 65535")))?;
    let addresses = match wanted.host.as_str() {
        "" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        host => resolve(host, root, &act).await?,
    };
    let mut first = None;
    for address in addresses {
        let attempt = TcpStream::connect(SocketAddr::new(address, port));
        let error = match timeout(CONNECT_WITHIN, attempt).await {
            Ok(Ok(stream)) => {
                let made = stream
                    .set_nodelay(true)
                    .and_then(|()| stream.into_std())
                    .and_then(|stream| Descriptor::new(OwnedFd::from(stream)));
                return made.map_err(|error| Refusal::system(&act, &error));
            }
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        // The first address is the one that people mean.
        first.get_or_insert(error);
    }
    let error = first.unwrap_or_else(|| io::ErrorKind::NotFound.into());
    Err(Refusal::new(Why::Unusable, format!("{act}: {error}")))
}

async fn resolve(host: &str, root: &Path, act: &str) -> Result<Vec<IpAddr>, Refusal> {
    names::find(host, root)
        .await
        .map_err(|error| Refusal::new(Why::NotFound, format!("{act}: {error}")))
}

fn shown(wanted: &ConnectSession) -> String {
    match wanted.host.as_str() {
        "" => format!("port {}", wanted.port),
        host => format!("{}:{}", host.escape_debug(), wanted.port),
    }
}

/// The way to the peer; it says when it is at its end, or is dropped.
#[derive(Debug)]
struct Sender {
    peer: Descriptor,
    sent: Option<tokio::sync::oneshot::Sender<()>>,
}

impl AsyncWrite for Sender {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.peer).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that is gone has nothing to be told.
        let _ = shutdown(
            std::os::fd::AsFd::as_fd(&self.peer).as_raw_fd(),
            Shutdown::Write,
        );
        if let Some(sent) = self.sent.take() {
            let _ = sent.send(());
        }
        Poll::Ready(Ok(()))
    }
}
