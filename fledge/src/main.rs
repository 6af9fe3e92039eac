//! `fledge`: builds plugins for Volant.

mod cli;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

/// Builds plugins for Volant microVMs: files in, a bootable artifact and its manifest out.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the plugin that fledge.toml describes: NAME.cpio.gz and NAME.manifest.json
    Build(Build),
    /// Makes a key pair to sign plugins with, in minisign's files
    Keygen(cli::keygen::Keygen),
    /// Signs manifests, and with them all that they name
    Sign(cli::sign::Sign),
    /// Checks a manifest's signature, and the artifacts beside it
    Verify(cli::verify::Verify),
}

#[derive(clap::Args)]
struct Build {
    /// What to build; the sources in it are relative to its folder
    #[arg(short, long, value_name = "FILE", default_value = "fledge.toml")]
    config: PathBuf,
    /// The folder of the results
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// The guest's agent
    #[arg(long, value_name = "PATH", default_value = fledge::KESTREL)]
    kestrel: PathBuf,
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Build(args) => build(args),
        Command::Keygen(args) => cli::keygen::run(args),
        Command::Sign(args) => cli::sign::run(args),
        Command::Verify(args) => cli::verify::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").trim_end());
            ExitCode::FAILURE
        }
    }
}

fn build(args: Build) -> Result<()> {
    let options = fledge::Options {
        recipe: args.config,
        output: args.output,
        kestrel: args.kestrel,
    };
    let bar = bar();
    let built = fledge::build(&options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let built = built?;
    let manifest = &built.manifest;
    let shown = built
        .manifest_path
        .strip_prefix(".")
        .unwrap_or(&built.manifest_path);
    writeln!(
        io::stdout(),
        "{} {}: {:.1} MB of files in {} ({:.1} MB)\n{}\n\nvolar plugins install --manifest {}",
        manifest.name,
        manifest.version.as_str(),
        built.unpacked_size as f64 / 1e6,
        built
            .initramfs_path
            .strip_prefix(".")
            .unwrap_or(&built.initramfs_path)
            .display(),
        built.size as f64 / 1e6,
        built.digest,
        shown.display(),
    )
    .context("cannot write to standard output")
}

/// On a terminal alone.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("packing {bar:30} {bytes}/{total_bytes}")
        .expect("the template is a constant");
    ProgressBar::new(0).with_style(style)
}
