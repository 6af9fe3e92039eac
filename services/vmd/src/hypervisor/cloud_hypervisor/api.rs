//! Cloud Hypervisor's REST API, on its Unix socket: one connection a request.
//!
//! A request may carry a descriptor, as `vm.add-net` does with a tap: it goes as `SCM_RIGHTS` with the request's first
//! bytes, which no HTTP client does by itself. [`Carrier`] is the stream that does.

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
    time::timeout,
};

/// The longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// The way to one Cloud Hypervisor.
#[derive(Clone, Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("its API cannot be reached: {0}")]
    Connect(io::Error),
    #[error("its API fails: {0}")]
    Http(String),
    #[error("it refuses with status {status}: {body}")]
    Refused { status: u16, body: String },
    #[error("it does not answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for `act` (`vm.boot`), with `body` and a descriptor where it takes them.
    pub(super) async fn put(
        &self,
        act: &str,
        body: Option<Value>,
        fd: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<(), ApiError> {
        timeout(deadline, put(&self.socket, act, body, fd))
            .await
            .unwrap_or(Err(ApiError::Timeout(deadline)))
    }
}

async fn put(
    socket: &Path,
    act: &str,
    body: Option<Value>,
    fd: Option<OwnedFd>,
) -> Result<(), ApiError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(ApiError::Connect)?;
    let carrier = TokioIo::new(Carrier { stream, fd });
    let (mut sender, connection) = http1::handshake(carrier)
        .await
        .map_err(|error| http(&error))?;
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = Request::put(format!("/api/v1/{act}"))
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| ApiError::Http(error.to_string()))?;
    let talk = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| http(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        if status.is_success() {
            return Ok(());
        }
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Err(ApiError::Refused {
            status: status.as_u16(),
            body: String::from_utf8_lossy(&body)
                .chars()
                .filter(|c| !c.is_control())
                .take(600)
                .collect(),
        })
    };
    tokio::pin!(talk);
    // The connection must be driven for the talk to go on; its end alone says nothing yet.
    tokio::select! {
        biased;
        answer = &mut talk => answer,
        _ = connection => talk.await,
    }
}

fn http(error: &hyper::Error) -> ApiError {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    ApiError::Http(format!("{error}{}", source.unwrap_or_default()))
}

/// A stream whose first written bytes carry a descriptor along.
#[derive(Debug)]
struct Carrier {
    stream: UnixStream,
    fd: Option<OwnedFd>,
}

impl AsyncWrite for Carrier {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(fd) = &self.fd else {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        };
        let fd = fd.as_raw_fd();
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let stream = self.stream.as_raw_fd();
            let sent = self.stream.try_io(Interest::WRITABLE, || {
                let rights = [fd];
                let rights = [ControlMessage::ScmRights(&rights)];
                let flags = MsgFlags::MSG_NOSIGNAL;
                Ok(sendmsg::<()>(
                    stream,
                    &[IoSlice::new(bytes)],
                    &rights,
                    flags,
                    None,
                )?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    // Sent once: the receiver has a copy of its own.
                    self.fd = None;
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}
