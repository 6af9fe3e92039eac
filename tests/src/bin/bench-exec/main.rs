//! Sessions in one running VM beside a bare vsock stream into the same VM. Run by `cargo xtask bench exec`.
//!
//! Measured in turns: an echo on an open connection, an echo on a new connection, and an exec of `true` by vmd's gRPC.
//! Then `volar`, fifty at once, copies each way while the log streams, and vmd's memory.

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

mod bare;
mod calls;

use std::{env, fs, time::Instant};

use anyhow::{Context, Result, ensure};
use bare::Bare;
use calls::Vmd;
use serde_json::{Value, json};
use volant_testhost::ECHO_VARIABLE;
use volant_tests::{
    BOOT, Site, eventually,
    figures::{
        Arguments, inside, load, main_pid, median, milliseconds, percentile, rollup, verdict,
    },
};

const VM: &str = "figures";
/// In MiB: two files of the copies fit in, as the root is in memory.
const MEMORY: u32 = 2048;
const COPY: u64 = 512 << 20;
/// Copies each way, and bare streams between them.
const COPIES: u32 = 2;
const AT_ONCE: usize = 50;
/// Execs before vmd's memory is measured again.
const MANY: u32 = 2000;
/// What is wanted.
const MOST_OVER_ECHO_MS: f64 = 5.0;
const LEAST_SHARE: f64 = 0.8;
const MOST_PSS_KIB: u64 = 6 * 1024;
/// How much more of it there may be after many execs, in KiB: what an allocator keeps.
const MOST_GROWTH_KIB: u64 = 512;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::read(200)?;
    let load = load();
    let site = Site::new()?;
    let program = env::var_os(ECHO_VARIABLE).context("run this by `cargo xtask bench exec`")?;
    fs::copy(program, site.host.path().join("root/vsock-echo"))?;
    site.plugin(
        "figures",
        "exec vsock-echo\n",
        "[[file_mappings]]\nsource = \"/root/vsock-echo\"\ndest = \"/bin/vsock-echo\"\nmode = 0o755",
    )?;
    site.host.sh(&format!(
        "volar vms create {VM} --plugin figures --cpu 1 --memory {MEMORY}"
    ))?;
    let pid = main_pid(&site, VM)?;
    let inside = inside(VM, pid)?;
    let bare = Bare(inside.join(format!("run/volant/private/{VM}/vsock")));
    let mut vmd = Vmd::connect(inside.join(format!("run/volant/vm/{VM}/vmd.sock"))).await?;

    // A workload that has just been started.
    eventually("the guest's port listens", BOOT, || Ok(bare.echo().ok()))?;
    eprintln!("the VM runs");
    let idle = rollup(&site, pid, "Pss")?;
    let times = alone(&bare, &mut vmd, arguments.rounds).await?;
    eprintln!("exec of true: {:.1} ms", median(&times.exec));
    let by_volar = by_volar(&site, arguments.rounds.min(50))?;
    let spawn = spawn_in_guest(&mut vmd).await?;
    eprintln!("spawn: {spawn:.1} ms");
    let at_once = at_once(&vmd).await?;
    eprintln!("{AT_ONCE} at once: {at_once:.0} ms");
    let copies = copies(&site, &bare, &mut vmd).await?;
    eprintln!("copied");
    println!("The load before: {load}");
    println!(
        "In milliseconds, of {}                  median      p99",
        arguments.rounds
    );
    let over = median(&times.exec) - median(&times.echo);
    for (name, values) in [
        ("an echo on an open vsock connection", &times.echo),
        ("an echo on a new vsock connection", &times.connect),
        ("exec of true by vmd's gRPC", &times.exec),
        ("volar vms exec NAME -- true", &by_volar),
    ] {
        println!(
            "  {name:<38} {:>8.1} {:>8.1}",
            median(values),
            percentile(values, 99)
        );
    }
    println!("  a guest's own shell starts true: {spawn:.1}");
    println!(
        "  exec over the echo: {over:.1}, at most {MOST_OVER_ECHO_MS}: {}",
        verdict(over <= MOST_OVER_ECHO_MS)
    );
    println!("{AT_ONCE} execs of a second's sleep at once: {at_once:.0}");
    println!(
        "Copies of {} MiB while the log streams, in MB/s    bare   copied   share",
        COPY >> 20
    );
    for (name, bare, copied) in [
        ("in", copies.bare_in, copies.copied_in),
        ("out", copies.bare_out, copies.copied_out),
    ] {
        let share = copied / bare;
        println!(
            "  {name:<44} {bare:>8.0} {copied:>8.0}   {share:.2}   at least {LEAST_SHARE}: {}",
            verdict(share >= LEAST_SHARE)
        );
    }
    println!(
        "  in, a bare stream that is written to a file  {:>8.0}",
        copies.bare_file
    );
    println!(
        "  lines of the log that came meanwhile: {} of {}",
        copies.lines, copies.lines_sent
    );
    for _ in 0..MANY {
        vmd.exec(&["true"], false).await?;
    }
    let after = rollup(&site, pid, "Pss")?;
    ensure!(
        main_pid(&site, VM)? == pid,
        "vmd was started anew meanwhile"
    );

    println!("vmd's PSS in KiB");
    println!(
        "  idle  {idle}, at most {MOST_PSS_KIB}: {}",
        verdict(idle <= MOST_PSS_KIB)
    );
    println!(
        "  after {MANY} execs and the copies  {after}, at most {MOST_GROWTH_KIB} more: {}",
        verdict(after <= idle + MOST_GROWTH_KIB)
    );
    let raw = json!({
        "load": load, "rounds": arguments.rounds,
        "echo_ms": times.echo, "connect_echo_ms": times.connect, "exec_ms": times.exec, "volar_exec_ms": by_volar,
        "guest_spawn_ms": spawn, "at_once": AT_ONCE, "at_once_ms": at_once,
        "copies": copies.raw(), "vmd_pss_idle_kib": idle, "vmd_pss_after_kib": after, "execs": MANY,
    });
    println!(
        "\nThe raw figures: {}",
        arguments.keep("exec", &raw)?.display()
    );
    Ok(())
}

