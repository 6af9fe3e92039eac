//! From `volar vms create` to ready, beside the bare VMM; memory; ten VMs at once. Run by `cargo xtask bench boot`.
//!
//! Everything is a ratio within one run on one machine: the bare VMM, with the same arguments, kernel and initramfs, is
//! started between the rounds.

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::{env, fs, time::Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use volant_testhost::BARE_VARIABLE;
use volant_tests::{
    BOOT, Site, eventually,
    figures::{Arguments, load, median, milliseconds, verdict},
};

const AT_ONCE: u32 = 10;
/// The most that a creation may take, over the floor.
const RATIO: f64 = 1.15;
/// The same for a plugin with a root file system.
const ROOT_RATIO: f64 = 1.5;
const ROOT: &str = "hello-root";
/// The most that each may take, in KiB.
const LIMITS: [(&str, u64); 4] = [
    ("vmd_pss_kib", 6 * 1024),
    ("kestrel_binary_kib", 4 * 1024),
    ("kestrel_resident_kib", 5 * 1024),
    ("guest_used_kib", 25 * 1024),
];

fn main() -> Result<()> {
    let arguments = Arguments::read(20)?;
    let (rounds, load) = (arguments.rounds, load());
    let site = Site::new()?;
    install_root(&site)?;
    let bare = env::var_os(BARE_VARIABLE).context("run this by `cargo xtask bench boot`")?;
    fs::copy(bare, site.host.path().join("root/bare-vmm")).context("cannot copy bare-vmm")?;

    let mut floors = Vec::new();
    let mut creations = Vec::new();
    let mut roots = Vec::new();
    let mut steps: Vec<Steps> = Vec::new();
    for round in 0..=rounds {
        let floor = bare_vmms(&site, 1)?[0];
        let (creation, step) = creation(&site, "hello")?;
        let (root, _) = self::creation(&site, ROOT)?;
        // The first round fills caches and activates the services.
        if round > 0 {
            eprintln!(
                "round {round}: bare {floor:.0} ms, create {creation:.0} ms, of a rootfs {root:.0} ms"
            );
            floors.push(floor);
            creations.push(creation);
            roots.push(root);
            steps.push(step);
        }
    }
    let memory = memory(&site)?;
    let ten = ten_at_once(&site, median(&creations), median(&floors))?;

    let parts: Vec<(&str, f64)> = (0..Steps::NAMES.len())
        .map(|i| {
            (
                Steps::NAMES[i],
                median(&steps.iter().map(|step| step.0[i]).collect::<Vec<_>>()),
            )
        })
        .collect();
    let raw = json!({
        "load": load, "rounds": rounds, "floor_ms": floors, "create_ms": creations, "create_rootfs_ms": roots,
        "steps_ms": steps.iter().map(|step| step.0.to_vec()).collect::<Vec<_>>(), "step_names": Steps::NAMES,
        "create_over_floor": median(&creations) / median(&floors),
        "create_rootfs_over_floor": median(&roots) / median(&floors),
        "memory": memory, "ten_at_once": ten,
    });
    println!("The load before: {load}");
    report(&floors, &creations, &roots, &parts, &memory, &ten);
    println!(
        "\nThe raw figures: {}",
        arguments.keep("boot", &raw)?.display()
    );
    Ok(())
}

/// Installs the plugin [`ROOT`]: the same busybox and the same script, as a root of squashfs.
fn install_root(site: &Site) -> Result<()> {
    let folder = site.host.path().join("root").join(ROOT);
    fs::create_dir_all(&folder).context("cannot make the plugin's folder")?;
    fs::write(
        folder.join("fledge.toml"),
        format!(
            "[plugin]\nname = \"{ROOT}\"\nstrategy = \"oci_rootfs\"\n\n[oci_source]\nimage = \"dir:tree\"\n\n\
             [workload]\nentrypoint = [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox --install -s /bin; exec /usr/bin/run\"]\n"
        ),
    )
    .context("cannot write fledge.toml")?;
    site.host.sh(&format!(
        "cd /root/{ROOT} && mkdir -p tree/bin tree/usr/bin tree/proc tree/sys tree/dev tree/tmp tree/run tree/etc && \
         cp /bin/busybox tree/bin/ && cp /root/hello/run tree/usr/bin/run && chmod 755 tree/usr/bin/run && \
         fledge build && fledge sign {ROOT}.manifest.json && volar plugins install --manifest {ROOT}.manifest.json"
    ))?;
    Ok(())
}

/// Creates a VM of that plugin and deletes it: how long the creation took, and where its time went.
fn creation(site: &Site, plugin: &str) -> Result<(f64, Steps)> {
    let begun = Instant::now();
    site.create("bench", plugin)?;
    let took = milliseconds(begun.elapsed());
    let steps = Steps::read(site)?;
    site.host.sh("volar vms delete bench")?;
    Ok((took, steps))
}

/// Milliseconds from the start of the first of `count` bare VMMs to each one's hello.
fn bare_vmms(site: &Site, count: u32) -> Result<Vec<f64>> {
    let text = site.host.sh(&format!(
        "/root/bare-vmm --initramfs /root/hello/hello.cpio.* --cpus 1 --memory 128 --count {count} 2>/dev/null"
    ))?;
    text.lines()
        .map(|line| {
            line.parse()
                .with_context(|| format!("bare-vmm said: {line}"))
        })
        .collect()
}

/// Where the time of one creation went, in milliseconds.
#[derive(Debug)]
struct Steps([f64; 4]);

impl Steps {
    const NAMES: [&str; 4] = [
        "systemd's sandbox; vmd: definition, lease, tap, own uid",
        "the VMM's start",
        "the guest's boot, to kestrel's hello",
        "run configuration, workload started, READY=1",
    ];

    fn read(site: &Site) -> Result<Self> {
        let show = |property: &str| -> Result<f64> {
            let text = site.host.sh(&format!(
                "systemctl show volant-vm@bench --property {property} --value"
            ))?;
            text.trim()
                .parse::<f64>()
                .with_context(|| format!("{property}: {text}"))
        };
        let marks = site.host.sh(
            "journalctl --unit volant-vm@bench --output json --no-pager \
             _SYSTEMD_INVOCATION_ID=$(systemctl show volant-vm@bench --property InvocationID --value)",
        )?;
        let mark = |starts: &[&str]| -> Result<f64> {
            marks
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .find(|entry| {
                    entry["MESSAGE"].as_str().is_some_and(|message| {
                        starts.iter().any(|start| message.starts_with(start))
                    })
                })
                .and_then(|entry| entry["__MONOTONIC_TIMESTAMP"].as_str()?.parse().ok())
                .with_context(|| format!("vmd's journal has no {starts:?}"))
        };
        let (job, ready) = (
            show("InactiveExitTimestampMonotonic")?,
            show("ActiveEnterTimestampMonotonic")?,
        );
        let chosen = mark(&["qemu (", "cloud-hypervisor: "])?;
        let (launched, hello) = (mark(&["the VMM runs"])?, mark(&["kestrel "])?);
        let part = |from: f64, to: f64| (to - from) / 1000.0;
        Ok(Self([
            part(job, chosen),
            part(chosen, launched),
            part(launched, hello),
            part(hello, ready),
        ]))
    }
}

/// What one VM costs, in KiB.
fn memory(site: &Site) -> Result<Value> {
    site.create("bench", "hello")?;
    let pss = |name: &str| -> Result<u64> {
        let text = site.host.sh(&format!(
            "for pid in $(pgrep -x '{name}'); do awk '/^Pss:/ {{ print $2 }}' /proc/$pid/smaps_rollup; done | head -1"
        ))?;
        text.trim()
            .parse()
            .with_context(|| format!("no PSS of {name}: {text}"))
    };
    // Of its first heartbeat.
    let vm = eventually("the guest tells of its memory", BOOT, || {
        let vm = site.vm("bench")?;
        Ok(vm["memory_total_kib"].is_u64().then_some(vm))
    })?;
    let size = |path: &str| -> Result<u64> {
        Ok(fs::metadata(site.host.path().join(path))
            .with_context(|| format!("no {path}"))?
            .len()
            / 1024)
    };
    let total = vm["memory_total_kib"]
        .as_u64()
        .context("no memory_total_kib")?;
    let available = vm["memory_available_kib"]
        .as_u64()
        .context("no memory_available_kib")?;
    let answer = json!({
        "vmd_pss_kib": pss("vmd")?,
        "vhost_device_vsock_pss_kib": pss("vhost-device-vs").or_else(|_| pss("vhost-device-v"))?,
        "vmm_pss_kib": pss("qemu-system-x86").or_else(|_| pss("cloud-hyperviso"))?,
        "kestrel_binary_kib": size("usr/lib/volant/kestrel")?,
        "kestrel_resident_kib": vm["agent_resident_kib"],
        "guest_used_kib": total - available,
        "guest_memory_kib": 128 * 1024,
        "guest_outside_of_linux_kib": 128 * 1024 - total,
    });
    site.host.sh("volar vms delete bench")?;
    Ok(answer)
}

fn ten_at_once(site: &Site, one: f64, bare_one: f64) -> Result<Value> {
    let bare = bare_vmms(site, AT_ONCE)?.into_iter().fold(0.0, f64::max);
    let begun = Instant::now();
    site.host.sh(&format!(
        "for i in $(seq {AT_ONCE}); do volar vms create ten-$i --plugin hello --cpu 1 --memory 128 & pids=\"$pids $!\"; done; \
         for pid in $pids; do wait $pid || exit 1; done"
    ))?;
    let all = milliseconds(begun.elapsed());
    let running = site
        .host
        .sh("volar vms list --output json | jq '[.[] | select(.phase == \"running\")] | length'")?;
    site.host
        .sh(&format!("volar vms delete $(seq -f 'ten-%g' {AT_ONCE})"))?;
    Ok(json!({
        "running": running.trim(), "create_all_ms": all, "bare_all_ms": bare,
        "create_all_over_one": all / one, "bare_all_over_one": bare / bare_one,
    }))
}

fn report(
    floors: &[f64],
    creations: &[f64],
    roots: &[f64],
    parts: &[(&str, f64)],
    memory: &Value,
    ten: &Value,
) {
    let (floor, creation) = (median(floors), median(creations));
    println!(
        "Boot, median of {:<35}    ms   over the floor",
        floors.len()
    );
    println!("  bare VMM, from its start to the agent's hello   {floor:>8.0}   1.00");
    for (name, values, most) in [
        ("volar vms create, until it returns", creations, RATIO),
        ("the same of a root of squashfs", roots, ROOT_RATIO),
    ] {
        let ratio = median(values) / floor;
        println!(
            "  {name:<47} {:>8.0}   {ratio:.2}   at most {most}: {}",
            median(values),
            verdict(ratio <= most)
        );
    }
    println!("Where a creation's time goes                            ms   share");
    let known: f64 = parts.iter().map(|part| part.1).sum();
    for (name, value) in parts
        .iter()
        .copied()
        .chain([("volar, gatewayd, registryd, the answer", creation - known)])
    {
        println!(
            "  {name:<50} {value:>5.0}   {:>4.1} %",
            100.0 * value / creation
        );
    }
    println!("Memory of one VM                                       KiB   at most");
    for (name, value) in memory.as_object().into_iter().flatten() {
        let limit = LIMITS
            .iter()
            .find(|limit| limit.0 == name)
            .map_or(String::new(), |limit| {
                let is_so = value.as_u64().is_some_and(|value| value <= limit.1);
                format!("{:>6} {}", limit.1, verdict(is_so))
            });
        println!("  {name:<50} {:>6}   {limit}", value.to_string());
    }
    println!(
        "{AT_ONCE} VMs at once: {} running",
        ten["running"].as_str().unwrap_or("?")
    );
    for (name, value) in ten
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| value.is_f64())
    {
        println!("  {name:<50} {:>8.2}", value.as_f64().unwrap_or_default());
    }
}
