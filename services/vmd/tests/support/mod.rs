//! A VM without a VMM: a fake hypervisor, an agent that the test speaks for, and a journal that the test reads.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod bus;
pub mod guest;
pub mod services;

use std::{
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixDatagram, UnixStream},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};
use vmd::{
    agent,
    ended::Ended,
    handle::Handle,
    happening::Happening,
    hypervisor::{
        Control, ControlError, Hypervisor, LaunchError, Machine, MachineSpec, ResizeError, VmmExit,
    },
    journal::Journal,
    life::Times,
    live::Live,
    logs::{Labels, Limits, Logs, Writer},
    supervise,
};
use volant_proto::agent::v1::{
    Fatal, GoingDown, HelloRequest, HelloResponse, PROTOCOL, Ready, ReportRequest, RunConfig,
    Workload, WorkloadExited, WorkloadStarted, agent_host_service_client::AgentHostServiceClient,
    going_down::Reason, report_request::Report,
};
use volant_spec::Resources;

pub const LONG: Duration = Duration::from_secs(20);

/// The agent's, of every VM here.
pub const TOKEN: [u8; 32] = [7; 32];

/// A hypervisor without a machine: the test plays the guest.
#[derive(Clone, Debug)]
pub struct FakeHypervisor(Arc<Fake>);

#[derive(Debug)]
struct Fake {
    launches: watch::Sender<usize>,
    presses: watch::Sender<usize>,
    kills: watch::Sender<usize>,
    exit: watch::Sender<Option<VmmExit>>,
    console: Mutex<Option<UnixStream>>,
    missing: AtomicBool,
    /// What was asked of its control, and done.
    acts: Mutex<Vec<String>>,
    /// Of the last launch.
    resources: Mutex<Resources>,
    /// It does nothing that it is asked.
    refuses: AtomicBool,
    /// The guest powers off when the button is pressed.
    hears_button: AtomicBool,
}

impl FakeHypervisor {
    pub fn new() -> Self {
        Self(Arc::new(Fake {
            launches: watch::Sender::new(0),
            presses: watch::Sender::new(0),
            kills: watch::Sender::new(0),
            exit: watch::Sender::new(None),
            console: Mutex::new(None),
            missing: AtomicBool::new(false),
            acts: Mutex::default(),
            resources: Mutex::default(),
            refuses: AtomicBool::new(false),
            hears_button: AtomicBool::new(false),
        }))
    }

    pub fn exit(&self, exit: VmmExit) {
        self.0.console.lock().unwrap().take();
        self.0.exit.send_replace(Some(exit));
    }

    pub fn be_missing(&self) {
        self.0.missing.store(true, Ordering::Relaxed);
    }

    pub fn refuse(&self, refuses: bool) {
        self.0.refuses.store(refuses, Ordering::Relaxed);
    }

    pub fn resources(&self) -> Resources {
        *self.0.resources.lock().unwrap()
    }

    pub fn acts(&self) -> Vec<String> {
        self.0.acts.lock().unwrap().clone()
    }

    fn acted(&self, act: &str) -> Result<(), ControlError> {
        if self.0.refuses.load(Ordering::Relaxed) {
            return Err(ControlError {
                program: "fake",
                act: "do it",
                message: "it refuses".to_owned(),
            });
        }
        self.0.acts.lock().unwrap().push(act.to_owned());
        Ok(())
    }

    pub fn hear_the_button(&self) {
        self.0.hears_button.store(true, Ordering::Relaxed);
    }

    pub fn presses(&self) -> usize {
        *self.0.presses.borrow()
    }

    pub fn kills(&self) -> usize {
        *self.0.kills.borrow()
    }

    pub async fn launched(&self, times: usize) {
        let mut launches = self.0.launches.subscribe();
        let waited = timeout(LONG, launches.wait_for(|launches| *launches >= times)).await;
        waited.expect("launched in time").unwrap();
    }

    pub fn print(&self, text: &str) {
        let console = self.0.console.lock().unwrap();
        let written = console.as_ref().unwrap().try_write(text.as_bytes());
        assert_eq!(written.unwrap(), text.len());
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Machine, LaunchError> {
        if self.0.missing.load(Ordering::Relaxed) {
            return Err(LaunchError::NotInstalled {
                program: "fake",
                hint: "it cannot be",
            });
        }
        let (ours, console) = UnixStream::pair().unwrap();
        *self.0.console.lock().unwrap() = Some(ours);
        self.0.exit.send_replace(None);
        *self.0.resources.lock().unwrap() = spec.resources;
        self.0.launches.send_modify(|launches| *launches += 1);
        Ok(Machine {
            pid: 4242,
            console,
            control: Box::new(FakeControl(self.clone())),
        })
    }
}

#[derive(Debug)]
struct FakeControl(FakeHypervisor);

#[async_trait]
impl Control for FakeControl {
    async fn press_power_button(&mut self) -> Result<(), ControlError> {
        self.0.0.presses.send_modify(|presses| *presses += 1);
        if self.0.0.hears_button.load(Ordering::Relaxed) {
            self.0.exit(VmmExit::GuestPowerOff);
        }
        Ok(())
    }

