//! The socket that sessions come to.

use std::{io, os::fd::OwnedFd};

use nix::sys::socket::{SockaddrLike as _, SockaddrStorage, getpeername};
use rustix::net::{SocketFlags, accept_with};
use std::os::fd::AsRawFd as _;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};
use volant_proto::agent::v1::SESSION_PORT;

use super::descriptor::Descriptor;

/// Listens for sessions of the host, which queue until somebody serves them. Call within a runtime.
///
/// # Errors
/// The machine has no vsock, or somebody listens already.
pub fn listen() -> io::Result<OwnedFd> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, SESSION_PORT)).map(OwnedFd::from)
}

/// The next connection of the host. Where a socket does not tell who its peer is, its peer is the host.
///
/// # Errors
/// There is nothing to accept with.
pub async fn accept(listener: &Descriptor) -> io::Result<Descriptor> {
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = listener
            .when_readable(|fd| Ok(accept_with(fd, flags)?))
            .await;
        match accepted {
            // A process of the guest that calls its own agent by vsock's loopback is not the host.
            Ok(connection) if is_host(&connection) => return Descriptor::new(connection),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_host(connection: &OwnedFd) -> bool {
    match getpeername::<SockaddrStorage>(connection.as_raw_fd()) {
        Ok(peer) => match peer.as_vsock_addr() {
            Some(peer) => peer.cid() == VMADDR_CID_HOST,
            None => peer.family() == Some(nix::sys::socket::AddressFamily::Unix),
        },
        // It is gone already.
        Err(_) => false,
    }
}
