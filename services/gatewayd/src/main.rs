//! The REST door: arguments, logs, the inherited socket, readiness. What it does is in the library.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Parser;
use gatewayd::{
    Gateway, Parts, Systemd, ipam::Ipam, journal::Journal, registry::Registry, rest, serve,
    vmd::Vmds,
};
use volant_service::{Idle, Sockets, init_logging, ready, shutdown, stopping};

/// Serves Volant's REST API on a Unix socket.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The socket to listen on when systemd passes none named 'api'.
    #[arg(long, default_value = "/run/volant/api.sock")]
    socket: PathBuf,
    /// Where registryd listens.
    #[arg(long, default_value = "/run/volant/registryd.sock")]
    registryd: PathBuf,
    /// Where ipamd listens.
    #[arg(long, default_value = "/run/volant/ipamd.sock")]
    ipamd: PathBuf,
    /// The folder that has `NAME/vmd.sock` of each VM that runs.
    #[arg(long, default_value = "/run/volant/vm")]
    vms: PathBuf,
    /// What reads the journal.
    #[arg(long, default_value = "journalctl")]
    journalctl: PathBuf,
    /// Where systemd keeps what is set of units until the next boot.
    #[arg(long, default_value = "/run/systemd/system.control")]
    unit_control: PathBuf,
    /// Seconds without a request after which the service exits; 0 means never.
    #[arg(long, default_value_t = 60)]
    idle_sec: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging().context("cannot log")?;
    let socket = Sockets::inherit()?.unix_listener("api", &args.socket)?;
    let told = shutdown().context("cannot wait for signals")?;

    let bus = gatewayd::systemd::system_bus()
        .await
        .context("cannot connect to the system bus")?;
    let systemd = Systemd::new(&bus).await?;
    let idle = Idle::new();
    let gateway = Gateway::new(Parts {
        registry: Registry::at(&args.registryd),
        ipam: Ipam::at(&args.ipamd),
        systemd,
        vmds: Vmds::at(&args.vms),
        journal: Journal::by(args.journalctl),
        unit_control: args.unit_control,
        idle: idle.clone(),
    });
    let ending = gateway.ending().clone();
    gateway.finish_deletions();
    ready("serving the REST API").context("cannot tell systemd that the service serves")?;

    let end = async {
        let quiet = async {
            match args.idle_sec {
                0 => std::future::pending().await,
                seconds => idle.wait(Duration::from_secs(seconds)).await,
            }
        };
        let lost = tokio::select! {
            signal = told => { tracing::info!("ending: {signal}"); false }
            () = quiet => { tracing::debug!("ending: idle"); false }
            () = bus.closed() => true,
        };
        stopping("ending");
        lost
    };
    let lost = serve::serve(socket, rest::router(gateway), idle.clone(), ending, end).await;
    if lost {
        bail!("the system bus closed the connection");
    }
    Ok(())
}
