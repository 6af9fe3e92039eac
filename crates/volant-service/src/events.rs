//! Sockets that are not read for what they tell, but for that they tell.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{MsgFlags, recv},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A datagram socket on which something tells that something happened: netlink, usually.
#[derive(Debug)]
pub struct Events(AsyncFd<OwnedFd>);

impl Events {
    /// Makes the socket non-blocking and watches it. Call it within a runtime.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(socket.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(socket.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        #[allow(
            unsafe_code,
            reason = "tokio takes any AsRawFd, and cannot know that this one is an OwnedFd"
        )]
        // SAFETY: an OwnedFd is open, stays the same descriptor, and is closed only when it is dropped: with the AsyncFd.
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self(watched))
    }

    /// Resolves when there is something to read; at once if there is still something since the last time.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub async fn happened(&self) -> io::Result<()> {
        self.0.readable().await?.retain_ready();
        Ok(())
    }

    /// Throws away what there is to read.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            let read = self.0.try_io(Interest::READABLE, |socket| {
                match recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()) {
                    // The kernel had more to tell than the socket holds: that is told once, as an error.
                    Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => Ok(()),
                    Err(error) => Err(io::Error::from(error)),
                }
            });
            match read {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