    async fn pause(&mut self) -> Result<(), ControlError> {
        self.0.acted("pause")
    }

    async fn resume(&mut self) -> Result<(), ControlError> {
        self.0.acted("resume")
    }

    async fn resize(&mut self, _from: Resources, to: Resources) -> Result<(), ResizeError> {
        if to.cpu_cores > 8 {
            return Err(ResizeError::Unsupported("no more than 8 CPUs".to_owned()));
        }
        Ok(self
            .0
            .acted(&format!("resize {} {}", to.cpu_cores, to.memory_mb))?)
    }

    async fn wait(&mut self) -> VmmExit {
        let mut exit = self.0.0.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.unwrap();
        exit.clone().unwrap()
    }

    async fn kill(&mut self) {
        if self.0.0.exit.borrow().is_none() {
            self.0.0.kills.send_modify(|kills| *kills += 1);
            self.0.exit(VmmExit::Killed {
                program: "fake",
                signal: 9,
            });
        }
    }
}

/// A journal whose entries the test reads.
#[derive(Debug)]
pub struct FakeJournal {
    pub path: PathBuf,
    entries: watch::Receiver<Vec<String>>,
}

impl FakeJournal {
    pub fn new(folder: &std::path::Path) -> Self {
        let path = folder.join("journal");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (sender, entries) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
                sender.send_modify(|entries: &mut Vec<String>| entries.push(entry));
            }
        });
        Self { path, entries }
    }

    /// Waits for an entry that has all these lines.
    pub async fn has(&self, lines: &[&str]) -> String {
        let fits = |entry: &String| lines.iter().all(|line| entry.lines().any(|it| it == *line));
        self.find(&format!("{lines:?}"), fits).await
    }

    pub async fn contains(&self, text: &str) -> String {
        self.find(text, |entry: &String| entry.contains(text)).await
    }

    async fn find(&self, what: &str, fits: impl Fn(&String) -> bool) -> String {
        let mut entries = self.entries.clone();
        let found = timeout(LONG, entries.wait_for(|all| all.iter().any(&fits))).await;
        match found {
            Ok(found) => found
                .unwrap()
                .iter()
                .find(|entry| fits(entry))
                .unwrap()
                .clone(),
            Err(_) => panic!("no entry {what} in {:#?}", self.entries.borrow()),
        }
    }

    pub fn count(&self, text: &str) -> usize {
        let entries = self.entries.borrow();
        entries.iter().filter(|entry| entry.contains(text)).count()
    }
}

/// A VM under supervision.
pub struct Supervised {
    pub console: vmd::console::Hub,
    pub folder: tempfile::TempDir,
    pub vmm: FakeHypervisor,
    pub journal: FakeJournal,
    pub live: watch::Receiver<Live>,
    pub handle: Handle,
    pub happenings: mpsc::Receiver<Happening>,
    pub handovers: mpsc::Sender<supervise::Handover>,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<Ended>,
    writer: Writer,
}

pub fn times() -> Times {
    Times {
        boot: LONG,
        workload_start: LONG,
        silence: LONG,
        grace: Duration::from_millis(100),
        agent: Duration::from_millis(100),
        button: Duration::from_millis(50),
        guest: Duration::from_millis(200),
        kill: Duration::from_secs(1),
    }
}

