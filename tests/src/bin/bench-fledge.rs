//! An image of 1 GB to squashfs, beside skopeo, umoci and mksquashfs with the same compressor. Run by
//! `cargo xtask bench fledge`.
//!
//! Everything is a ratio within one run on one machine: the tools and fledge take turns, on the same image, to the same disk.

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use serde_json::json;

/// Bytes of files in the image.
const CONTENT: u64 = 1_000_000_000;
const LAYERS: u64 = 3;
/// The compressor's level, of both: fledge's own.
const LEVEL: u32 = 9;
/// The most that fledge may take of the tools' time.
const RATIO: f64 = 0.8;
/// The most memory that fledge and its tool may have at their peaks together, in KiB.
const MEMORY: u64 = 300 * 1024;

fn main() -> Result<()> {
    let (rounds, output) = arguments()?;
    let fledge = PathBuf::from(
        env::var_os("VOLANT_FLEDGE").context("run this by `cargo xtask bench fledge`")?,
    );
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let work = tempfile::Builder::new()
        .prefix("fledge-")
        .tempdir_in(&output)
        .context("cannot make a folder")?;
    let work = work.path();
    image(work)?;
    fs::write(
        work.join("fledge.toml"),
        format!(
            "[plugin]\nname = \"bench\"\nstrategy = \"oci_rootfs\"\n[oci_source]\nimage = \"oci:image:1\"\n\
             [filesystem]\ncompression_level = {LEVEL}\n[workload]\nentrypoint = [\"sh\"]\n"
        ),
    )
    .context("cannot write fledge.toml")?;

    let (mut tools, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let tool = timed(
            work,
            &format!(
                "skopeo copy --quiet oci:image:1 oci:copy:1 && umoci unpack --image copy:1 bundle > /dev/null && \
                 mksquashfs bundle/rootfs tools.squashfs -comp zstd -Xcompression-level {LEVEL} -noappend -no-progress -quiet"
            ),
        )?;
        let our = timed(work, &format!("exec {} build", fledge.display()))?;
        let sizes = (
            size(&work.join("tools.squashfs"))?,
            size(&work.join("bench.squashfs"))?,
        );
        eprintln!(
            "round {round}: tools {:.1} s ({:.0} MB), fledge {:.1} s ({:.0} MB), {} MiB of memory, {:.0} MB of disk",
            tool.seconds,
            sizes.0 as f64 / 1e6,
            our.seconds,
            sizes.1 as f64 / 1e6,
            our.memory / 1024,
            our.disk as f64 / 1e6,
        );
        sh(work, "rm -rf copy bundle tools.squashfs bench.*")?;
        tools.push(tool);
        ours.push(our);
    }
    let seconds = |taken: &[Taken]| taken.iter().map(|taken| taken.seconds).collect::<Vec<_>>();
    let (tools_s, fledge_s) = (seconds(&tools), seconds(&ours));
    let ratio = median(&fledge_s) / median(&tools_s);
    let most = |of: fn(&Taken) -> u64| ours.iter().map(of).max().unwrap_or_default();
    let (peak, disk) = (most(|taken| taken.memory), most(|taken| taken.disk));
    println!(
        "\n| what | measured | wanted |\n| --- | --- | --- |\n| skopeo, umoci and mksquashfs | {:.1} s | |\n\
         | fledge build | {:.1} s | |\n| fledge over the tools | {ratio:.2} | ≤ {RATIO} |\n\
         | peak memory of fledge and its tool | {} MiB | ≤ {} MiB |\n\
         | disk that fledge takes at its peak | {:.0} MB | the image, no unpacked tree |",
        median(&tools_s),
        median(&fledge_s),
        peak / 1024,
        MEMORY / 1024,
        disk as f64 / 1e6,
    );
    let raw = json!({
        "rounds": rounds, "tools_s": tools_s, "fledge_s": fledge_s, "ratio": ratio, "peak_kib": peak, "disk_bytes": disk,
    });
    let file = output.join("fledge.json");
    fs::write(&file, serde_json::to_string_pretty(&raw)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("\nThe raw figures: {}", file.display());
    ensure!(
        ratio <= RATIO && peak <= MEMORY,
        "fledge takes more than is wanted"
    );
    Ok(())
}

fn arguments() -> Result<(u32, PathBuf)> {
    let (mut rounds, mut output) = (3, PathBuf::from("target/bench"));
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--rounds" => rounds = value.parse().context("--rounds needs a number")?,
            _ => output = PathBuf::from(value),
        }
    }
    Ok((rounds, output))
}

/// An image of this machine's own programs and libraries, which compress as images do, in three layers.
fn image(work: &Path) -> Result<()> {
    eprintln!("making an image of {} MB", CONTENT / 1_000_000);
    sh(
        work,
        "umoci init --layout image && umoci new --image image:1",
    )?;
    let mut files = Files {
        next: walk(Path::new("/usr")),
        bytes: 0,
    };
    for layer in 1..=LAYERS {
        let list = files.up_to(CONTENT * layer / LAYERS)?;
        fs::write(work.join("list"), list.join("\n")).context("cannot write the list of files")?;
        sh(
            work,
            "tar -C / -cf layer.tar --no-recursion -T list && umoci raw add-layer --image image:1 layer.tar && rm layer.tar",
        )?;
    }
    sh(
        work,
        "umoci config --image image:1 --config.entrypoint sh && umoci gc --layout image",
    )?;
    Ok(())
}

struct Files {
    next: Vec<PathBuf>,
    bytes: u64,
}

impl Files {
    /// The next files, until all so far have that many bytes.
    fn up_to(&mut self, bytes: u64) -> Result<Vec<String>> {
        let mut list = Vec::new();
        while self.bytes < bytes {
            let path = self
                .next
                .pop()
                .context("this machine has less than that in /usr")?;
            self.bytes += path.symlink_metadata().map_or(0, |meta| meta.size());
            list.push(path.to_string_lossy().trim_start_matches('/').to_owned());
        }
        Ok(list)
    }
}

/// All files and links below a folder, the first at the end.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if !entry.path().to_string_lossy().contains('\n') => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort_by(|a, b| b.cmp(a));
    files
}

/// What a script took.
struct Taken {
    seconds: f64,
    /// The sum of the peaks of its processes' memory, in KiB.
    memory: u64,
    /// The most space that was taken on the disk meanwhile, in bytes; of others, too, where the machine is not quiet.
    disk: u64,
}

fn timed(work: &Path, script: &str) -> Result<Taken> {
    sh(work, "sync")?;
    let begun = Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", script])
        .current_dir(work)
        .spawn()
        .context("cannot run sh")?;
    let mut peaks = BTreeMap::new();
    let (before, mut least) = (free(work)?, u64::MAX);
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait")? {
            break status;
        }
        least = least.min(free(work)?);
        for pid in family(child.id()) {
            if let Some(peak) = peak(pid) {
                peaks.insert(pid, peak);
            }
        }
        thread::park_timeout(Duration::from_millis(20));
    };
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "failed: {script}");
    Ok(Taken {
        seconds,
        memory: peaks.values().sum(),
        disk: before.saturating_sub(least),
    })
}

fn free(folder: &Path) -> Result<u64> {
    let found = statvfs(folder).context("cannot ask for the space on the disk")?;
    Ok(found.blocks_available() * found.fragment_size())
}

/// A process and those below it.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    all
}

fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn sh(work: &Path, script: &str) -> Result<()> {
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(work)
        .status()
        .context("cannot run sh")?;
    ensure!(status.success(), "failed: {script}");
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    Ok(path
        .metadata()
        .with_context(|| format!("no {}", path.display()))?
        .len())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
