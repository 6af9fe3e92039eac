//! Fifty small VMs at once: all ready, how long each took, and what each costs the host beyond its guest's memory. Run by
//! `cargo xtask bench many`.

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use volant_tests::{
    Site,
    figures::{Arguments, load, main_pid, median, milliseconds, percentile},
};

const MEMORY: u32 = 64;
/// How long a creation may take here, with all the others beside it.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let arguments = Arguments::read(50)?;
    let load = load();
    let count = arguments.rounds;
    let site = Site::new()?;
    // Activates the services and fills the caches.
    create(&site, "many-first")?;
    site.host.sh("volar vms delete many-first")?;
    let before = available(&site)?;

    let together = Barrier::new(count as usize);
    let begun = Instant::now();
    let took: Vec<Result<f64>> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=count)
            .map(|number| {
                let (site, together) = (&site, &together);
                scope.spawn(move || {
                    together.wait();
                    let begun = Instant::now();
                    create(site, &format!("many-{number}"))?;
                    Ok(milliseconds(begun.elapsed()))
                })
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .map(|ended| ended.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
            .collect()
    });
    let all = milliseconds(begun.elapsed());
    let failed: Vec<String> = took
        .iter()
        .filter_map(|took| took.as_ref().err().map(|error| format!("{error:#}")))
        .collect();
    let took: Vec<f64> = took.into_iter().flatten().collect();
    let ready = site.host.sh(
        "volar vms list --output json | jq '[.[] | select(.phase == \"running\" and (.name | startswith(\"many-\")))] | length'",
    )?;
    let ready = ready.trim().to_owned();
    let after = available(&site)?;
    let parts = parts(&site, count)?;
    let deleting = Instant::now();
    site.host
        .sh(&format!("volar vms delete $(seq -f 'many-%g' {count})"))?;
    let deleted = milliseconds(deleting.elapsed());

    println!("The load before: {load}");
    println!(
        "{count} VMs of {MEMORY} MiB at once: {ready} ready, {} refused",
        failed.len()
    );
    println!(
        "  until all were          {all:>9.0} ms, {:.0} for each",
        all / f64::from(count)
    );
    println!(
        "  a creation's own time   {:>9.0} ms (median), {:.0} (p99)",
        median(&took),
        percentile(&took, 99)
    );
    println!("  deleting them all       {deleted:>9.0} ms");
    println!("Host memory for each, in KiB, beyond what the guest touched of its own");
    let mut beyond = 0;
    for (name, kib) in &parts.each {
        println!("  {name:<24} {kib:>8}");
        beyond += kib;
    }
    println!("  together                 {beyond:>8}");
    println!("  of the guest's own, touched {:>5}", parts.touched);
    let used = before.saturating_sub(after) / u64::from(count);
    println!(
        "What the host had less of, for each, in KiB: {used}, with all of the guest's, and the kernel's part"
    );
    let raw = json!({
        "load": load, "count": count, "ready": ready, "failed": failed, "all_ms": all, "create_ms": took, "delete_ms": deleted,
        "beyond_guest_kib": beyond, "parts_kib": parts.each.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "guest_touched_kib": parts.touched, "host_less_kib": used,
    });
    println!(
        "\nThe raw figures: {}",
        arguments.keep("many", &raw)?.display()
    );
    ensure!(
        failed.is_empty(),
        "the first that was refused: {}",
        failed[0]
    );
    Ok(())
}

fn create(site: &Site, name: &str) -> Result<()> {
    site.host.sh(&format!(
        "timeout {} volar vms create {name} --plugin hello --cpu 1 --memory {MEMORY}",
        LIMIT.as_secs()
    ))?;
    Ok(())
}

/// MemAvailable, in KiB. The throw-away host's is the machine's.
fn available(site: &Site) -> Result<u64> {
    let text = site
        .host
        .sh("awk '/^MemAvailable:/ { print $2 }' /proc/meminfo")?;
    text.trim()
        .parse()
        .with_context(|| format!("MemAvailable: {text}"))
}

struct Parts {
    /// By program, the mean of all VMs.
    each: Vec<(String, u64)>,
    touched: u64,
}

/// What the processes of all VMs hold for themselves, and of their guests' memory (which is the only thing that they share
/// with each other by a file in memory).
fn parts(site: &Site, count: u32) -> Result<Parts> {
    main_pid(site, "many-1")?;
    let text = site.host.sh(
        "for folder in /proc/[0-9]*; do \
           case $(readlink $folder/exe) in */vmd|*/qemu-system-*|*/cloud-hypervisor|*/vhost-device-vsock) ;; *) continue ;; esac; \
           echo $(basename $(readlink $folder/exe)) $(awk '/^Pss:/ { all = $2 } /^Pss_Shmem:/ { guest = $2 } END { print all - guest, guest }' $folder/smaps_rollup); \
         done",
    )?;
    let mut each: Vec<(String, u64)> = Vec::new();
    let mut touched = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, own, guest] = words[..] else {
            anyhow::bail!("no memory of a process: {line}");
        };
        let own: u64 = own.parse().context("no number")?;
        touched += guest.parse::<u64>().context("no number")?;
        match each.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += own,
            None => each.push((name.to_owned(), own)),
        }
    }
    let count = u64::from(count);
    for (_, sum) in &mut each {
        *sum /= count;
    }
    Ok(Parts {
        each,
        touched: touched / count,
    })
}
