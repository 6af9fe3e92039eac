//! Sessions of the host, answered badly.

use std::{
    io::{self, Read, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use prost::Message;
use volant_proto::agent::v1::{
    FilesystemStats, GuestStats, PathInfo, ProcessStats, SessionEnd, SessionOpened, SessionRequest,
    session_request::Session,
};
use volant_session::{Kind, MAX_PAYLOAD, parse};

use crate::{
    Shared, archive, control,
    wire::{self, Wire, noise, within},
};

/// How long an attack lasts that tells no time of its own.
const SECONDS: u64 = 2;

/// Answers sessions, each in a thread of its own.
pub fn serve(shared: &Arc<Shared>) -> io::Result<()> {
    let listener = wire::listener()?;
    loop {
        let wire = wire::accept(&listener)?;
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // Whoever it attacks may leave.
            let _ = answer(wire, &shared);
        });
    }
}

fn answer(mut wire: Wire, shared: &Shared) -> io::Result<()> {
    match request(&mut wire)? {
        Some(Session::Exec(exec)) => {
            let mut words = exec.command.iter();
            let name = words.next().cloned().unwrap_or_default();
            let seconds = words.next().and_then(|word| word.parse().ok());
            program(&mut wire, shared, &name, within(seconds.unwrap_or(SECONDS)))
        }
        Some(Session::Pack(pack)) => {
            let name = pack.path.trim_start_matches('/').to_owned();
            packed(&mut wire, &name)
        }
        Some(Session::Stats(_)) => put(&mut wire, Kind::Opened, &crowded()),
        Some(Session::Unpack(_)) => {
            opened(&mut wire)?;
            // It never reads.
            thread::park_timeout(Duration::from_secs(600));
            Ok(())
        }
        Some(Session::Connect(_)) => {
            opened(&mut wire)?;
            while put(&mut wire, Kind::Output, &noise(1, MAX_PAYLOAD)).is_ok() {}
            Ok(())
        }
        None => Ok(()),
    }
}

fn request(wire: &mut Wire) -> io::Result<Option<Session>> {
    let mut received = BytesMut::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = parse(&mut received).map_err(io::Error::other)? {
            let request: SessionRequest = frame.decode().map_err(io::Error::other)?;
            return Ok(request.session);
        }
        let read = wire.read(&mut buffer)?;
        if read == 0 {
            return Ok(None);
        }
        received.extend_from_slice(&buffer[..read]);
    }
}

/// What a program does that the host runs.
fn program(wire: &mut Wire, shared: &Shared, name: &str, deadline: Instant) -> io::Result<()> {
    match name {
        "silent" => {
            thread::park_timeout(Duration::from_secs(60));
            return Ok(());
        }
        "output-first" => put(wire, Kind::Output, b"before")?,
        "end-first" => return end(wire, 0),
        "crowded" => return put(wire, Kind::Opened, &crowded()),
        "noise" => return wire.write_all(&noise(1, 1 << 20)),
        _ => {}
    }
    opened(wire)?;
    match name {
        "huge-frame" => {
            wire.write_all(&[Kind::Output as u8, 0xff, 0xff, 0xff, 0xff])?;
            while Instant::now() < deadline {
                wire.write_all(&[b'x'; 64 * 1024])?;
            }
            Ok(())
        }
        "unknown-frame" => wire.write_all(&[77, 1, 0, 0, 0, 0]),
        "opened-twice" => {
            opened(wire)?;
            end(wire, 0)
        }
        "open" => put(wire, Kind::Open, b""),
        "refused-late" => put(wire, Kind::Refused, b""),
        "no-end" => Ok(()),
        "bad-end" => put(wire, Kind::End, &noise(3, 1000)),
        "end-twice" => {
            end(wire, 0)?;
            end(wire, 9)?;
            put(wire, Kind::Output, b"after")
        }
        "lie" => {
            let lie = SessionEnd {
                code: u32::MAX,
                signal: u32::MAX,
                error: "\x1b]0;owned\x07".repeat(5000),
                entries: u64::MAX,
            };
            put(wire, Kind::End, &lie.encode_to_vec())
        }
        "tiny" => {
            while Instant::now() < deadline {
                put(wire, Kind::Output, b"x")?;
            }
            end(wire, 0)
        }
        "empty" => {
            while Instant::now() < deadline {
                put(wire, Kind::Output, b"")?;
            }
            end(wire, 0)
        }
        "slow" => {
            let header = [Kind::Output as u8, 0xff, 0, 0, 0];
            for byte in header.into_iter().chain([b'x'; 250]) {
                if Instant::now() >= deadline {
                    break;
                }
                wire.write_all(&[byte])?;
                thread::park_timeout(Duration::from_millis(200));
            }
            Ok(())
        }
        "flood" => {
            while Instant::now() < deadline {
                put(wire, Kind::Error, &[b'x'; MAX_PAYLOAD])?;
            }
            end(wire, 3)
        }
        name => {
            let done = control::attack(name, shared, deadline);
            if let Some(done) = done {
                put(wire, Kind::Output, format!("{name}: {done}\n").as_bytes())?;
            }
            // What it has no attack for does what a program of that name would, which is nothing.
            end(wire, 0)
        }
    }
}

/// An archive, and before it an answer that is as large as it can be.
fn packed(wire: &mut Wire, name: &str) -> io::Result<()> {
    if name == "crowded" {
        put(wire, Kind::Opened, &crowded())?;
        // The host is to keep what it was told.
        thread::park_timeout(Duration::from_secs(60));
        return Ok(());
    }
    let opened = SessionOpened {
        path: Some(PathInfo {
            is_directory: name != "through-top",
            size: u64::MAX,
        }),
        ..SessionOpened::default()
    };
    put(wire, Kind::Opened, &opened.encode_to_vec())?;
    archive::send(name, |bytes| {
        bytes
            .chunks(MAX_PAYLOAD)
            .try_for_each(|piece| put(wire, Kind::Output, piece))
    })?;
    end(wire, 0)
}

/// The answer that takes the most memory of who reads it: as many empty processes and file systems as a frame can have.
fn crowded() -> Vec<u8> {
    let mut stats = GuestStats {
        process_count: u32::MAX,
        health: "\x1b[2J".to_owned(),
        filesystems: vec![FilesystemStats::default(); 8_000],
        processes: vec![ProcessStats::default(); 23_000],
        ..GuestStats::default()
    };
    if let Some(first) = stats.processes.first_mut() {
        first.command = "\x1b]0;owned\x07".repeat(100);
    }
    let opened = SessionOpened {
        stats: Some(stats),
        ..SessionOpened::default()
    };
    opened.encode_to_vec()
}

fn opened(wire: &mut Wire) -> io::Result<()> {
    let opened = SessionOpened {
        pid: u32::MAX,
        ..SessionOpened::default()
    };
    put(wire, Kind::Opened, &opened.encode_to_vec())
}

fn end(wire: &mut Wire, code: u32) -> io::Result<()> {
    let end = SessionEnd {
        code,
        ..SessionEnd::default()
    };
    put(wire, Kind::End, &end.encode_to_vec())
}

fn put(wire: &mut Wire, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = vec![kind as u8];
    frame.extend(length.to_le_bytes());
    frame.extend(payload);
    wire.write_all(&frame)
}
