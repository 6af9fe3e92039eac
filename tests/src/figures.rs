//! What benchmarks share: their arguments, and what they make of many measurements.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Site;

/// What `cargo xtask bench` gives a benchmark.
#[derive(Clone, Debug)]
pub struct Arguments {
    pub rounds: u32,
    /// For the raw figures.
    pub output: PathBuf,
}

impl Arguments {
    /// Of this process: `[--rounds N] [--output FOLDER]`.
    ///
    /// # Errors
    /// They are others.
    pub fn read(rounds: u32) -> Result<Self> {
        let mut arguments = Self {
            rounds,
            output: PathBuf::from("target/bench"),
        };
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words
                .next()
                .with_context(|| format!("{word} needs a value"))?;
            match word.as_str() {
                "--rounds" => {
                    arguments.rounds = value.parse().context("--rounds needs a number")?;
                }
                "--output" => arguments.output = PathBuf::from(value),
                _ => anyhow::bail!("{word} is not known"),
            }
        }
        ensure!(arguments.rounds > 0, "--rounds needs at least one");
        Ok(arguments)
    }

    /// Keeps the raw figures in `NAME.json`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, name: &str, raw: &Value) -> Result<PathBuf> {
        let folder = &self.output;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_string_pretty(raw)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// The smallest value that so many percent of all do not exceed.
#[must_use]
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Whether a figure is what is wanted of it.
#[must_use]
pub fn verdict(is_so: bool) -> &'static str {
    if is_so { "ok" } else { "NOT SO" }
}

/// A line of a process's `smaps_rollup`, in KiB; `pid` is the host's own number for it.
///
/// # Errors
/// There is no such process.
pub fn rollup(site: &Site, pid: u32, line: &str) -> Result<u64> {
    let text = site.host.sh(&format!("cat /proc/{pid}/smaps_rollup"))?;
    text.lines()
        .find_map(|found| found.strip_prefix(line)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {line} of process {pid}"))
}

/// The main process of a VM's unit.
///
/// # Errors
/// It is not running.
pub fn main_pid(site: &Site, vm: &str) -> Result<u32> {
    let text = site.host.sh(&format!(
        "systemctl show volant-vm@{vm} --property MainPID --value"
    ))?;
    let pid = text
        .trim()
        .parse()
        .with_context(|| format!("MainPID: {text}"))?;
    ensure!(pid != 0, "volant-vm@{vm} is not running");
    Ok(pid)
}

/// The root of the file system that the main process of a VM's unit sees, as this process sees it.
///
/// # Errors
/// It does not run.
pub fn inside(vm: &str, pid: u32) -> Result<PathBuf> {
    let arguments = format!("/usr/lib/volant/vmd\0{vm}\0");
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let is_vmd =
            fs::read(folder.join("cmdline")).is_ok_and(|found| found == arguments.as_bytes());
        let numbers = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let is_main = numbers
            .lines()
            .filter_map(|line| line.strip_prefix("NSpid:"))
            .any(|numbers| numbers.split_whitespace().last() == Some(&pid.to_string()));
        if is_vmd && is_main {
            return Ok(folder.join("root"));
        }
    }
    anyhow::bail!("there is no vmd of {vm}")
}

/// How busy the machine was before: the load averages.
#[must_use]
pub fn load() -> String {
    fs::read_to_string(Path::new("/proc/loadavg"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}
