//! `vmd NAME`: supervises one VM, as `volant-vm@NAME.service`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use vmd::{
    messages,
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
}

fn main() -> anyhow::Result<ExitCode> {
    let Args {
        name,
        config,
        run_dir,
        socket_dir,
    } = Args::parse();
    volant_service::init_logging().context("cannot reach the journal")?;
    // One thread: identity and capabilities are a thread's, and a VMM dies with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let settings = Settings {
        name,
        config,
        run_dir,
        socket_dir,
    };
    let code = match runtime.block_on(unit::run(&settings)) {
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
