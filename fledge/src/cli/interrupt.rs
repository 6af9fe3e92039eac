//! Ctrl-C while something works: it ends at its next step, and takes what it made with it.

use anyhow::{Context, Result};
use fledge::Cancel;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

/// Does work that waits for others, until it is done or interrupted.
pub fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let (runtime, cancel) = watched()?;
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            () = cancel.cancelled() => Err(fledge::Cancelled.into()),
        }
    })
}

/// A runtime, and what becomes true with the first SIGINT, SIGTERM or SIGHUP.
pub fn watched() -> Result<(Runtime, Cancel)> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let cancel = Cancel::default();
    let _inside = runtime.enter();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let mut told = signal(kind).context("cannot watch signals")?;
        let cancel = cancel.clone();
        runtime.spawn(async move {
            told.recv().await;
            cancel.cancel();
        });
    }
    drop(_inside);
    Ok((runtime, cancel))
}
