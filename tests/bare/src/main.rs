//! Starts VMMs with the arguments, kernel and initramfs that vmd uses, waits for their agents' hello and kills them. No
//! systemd, bus, registry or address service takes part. Prints the milliseconds from the first start to each hello.
//!
//! With a program, it waits for that program's start instead, and with `--to-the-end` for the machine's end: what the
//! machine's console and the agent say goes to standard error then.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use vmd::{
    agent::{self, Agent, Fact, Token},
    disks::{Disks, with_tools},
    hypervisor::{MachineSpec, Nic, ROOTFS_SERIAL, detect},
    journal::Journal,
    logs::{Labels, Limits, Logs},
};
use volant_dbus::registry::{Mount, VmDefinition};
use volant_proto::agent::v1::{RootFilesystem, RunConfig, Workload};
use volant_spec::{Resources, config::Vmm};

#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value = "/usr/lib/volant/kernel/vmlinux")]
    kernel: PathBuf,
    /// May be absent with a kernel that has one in it
    #[arg(long)]
    initramfs: Option<PathBuf>,
    /// A disk that becomes the root
    #[arg(long, requires = "program")]
    rootfs: Option<PathBuf>,
    #[arg(long, default_value = "raw")]
    format: String,
    /// A disk (ext4) that keeps what is written to the root
    #[arg(long, requires = "rootfs")]
    layer: Option<PathBuf>,
    /// FILE@TARGET: a disk (ext4) that is mounted there
    #[arg(long, value_parser = at)]
    volume: Vec<(PathBuf, String)>,
    /// DIRECTORY@TARGET: a directory of the host that is mounted there
    #[arg(long, value_parser = at)]
    share: Vec<(PathBuf, String)>,
    /// An archive that is appended to the initramfs
    #[arg(long)]
    tools: Option<PathBuf>,
    /// Whom the program runs as
    #[arg(long, default_value = "")]
    user: String,
    #[arg(long, default_value = "")]
    workdir: String,
    /// Wait for the end of the machine
    #[arg(long, requires = "program")]
    to_the_end: bool,
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// In MiB
    #[arg(long, default_value_t = 128)]
    memory: u32,
    /// How many at once
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// The program and its arguments
    #[arg(last = true)]
    program: Vec<String>,
}

fn at(text: &str) -> Result<(PathBuf, String), String> {
    let (path, target) = text.split_once('@').ok_or("it has no '@'")?;
    Ok((path.into(), target.to_owned()))
}

fn mount(name: String, kind: &str, host_path: &str, target: &str) -> Mount {
    Mount {
        name,
        kind: kind.to_owned(),
        host_path: host_path.to_owned(),
        target: target.to_owned(),
        is_read_only: kind == "share",
    }
}

impl Args {
    /// The disks and shares, as registryd would give them.
    fn disks(&self) -> Result<Disks> {
        let mut files = HashMap::new();
        let mut add = |name: String, path: &PathBuf| {
            let mut options = File::options();
            let file = options.read(true).write(true).open(path);
            files.insert(name, file.with_context(|| path.display().to_string())?);
            anyhow::Ok(())
        };
        if let Some(layer) = &self.layer {
            add("disk.root".to_owned(), layer)?;
        }
        let mut mounts = Vec::new();
        for (number, (path, target)) in self.volume.iter().enumerate() {
            add(format!("disk.volume-{number}"), path)?;
            mounts.push(mount(format!("volume-{number}"), "disk", "", target));
        }
        for (number, (path, target)) in self.share.iter().enumerate() {
            let path = path.display().to_string();
            mounts.push(mount(format!("share-{number}"), "share", &path, target));
        }
        let definition = VmDefinition {
            is_persistent: self.layer.is_some(),
            mounts,
            ..VmDefinition::default()
        };
        Ok(Disks::take(&definition, &mut files)?)
    }

    /// What the guest is told; without a program, nothing that it could run.
    fn run_config(&self) -> RunConfig {
        if self.program.is_empty() {
            return RunConfig::default();
        }
        RunConfig {
            hostname: "bare".to_owned(),
            workload: Some(Workload {
                entrypoint: self.program.clone(),
                user: self.user.clone(),
                workdir: self.workdir.clone(),
                ..Workload::default()
            }),
            root: self.rootfs.as_ref().map(|_| RootFilesystem {
                serial: ROOTFS_SERIAL.to_owned(),
                format: self.format.clone(),
                ..RootFilesystem::default()
            }),
            ..RunConfig::default()
        }
    }

