//! PID 1 of a Volant guest: mounts, network, the workload, its logs, and a clean end.
//!
//! It is the client of the VM's supervisor on the host (`volant.agent.v1`), over vsock, and knows nothing else of Volant.
//! It never panics and never waits without a deadline: a fatal error reaches the host with its cause, then the machine ends.

mod cause;
mod child;
mod clock;
mod config;
mod console;
mod ending;
mod etc;
#[cfg(test)]
mod fake;
mod files;
mod guest;
mod health;
mod heartbeat;
mod host;
mod init;
mod kernel;
mod life;
mod lines;
mod logs;
mod mounts;
mod network;
mod oom;
mod reap;
mod reports;
mod requests;
mod restart;
mod root;
mod secrets;
mod service;
pub mod session;
mod ship;
mod supervise;
mod usage;
mod user;
mod workload;

use std::{io, panic, path::PathBuf, sync::Arc};

use tokio::sync::mpsc;

pub use crate::{
    config::{Address, Mac, NetworkConfig},
    guest::{Guest, GuestError},
    host::{Host, HostError},
    init::SERVICE,
    kernel::{Ending, Kernel, Linux, Owner, end_machine},
    life::{Ask, Reason},
    logs::Logs,
    mounts::{Mount, MountError},
    network::{Netlink, Network, NetworkError},
    reap::{Exit, Reaper},
    root::{Disk, Format, RootConfig, RootError},
    service::{Service, ServiceError, Stopped},
};

/// More than one ask changes little; see [`life`].
const ASKS: usize = 8;

/// Lives the life of this guest and ends the machine. Returns only when the machine could not be ended.
///
/// Only PID 1 of a guest may call this: it kills every process and the machine.
#[must_use]
pub fn be_init() -> io::Error {
    // The last resort: PID 1's panic is the kernel's, and nobody would know why.
    panic::set_hook(Box::new(|panicked| {
        console::say(&format!("panicked, this is a bug: {panicked}"));
        let error = end_machine(&Linux, Ending::PowerOff);
        console::say(&format!("cannot end the machine: {error}"));
    }));
    let ending = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(live()))
        .unwrap_or_else(|error| {
            console::say(&format!("cannot start: {error}"));
            Ending::PowerOff
        });
    let error = end_machine(&Linux, ending);
    console::say(&format!("cannot end the machine: {error}"));
    error
}

async fn live() -> Ending {
    let (asks, asked) = mpsc::channel(ASKS);
    let logs = Arc::new(Logs::default());
    let prepared = prepare(&Linux, &logs, &asks);
    let sessions = session::listen().inspect_err(|error| {
        logs.say(&format!("cannot listen for sessions: {error}"));
    });
    let guest = Guest {
        kernel: Linux,
        network: Netlink,
        host: Host::over_vsock(),
        root: PathBuf::from("/"),
        logs,
        asks,
        sessions: sessions.ok(),
    };
    guest.live(prepared, asked).await
}

/// Serves a guest whose PID 1 is another program. Returns when it is stopped, or cannot serve.
///
/// # Errors
/// Why it cannot.
pub fn be_service() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    runtime
        .block_on(service::live(Linux))
        .map_err(|error| cause::chain(&error))
}

/// What needs no host: file systems, the console, and ears for those who ask the machine to go down.
fn prepare(kernel: &impl Kernel, logs: &Logs, asks: &mpsc::Sender<Ask>) -> Result<(), GuestError> {
    let missing = mounts::mount_all(kernel, mounts::EARLY).map_err(GuestError::Mounts)?;
    for error in missing {
        logs.say(&format!("{error}: this kernel has none"));
    }
    for error in mounts::link_all(kernel) {
        logs.say(&error.to_string());
    }
    if let Err(error) = child::spare_agent() {
        logs.say(&format!(
            "the kernel may end this agent when memory is short: {error}"
        ));
    }
    if let Err(error) = kernel.adopt_console() {
        logs.say(&format!("there is no console: {error}"));
    }
    requests::watch_signals(asks).map_err(GuestError::Signals)?;
    if let Err(errno) = kernel.catch_ctrl_alt_del() {
        logs.say(&format!("cannot catch control-alt-delete: {errno}"));
    }
    if let Err(error) = requests::watch_power_buttons(asks) {
        logs.say(&format!("cannot watch the power button: {error}"));
    }
    Ok(())
}
