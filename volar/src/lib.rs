//! The command line of Volant: a client of the REST API, and `volar setup`, which prepares a host.
//!
//! [`args`] is what can be typed, [`client`] talks to the API, [`plugins`] and [`vms`] are the commands on
//! it; [`setup`] and [`trust`] change this host's own files without it. A command gives a value; [`output`] shows it.

pub mod args;
mod client;
mod failure;
mod output;
mod plugins;
pub mod setup;
mod trust;
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
    let Err(failures) = done else {
        return ExitCode::SUCCESS;
    };
    for failure in &failures.0 {
        failure.tell();
    }
    failures
        .0
        .first()
        .map_or(ExitCode::FAILURE, |failure| ExitCode::from(failure.code()))
}

/// All that went wrong when one command was for several things; the first one decides the exit code.
#[derive(Debug)]
pub(crate) struct Failures(Vec<Failure>);

impl From<Failure> for Failures {
    fn from(failure: Failure) -> Self {
        Self(vec![failure])
    }
}

fn ended(failures: Vec<Failure>) -> Result<(), Failures> {
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Failures(failures))
    }
}

async fn dispatch(args: Args) -> Result<(), Failures> {
    let output = Output::new(args.output, args.quiet);
    match args.command {
        Command::Version => Ok(output.version()?),
        Command::Setup(wanted) => Ok(setup::run(&wanted, &output)?),
        Command::Plugins(Plugins::Trust(Trust::Add(key))) => {
            Ok(trust::add(&key, &args.host, &output)?)
        }
        Command::Plugins(Plugins::Trust(Trust::Remove(keys))) => {
            trust::remove(&keys, &args.host, &output)
        }
        Command::Plugins(command) => {
            plugins::run(command, &Client::new(&args.host)?, &output).await
        }
        Command::Vms(command) => vms::run(command, &Client::new(&args.host)?, &output).await,
    }
}