    fn is_last(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Hello { .. } => self.program.is_empty(),
            Fact::WorkloadStarted { .. } => !self.to_the_end,
            _ => false,
        }
    }
}

const LIMIT: Duration = Duration::from_secs(300);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let base = PathBuf::from(format!("/run/bare-vmm-{}", std::process::id()));
    fs::create_dir(&base).with_context(|| format!("cannot make {}", base.display()))?;
    let answer = tokio::task::LocalSet::new()
        .run_until(all(&Arc::new(args), &base))
        .await;
    fs::remove_dir_all(&base).with_context(|| format!("cannot remove {}", base.display()))?;
    #[allow(clippy::print_stdout, reason = "this is what the program is for")]
    for milliseconds in answer? {
        println!("{milliseconds}");
    }
    Ok(())
}

async fn all(args: &Arc<Args>, base: &std::path::Path) -> Result<Vec<u128>> {
    let begun = Instant::now();
    let mut running = Vec::new();
    for number in 0..args.count {
        let spec = spec(args, base, number)?;
        let args = Arc::clone(args);
        running.push(tokio::task::spawn_local(one(args, spec, begun)));
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
    let disks = args.disks()?;
    let initramfs = args.initramfs.as_ref().map(open).transpose()?;
    let initramfs = initramfs.map(OwnedFd::from);
    let initramfs = match &args.tools {
        Some(tools) => Some(with_tools(initramfs, open(tools)?)?),
        None => initramfs,
    };
    let run_dir = base.join(number.to_string());
    fs::create_dir(&run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let tap = volant_service::open_tap(&format!("bare{number}")).context("cannot open a tap")?;
    Ok(MachineSpec {
        name: format!("bare-{number}").parse().context("no name")?,
        uuid: format!("00000000-0000-4000-8000-{number:012x}"),
        resources: Resources::new(args.cpus, args.memory)?,
        kernel: open(&args.kernel)?.into(),
        initramfs,
        rootfs: args.rootfs.as_ref().map(open).transpose()?.map(Into::into),
        disks: disks.specs,
        shares: disks.shares,
        devices: Vec::new(),
        nic: Some(Nic {
            tap,
            mac: format!("02:00:00:00:00:{number:02x}"),
        }),
        cid: 1000 + number,
        vsock: run_dir.join("vsock"),
        run_dir,
    })
}

async fn one(args: Arc<Args>, spec: MachineSpec, begun: Instant) -> Result<u128> {
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
    let mut run_config = args.run_config();
    args.disks()?.tell(&mut run_config);
    let (agent, _commands, mut facts) = Agent::new(run_config, Token::random()?, logs.clone());
    let served = tokio::task::spawn_local(agent::serve(listener, agent, logs));
    let choice = detect::choose(Vmm::Auto, &detect::Facts::gather())?;
    let mut machine = choice.hypervisor().launch(spec).await?;
    // Both halves, as vmd holds them: a VMM whose console is closed one way gives it up.
    let (mut console, _writer) = machine.console.into_split();
    let drained = tokio::task::spawn_local({
        let args = Arc::clone(&args);
        async move {
            if args.program.is_empty() {
                tokio::io::copy(&mut console, &mut tokio::io::sink()).await
            } else {
                tokio::io::copy(&mut console, &mut tokio::io::stderr()).await
            }
        }
    });
    let reached = loop {
        let fact = tokio::select! {
            fact = tokio::time::timeout(LIMIT, facts.recv()) => fact,
            exit = machine.control.wait(), if args.to_the_end => {
                eprintln!("{name}: {exit:?}");
                break begun.elapsed().as_millis();
            }
        };
        match fact {
            Ok(Some(fact)) if args.is_last(&fact) => break begun.elapsed().as_millis(),
            Ok(Some(Fact::Fatal(cause))) if !args.to_the_end => bail!("{name}: {cause}"),
            Ok(Some(fact)) => eprintln!("{name}: {fact:?}"),
            Ok(None) => bail!("{name}: nobody listens any more"),
            Err(_) => bail!("{name}: nothing within {LIMIT:?}"),
        }
    };
    machine.control.kill().await;
    served.abort();
    drained.abort();
    Ok(reached)
}
