//! Connections into a guest, more than any VMM's count of ports may stumble over.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use volant_tests::{
    BOOT, Site, eventually,
    figures::{inside, main_pid},
};

/// Beyond the port at which the agent called its host once, and at which vhost-device-vsock gave up for ever.
const CONNECTIONS: u32 = 1100;
/// Where the agent listens for sessions.
const PORT: u32 = 1023;

#[test]
fn a_guest_can_still_be_entered_after_a_thousand_connections() -> Result<()> {
    let site = Site::new()?;
    site.create("entered", "hello")?;
    let root = inside("entered", main_pid(&site, "entered")?)?;
    let socket = root.join("run/volant/private/entered/vsock");
    for number in 1..=CONNECTIONS {
        // The agent refuses more than it can hold; a busy guest lags behind with what is closed.
        eventually(&format!("connection {number} is taken"), BOOT, || {
            Ok(connect(&socket).ok())
        })?;
    }
    // A guest without hardware virtualisation takes some seconds to get through them.
    eventually("the guest can be entered", BOOT, || {
        let output = site
            .host
            .try_sh("volar vms exec entered -- echo still here")?;
        Ok((String::from_utf8_lossy(&output.stdout).trim() == "still here").then_some(()))
    })?;
    Ok(())
}

/// Connects to the guest's agent, and closes.
fn connect(socket: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("cannot connect")?;
    stream.set_read_timeout(Some(BOOT))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(answer == *b"OK", "the answer begins with {answer:?}");
    Ok(())
}
