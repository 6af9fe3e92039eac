//! The connection to the bus, handed over as it is: with the VM's uid nobody could own the VM's name on a new one.

use std::{
    io,
    os::{
        fd::{BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use volant_dbus::vm;
use volant_service::{Heirlooms, inherited};
use zbus::{
    Address, Connection,
    address::transport::{Transport, UnixSocket},
    connection::{
        Builder,
        socket::{ReadHalf, Socket, Split, WriteHalf},
    },
};

use crate::dbus::Vm;

/// For registryd and ipamd, which the bus may have to start first.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection whose socket is known.
#[derive(Clone, Debug)]
pub struct Bus {
    pub connection: Connection,
    /// Absent where the bus is no Unix socket: it cannot be handed over then.
    socket: Option<Arc<OwnedFd>>,
}

/// The same for the next vmd.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusState {
    socket: RawFd,
    guid: String,
}

impl Bus {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn connect() -> zbus::Result<Self> {
        let address = Address::system()?;
        let path = match address.transport() {
            Transport::Unix(unix) => match unix.path() {
                UnixSocket::File(path) => Some(path.clone()),
                _ => None,
            },
            _ => None,
        };
        let (builder, socket) = match path {
            Some(path) => {
                let stream = StdUnixStream::connect(path)?;
                let socket = stream.try_clone()?;
                (Builder::unix_stream(stream), Some(Arc::new(socket.into())))
            }
            None => (Builder::address(address), None),
        };
        let connection = builder.method_timeout(TIMEOUT).build().await?;
        Ok(Self { connection, socket })
    }

    /// Waits until the bus has answered: what it sent before is read whole then.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn settle(&self) -> zbus::Result<()> {
        let bus = "org.freedesktop.DBus";
        let peer = Some("org.freedesktop.DBus.Peer");
        let path = "/org/freedesktop/DBus";
        let answer = self
            .connection
            .call_method(Some(bus), path, peer, "Ping", &());
        answer.await.map(drop)
    }

    /// What the next vmd needs of it.
    ///
    /// # Errors
    /// It cannot be handed over.
    pub fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<BusState> {
        let socket = self.socket.as_deref().ok_or_else(|| {
            let text = "the connection to the bus is no Unix socket";
            io::Error::new(io::ErrorKind::Unsupported, text)
        })?;
        Ok(BusState {
            socket: heirlooms.keep(socket)?,
            guid: self.connection.server_guid().to_string(),
        })
    }

    /// The connection that was left, with its names, and `vm` served on it. Do so once.
    ///
    /// # Errors
    /// It is no connection.
    pub async fn restore(state: BusState, vm: Vm) -> zbus::Result<Self> {
        let stream = StdUnixStream::from(inherited(state.socket)?);
        let socket = stream.try_clone()?;
        stream.set_nonblocking(true)?;
        let handed = Handed(UnixStream::from_std(stream)?);
        let connection = Builder::authenticated_socket(handed, state.guid.as_str())
            .method_timeout(TIMEOUT)
            .serve_at(vm::PATH, vm)
            .build()
            .await?;
        Ok(Self {
            connection,
            socket: Some(Arc::new(socket.into())),
        })
    }
}

/// A socket on which the bus knows us already. Descriptors do not come over it: vmd asks for none once it runs.
#[derive(Debug)]
struct Handed(UnixStream);

impl Socket for Handed {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.0.into_split();
        Split::new(Reader(read), Writer(write))
    }
}

#[derive(Debug)]
struct Reader(OwnedReadHalf);

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((self.0.read(buffer).await?, Vec::new()))
    }
}

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, bytes: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(bytes).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}
