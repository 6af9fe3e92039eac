//! The registry daemon: arguments, logs, sockets, readiness. What it does is in the library.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Parser;
use registryd::{Fetcher, Limits, Registry, Settings, Store, dbus, grpc};
use tokio::sync::oneshot;
use volant_service::{Idle, Sockets, init_logging, ready, shutdown, stopping};

/// Keeps what should exist on this host: plugins, their artifacts, VM definitions.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Where the database and the artifacts are kept.
    #[arg(long, default_value = "/var/lib/volant/registry")]
    state_dir: PathBuf,
    /// The socket to listen on when systemd passes none named 'grpc'.
    #[arg(long, default_value = "/run/volant/registryd.sock")]
    socket: PathBuf,
    /// Seconds without a call after which the service exits; 0 means never.
    #[arg(long, default_value_t = 60)]
    idle_sec: u64,
    /// The largest artifact that is taken, in bytes.
    #[arg(long, default_value_t = 8 << 30)]
    max_blob_bytes: u64,
    /// The host's configuration: the policy on signatures, the indexes. It need not exist.
    #[arg(long, default_value = volant_spec::config::PATH)]
    config: PathBuf,
    /// The folder of the keys that may sign plugins. It need not exist.
    #[arg(long, default_value = volant_spec::config::TRUST_DIR)]
    trust_dir: PathBuf,
    /// The user id that the folder and the keys must belong to.
    #[arg(long, default_value_t = 0)]
    trust_owner: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging().context("cannot log")?;
    let socket = Sockets::inherit()?.unix_listener("grpc", &args.socket)?;
    let told = shutdown().context("cannot wait for signals")?;

    let store = Store::open(&args.state_dir, args.max_blob_bytes)?;
    let fetcher = Fetcher::new(reqwest::Client::builder, Limits::default());
    let idle = Idle::new();
    let settings = Settings {
        config: args.config,
        trust_dir: args.trust_dir,
        trust_owner: args.trust_owner,
    };
    let registry = Registry::new(store, fetcher, settings, idle.clone());
    registry.tidy().await;
    let system = zbus::connection::Builder::system();
    let bus = dbus::serve(system, registry.clone(), dbus::BusCallers)
        .await
        .context("cannot connect to the system bus")?;
    bus.take_name()
        .await
        .context("cannot serve on the system bus")?;
    ready("keeping the registry").context("cannot tell systemd that the service serves")?;

    let (tell_lost, was_lost) = oneshot::channel();
    let end = async {
        let idle = async {
            match args.idle_sec {
                0 => std::future::pending().await,
                seconds => idle.wait(Duration::from_secs(seconds)).await,
            }
        };
        let lost = tokio::select! {
            signal = told => { tracing::info!("ending: {signal}"); false }
            () = idle => { tracing::debug!("ending: idle"); false }
            () = bus.closed() => true,
        };
        stopping("ending");
        let _ = tell_lost.send(lost);
        if lost {
            return;
        }
        // The name first: the next call on the bus starts a new process.
        if let Err(error) = bus.release_name().await {
            tracing::warn!("cannot release the bus name: {error}");
        }
    };
    grpc::serve(socket, registry, end)
        .await
        .context("cannot serve on the socket")?;
    if was_lost.await.unwrap_or(false) {
        // A failure: systemd starts the service anew, with its name.
        bail!("the system bus closed the connection");
    }
    bus.end().await;
    Ok(())
}
