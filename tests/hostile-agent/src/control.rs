//! Attacks on the host's connections for agents, each for some seconds.

use std::{
    io::{self, Read},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use prost::Message;
use volant_proto::agent::v1::{
    HealthChanged, HeartbeatRequest, HelloRequest, PROTOCOL, ReportRequest, SendLogsRequest,
    WorkloadRestarting, report_request::Report,
};

use crate::{
    Shared,
    http2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, block, call, connect, frame, prefixed,
    },
    wire::{Wire, noise},
};

/// The first stream after hello's and a heartbeat's; those of a client are odd.
const NEXT: u32 = 5;
/// Connections that are kept at once.
const KEPT: usize = 900;
const PAUSE: Duration = Duration::from_secs(1);

/// Attacks by that name until the deadline. Answers how often it was done, or nothing where it has no such attack.
pub fn attack(name: &str, shared: &Shared, deadline: Instant) -> Option<u32> {
    let done = match name {
        "connections" => connections(deadline),
        "garbage" => garbage(deadline),
        "drip" => drip(deadline),
        "strangers" => strangers(deadline),
        _ => {
            let bytes = bytes(name, shared)?;
            shared.quiet.store(true, Ordering::Relaxed);
            let done = flood(shared, deadline, &*bytes);
            shared.quiet.store(false, Ordering::Relaxed);
            done
        }
    };
    Some(done)
}

/// What is sent in a round: the stream's number and the round's count are told.
type Bytes<'a> = dyn Fn(u32, u32) -> Vec<u8> + 'a;

fn bytes<'a>(name: &str, shared: &'a Shared) -> Option<Box<Bytes<'a>>> {
    Some(match name {
        "heartbeats" => Box::new(|stream, _| {
            call(
                stream,
                "Heartbeat",
                &HeartbeatRequest::default().encode_to_vec(),
            )
        }),
        "reports" => Box::new(|stream, round| call(stream, "Report", &report(round))),
        "nonsense" => Box::new(|stream, round| call(stream, "Report", &noise(round, 512))),
        "hellos" => Box::new(|stream, round| call(stream, "Hello", &hello(shared, round))),
        "no-such-calls" => Box::new(|stream, _| call(stream, "Own", &[])),
        // Streams that are begun and broken off at once.
        "rapid-reset" => Box::new(|stream, _| {
            let mut bytes = frame(HEADERS, END_HEADERS, stream, &block("Report", &[]));
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            bytes
        }),
        // Streams that are begun and never go on.
        "streams" => {
            Box::new(|stream, _| frame(HEADERS, END_HEADERS, stream, &block("SendLogs", &[])))
        }
        "commands" => Box::new(|stream, _| call(stream, "WatchCommands", &[])),
        // Headers that never end.
        "continuation" => Box::new(|_, round| {
            let kind = if round == 0 { HEADERS } else { CONTINUATION };
            frame(kind, 0, NEXT, &[0x00, 0x01, b'a', 0x01, b'b'].repeat(3000))
        }),
        "headers" => Box::new(|stream, _| {
            let many: Vec<_> = (0..200)
                .map(|number| (format!("x-{number}"), "v".repeat(70)))
                .collect();
            frame(HEADERS, END_HEADERS, stream, &block("Report", &many))
        }),
        "settings" => Box::new(|_, round| {
            let mut one = 1_u16.to_be_bytes().to_vec();
            one.extend((round % 4096).to_be_bytes());
            frame(SETTINGS, 0, 0, &one).repeat(100)
        }),
        "pings" => Box::new(|_, _| frame(PING, 0, 0, &[7; 8]).repeat(100)),
        // No answer may have a byte, and yet there are calls.
        "zero-window" => Box::new(|stream, round| {
            let mut none = 4_u16.to_be_bytes().to_vec();
            none.extend(0_u32.to_be_bytes());
            let mut bytes = if round == 0 {
                frame(SETTINGS, 0, 0, &none)
            } else {
                Vec::new()
            };
            bytes.extend(call(stream, "Hello", &hello(shared, round)));
            bytes
        }),
        "windows" => Box::new(|_, _| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(100)),
        "wide-window" => {
            Box::new(|_, _| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()))
        }
        "huge-data" => Box::new(|stream, _| frame(DATA, 0, stream, &noise(stream, 1 << 20))),
        // A message of 64 MiB, of which each round brings a piece.
        "huge-message" => Box::new(|_, round| {
            if round == 0 {
                let mut bytes = frame(HEADERS, END_HEADERS, NEXT, &block("Report", &[]));
                bytes.extend(frame(DATA, 0, NEXT, &[0, 4, 0, 0, 0]));
                bytes
            } else {
                frame(DATA, 0, NEXT, &[b'x'; 16 * 1024])
            }
        }),
        "lines" => Box::new(|_, round| logs(round, 200)),
        "long-lines" => Box::new(|_, round| logs(round, 60_000)),
        // Two bytes of a line of 100 MB each time, a round without end.
        "endless-line" => Box::new(|_, round| {
            if round == 0 {
                let mut bytes = frame(HEADERS, END_HEADERS, NEXT, &block("SendLogs", &[]));
                bytes.extend(frame(DATA, 0, NEXT, &[0, 5, 0xf5, 0xe1, 0]));
                bytes
            } else {
                frame(DATA, 0, NEXT, &[b'x'; 8 * 1024])
            }
        }),
        "frames-of-nothing" => Box::new(|_, round| {
            if round == 0 {
                frame(HEADERS, END_HEADERS, NEXT, &block("SendLogs", &[]))
            } else {
                frame(DATA, 0, NEXT, &[]).repeat(100)
            }
        }),
        "after-end" => Box::new(|_, _| {
            let mut bytes = call(NEXT, "Report", &report(0));
            bytes.extend(frame(DATA, END_STREAM, NEXT, &[1; 100]));
            bytes
        }),
        _ => return None,
    })
}

