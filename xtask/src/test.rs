//! Running tests and benchmarks.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::{
    build::{self, cargo, target},
    example, package, prerequisites, say,
};

/// What can be measured.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Bench {
    /// From `volar vms create` to ready, beside the bare VMM; memory; ten VMs at once
    Boot,
    /// Execs and copies in a running VM, beside a bare vsock stream; vmd's memory
    Exec,
    /// An image of 1 GB to squashfs, beside skopeo, umoci and mksquashfs
    Fledge,
    /// Fifty small VMs at once (with --rounds, so many): time, and the host's memory for each
    Many,
}

/// Runs the tests of each crate, then those of the whole system.
///
/// # Errors
/// Something is missing, or a test failed.
pub fn run(filter: Option<&str>, system_only: bool) -> Result<()> {
    prerequisites::need_root("the whole-system tests")?;
    prerequisites::install()?;
    let mut failed = Vec::new();
    if !system_only {
        say::step("Running the tests of each crate");
        let mut command = cargo("test");
        command.args([
            "--workspace",
            "--exclude",
            "volant-tests",
            "--locked",
            "--no-fail-fast",
        ]);
        if let Some(filter) = filter {
            command.args(["--", filter]);
        }
        if let Err(error) = say::run(&mut command) {
            eprintln!("{error:#}");
            failed.push("the tests of each crate");
        }
    }
    let needed = needed()?;
    say::step("Running the tests of the whole system on throw-away hosts");
    let mut command = cargo("test");
    command
        .args(["--package", "volant-tests", "--locked", "--no-fail-fast"])
        .envs(needed.variables());
    command.args(["--", "--test-threads=1"]).args(filter);
    if let Err(error) = say::run(&mut command) {
        eprintln!("{error:#}");
        failed.push("the tests of the whole system");
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Measures.
///
/// # Errors
/// Something is missing, or a run failed.
pub fn bench(what: Bench, rounds: Option<u32>) -> Result<()> {
    prerequisites::need_root("a benchmark of the whole system")?;
    prerequisites::install()?;
    let packages = || -> Result<_> {
        package::build()?;
        Ok((volant_testhost::PACKAGES_VARIABLE, package::folder()))
    };
    let (name, variables) = match what {
        Bench::Boot => {
            let bare = (volant_testhost::BARE_VARIABLE, build::bare_vmm()?);
            ("bench-boot", vec![packages()?, bare])
        }
        Bench::Exec => {
            let echo = build::guest_program("echo")?;
            let echo = (volant_testhost::ECHO_VARIABLE, echo);
            ("bench-exec", vec![packages()?, echo])
        }
        Bench::Many => ("bench-many", vec![packages()?]),
        Bench::Fledge => (
            "bench-fledge",
            vec![("VOLANT_FLEDGE", build::programs()?.join("fledge"))],
        ),
    };
    let rounds = rounds.unwrap_or(match what {
        Bench::Boot => 20,
        Bench::Exec => 200,
        Bench::Fledge => 3,
        Bench::Many => 50,
    });
    say::step(format!("Measuring ({rounds} rounds)"));
    say::run(
        cargo("run")
            .args([
                "--release",
                "--locked",
                "--package",
                "volant-tests",
                "--bin",
                name,
                "--",
            ])
            .args(["--rounds", &rounds.to_string(), "--output"])
            .arg(target().join("bench"))
            .envs(variables),
    )
}

/// What whole-system tests are given by the environment.
#[derive(Debug)]
struct Needed {
    packages: PathBuf,
    example: PathBuf,
    hostile: PathBuf,
    hostile_agent: PathBuf,
}

impl Needed {
    fn variables(&self) -> [(&'static str, &Path); 4] {
        [
            (volant_testhost::PACKAGES_VARIABLE, &self.packages),
            (volant_testhost::EXAMPLE_VARIABLE, &self.example),
            (volant_testhost::HOSTILE_VARIABLE, &self.hostile),
            (volant_testhost::HOSTILE_AGENT_VARIABLE, &self.hostile_agent),
        ]
    }
}

fn needed() -> Result<Needed> {
    package::build()?;
    Ok(Needed {
        packages: package::folder(),
        example: example::caddy()?,
        hostile: build::guest_program("hostile")?,
        hostile_agent: build::guest_program("hostile-agent")?,
    })
}
