//! `deviced`: shows and checks PCI devices on D-Bus, or lends them to one VM and takes them back.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand};
use deviced::{
    dbus::{self, Manager},
    ledger::Ledger,
    lend::{Lender, Wish},
    sysfs::{Kernel, Sysfs},
};
use volant_service::{Idle, init_logging, ready, shutdown, stopping};
use volant_spec::{Config, Name, config};

/// Volant's PCI devices.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The host's configuration; it need not exist.
    #[arg(long, default_value = config::PATH)]
    config: PathBuf,
    /// The kernel's sysfs.
    #[arg(long, default_value = "/sys")]
    sysfs: PathBuf,
    /// Where device nodes are.
    #[arg(long, default_value = "/dev")]
    dev: PathBuf,
    /// Where it is kept what is lent to whom; it goes with the boot.
    #[arg(long, default_value = "/run/volant/devices")]
    ledger: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves com.volantvm.Devices1, which shows and checks, until nobody asks any more.
    Serve {
        /// Exit after so many seconds without a call; 0: never.
        #[arg(long, default_value_t = 60)]
        idle_sec: u64,
    },
    /// Lends a VM the devices that its definition names. For root, as volant-vm-devices@NAME.service.
    Lend { vm: Name },
    /// Gives them back to the drivers that had them. For root.
    GiveBack { vm: Name },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging().context("cannot log")?;
    let config = Config::load(&args.config)?;
    let allowed = config.devices.pci.iter().map(|pattern| pattern.parse());
    let lender = Lender {
        sysfs: Sysfs::at(args.sysfs),
        ledger: Ledger::at(&args.ledger),
        dev: args.dev,
        allowed: allowed.collect::<Result<_, String>>().map_err(|problem| {
            anyhow::anyhow!("[devices] pci of {}: {problem}", args.config.display())
        })?,
        lock: args.ledger.join(".lock"),
    };
    match args.command {
        Command::Serve { idle_sec } => serve(lender, idle_sec).await,
        Command::Lend { vm } => {
            let lent = lend(&lender, vm).await;
            if let Err(error) = &lent {
                // Whoever had this started tells it on.
                volant_service::status(&format!("{error:#}"));
            }
            lent
        }
        Command::GiveBack { vm } => lender
            .give_back(&vm)
            .with_context(|| format!("cannot take the devices of VM '{vm}' back")),
    }
}

/// What the VM may have is what the registry says now: nobody's word on the command line.
async fn lend(lender: &Lender<Kernel>, vm: Name) -> anyhow::Result<()> {
    let asked = async {
        let bus = zbus::Connection::system().await?;
        let registry = volant_dbus::registry::ManagerProxy::new(&bus).await?;
        registry.vm_devices(vm.as_str()).await
    };
    let (uid, addresses, allowlist) = asked
        .await
        .with_context(|| format!("cannot ask the registry for the devices of VM '{vm}'"))?;
    let devices = addresses.iter().map(|address| address.parse());
    let allowlist = allowlist.iter().map(|pattern| pattern.parse());
    let wish = Wish {
        vm,
        uid,
        devices: devices.collect::<Result<_, _>>()?,
        allowlist: allowlist
            .collect::<Result<_, String>>()
            .map_err(anyhow::Error::msg)?,
    };
    lender.lend(&wish)?;
    let lent: Vec<_> = wish.devices.iter().map(ToString::to_string).collect();
    tracing::info!(
        VOLANT_VM = wish.vm.as_str(),
        "lent to VM '{}': {}",
        wish.vm,
        lent.join(", ")
    );
    Ok(())
}

async fn serve(lender: Lender<Kernel>, idle_sec: u64) -> anyhow::Result<()> {
    let stop = shutdown().context("cannot wait for signals")?;
    let idle = Idle::new();
    let manager = Manager {
        lender,
        idle: idle.clone(),
    };
    let bus = dbus::serve(manager)
        .await
        .context("cannot serve on the system bus")?;
    ready("showing devices").context("cannot tell systemd")?;
    let quiet = async {
        match idle_sec {
            0 => std::future::pending().await,
            seconds => idle.wait(Duration::from_secs(seconds)).await,
        }
    };
    let why = tokio::select! {
        signal = stop => signal,
        () = quiet => "idle",
        () = bus.closed() => anyhow::bail!("the system bus closed the connection"),
    };
    stopping(why);
    bus.release_name(volant_dbus::devices::NAME)
        .await
        .context("cannot leave the bus")?;
    idle.wait(Duration::from_millis(100)).await;
    Ok(())
}
