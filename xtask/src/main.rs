//! `cargo xtask`: build, demo, test, bench and package Volant.
//!
//! Each command but `check` installs what it needs on Debian. All say what they do, and may be run again at any time.

mod build;
mod cache;
mod check;
mod demo;
mod example;
mod fuzz;
mod kernel;
mod package;
mod prerequisites;
mod say;
mod schemas;
mod shell;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    about = "Build, demo, test, bench and package Volant",
    bin_name = "cargo xtask"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Do the main job: boot a throw-away systemd host, install Volant in it, run a VM and fetch its page
    Demo,
    /// Run every test: of each crate, and of the whole system on throw-away hosts
    Test {
        /// Run only tests whose name has this in it
        filter: Option<String>,
        /// Run only the whole-system tests
        #[arg(long)]
        system: bool,
    },
    /// Open a shell in a throw-away systemd host with the packages installed and set up
    Host,
    /// Measure, and print a table with ratios; the raw figures go to target/bench/
    Bench {
        /// What to measure
        #[arg(value_enum)]
        what: test::Bench,
        /// How many rounds [default: 20, or 3 of fledge]
        #[arg(long)]
        rounds: Option<u32>,
    },
    /// Feed hostile bytes to all that reads them; what reaches new code is kept in fuzz/corpus
    Fuzz {
        /// What to feed; everything, one after another, when absent
        #[arg(value_enum)]
        target: Option<fuzz::Target>,
        /// For how long each
        #[arg(long, default_value_t = 180)]
        seconds: u32,
    },
    /// Build the .deb packages into target/package/
    Package,
    /// Write the JSON Schemas in docs/schemas from the types of the code
    Schemas,
    /// Build the guest kernel alone; it is kept in the cache
    Kernel,
    /// Check format, lints and dependencies; reports all that is wrong
    Check,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Demo => demo::run(),
        Command::Test { filter, system } => test::run(filter.as_deref(), system),
        Command::Schemas => schemas::write(),
        Command::Host => shell::run(),
        Command::Bench { what, rounds } => test::bench(what, rounds),
        Command::Fuzz { target, seconds } => fuzz::run(target, seconds),
        Command::Package => package::build().map(|_| ()),
        Command::Kernel => package::kernel().map(|_| ()),
        Command::Check => check::run(),
    }
}
