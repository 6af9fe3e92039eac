//! `fledge`: builds plugins for Volant.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds plugins for Volant microVMs: files in, a bootable artifact and its manifest out.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the plugin that fledge.toml describes: its artifact and NAME.manifest.json
    Build(cli::build::Build),
    /// Makes a key pair to sign plugins with, in minisign's files
    Keygen(cli::keygen::Keygen),
    /// Signs manifests, and with them all that they name
    Sign(cli::sign::Sign),
    /// Checks a manifest's signature, and the artifacts beside it
    Verify(cli::verify::Verify),
    /// Sends a plugin to an OCI registry
    Push(cli::push::Push),
    /// Tells what a plugin or an image holds
    Inspect(cli::inspect::Inspect),
    /// Prints the JSON Schema of a document
    Schema(cli::schema::Schema),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Build(args) => cli::build::run(args),
        Command::Keygen(args) => cli::keygen::run(args),
        Command::Sign(args) => cli::sign::run(args),
        Command::Verify(args) => cli::verify::run(args),
        Command::Push(args) => cli::push::run(args),
        Command::Inspect(args) => cli::inspect::run(&args),
        Command::Schema(args) => cli::schema::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").trim_end());
            // As a shell tells it of what SIGINT ended.
            let cancelled = error.is::<fledge::Cancelled>()
                || error
                    .downcast_ref::<fledge::BuildError>()
                    .is_some_and(fledge::BuildError::is_cancelled);
            ExitCode::from(if cancelled { 130 } else { 1 })
        }
    }
}
