//! `volar`: the command line of Volant.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    volar::run(volar::Args::parse())
}