#[derive(Debug, Default)]
struct Times {
    echo: Vec<f64>,
    connect: Vec<f64>,
    exec: Vec<f64>,
}

/// One thing at a time, in turns.
async fn alone(bare: &Bare, vmd: &mut Vmd, rounds: u32) -> Result<Times> {
    let mut times = Times::default();
    let mut open = bare.echo()?;
    for round in 0..rounds + 5 {
        let begun = Instant::now();
        open.ping()?;
        let echo = milliseconds(begun.elapsed());
        let begun = Instant::now();
        bare.echo()?.ping()?;
        let connect = milliseconds(begun.elapsed());
        let begun = Instant::now();
        vmd.exec(&["true"], false).await?;
        let exec = milliseconds(begun.elapsed());
        // The first ones fill caches: pages, and the VMM's translated code.
        if round >= 5 {
            times.echo.push(echo);
            times.connect.push(connect);
            times.exec.push(exec);
        }
    }
    Ok(times)
}

/// As a user does it: a process, its way through the gateway, its end.
fn by_volar(site: &Site, rounds: u32) -> Result<Vec<f64>> {
    // Without a process of its own for the clock.
    let script = format!(
        "for i in $(seq {rounds}); do a=$EPOCHREALTIME; volar vms exec {VM} -- true || exit 1; \
         b=$EPOCHREALTIME; echo $(( (${{b/./}} - ${{a/./}}) )); done"
    );
    let text = site.host.sh(&format!("bash -c '{script}'"))?;
    let micros = text.lines().map(|line| line.trim().parse::<f64>());
    let micros = micros
        .collect::<Result<Vec<_>, _>>()
        .context(text.clone())?;
    Ok(micros.iter().map(|micros| micros / 1000.0).collect())
}

