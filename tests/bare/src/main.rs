//! Starts VMMs with the arguments, kernel and initramfs that vmd uses, waits for their agents' hello and kills them. No
//! systemd, bus, registry or address service takes part. Prints the milliseconds from the first start to each hello.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use vmd::{
    agent::{self, Agent, Fact},
    hypervisor::{MachineSpec, Nic, detect},
    journal::Journal,
    logs::{Labels, Limits, Logs},
};
use volant_proto::agent::v1::RunConfig;
use volant_spec::{Resources, config::Vmm};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "/usr/lib/volant/kernel/vmlinux")]
    kernel: PathBuf,
    #[arg(long)]
    initramfs: PathBuf,
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// In MiB
    #[arg(long, default_value_t = 128)]
    memory: u32,
    /// How many at once
    #[arg(long, default_value_t = 1)]
    count: u32,
}

const LIMIT: Duration = Duration::from_secs(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let base = PathBuf::from(format!("/run/bare-vmm-{}", std::process::id()));
    fs::create_dir(&base).with_context(|| format!("cannot make {}", base.display()))?;
    let answer = tokio::task::LocalSet::new()
        .run_until(all(&args, &base))
        .await;
    fs::remove_dir_all(&base).with_context(|| format!("cannot remove {}", base.display()))?;
    #[allow(clippy::print_stdout, reason = "this is what the program is for")]
    for milliseconds in answer? {
        println!("{milliseconds}");
    }
    Ok(())
}

async fn all(args: &Args, base: &std::path::Path) -> Result<Vec<u128>> {
    let begun = Instant::now();
    let mut running = Vec::new();
    for number in 0..args.count {
        let spec = spec(args, base, number)?;
        running.push(tokio::task::spawn_local(one(spec, begun)));
    }
    let mut all = Vec::new();
    for one in running {
        all.push(one.await.context("a VMM's task failed")??);
    }
    Ok(all)
}

fn spec(args: &Args, base: &std::path::Path, number: u32) -> Result<MachineSpec> {
    let open = |path: &PathBuf| {
        File::open(path).with_context(|| format!("cannot open {}", path.display()))
    };
    let run_dir = base.join(number.to_string());
    fs::create_dir(&run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let tap = volant_service::open_tap(&format!("bare{number}")).context("cannot open a tap")?;
    Ok(MachineSpec {
        name: format!("bare-{number}").parse().context("no name")?,
        uuid: format!("00000000-0000-4000-8000-{number:012x}"),
        resources: Resources::new(args.cpus, args.memory)?,
        kernel: open(&args.kernel)?.into(),
        initramfs: open(&args.initramfs)?.into(),
        nic: Some(Nic {
            tap,
            mac: format!("02:00:00:00:00:{number:02x}"),
        }),
        cid: 1000 + number,
        vsock: run_dir.join("vsock"),
        run_dir,
    })
}

async fn one(spec: MachineSpec, begun: Instant) -> Result<u128> {
    let name = spec.name.to_string();
    let listener = agent::listen(&spec.vsock)?;
    let labels = Labels {
        vm: name.clone(),
        uuid: spec.uuid.clone(),
        workload: "none".to_owned(),
    };
    let (logs, _writer) = Logs::open(
        Journal::open().context("cannot open the journal")?,
        labels,
        Limits::default(),
    );
    let (agent, _commands, mut facts) = Agent::new(RunConfig::default(), logs.clone());
    let served = tokio::task::spawn_local(agent::serve(listener, agent, logs));
    let choice = detect::choose(Vmm::Auto, &detect::Facts::gather())?;
    let mut machine = choice.hypervisor().launch(spec).await?;
    let (mut console, _) = machine.console.into_split();
    let drained = tokio::task::spawn_local(async move {
        tokio::io::copy(&mut console, &mut tokio::io::sink()).await
    });
    let hello = loop {
        match tokio::time::timeout(LIMIT, facts.recv()).await {
            Ok(Some(Fact::Hello { .. })) => break begun.elapsed().as_millis(),
            Ok(Some(_)) => {}
            Ok(None) => bail!("{name}: nobody listens any more"),
            Err(_) => bail!("{name}: no hello within {LIMIT:?}"),
        }
    };
    machine.control.kill().await;
    served.abort();
    drained.abort();
    Ok(hello)
}
