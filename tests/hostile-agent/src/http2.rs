//! Frames of HTTP/2 by hand, so that they can be wrong.

use std::{
    io::{self, Read, Write},
    time::Instant,
};

use prost::Message;
use volant_proto::agent::v1::{HelloRequest, PROTOCOL};

use crate::{
    Shared,
    wire::{Wire, within},
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const FIRST_STREAM: u32 = 1;
const SECOND_STREAM: u32 = 3;

/// One frame, whose payload may have any length below 16 MiB.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a call, with more headers if asked for.
pub fn block(method: &str, more: &[(String, String)]) -> Vec<u8> {
    // POST and http of the static table; the path and the authority by the table's names.
    let mut block = vec![0x83, 0x86, 0x04];
    text(
        &mut block,
        &format!("/volant.agent.v1.AgentHostService/{method}"),
    );
    block.push(0x01);
    text(&mut block, "host");
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        header(&mut block, name, value);
    }
    for (name, value) in more {
        header(&mut block, name, value);
    }
    block
}

fn header(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    text(block, name);
    text(block, value);
}

/// A text with its length, whose first byte has seven bits of it.
fn text(block: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(length) if length < 127 => block.push(length),
        _ => {
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend(text.as_bytes());
}

/// A whole call.
pub fn call(stream: u32, method: &str, message: &[u8]) -> Vec<u8> {
    let mut call = frame(HEADERS, END_HEADERS, stream, &block(method, &[]));
    call.extend(frame(DATA, END_STREAM, stream, &prefixed(message)));
    call
}

/// A message as gRPC has it in its data.
pub fn prefixed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut data = vec![0];
    data.extend(length.to_be_bytes());
    data.extend(message);
    data
}

/// A connection whose calls the host takes for the agent's.
pub fn connect(shared: &Shared) -> io::Result<Wire> {
    let hello = HelloRequest {
        protocol: PROTOCOL,
        version: "hostile".to_owned(),
        boot_id: shared.boot_id.clone(),
        uptime_ms: u64::MAX,
        token: shared.token.clone(),
    };
    let mut wire = Wire::dial()?;
    begin(&mut wire, &hello)?;
    // The host is not to think that nobody is there.
    wire.write_all(&call(SECOND_STREAM, "Heartbeat", &[]))?;
    Ok(wire)
}

/// Says hello, and waits for an answer of any kind.
pub fn begin(wire: &mut Wire, hello: &HelloRequest) -> io::Result<()> {
    let mut first = PREFACE.to_vec();
    first.extend(frame(SETTINGS, 0, 0, &[]));
    first.extend(call(FIRST_STREAM, "Hello", &hello.encode_to_vec()));
    wire.write_all(&first)?;
    let until = within(5);
    while Instant::now() < until {
        let mut head = [0; 9];
        wire.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = Vec::new();
        wire.take(length.into()).read_to_end(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        if kind == SETTINGS && flags & ACK == 0 {
            wire.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
        }
        if kind == DATA || (kind == HEADERS && flags & END_STREAM != 0) {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
