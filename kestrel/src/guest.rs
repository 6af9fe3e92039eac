//! The life of a guest, from a mounted `/proc` to the last word before power-off. [`crate::life`] decides, this does.

use std::{io, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use volant_proto::agent::v1::{self, RunConfig, report_request::Report};

use crate::{
    cause::chain,
    clock,
    config::{Config, ConfigError},
    console,
    ending::{LAST_WORD_WITHIN, Remains, end},
    etc,
    heartbeat::beat,
    host::{Host, HostError},
    init::{self, InitError},
    kernel::{Ending, Kernel},
    life::{Ask, Reason},
    logs::Logs,
    mounts::{MountError, SCRATCH, mount_all},
    network::{Network, NetworkError},
    reap::Reaper,
    reports::Reports,
    requests,
    root::{self, RootError},
    secrets::{self, SecretError},
    session::{self, Facts, Sessions},
    ship::ship,
    supervise::{Tools, supervise},
    workload::{Program, WorkloadError},
};

/// The host may be slow to listen: it starts its VMM and its listener at the same time.
const HELLO_WITHIN: Duration = Duration::from_secs(20);
/// What is said before another program takes over is worth a moment.
const SHIPPED_WITHIN: Duration = Duration::from_secs(1);
/// As container engines set them: a guest's one workload may serve any port and send pings, whoever it runs as.
const PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];
/// Why a guest cannot run its workload.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("cannot prepare the file systems")]
    Mounts(#[source] MountError),
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot set up the network")]
    Network(#[source] NetworkError),
    #[error("cannot get the run configuration")]
    Hello(#[source] HostError),
    #[error("cannot use the run configuration")]
    Config(#[source] ConfigError),
    #[error("cannot enter the root file system")]
    Root(#[source] RootError),
    #[error("cannot set the host name")]
    Hostname(#[source] io::Error),
    #[error("cannot give the workload its secrets")]
    Secrets(#[source] SecretError),
    #[error("cannot run the workload")]
    Workload(#[source] WorkloadError),
    #[error("cannot hand over to {}", .init.display())]
    Init { init: PathBuf, source: InitError },
}

/// What a guest is made of. The caller gives all that is the machine's own.
#[derive(Debug)]
pub struct Guest<K, N> {
    pub kernel: K,
    pub network: N,
    pub host: Host,
    /// Where `/etc` is, once the workload's root is there.
    pub root: PathBuf,
    pub logs: Arc<Logs>,
    pub asks: mpsc::Sender<Ask>,
    /// The socket that sessions come to; absent: nobody can come.
    pub sessions: Option<OwnedFd>,
}

/// A guest whose machine is prepared.
#[derive(Debug)]
struct Prepared {
    program: Arc<Program>,
    reaper: Arc<Reaper>,
    facts: Arc<Facts>,
}

impl<K: Kernel, N: Network> Guest<K, N> {
    /// Runs the guest's life and says how the machine should end; file systems are released, and nothing runs but this.
    /// `prepared` is how the preparation before it went.
    pub async fn live(
        mut self,
        prepared: Result<(), GuestError>,
        mut asked: mpsc::Receiver<Ask>,
    ) -> Ending {
        let reports = Reports::start(self.host.clone(), Arc::clone(&self.logs));
        let mut remains = Remains::default();
        let sessions = self.sessions.take();
        let prepared = tokio::select! {
            prepared = self.prepare(prepared, &mut remains) => Ok(prepared),
            Some(ask) = asked.recv() => Err(ask),
        };
        let result = match prepared {
            Ok(Ok(prepared)) => {
                self.serve(sessions, &prepared);
                self.run(prepared, &reports, &mut remains, &mut asked).await
            }
            Ok(Err(error)) => Err(error),
            Err(ask) => {
                self.logs.say(&format!(
                    "asked to go down before the workload started: {:?}",
                    ask.reason
                ));
                Ok(ask.reason)
            }
        };
        let reason = match result {
            Ok(reason) => reason,
            Err(error) => {
                confess(&error, &reports).await;
                Reason::Fatal
            }
        };
        end(&self.kernel, &self.logs, &reports, reason, remains).await
    }

    /// Lets the host come in, as long as the runtime lives.
    fn serve(&self, socket: Option<OwnedFd>, prepared: &Prepared) {
        let Some(socket) = socket else { return };
        let config = prepared.program.config();
        let sessions = Sessions {
            token: self.host.token(),
            env: config.env.clone(),
            workdir: config.workdir.clone(),
            root: self.root.clone(),
            reaper: Arc::clone(&prepared.reaper),
            logs: Arc::clone(&self.logs),
            facts: Arc::clone(&prepared.facts),
        };
        tokio::spawn(session::serve(socket, Arc::new(sessions)));
    }

    async fn run(
        &self,
        prepared: Prepared,
        reports: &Reports,
        remains: &mut Remains,
        asked: &mut mpsc::Receiver<Ask>,
    ) -> Result<Reason, GuestError> {
        let tools = Tools {
            kernel: &self.kernel,
            reaper: &prepared.reaper,
            logs: &self.logs,
            reports,
            facts: &prepared.facts,
        };
        let outcome = supervise(tools, prepared.program, &mut remains.readers, asked).await?;
        remains.exit = outcome.exit;
        Ok(outcome.reason)
    }

    /// From nothing to a machine that is ready for its workload; or to another program that is PID 1 in this one's place:
    /// then this does not return. May be dropped at any await.
    async fn prepare(
        &self,
        prepared: Result<(), GuestError>,
        remains: &mut Remains,
    ) -> Result<Prepared, GuestError> {
        prepared?;
        let reaper = Reaper::start().map_err(GuestError::Signals)?;
        remains.reaper = Some(Arc::clone(&reaper));
        self.network.loopback().await.map_err(GuestError::Network)?;
        let wire = self
            .host
            .hello(HELLO_WITHIN)
            .await
            .map_err(GuestError::Hello)?;
        // From here on the host hears of everything, and may ask.
        remains.shipping = Some(tokio::spawn({
            let (host, logs) = (self.host.clone(), Arc::clone(&self.logs));
            async move { ship(host, &logs).await }
        }));
        tokio::spawn(requests::watch_host(
            self.host.clone(),
            self.kernel.clone(),
            self.asks.clone(),
            Arc::clone(&self.logs),
        ));
        let config = Config::try_from(wire.clone()).map_err(GuestError::Config)?;
        if let Some(time) = config.time {
            clock::follow(&self.kernel, time, clock::CLOSE_ENOUGH, &self.logs);
        }
        tokio::spawn(beat(
            self.host.clone(),
            config.heartbeat,
            Arc::clone(&self.logs),
        ));
        self.mount(&config, &reaper).await?;
        self.name(&config).await?;
        let program = Program::new(config.workload.clone(), &self.root, &config.secrets)
            .map_err(GuestError::Workload)?;
        let identity = program.identity();
        secrets::place(&self.kernel, &self.root, &config.secrets, identity.as_ref())
            .map_err(GuestError::Secrets)?;
        if let Some(path) = &config.init {
            let source = self.hand_over(path, &program, wire, &config, remains).await;
            let init = path.clone();
            return Err(GuestError::Init { init, source });
        }
        Ok(Prepared {
            program: Arc::new(program),
            reaper,
            facts: Arc::default(),
        })
    }

    /// The root, and the volumes in it.
    async fn mount(&self, config: &Config, reaper: &Arc<Reaper>) -> Result<(), GuestError> {
        root::check(
            &self.kernel,
            &root::E2fsck::new(Arc::clone(reaper)),
            config.root.as_ref(),
            &config.volumes,
            &self.logs,
        )
        .await
        .map_err(GuestError::Root)?;
        match &config.root {
            Some(root) => {
                root::enter(&self.kernel, root, &self.logs)
                    .await
                    .map_err(GuestError::Root)?;
                if config.init.is_some() {
                    init::mount_run(&self.kernel).map_err(GuestError::Mounts)?;
                }
            }
            None => drop(mount_all(&self.kernel, SCRATCH).map_err(GuestError::Mounts)?),
        }
        root::mount_volumes(&self.kernel, &config.volumes, &self.logs)
            .await
            .map_err(GuestError::Root)
    }

    /// What the guest is called, by itself and by others.
    async fn name(&self, config: &Config) -> Result<(), GuestError> {
        for (name, value) in PARAMETERS {
            if let Err(error) = self.kernel.set_parameter(name, value) {
                self.logs.say(&format!("cannot set {name}: {error}"));
            }
        }
        self.kernel
            .set_hostname(&config.hostname)
            .map_err(|errno| GuestError::Hostname(errno.into()))?;
        if let Some(network) = &config.network {
            self.network
                .configure(network)
                .await
                .map_err(GuestError::Network)?;
        }
        for error in etc::write(&self.root.join("etc"), config) {
            self.logs.say(&chain(&error));
        }
        Ok(())
    }

    /// Makes `path` PID 1, with this agent as a service beside it. Returns only when that failed.
    async fn hand_over(
        &self,
        path: &std::path::Path,
        program: &Program,
        wire: RunConfig,
        config: &Config,
        remains: &mut Remains,
    ) -> InitError {
        let plan = match init::prepare(&self.root, path, wire, self.host.token(), config) {
            Ok(plan) => plan,
            Err(error) => return error,
        };
        if let Err(source) = program.make_dirs() {
            return InitError::Dirs(source);
        }
        self.logs
            .say(&format!("handing PID 1 over to {}", path.display()));
        self.logs.close();
        if let Some(shipping) = remains.shipping.take() {
            // What it did not take in this time is lost: its words are on the console of nobody else.
            let _ = timeout(SHIPPED_WITHIN, shipping).await;
        }
        plan.execute(&self.kernel)
    }
}

/// Tells the cause to all that can hear it.
async fn confess(error: &GuestError, reports: &Reports) {
    let cause = chain(error);
    console::say(&cause);
    reports.tell(Report::Fatal(v1::Fatal { cause }));
    if !reports.flush(LAST_WORD_WITHIN).await {
        console::say("the host did not take that");
    }
}