/// Sends rounds on the agent's connection, and on another when the host ends it. What is answered is read now and then
/// alone, so that the host's answers pile up.
fn flood(shared: &Shared, deadline: Instant, bytes: &Bytes<'_>) -> u32 {
    let mut done = 0;
    while Instant::now() < deadline {
        let Ok(wire) = connect(shared) else {
            thread::park_timeout(PAUSE / 20);
            continue;
        };
        for round in 0_u32.. {
            let stream = NEXT + 2 * round;
            if wire.send(&bytes(stream, round), deadline).is_err() {
                break;
            }
            done += 1;
            if round % 1000 == 999 {
                wire.drain();
            }
        }
    }
    done
}

fn hello(shared: &Shared, round: u32) -> Vec<u8> {
    let hello = HelloRequest {
        protocol: PROTOCOL,
        version: format!("{round}"),
        boot_id: shared.boot_id.clone(),
        uptime_ms: round.into(),
        token: shared.token.clone(),
    };
    hello.encode_to_vec()
}

fn report(round: u32) -> Vec<u8> {
    let report = if round.is_multiple_of(2) {
        Report::WorkloadRestarting(WorkloadRestarting {
            restarts: round,
            ..WorkloadRestarting::default()
        })
    } else {
        Report::HealthChanged(HealthChanged {
            healthy: round % 4 == 1,
            detail: "\x1b[31m".repeat(2000),
        })
    };
    let report = Some(report);
    ReportRequest { report }.encode_to_vec()
}

/// A line on the one stream of lines.
fn logs(round: u32, length: usize) -> Vec<u8> {
    let line = SendLogsRequest {
        stream: 1,
        line: noise(round, length),
        time_unix_ms: u64::MAX,
        dropped: u64::MAX,
    };
    let mut bytes = if round == 0 {
        frame(HEADERS, END_HEADERS, NEXT, &block("SendLogs", &[]))
    } else {
        Vec::new()
    };
    for piece in prefixed(&line.encode_to_vec()).chunks(16 * 1024) {
        bytes.extend(frame(DATA, 0, NEXT, piece));
    }
    bytes
}

/// Thousands of connections, of which as many are kept as there can be.
fn connections(deadline: Instant) -> u32 {
    repeat(deadline, |_| Wire::dial())
}

fn garbage(deadline: Instant) -> u32 {
    repeat(deadline, |round| {
        let wire = Wire::dial()?;
        wire.send(&noise(round, 4096), deadline)?;
        Ok(wire)
    })
}

/// Connections that never say hello, and make the host break them off.
fn strangers(deadline: Instant) -> u32 {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    for stream in (1..200).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &block("Report", &[])));
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut done = 0;
    while Instant::now() < deadline {
        if let Ok(mut wire) = Wire::dial() {
            let _ = wire.send(&bytes, deadline);
            // Until the host has had enough.
            let _ = wire.read_to_end(&mut Vec::new());
            done += 1;
        }
    }
    done
}

fn repeat(deadline: Instant, mut act: impl FnMut(u32) -> io::Result<Wire>) -> u32 {
    let mut kept = Vec::new();
    let mut done = 0;
    for round in 0.. {
        if Instant::now() >= deadline {
            break;
        }
        if let Ok(wire) = act(round) {
            kept.push(wire);
            done += 1;
        }
        if kept.len() > KEPT {
            kept.clear();
        }
    }
    done
}

/// Connections that say a byte a second of what could become a hello.
fn drip(deadline: Instant) -> u32 {
    let mut wires: Vec<Wire> = (0..8).filter_map(|_| Wire::dial().ok()).collect();
    let mut done = 0;
    for byte in PREFACE.chunks(1).cycle() {
        if Instant::now() >= deadline {
            break;
        }
        wires.retain(|wire| wire.send(byte, deadline).is_ok());
        done += 1;
        thread::park_timeout(PAUSE);
    }
    done
}
