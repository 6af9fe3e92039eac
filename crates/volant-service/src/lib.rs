//! What every Volant daemon does alike: inherited sockets, logs, readiness, idle exit, shutdown, and telling
//! which VM a caller belongs to.
//!
//! Nothing here knows what a daemon is for.

mod caller;
mod chain;
mod child;
mod confine;
mod events;
mod heirs;
mod idle;
mod inherit;
mod logging;
mod sockets;
mod tap;
#[cfg(target_arch = "x86_64")]
mod tsc;

pub use caller::{CallerError, vm_of_pid};
pub use chain::chain;
pub use child::die_with_parent;
pub use confine::confine;
pub use events::Events;
pub use heirs::{Heirlooms, inherited};
pub use idle::{Busy, Idle};
pub use inherit::inherit;
pub use logging::init_logging;
pub use sockets::{SocketError, Sockets};
pub use tap::open_tap;
#[cfg(target_arch = "x86_64")]
pub use tsc::TscSample;

use std::{io, time::Duration};

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

/// Tells systemd that the service serves, and people what it does (`STATUS=`). Does nothing outside of systemd.
///
/// # Errors
/// The notification socket is named but cannot be written to.
pub fn ready(status: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
}

/// Tells people what the service does now (`systemctl status`). A failure is logged: nothing depends on it.
pub fn status(status: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::Status(status)]) {
        tracing::warn!("cannot tell systemd the status '{status}': {error}");
    }
}

/// Tells systemd that the service is on its way down.
pub fn stopping(status: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(status)]) {
        tracing::warn!("cannot tell systemd the status '{status}': {error}");
    }
}

/// Tells systemd that the service is alive (`WATCHDOG=1`).
pub fn alive() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
        tracing::warn!("cannot feed the watchdog: {error}");
    }
}

/// Asks systemd for so much time from now on, whatever the unit's timeout of its start or stop is.
pub fn extend_timeout(by: Duration) {
    let micros = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    if let Err(error) = sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(micros)]) {
        tracing::warn!("cannot ask systemd for more time: {error}");
    }
}

/// What `machinectl poweroff` sends to a machine's leader: glibc's `SIGRTMIN` and four.
const SIGRTMIN_4: i32 = 38;

/// Resolves at the first `SIGTERM`, `SIGINT` or `SIGRTMIN+4`, with the signal's name.
///
/// The handlers are installed when this is called, not when it is first polled.
///
/// # Errors
/// The handlers cannot be installed.
pub fn shutdown() -> io::Result<impl Future<Output = &'static str> + Send + 'static> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut poweroff = signal(SignalKind::from_raw(SIGRTMIN_4))?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
            _ = poweroff.recv() => "SIGRTMIN+4",
        }
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_machines_power_off_is_a_shutdown() {
        let told = shutdown().unwrap();
        let kill = format!("kill -{SIGRTMIN_4} {}", std::process::id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
        assert_eq!(told.await, "SIGRTMIN+4");
    }
}
