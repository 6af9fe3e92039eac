//! Pseudo terminals.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::{Gid, Uid, fchown},
};
use rustix::{
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tokio::io::AsyncWrite;
use volant_proto::agent::v1::WindowSize;

use super::descriptor::Descriptor;

/// Where the multiplexer is: the second is what a `/dev` without it still has.
const MULTIPLEXERS: [&str; 2] = ["/dev/ptmx", "/dev/pts/ptmx"];
/// What a terminal in its usual mode takes for the end of the input.
const END_OF_INPUT: u8 = 4;
/// What people see who did not say how large their window is.
const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// Our end of a new terminal, and the program's, which belongs to that user.
///
/// # Errors
/// There are no pseudo terminals in this guest, or too many.
pub fn open_pair(user: Uid) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = MULTIPLEXERS
        .iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or(&MULTIPLEXERS[0]);
    let ours = open(*path, flags, Mode::empty())?;
    unlockpt(&ours)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    if !user.is_root() {
        fchown(theirs.as_fd(), Some(user), None::<Gid>)?;
    }
    Ok((ours, theirs))
}

/// Says how large the window is; 0 is the usual.
///
/// # Errors
/// It is no terminal.
pub fn resize(terminal: impl std::os::fd::AsFd, size: WindowSize) -> io::Result<()> {
    let of = |number: u32, usual| match u16::try_from(number) {
        Ok(0) => usual,
        number => number.unwrap_or(u16::MAX),
    };
    let size = Winsize {
        ws_row: of(size.rows, ROWS),
        ws_col: of(size.columns, COLUMNS),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// What a person types: shutting it down types the end of the input.
#[derive(Debug)]
pub struct Keyboard(pub Descriptor);

impl AsyncWrite for Keyboard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0)
            .poll_write(cx, &[END_OF_INPUT])
            .map_ok(drop)
    }
}
