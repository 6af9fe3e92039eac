//! A descriptor that can wait: a connection, a pseudo terminal, a listener. Clones are the same descriptor, so that one can
//! read while another writes.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

#[derive(Clone, Debug)]
pub struct Descriptor(Arc<AsyncFd<OwnedFd>>);

impl Descriptor {
    /// Takes a descriptor, which will not block from now on. Call within a runtime.
    ///
    /// # Errors
    /// It is of a kind that nobody can wait for.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        if !flags.contains(OFlag::O_NONBLOCK) {
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        // SAFETY: an `OwnedFd` is open as long as it lives, and always gives the same descriptor.
        #[allow(unsafe_code, reason = "the caller of epoll answers for the descriptor")]
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self(Arc::new(fd)))
    }

    /// The next bytes, at most `most`; none at the end. May be dropped at its await: nothing is lost.
    ///
    /// # Errors
    /// The system's.
    pub async fn chunk(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.when_readable(|fd| {
            bytes.reserve_exact(most);
            rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes))?;
            Ok(())
        });
        match read.await {
            // A terminal that nobody has open any more has ended.
            Err(error) if error.raw_os_error() != Some(nix::libc::EIO) => Err(error),
            _ => Ok(bytes),
        }
    }

    /// Calls `act` whenever there may be something to read, until it does not say that it would block.
    ///
    /// # Errors
    /// Those of `act`.
    pub async fn when_readable<T>(
        &self,
        mut act: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0
            .async_io(Interest::READABLE, |fd| act(fd.as_fd()))
            .await
    }

    /// Resolves when the peer of a connection will send no more, even while there is something to read.
    pub async fn hung_up(&self) {
        loop {
            match self.0.ready(Interest::PRIORITY).await {
                Ok(ready) if ready.ready().is_read_closed() => return,
                Ok(mut ready) => ready.clear_ready_matching(tokio::io::Ready::PRIORITY),
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            // SAFETY: nothing is written to the room but what `read` puts there, which stays initialized.
            match guard.try_io(|fd| fill(fd.get_ref(), buf)) {
                Ok(Ok(())) => return Poll::Ready(Ok(())),
                // A terminal that nobody has open any more has ended.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// Reads into the room that is left, without zeroing it first, which would cost more than most reads.
#[allow(unsafe_code, reason = "only so is the room not zeroed")]
fn fill(fd: impl AsFd, buf: &mut ReadBuf<'_>) -> io::Result<()> {
    // SAFETY: nothing is written to the room but what `read` puts there, which stays initialized.
    let room = unsafe { buf.unfilled_mut() };
    let count = rustix::io::read(fd, room)?.0.len();
    // SAFETY: `read` has just initialized so many bytes.
    unsafe { buf.assume_init(count) };
    buf.advance(count);
    Ok(())
}

impl AsyncWrite for Descriptor {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::writev(fd.get_ref(), slices)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
