//! The command line of Volant: a client of the REST API, and `volar setup`, which prepares a host.
//!
//! [`args`] is what can be typed, [`client`] talks to the API, [`plugins`] and [`vms`] are the commands on
//! it; [`setup`] and [`trust`] change this host's own files without it. A command gives a value; [`output`] shows it.

pub mod args;
mod client;
mod devices;
mod dial;
mod failure;
pub mod host;
mod output;
mod plugins;
pub mod setup;
mod signals;
mod stdio;
mod terminal;
mod trust;
mod tunnel;
mod view;
mod vms;
mod waiting;

use std::process::ExitCode;

pub use args::Args;
use args::{Command, Plugins, Trust};
use client::Client;
use failure::Failure;
use output::Output;

/// Does what was asked, and says on stderr what went wrong.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(args)),
        Err(source) => Err(Failure::Io {
            act: "cannot start".to_owned(),
            source,
        }
        .into()),
    };
    let Failures { failures, code } = match done {
        Ok(code) => return ExitCode::from(code),
        Err(failures) => failures,
    };
    for failure in &failures {
        failure.tell();
    }
    let first = failures.first().map(Failure::code);
    code.or(first).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// All that went wrong when one command was for several things; the first one decides the exit code.
#[derive(Debug)]
pub(crate) struct Failures {
    failures: Vec<Failure>,
    /// Where the command has codes of its own.
    code: Option<u8>,
}

impl From<Failure> for Failures {
    fn from(failure: Failure) -> Self {
        Self {
            failures: vec![failure],
            code: None,
        }
    }
}

impl From<(u8, Failure)> for Failures {
    fn from((code, failure): (u8, Failure)) -> Self {
        Self {
            failures: vec![failure],
            code: Some(code),
        }
    }
}

fn ended(failures: Vec<Failure>) -> Result<(), Failures> {
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Failures {
            failures,
            code: None,
        })
    }
}

/// Gives the exit code.
async fn dispatch(args: Args) -> Result<u8, Failures> {
    let output = Output::new(args.output, args.quiet);
    let done = match args.command {
        Command::Vms(command) => {
            return vms::run(command, Client::new(&args.host)?, &output).await;
        }
        Command::Version => output.version().map_err(Into::into),
        Command::DialStdio => dial::run(&args.host).await.map_err(Into::into),
        Command::Setup(wanted) => setup::run(&wanted, &output).map_err(Into::into),
        Command::Plugins(Plugins::Trust(Trust::Add(key))) => {
            trust::add(&key, &args.host, &output).map_err(Into::into)
        }
        Command::Plugins(Plugins::Trust(Trust::Remove(keys))) => {
            trust::remove(&keys, &args.host, &output)
        }
        Command::Devices(command) => {
            devices::run(command, &Client::new(&args.host)?, &output).await
        }
        Command::Plugins(command) => {
            plugins::run(command, &Client::new(&args.host)?, &output).await
        }
    };
    done.map(|()| 0)
}
