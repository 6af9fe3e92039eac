//! A client of one VM's `vmd.sock`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use volant_proto::vm::v1::{
    ExecRequest, ExecStart, PackRequest, UnpackRequest, UnpackTarget, exec_request, exec_response,
    pack_response, unpack_request, vm_service_client::VmServiceClient,
};

const CHUNK: usize = 64 * 1024;
/// These are the gateway's, too.
const WINDOW: u32 = 1024 * 1024;
const MAX_FRAME: u32 = 128 * 1024;

/// A connection to a VM's supervisor; clones share it.
#[derive(Clone, Debug)]
pub struct Vmd(VmServiceClient<Channel>);

impl Vmd {
    pub async fn connect(socket: PathBuf) -> Result<Self> {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://vmd.sock")
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .connect_with_connector(connector)
            .await
            .context("cannot reach vmd")?;
        Ok(Self(VmServiceClient::new(channel)))
    }

    /// Runs a program until its end; gives its standard output.
    pub async fn exec(&mut self, command: &[&str], detach: bool) -> Result<Vec<u8>> {
        let start = ExecStart {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            detach,
            ..ExecStart::default()
        };
        let request = ExecRequest {
            message: Some(exec_request::Message::Start(start)),
        };
        let mut answers = self
            .0
            .exec(tokio_stream::iter([request]))
            .await?
            .into_inner();
        let mut stdout = Vec::new();
        while let Some(answer) = answers.message().await? {
            match answer.message {
                Some(exec_response::Message::Stdout(bytes)) => stdout.extend(bytes),
                Some(exec_response::Message::Exited(exited)) => {
                    ensure!(
                        exited.code == 0 && exited.error.is_empty(),
                        "{command:?}: {exited:?}"
                    );
                    return Ok(stdout);
                }
                _ => {}
            }
        }
        bail!("{command:?}: the stream ended without an end of the program")
    }

    /// Packs a file of the guest, and drops what comes: how long it took, and how much came.
    pub async fn pack(&mut self, path: &str) -> Result<(Duration, u64)> {
        let begun = Instant::now();
        let request = PackRequest {
            path: path.to_owned(),
            follow: false,
        };
        let mut answers = self.0.pack(request).await?.into_inner();
        let mut bytes = 0;
        while let Some(answer) = answers.message().await? {
            if let Some(pack_response::Message::Chunk(chunk)) = answer.message {
                bytes += chunk.len() as u64;
            }
        }
        Ok((begun.elapsed(), bytes))
    }

    /// Unpacks one file of so many bytes (a multiple of [`CHUNK`]) in a folder of the guest.
    pub async fn unpack(&mut self, folder: &str, name: &str, bytes: u64) -> Result<Duration> {
        let target = UnpackTarget {
            path: folder.to_owned(),
            ..UnpackTarget::default()
        };
        let chunk = |bytes| UnpackRequest {
            message: Some(unpack_request::Message::Chunk(bytes)),
        };
        let head = [
            UnpackRequest {
                message: Some(unpack_request::Message::Target(target)),
            },
            chunk(header(name, bytes)),
        ];
        let body = (0..bytes / CHUNK as u64).map(move |_| chunk(vec![b'x'; CHUNK]));
        let end = [chunk(vec![0; 1024])];
        let all = head.into_iter().chain(body).chain(end);
        let begun = Instant::now();
        let answer = self.0.unpack(tokio_stream::iter(all)).await?.into_inner();
        ensure!(answer.entries == 1, "the guest made {}", answer.entries);
        Ok(begun.elapsed())
    }
}

/// A ustar header of a file.
fn header(name: &str, bytes: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{bytes:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
