//! Fuzzing, and the folder of what it found worth keeping.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    build::{cargo, workspace},
    cache, prerequisites, say,
};

/// From crates.io.
const CARGO_FUZZ: &str = "0.13.2";
/// No input is made longer, in bytes: what there is to find is found in less.
const MAX_INPUT: usize = 16 * 1024;
/// No longer input is kept.
const MAX_KEPT: usize = 4 * 1024;
/// A target that takes more memory, in MiB, has found something.
const MAX_MEMORY: usize = 2048;

/// What is fed with hostile bytes.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Target {
    /// A plugin's manifest, and an index of plugins
    Manifest,
    /// fledge.toml
    Recipe,
    /// The layers of an image
    Layers,
    /// The index, manifest and configuration of an image
    OciIndex,
    /// minisign's files, and files of trusted keys
    Signature,
    /// What a guest sends on a session
    Session,
    /// What a guest's agent tells of its VM
    Control,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Recipe => "recipe",
            Self::Layers => "layers",
            Self::OciIndex => "oci_index",
            Self::Signature => "signature",
            Self::Session => "session",
            Self::Control => "control",
        }
    }
}

/// Fuzzes one target or all, each for `seconds`, then keeps the inputs that reach different code.
///
/// # Errors
/// Something is missing, or something was found: the input is in `fuzz/artifacts/TARGET`.
pub fn run(target: Option<Target>, seconds: u32) -> Result<()> {
    prerequisites::install()?;
    let program = cargo_fuzz()?;
    let all = <Target as clap::ValueEnum>::value_variants();
    let targets: Vec<Target> = target.map_or_else(|| all.to_vec(), |target| vec![target]);
    for target in targets {
        fuzz(&program, target.name(), seconds)?;
    }
    Ok(())
}

fn fuzz(program: &PathBuf, name: &str, seconds: u32) -> Result<()> {
    let corpus = workspace().join("fuzz/corpus").join(name);
    // What libFuzzer adds goes to a folder of its own; the kept corpus is for reading alone until the end.
    let found = cache::folder("fuzz")?.join(name);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    say::step(format!("Fuzzing {name} for {seconds} seconds"));
    say::run(
        command(program, "run", name)
            .arg(&found)
            .arg(&corpus)
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_INPUT}"))
            .arg(format!("-rss_limit_mb={MAX_MEMORY}"))
            .args(["-timeout=10", "-print_final_stats=1"]),
    )?;
    say::step(format!(
        "Adding to {} what reaches more code",
        corpus.display()
    ));
    // libFuzzer's merge takes from the second folder what the first does not reach already. How often a place is
    // reached is not looked at, and long inputs are left out: the corpus stays small.
    say::run(
        command(program, "run", name)
            .arg(&corpus)
            .arg(&found)
            .args(["--", "-set_cover_merge=1", "-use_counters=0"])
            .arg(format!("-max_len={MAX_KEPT}")),
    )
}

/// cargo-fuzz without a sanitizer, which would need a nightly compiler: the targets have no unsafe code of ours.
fn command(program: &PathBuf, subcommand: &str, name: &str) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(workspace().join("fuzz"))
        .arg(subcommand)
        .args(["--fuzz-dir", ".", "--sanitizer", "none", name]);
    command
}

/// Builds `cargo-fuzz`, once; gives its path.
fn cargo_fuzz() -> Result<PathBuf> {
    let folder = cache::folder("cargo-fuzz")?;
    let _lock = cache::lock(&folder)?;
    let root = folder.join(CARGO_FUZZ);
    let program = root.join("bin/cargo-fuzz");
    if program.exists() {
        return Ok(program);
    }
    say::step("Building cargo-fuzz (about a minute, once)");
    say::run(
        cargo("install")
            .args(["cargo-fuzz", "--version", CARGO_FUZZ, "--locked", "--root"])
            .arg(&root)
            .env("CARGO_TARGET_DIR", folder.join("target")),
    )?;
    ensure!(program.exists(), "cargo-fuzz was not built");
    fs::remove_dir_all(folder.join("target"))
        .context("cannot remove the target folder of cargo-fuzz")?;
    Ok(program)
}
