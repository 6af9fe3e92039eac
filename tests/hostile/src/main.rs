//! What a hostile guest could do to vmd: garbage, half-open connections and floods over vsock, and a log without end.
//! `hostile MODE SECONDS`; it says how far it came and ends. By the name of QEMU it is a VMM that was taken over.

mod vmm;

use std::{
    env,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, VsockAddr, connect, send, socket,
};

const HOST: u32 = 2;
const PORT: u32 = (1 << 31) + 1024;
/// What the host does not take at once is given up: it may be bounding us.
const SEND: MsgFlags = MsgFlags::MSG_NOSIGNAL.union(MsgFlags::MSG_DONTWAIT);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn main() -> ExitCode {
    let name = env::args().next().unwrap_or_default();
    if name.ends_with("/qemu-system-x86_64") {
        return vmm::run();
    }
    let mode = env::args().nth(1).unwrap_or_default();
    if mode == "attack" {
        return vmm::attack(&env::args().nth(2).unwrap_or_default());
    }
    let seconds = env::args()
        .nth(2)
        .and_then(|text| text.parse().ok())
        .unwrap_or(5);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let done = match mode.as_str() {
        // Bytes that are no HTTP/2, on connection after connection.
        "garbage" => repeat(deadline, |round| {
            let socket = dial()?;
            let bytes: Vec<u8> = (0..4096_u32)
                .map(|i| (i.wrapping_mul(31) ^ round).to_le_bytes()[0])
                .collect();
            send(socket.as_raw_fd(), &bytes, SEND)?;
            Ok(None)
        }),
        // Connections that say hello and then nothing, all kept.
        "half-open" => repeat(deadline, |_| {
            let socket = dial()?;
            send(socket.as_raw_fd(), PREFACE, SEND)?;
            Ok(Some(socket))
        }),
        // Frames without end on one connection after another: headers that never finish.
        "flood" => repeat(deadline, |_| {
            let socket = dial()?;
            send(socket.as_raw_fd(), PREFACE, SEND)?;
            let mut frame = vec![0x00, 0x40, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01];
            frame.resize(9 + 0x4000, b'a');
            for _ in 0..64 {
                send(socket.as_raw_fd(), &frame, SEND)?;
            }
            Ok(None)
        }),
        "log" => {
            let line = [b'x'; 200];
            let mut stdout = io::stdout().lock();
            let mut lines = 0;
            while Instant::now() < deadline {
                if stdout
                    .write_all(&line)
                    .and_then(|()| stdout.write_all(b"\n"))
                    .is_ok()
                {
                    lines += 1;
                }
            }
            lines
        }
        _ => return ExitCode::from(2),
    };
    eprintln!("hostile: {mode}: {done} done");
    ExitCode::SUCCESS
}

/// Acts until the deadline, whatever fails, and keeps what an act wants kept.
fn repeat(deadline: Instant, mut act: impl FnMut(u32) -> nix::Result<Option<OwnedFd>>) -> u64 {
    let mut kept = Vec::new();
    let mut done = 0;
    for round in 0.. {
        if Instant::now() >= deadline {
            break;
        }
        match act(round) {
            Ok(socket) => {
                kept.extend(socket);
                done += 1;
            }
            Err(_) if kept.len() > 900 => kept.truncate(1),
            Err(_) => {}
        }
    }
    done
}

fn dial() -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, PORT))?;
    Ok(socket)
}
