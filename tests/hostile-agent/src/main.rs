//! An agent that means harm. It speaks the protocol far enough to be taken for kestrel, and then does what the test asks for:
//!
//! - the file `/attack` of its image names what it does in the place of a first hello ([`greeting`]);
//! - the variable `ATTACK` of its workload names how it lies about that workload ([`lies`]);
//! - a program that is run in its guest is an attack by that name, on the session itself ([`session`]) or on the host's
//!   connections for agents ([`control`]), with seconds as its argument;
//! - a path that is copied from its guest names an archive that leads out of where it is unpacked ([`archive`]).

mod archive;
mod control;
mod greeting;
mod http2;
mod lies;
mod session;
mod wire;

use std::{
    fs,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use kestrel::{Ending, Host, Linux, end_machine};
use nix::mount::{MsFlags, mount};
use tokio::time::{sleep, timeout};
use volant_proto::agent::v1::{
    GoingDown, HeartbeatRequest, Ready, WorkloadStarted, going_down::Reason,
    report_request::Report, watch_commands_response::Command,
};

/// For a host that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
const BEAT: Duration = Duration::from_secs(2);

/// What the attacks know of each other.
#[derive(Debug)]
struct Shared {
    token: Vec<u8>,
    boot_id: String,
    /// An attack speaks for the agent, which is silent meanwhile.
    quiet: AtomicBool,
    /// It hears no shutdown.
    deaf: bool,
}

fn main() -> ExitCode {
    let none: Option<&str> = None;
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        // What is missing shows in what fails.
        let _ = fs::create_dir_all(target);
        if let Err(error) = mount(Some(kind), target, Some(kind), MsFlags::empty(), none) {
            eprintln!("hostile-agent: cannot mount {target}: {error}");
        }
    }
    let mode = fs::read_to_string("/attack").unwrap_or_default();
    if !greeting::attack(mode.trim()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => {
                let lived = runtime.block_on(live());
                eprintln!("hostile-agent: {lived:?}");
            }
            Err(error) => eprintln!("hostile-agent: cannot start: {error}"),
        }
    }
    let error = end_machine(&Linux, Ending::PowerOff);
    eprintln!("hostile-agent: cannot end the machine: {error}");
    ExitCode::FAILURE
}

async fn live() -> Result<(), kestrel::HostError> {
    let host = Host::over_vsock();
    let config = host.hello(PATIENCE).await?;
    let env = config.workload.unwrap_or_default().env;
    let attack = env.get("ATTACK").cloned().unwrap_or_default();
    let shared = Arc::new(Shared {
        token: host.token(),
        boot_id: wire::boot_id(),
        quiet: AtomicBool::new(false),
        deaf: attack == "deaf",
    });
    let serving = Arc::clone(&shared);
    thread::spawn(move || {
        if let Err(error) = session::serve(&serving) {
            eprintln!("hostile-agent: no sessions: {error}");
        }
    });
    let started = Report::WorkloadStarted(WorkloadStarted { pid: u32::MAX });
    host.report(&started, PATIENCE).await?;
    host.report(&Report::Ready(Ready {}), PATIENCE).await?;
    for lie in lies::of(&attack) {
        // One that is refused does not keep it from the next.
        let _ = host.report(&lie, PATIENCE).await;
    }
    tokio::join!(beat(&host, &shared), obey(&host, &shared));
    Ok(())
}

async fn beat(host: &Host, shared: &Shared) {
    loop {
        if !shared.quiet.load(Ordering::Relaxed) {
            let lie = HeartbeatRequest {
                memory_total_kib: u64::MAX,
                memory_available_kib: u64::MAX,
                agent_resident_kib: u64::MAX,
                load_centi: u32::MAX,
                cpu_busy_ms: u64::MAX,
                cpu_total_ms: 0,
                processes: u32::MAX,
                root_total_kib: 0,
                root_available_kib: u64::MAX,
            };
            let _ = host.heartbeat(lie).await;
        }
        sleep(BEAT).await;
    }
}

/// Shuts down when it is asked to.
async fn obey(host: &Host, shared: &Shared) {
    loop {
        sleep(BEAT / 4).await;
        if shared.deaf || shared.quiet.load(Ordering::Relaxed) {
            continue;
        }
        let Ok(mut commands) = host.watch_commands().await else {
            continue;
        };
        // A stream that another connection took over ends by itself, or is given up.
        while let Ok(Ok(Some(asked))) = timeout(BEAT, commands.message()).await {
            if let Some(Command::Shutdown(_)) = asked.command {
                let down = Report::GoingDown(GoingDown {
                    reason: Reason::Requested.into(),
                });
                let _ = host.report(&down, PATIENCE).await;
                let _ = end_machine(&Linux, Ending::PowerOff);
            }
        }
    }
}
