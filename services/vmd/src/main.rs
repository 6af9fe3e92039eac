//! `vmd NAME`: supervises one VM, as `volant-vm@NAME.service`.

use std::{io, os::fd::RawFd, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use nix::sys::prctl;
use vmd::{
    machine, messages,
    reload::{Document, request},
    sockets,
    unit::{self, Settings},
};
use volant_spec::{Name, config};

/// Starts a VM, supervises it, and exits as it ended. Run by systemd as volant-vm@NAME.service.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The VM.
    name: Name,
    /// The host's configuration; it need not exist.
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// A folder of this unit's alone; the VM's is made below it.
    #[arg(long, value_name = "FOLDER", default_value = "/run/volant/private")]
    run_dir: PathBuf,
    /// The folder of all VMs' sockets for the host; this VM's are in NAME below it.
    #[arg(long, value_name = "FOLDER", default_value = "/run/volant/vm")]
    socket_dir: PathBuf,
    /// Tells systemd-machined of the VM, which runs already, and exits. For root, as volant-machine@NAME.service.
    #[arg(long, group = "instead")]
    register_machine: bool,
    /// Has the vmd that runs execute this program in its own place, the guest running on; waits until it has.
    #[arg(long, group = "instead")]
    reload: bool,
    /// Tells whether this program understands the state of a VM, which is its standard input.
    #[arg(long, group = "instead", hide = true)]
    check_state: bool,
    /// Goes on with the VM whose state the vmd before this one left under this number.
    #[arg(long, value_name = "FD", group = "instead", hide = true)]
    take_over: Option<RawFd>,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args {
        name,
        config,
        run_dir,
        socket_dir,
        register_machine,
        reload,
        check_state,
        take_over,
    } = Args::parse();
    if reload {
        request(&sockets::folder(&socket_dir, &name))?;
        return Ok(ExitCode::SUCCESS);
    }
    if check_state {
        Document::read(io::stdin())?;
        return Ok(ExitCode::SUCCESS);
    }
    if take_over.is_some() {
        // As it was since this process took the VM's uid: a VMM that was taken over has the same one.
        prctl::set_dumpable(false).context("cannot close this process to others")?;
    }
    volant_service::init_logging().context("cannot reach the journal")?;
    // One thread: identity and capabilities are a thread's, and a VMM dies with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if register_machine {
        return runtime.block_on(register(&name));
    }
    let settings = Settings {
        name,
        config,
        run_dir,
        socket_dir,
    };
    let ended = runtime.block_on(async {
        match take_over {
            Some(document) => vmd::reload::take_over(&settings, document).await,
            None => unit::run(&settings).await,
        }
    });
    let code = match ended {
        Ok(ended) => ended.exit_code(),
        Err(error) => {
            let code = error.exit_code();
            let error = format!("{:#}", anyhow::Error::new(error));
            volant_service::status(&error);
            tracing::error!(
                MESSAGE_ID = messages::NOT_STARTED,
                VOLANT_EVENT = "not-started",
                VOLANT_ENDED = "not-started",
                "{error}"
            );
            code
        }
    };
    Ok(ExitCode::from(code))
}

/// A host where it cannot be is no worse for it: that is told, and no failure.
async fn register(name: &Name) -> anyhow::Result<ExitCode> {
    let bus = zbus::Connection::system()
        .await
        .context("cannot reach the system bus")?;
    match machine::register(&bus, name).await {
        Ok(()) => tracing::info!("VM '{name}' is a machine of machined"),
        Err(error) => tracing::warn!("{:#}", anyhow::Error::new(error)),
    }
    Ok(ExitCode::SUCCESS)
}
