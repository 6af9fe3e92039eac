//! Connections of the guest with its host, and bytes that look random.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, Backlog, MsgFlags, SockFlag, SockType, VsockAddr, accept4, bind,
            connect, listen, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::TimeVal,
    },
};
use volant_proto::agent::v1::{HOST_PORT, SESSION_PORT};

const HOST: u32 = 2;
const ANY: u32 = u32::MAX;
/// The longest wait for an answer.
const ANSWER: i64 = 5;

/// A connection that gives up on who does not listen.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// To the host's port for agents.
    pub fn dial() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        connect(socket.as_raw_fd(), &VsockAddr::new(HOST, HOST_PORT))?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER, 0))?;
        Ok(Self(socket))
    }

    /// Sends all, or as much as is taken until the deadline.
    pub fn send(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        while !bytes.is_empty() {
            match send(self.0.as_raw_fd(), bytes, flags) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::EAGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    let mut waited = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut waited, left)? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes what came; waits for nothing.
    pub fn drain(&self) {
        let mut buffer = [0; 16 * 1024];
        while recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)
            .is_ok_and(|read| read > 0)
        {}
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the host's sessions come in.
pub fn listener() -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY, SESSION_PORT))?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(socket)
}

pub fn accept(listener: &OwnedFd) -> io::Result<Wire> {
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made it, and nobody else knows it.
    #[allow(unsafe_code, reason = "nix gives a bare number")]
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    Ok(Wire(accepted))
}

/// The seconds from now on.
pub fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Bytes without sense, others for each `round`.
pub fn noise(round: u32, length: usize) -> Vec<u8> {
    let mut state = round.wrapping_mul(0x9e37_79b9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(next).collect()
}
