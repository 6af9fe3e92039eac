//! ipamd's arguments, and its life: serve until told to stop, or until nobody asks any more.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Parser;
use ipamd::{Ipam, dbus, events, grpc, network::Network};
use tokio::sync::oneshot;
use volant_service::{Idle, Sockets, init_logging, ready, shutdown, stopping};
use volant_spec::{Config, config};

/// After the name was given back: calls that were under way to us arrive within this time.
const SETTLE: Duration = Duration::from_millis(100);

/// Why the program ends when the bus was restarted: nobody would find it there any more.
const LOST: &str = "the system bus closed the connection";

/// Volant's addresses, bridge and taps.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The host's configuration; it need not exist.
    #[arg(long, default_value = config::PATH)]
    config: PathBuf,
    /// Where the leases are kept.
    #[arg(long, default_value = "/var/lib/volant/ipam")]
    state_dir: PathBuf,
    /// Where to listen if systemd passes no socket of the name "grpc".
    #[arg(long, default_value = "/run/volant/ipamd.sock")]
    socket: PathBuf,
    /// Exit after so many seconds without a call; 0: never.
    #[arg(long, default_value_t = 60)]
    idle_sec: u64,
    /// Remove bridge and firewall rules, and exit. Leases are kept.
    #[arg(long)]
    teardown: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging().context("cannot log")?;
    let mut sockets = Sockets::inherit()?;
    let config = Config::load(&args.config)?;
    let network = Network::open(config.network)?;
    if args.teardown {
        return network.teardown().await.context("cannot remove everything");
    }

    let stop = shutdown().context("cannot wait for signals")?;
    let idle = Idle::new();
    let ipam = Ipam::open(network, &args.state_dir, idle.clone())?;
    let listener = sockets.unix_listener("grpc", &args.socket)?;
    let told = events::NAMES
        .iter()
        .filter_map(|name| sockets.take(name))
        .collect();
    let bus = dbus::serve(ipam.clone(), Box::new(dbus::ByUnit))
        .await
        .context("cannot serve on the system bus")?;
    let (end, ended) = oneshot::channel::<()>();
    let mut serving = tokio::spawn(grpc::serve(listener, ipam.clone(), async {
        let _ = ended.await;
    }));
    let watching = tokio::spawn(async {
        if let Err(error) = events::watch(told, ipam).await {
            tracing::error!("cannot watch the host's network any longer: {error}");
        }
    });
    ready("leasing addresses").context("cannot tell systemd")?;

    let why = tokio::select! {
        signal = stop => signal,
        () = quiet(&idle, args.idle_sec) => "idle",
        result = &mut serving => {
            result?.context("cannot serve gRPC")?;
            anyhow::bail!("the gRPC server ended by itself");
        }
        () = bus.closed() => LOST,
    };
    // In this order: once systemd knows, a call that comes now waits for our end and starts us anew.
    stopping(why);
    if why != LOST {
        dbus::release(&bus).await.context("cannot leave the bus")?;
    }
    drop(end);
    serving.await?.context("cannot serve gRPC")?;
    watching.abort();
    if why == LOST {
        // A failure: systemd starts the service anew, with its name.
        anyhow::bail!("{LOST}");
    }
    idle.wait(SETTLE).await;
    Ok(())
}

/// Resolves when nothing was asked for so many seconds; never for 0.
async fn quiet(idle: &Idle, seconds: u64) {
    match seconds {
        0 => std::future::pending().await,
        _ => idle.wait(Duration::from_secs(seconds)).await,
    }
}
