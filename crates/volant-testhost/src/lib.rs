//! A throw-away systemd host: an overlay over this machine's `/`, booted by systemd-nspawn with a network of its
//! own. Demo, tests and benchmarks install the packages in it and use Volant as its users do.
//!
//! It needs root, overlayfs and systemd-nspawn. Nothing that happens in it touches the machine: its files live in a
//! tmpfs that goes with it.

mod host;
mod mounts;
mod packages;

pub use host::{Host, Options};
pub use packages::{
    BARE_VARIABLE, ECHO_VARIABLE, EXAMPLE_VARIABLE, HOSTILE_AGENT_VARIABLE, HOSTILE_VARIABLE,
    PACKAGES_VARIABLE, Packages,
};

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Asks `condition` again and again until it answers something; fails after `limit`, naming what was waited for.
///
/// # Errors
/// The condition failed, or nothing came within `limit`.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        thread::park_timeout(Duration::from_millis(50));
    }
}
