//! What is wrong with the first hello.

use std::{io, thread};

use volant_proto::agent::v1::{HelloRequest, PROTOCOL};

use crate::{
    http2::{self, DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, block, frame},
    wire::{self, Wire, noise, within},
};

/// Greets the host in the manner of that name. Answers false where it has none, and the true agent's hello is said.
pub fn attack(mode: &str) -> bool {
    let hello = HelloRequest {
        protocol: PROTOCOL,
        version: "\x1b]0;hostile\x07".repeat(1000),
        boot_id: wire::boot_id(),
        uptime_ms: u64::MAX,
        token: Vec::new(),
    };
    match mode {
        // Nothing at all.
        "never" => {}
        "protocol" => say(&HelloRequest {
            protocol: u32::MAX,
            ..hello
        }),
        "token" => {
            for round in 0..200 {
                say(&HelloRequest {
                    token: noise(round, 32),
                    ..hello.clone()
                });
            }
        }
        "huge" => {
            if let Ok(wire) = Wire::dial() {
                let _ = huge(&wire);
            }
        }
        "noise" => {
            for round in 0..2000 {
                if let Ok(wire) = Wire::dial() {
                    let _ = wire.send(&noise(round, 4096), within(1));
                }
            }
        }
        _ => return false,
    }
    loop {
        thread::park();
    }
}

/// A hello of 64 MiB.
fn huge(wire: &Wire) -> io::Result<()> {
    let mut first = PREFACE.to_vec();
    first.extend(frame(SETTINGS, 0, 0, &[]));
    first.extend(frame(HEADERS, END_HEADERS, 1, &block("Hello", &[])));
    first.extend(frame(DATA, 0, 1, &[0, 4, 0, 0, 0]));
    wire.send(&first, within(5))?;
    let piece = frame(DATA, 0, 1, &[b'x'; 16 * 1024]);
    for _ in 0..4096 {
        wire.send(&piece, within(5))?;
    }
    Ok(())
}

fn say(hello: &HelloRequest) {
    if let Ok(mut wire) = Wire::dial() {
        // A refusal is what is wanted.
        let _ = http2::begin(&mut wire, hello);
    }
}
