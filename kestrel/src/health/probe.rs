//! One question to the workload. Whoever drops it before the answer leaves no process and no connection.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Stdio,
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::net::TcpStream;

use super::http;
use crate::{
    child,
    config::Probe,
    reap::{Exit, Reaper},
    session::names,
    workload::Program,
};

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Asks. It has no deadline of its own.
///
/// # Errors
/// Why it is not well, for people.
pub async fn ask(probe: &Probe, program: &Program, reaper: &Arc<Reaper>) -> Result<(), String> {
    match probe {
        Probe::Tcp(port) => connect(&LOOPBACK, *port).await.map(drop),
        Probe::Http(wanted) => {
            let connection = if wanted.host.eq_ignore_ascii_case("localhost") {
                connect(&LOOPBACK, wanted.port).await?
            } else {
                let found = names::find(&wanted.host, program.root()).await;
                let addresses = found.map_err(|error| error.to_string())?;
                connect(&addresses, wanted.port).await?
            };
            http::ask(connection, wanted).await
        }
        Probe::Exec(words) => run(words, program, reaper).await,
    }
}

/// The first that accepts; the error is of the first.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpStream, String> {
    let mut first = None;
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        match TcpStream::connect(address).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                first.get_or_insert_with(|| format!("cannot connect to {address}: {error}"));
            }
        }
    }
    Err(first.unwrap_or_default())
}

/// What the program writes is not looked at: it may be the secrets that its environment has.
async fn run(words: &[String], program: &Program, reaper: &Arc<Reaper>) -> Result<(), String> {
    let [name, arguments @ ..] = words else {
        return Err("the check has no program".to_owned());
    };
    let mut command = program.command(name, arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    child::prepare(&mut command, program.identity(), Vec::new());
    let (child, exit) = reaper
        .spawn(&mut command)
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    let group = Group(Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX)));
    let ended = exit.await;
    // Whatever the program left goes with it.
    drop(group);
    match ended {
        Ok(Exit { code: 0, .. }) => Ok(()),
        Ok(Exit { code, signal: 0 }) => Err(format!("{name} ended with {code}")),
        Ok(Exit { signal, .. }) => Err(format!("{name} was ended by signal {signal}")),
        Err(_) => Err(format!("it is not known how {name} ended")),
    }
}

/// Kills a process group when it is dropped.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // ESRCH: nobody is left.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}