/// What starting a program costs this guest.
async fn spawn_in_guest(vmd: &mut Vmd) -> Result<f64> {
    let rounds = 100;
    let loop_of =
        |command: &str| format!("i=0; while [ $i -lt {rounds} ]; do {command}; i=$((i+1)); done");
    let mut took = Vec::new();
    for command in ["/bin/true", ":"] {
        let begun = Instant::now();
        vmd.exec(&["sh", "-c", &loop_of(command)], false).await?;
        took.push(milliseconds(begun.elapsed()));
    }
    Ok((took[0] - took[1]) / f64::from(rounds))
}

async fn at_once(vmd: &Vmd) -> Result<f64> {
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..AT_ONCE {
        let mut vmd = vmd.clone();
        tasks.push(tokio::spawn(async move {
            let said = number.to_string();
            let output = vmd
                .exec(&["sh", "-c", &format!("sleep 1; echo {said}")], false)
                .await?;
            ensure!(
                output.trim_ascii() == said.as_bytes(),
                "exec {said} said {output:?}"
            );
            Ok(())
        }));
    }
    for task in tasks {
        task.await.context("an exec's task failed")??;
    }
    Ok(milliseconds(begun.elapsed()))
}

#[derive(Debug)]
struct Copies {
    bare_in: f64,
    /// Information alone: how much of a copy is the file in the guest's memory.
    bare_file: f64,
    copied_in: f64,
    bare_out: f64,
    copied_out: f64,
    lines: usize,
    lines_sent: usize,
}

impl Copies {
    fn raw(&self) -> Value {
        json!({
            "bytes": COPY, "bare_in_mb_s": self.bare_in, "bare_file_mb_s": self.bare_file, "copied_in_mb_s": self.copied_in,
            "bare_out_mb_s": self.bare_out, "copied_out_mb_s": self.copied_out,
            "log_lines": self.lines, "log_lines_sent": self.lines_sent,
        })
    }
}

/// Copies, bare streams between them, while a program writes to the VM's log.
async fn copies(site: &Site, bare: &Bare, vmd: &mut Vmd) -> Result<Copies> {
    let lines_sent = 600;
    let writer = format!(
        "i=0; while [ $i -lt {lines_sent} ]; do echo meanwhile $i; usleep 100000; i=$((i+1)); done"
    );
    vmd.exec(&["sh", "-c", &writer], true).await?;
    let rate = |bytes: u64, seconds: f64| bytes as f64 / seconds / 1e6;
    let mut all = [const { Vec::new() }; 5];
    for _ in 0..COPIES {
        all[0].push(rate(COPY, bare.send(COPY)?.as_secs_f64()));
        all[1].push(rate(
            COPY,
            vmd.unpack("/tmp", "big", COPY).await?.as_secs_f64(),
        ));
        all[2].push(rate(COPY, bare.receive(COPY)?.as_secs_f64()));
        let (took, bytes) = vmd.pack("/tmp/big").await?;
        ensure!(bytes >= COPY, "only {bytes} bytes came out");
        all[3].push(rate(bytes, took.as_secs_f64()));
        vmd.exec(&["rm", "/tmp/big"], false).await?;
        all[4].push(rate(COPY, bare.send_to_file(COPY)?.as_secs_f64()));
    }
    let count = || -> Result<usize> {
        let text = site.journal(VM)?;
        Ok(text
            .lines()
            .filter(|line| line.starts_with("meanwhile "))
            .count())
    };
    let lines = eventually("the log is complete", BOOT, || {
        Ok(Some(count()?).filter(|&count| count >= lines_sent))
    })?;
    let [bare_in, copied_in, bare_out, copied_out, bare_file] = all.map(|values| median(&values));
    Ok(Copies {
        bare_in,
        bare_file,
        copied_in,
        bare_out,
        copied_out,
        lines,
        lines_sent,
    })
}