impl Supervised {
    pub fn start(vmm: &FakeHypervisor, times: Times) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let journal = FakeJournal::new(folder.path());
        let labels = Labels {
            vm: "web".to_owned(),
            uuid: "0198".to_owned(),
            workload: "caddy".to_owned(),
        };
        let (logs, writer) = Logs::open(
            Journal::connect(&journal.path).unwrap(),
            labels,
            Limits::default(),
        );
        let null = || File::open("/dev/null").unwrap().into();
        let spec = MachineSpec {
            name: "web".parse().unwrap(),
            uuid: "0198".to_owned(),
            resources: Resources::default(),
            kernel: null(),
            initramfs: Some(null()),
            rootfs: Some(null()),
            disks: Vec::new(),
            shares: Vec::new(),
            devices: Vec::new(),
            nic: None,
            cid: 3,
            run_dir: folder.path().to_owned(),
            vsock: folder.path().join("vsock"),
        };
        let live = Live {
            address: "192.168.127.2".to_owned(),
            vmm_short: "fake (none)".to_owned(),
            health: "starting",
            ..Live::default()
        };
        let (live, watched) = watch::channel(live);
        let (handle, asks) = Handle::new(
            watched.clone(),
            spec.vsock.clone(),
            agent::Token::known(TOKEN),
        );
        let (events, happenings) = mpsc::channel(64);
        let console = vmd::console::Hub::default();
        let vm = supervise::Vm {
            asks,
            events,
            hypervisor: Arc::new(vmm.clone()),
            spec,
            run_config: RunConfig {
                hostname: "web".to_owned(),
                workload: Some(Workload {
                    entrypoint: vec!["/usr/bin/caddy".to_owned()],
                    ..Workload::default()
                }),
                ..RunConfig::default()
            },
            token: agent::Token::known(TOKEN),
            times,
            logs,
            console: console.clone(),
            live,
        };
        let (stop, asked) = oneshot::channel::<()>();
        let stop_asked = async move {
            match asked.await {
                Ok(()) => "SIGTERM",
                Err(_) => std::future::pending().await,
            }
        };
        let (handovers, wanted) = mpsc::channel(1);
        let run = supervise::run_until_taken(vm, stop_asked, wanted);
        let run = tokio::spawn(async move { run.await.unwrap() });
        Self {
            console,
            folder,
            vmm: vmm.clone(),
            journal,
            live: watched,
            handle,
            happenings,
            handovers,
            stop: Some(stop),
            run,
            writer,
        }
    }

    /// Waits for something to have happened, and gives it.
    pub async fn happened(&mut self, what: &str) -> Happening {
        let find = async {
            loop {
                let happening = self.happenings.recv().await.unwrap();
                if happening.what == what {
                    return happening;
                }
            }
        };
        timeout(LONG, find).await.expect(what)
    }

    /// A VM whose guest says all that a good guest says.
    pub async fn running(vmm: &FakeHypervisor, times: Times) -> (Self, FakeAgent) {
        let vm = Self::start(vmm, times);
        vmm.launched(1).await;
        let mut agent = vm.agent().await;
        agent.hello("boot-1").await.unwrap();
        agent.started(42).await;
        agent.ready().await;
        vm.phase("running").await;
        (vm, agent)
    }

    pub fn socket(&self) -> PathBuf {
        agent::socket(&self.folder.path().join("vsock"))
    }

    pub async fn agent(&self) -> FakeAgent {
        FakeAgent::on(self.socket()).await
    }

    pub async fn phase(&self, phase: &str) {
        let mut live = self.live.clone();
        let reached = timeout(LONG, live.wait_for(|live| live.phase == phase)).await;
        assert!(reached.is_ok(), "{:?}", self.live.borrow());
    }

    pub fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end; everything is in the journal then.
    pub async fn ended(self) -> (Ended, FakeJournal, tempfile::TempDir) {
        let ended = timeout(LONG, self.run)
            .await
            .expect("an end in time")
            .unwrap();
        self.writer.finish(LONG).await;
        (ended, self.journal, self.folder)
    }
}

/// The guest's agent, as the test plays it.
#[derive(Clone, Debug)]
pub struct FakeAgent(pub AgentHostServiceClient<Channel>);

impl FakeAgent {
    /// One that calls there.
    pub async fn on(path: PathBuf) -> Self {
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://vmd");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        Self(AgentHostServiceClient::new(channel))
    }

    pub async fn hello(&mut self, boot: &str) -> Result<HelloResponse, tonic::Status> {
        self.hello_with(boot, PROTOCOL).await
    }

    pub async fn hello_with(
        &mut self,
        boot: &str,
        protocol: u32,
    ) -> Result<HelloResponse, tonic::Status> {
        let hello = HelloRequest {
            protocol,
            version: "1.2.3".to_owned(),
            boot_id: boot.to_owned(),
            uptime_ms: 300,
            ..HelloRequest::default()
        };
        Ok(self.0.hello(hello).await?.into_inner())
    }

    pub async fn hello_as(
        &mut self,
        boot: &str,
        token: &[u8],
    ) -> Result<HelloResponse, tonic::Status> {
        let hello = HelloRequest {
            protocol: PROTOCOL,
            boot_id: boot.to_owned(),
            token: token.to_vec(),
            ..HelloRequest::default()
        };
        Ok(self.0.hello(hello).await?.into_inner())
    }

    pub async fn report(&mut self, report: Report) -> Result<(), tonic::Status> {
        let report = Some(report);
        self.0.report(ReportRequest { report }).await.map(|_| ())
    }

    pub async fn started(&mut self, pid: u32) {
        let started = Report::WorkloadStarted(WorkloadStarted { pid });
        self.report(started).await.unwrap();
    }

    pub async fn ready(&mut self) {
        self.report(Report::Ready(Ready {})).await.unwrap();
    }

    pub async fn exited(&mut self, code: u32, signal: u32) {
        let exited = Report::WorkloadExited(WorkloadExited {
            code,
            signal,
            ..WorkloadExited::default()
        });
        self.report(exited).await.unwrap();
    }

    pub async fn fatal(&mut self, cause: &str) {
        let cause = cause.to_owned();
        self.report(Report::Fatal(Fatal { cause })).await.unwrap();
    }

    pub async fn going_down(&mut self, reason: Reason) {
        let reason = reason.into();
        let down = Report::GoingDown(GoingDown { reason });
        self.report(down).await.unwrap();
    }
}
