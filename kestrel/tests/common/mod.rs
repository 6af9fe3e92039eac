//! A host for one guest, in this process, and a machine that is not harmed.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]
#![allow(dead_code, reason = "not every test needs all of it")]

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kestrel::{
    Ask, Disk, Ending, Guest, GuestError, Host, Kernel, Linux, Logs, Mount, Network, NetworkConfig,
    NetworkError, Owner, Service, Stopped,
};
use nix::{
    errno::Errno,
    sys::{reboot::RebootMode, signal::Signal},
    unistd::Pid,
};
use prost::Message as _;
use tokio::{
    io::copy_bidirectional,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use volant_proto::agent::v1::{
    GoingDown, HeartbeatRequest, HeartbeatResponse, HelloRequest, HelloResponse, ReportRequest,
    ReportResponse, RunConfig, SendLogsRequest, SendLogsResponse, SetClock, Shutdown,
    WatchCommandsRequest, WatchCommandsResponse, Workload,
    agent_host_service_server::{AgentHostService, AgentHostServiceServer},
    going_down::Reason,
    report_request::Report,
    watch_commands_response::Command,
};

/// A guest reaps all children of its process: one at a time.
pub static ONE_GUEST: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What the host gives the agent.
pub const TOKEN: &[u8] = b"a token of this boot";

const PATIENCE: Duration = Duration::from_secs(30);

/// What the host has heard.
#[derive(Debug)]
pub enum Fact {
    Hello(HelloRequest),
    Report(Report),
    Heartbeat(HeartbeatRequest),
    Line(SendLogsRequest),
    LogsEnded,
    Watching,
}

type Commands = mpsc::Sender<Result<WatchCommandsResponse, Status>>;

#[derive(Debug)]
struct FakeHost {
    config: Result<RunConfig, Status>,
    facts: mpsc::UnboundedSender<Fact>,
    commands: Arc<Mutex<Option<Commands>>>,
    reads: watch::Sender<bool>,
    lines_per_stream: u64,
    /// Somebody said hello by the connection that there is.
    greeted: Arc<AtomicBool>,
    /// Somebody has the token.
    answered: AtomicBool,
}

impl FakeHost {
    /// As the real one: whoever did not say hello by this connection is told to.
    fn admit(&self) -> Result<(), Status> {
        if self.greeted.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Status::failed_precondition("say hello first"))
    }

    fn hear(&self, fact: Fact) {
        // A test that ends early does not listen to the end.
        let _ = self.facts.send(fact);
    }
}

#[tonic::async_trait]
impl AgentHostService for FakeHost {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        let hello = request.into_inner();
        let known = hello.token == TOKEN;
        self.hear(Fact::Hello(hello));
        if self.answered.load(Ordering::Relaxed) && !known {
            return Err(Status::permission_denied("this is not the agent's token"));
        }
        self.greeted.store(true, Ordering::Relaxed);
        let run_config = Some(self.config.clone()?);
        self.answered.store(true, Ordering::Relaxed);
        Ok(Response::new(HelloResponse {
            run_config,
            token: TOKEN.to_vec(),
        }))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        self.admit()?;
        let report = request.into_inner().report.unwrap();
        if matches!(report, Report::WorkloadExited(_)) {
            self.reads.send_replace(true);
        }
        self.hear(Fact::Report(report));
        Ok(Response::new(ReportResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.admit()?;
        self.hear(Fact::Heartbeat(request.into_inner()));
        Ok(Response::new(HeartbeatResponse {}))
    }

    async fn send_logs(
        &self,
        request: Request<Streaming<SendLogsRequest>>,
    ) -> Result<Response<SendLogsResponse>, Status> {
        self.admit()?;
        self.reads
            .subscribe()
            .wait_for(|reads| *reads)
            .await
            .unwrap();
        let mut stream = request.into_inner();
        let mut lines = 0;
        while lines < self.lines_per_stream
            && let Some(line) = stream.message().await?
        {
            lines += 1;
            self.hear(Fact::Line(line));
        }
        self.hear(Fact::LogsEnded);
        Ok(Response::new(SendLogsResponse { lines }))
    }

    type WatchCommandsStream = ReceiverStream<Result<WatchCommandsResponse, Status>>;

    async fn watch_commands(
        &self,
        _: Request<WatchCommandsRequest>,
    ) -> Result<Response<Self::WatchCommandsStream>, Status> {
        self.admit()?;
        let (sender, receiver) = mpsc::channel(4);
        *self.commands.lock().unwrap() = Some(sender);
        self.hear(Fact::Watching);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Remembers what it was asked; signals really go to the workload.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel(Arc<Mutex<Vec<String>>>);

impl FakeKernel {
    fn call(&self, call: impl Into<String>) {
        self.0.lock().unwrap().push(call.into());
    }

    pub fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Kernel for FakeKernel {
    fn make_dir(&self, _: &str, _: u32) -> nix::Result<()> {
        Ok(())
    }
    fn make_link(&self, _: &str, _: &str) -> nix::Result<()> {
        Ok(())
    }
    fn make_mount_point(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn copy_owner(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn make_dirs(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn owner(&self, _: &Path) -> io::Result<Owner> {
        Ok(Owner {
            uid: 0,
            gid: 0,
            mode: 0o755,
        })
    }
    fn adopt_if_new(&self, _: &Path, _: Owner) -> io::Result<()> {
        Ok(())
    }
    fn grow(&self, _: &str, _: &str) -> io::Result<Option<u64>> {
        Ok(None)
    }
    fn held_disks(&self) -> Vec<String> {
        Vec::new()
    }
    fn disks(&self) -> io::Result<Vec<Disk>> {
        Ok(vec![Disk {
            name: "vda".to_owned(),
            serial: "rootfs".to_owned(),
        }])
    }
    fn head(&self, _: &str) -> io::Result<Vec<u8>> {
        Ok(b"hsqs".to_vec())
    }
    fn move_mount(&self, _: &str, _: &str) -> nix::Result<()> {
        Ok(())
    }
    fn empty_initramfs(&self) -> io::Result<()> {
        Ok(())
    }
    fn change_root(&self, root: &str) -> nix::Result<()> {
        self.call(format!("root {root}"));
        Ok(())
    }
    fn set_parameter(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn mount(&self, _: &Mount) -> nix::Result<()> {
        Ok(())
    }
    fn unmount(&self, _: &Path) -> nix::Result<()> {
        Ok(())
    }
    fn remount_read_only(&self, _: &Path) -> nix::Result<()> {
        Ok(())
    }
    fn set_hostname(&self, name: &str) -> nix::Result<()> {
        self.call(format!("hostname {name}"));
        Ok(())
    }
    fn adopt_console(&self) -> io::Result<()> {
        Ok(())
    }
    fn catch_ctrl_alt_del(&self) -> nix::Result<()> {
        Ok(())
    }
    fn signal_group(&self, group: Pid, signal: Signal) -> nix::Result<()> {
        self.call(format!("signal {signal}"));
        Linux.signal_group(group, signal)
    }
    fn signal_init(&self, number: i32) -> nix::Result<()> {
        self.call(format!("signal init {number}"));
        Ok(())
    }
    fn set_clock(&self, time: Duration) -> nix::Result<()> {
        self.call(format!("clock {}", time.as_nanos()));
        Ok(())
    }
    fn become_program(&self, program: &Path, _: &BTreeMap<String, String>) -> io::Error {
        self.call(format!("become {}", program.display()));
        io::ErrorKind::PermissionDenied.into()
    }
    fn kill_all(&self) {
        self.call("kill all");
    }
    fn sync(&self) {
        self.call("sync");
    }
    fn reboot(&self, _: RebootMode) -> Errno {
        Errno::EPERM
    }
}

#[derive(Clone, Copy, Debug)]
struct NoNetwork;

impl Network for NoNetwork {
    async fn loopback(&self) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn configure(&self, _: &NetworkConfig) -> Result<(), NetworkError> {
        Ok(())
    }
}

/// How the host behaves.
#[derive(Debug)]
pub struct Behaviour {
    pub config: Result<RunConfig, Status>,
    /// So many attempts to connect fail before the host listens.
    pub refused_dials: usize,
    /// The host reads no line before it knows that the workload has ended.
    pub reads_late: bool,
    /// The host ends a stream of lines after so many.
    pub lines_per_stream: u64,
    pub prepared: Result<(), GuestError>,
}

impl Behaviour {
    pub fn run(entrypoint: &[&str]) -> Self {
        Self {
            config: Ok(RunConfig {
                hostname: "web".to_owned(),
                network: None,
                workload: Some(Workload {
                    entrypoint: entrypoint.iter().map(ToString::to_string).collect(),
                    stop_grace_ms: 10_000,
                    ..Default::default()
                }),
                heartbeat_interval_ms: 100,
                root: None,
                ..RunConfig::default()
            }),
            refused_dials: 0,
            reads_late: false,
            lines_per_stream: u64::MAX,
            prepared: Ok(()),
        }
    }

    pub fn workload(&mut self) -> &mut Workload {
        let config = self.config.as_mut().unwrap();
        config.workload.as_mut().unwrap()
    }

    pub fn shell(script: &str) -> Self {
        Self::run(&["/bin/sh", "-c", script])
    }
}

/// How what was tried has ended.
#[derive(Debug)]
enum End {
    Machine(Ending),
    Service(Stopped),
}

/// A guest that lives, and its host.
#[derive(Debug)]
pub struct World {
    pub kernel: FakeKernel,
    pub asks: mpsc::Sender<Ask>,
    pub etc: tempfile::TempDir,
    facts: mpsc::UnboundedReceiver<Fact>,
    commands: Arc<Mutex<Option<Commands>>>,
    greeted: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    ended: oneshot::Receiver<End>,
    server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    pub fn begin(behaviour: Behaviour) -> Self {
        Self::begin_in(behaviour, |_| {})
    }

    /// With a root that `furnish` has been in.
    pub fn begin_in(behaviour: Behaviour, furnish: impl FnOnce(&Path)) -> Self {
        Self::open(behaviour, furnish, false)
    }

    /// The service beside an init, which has what the agent left that was PID 1.
    pub fn begin_service(behaviour: Behaviour, furnish: impl FnOnce(&Path)) -> Self {
        let answer = HelloResponse {
            run_config: behaviour.config.clone().ok(),
            token: TOKEN.to_vec(),
        };
        let leave = |root: &Path| {
            furnish(root);
            fs::create_dir_all(root.join("run/kestrel")).unwrap();
            fs::write(root.join("run/kestrel/hello"), answer.encode_to_vec()).unwrap();
        };
        Self::open(behaviour, leave, true)
    }

    fn open(behaviour: Behaviour, furnish: impl FnOnce(&Path), is_service: bool) -> Self {
        let (facts_sender, facts) = mpsc::unbounded_channel();
        let commands = Arc::default();
        let greeted = Arc::<AtomicBool>::default();
        let (incoming, connections) = mpsc::unbounded_channel();
        let service = FakeHost {
            config: behaviour.config,
            facts: facts_sender,
            commands: Arc::clone(&commands),
            reads: watch::Sender::new(!behaviour.reads_late),
            lines_per_stream: behaviour.lines_per_stream,
            greeted: Arc::clone(&greeted),
            answered: AtomicBool::new(is_service),
        };
        let server = tokio::spawn(async move {
            Server::builder()
                .add_service(AgentHostServiceServer::new(service))
                .serve_with_incoming(UnboundedReceiverStream::new(connections))
                .await
                .unwrap();
        });
        let proxies: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let dials = AtomicUsize::new(0);
        let host = Host::over({
            let proxies = Arc::clone(&proxies);
            move || {
                let is_refused = dials.fetch_add(1, Ordering::Relaxed) < behaviour.refused_dials;
                let (incoming, proxies) = (incoming.clone(), Arc::clone(&proxies));
                async move {
                    if is_refused {
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                    let (guest, mut near) = UnixStream::pair()?;
                    let (mut far, server) = UnixStream::pair()?;
                    let proxy = tokio::spawn(async move {
                        // Either end may be gone at any time.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    });
                    proxies.lock().unwrap().push(proxy.abort_handle());
                    incoming
                        .send(Ok::<_, io::Error>(server))
                        .map_err(io::Error::other)?;
                    Ok(guest)
                }
            }
        });
        let kernel = FakeKernel::default();
        let etc = tempfile::tempdir().unwrap();
        furnish(etc.path());
        let (asks, asked) = mpsc::channel(8);
        let (logs, root) = (Arc::new(Logs::default()), etc.path().to_owned());
        let (end, ended) = oneshot::channel();
        let kernel_of_guest = kernel.clone();
        if is_service {
            // Nobody comes, but the socket is there.
            let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
            let service = Service {
                kernel: kernel_of_guest,
                host,
                root,
                logs,
                asks: asks.clone(),
                sessions: Some(socket.into()),
            };
            let serving =
                async move { end.send(End::Service(service.serve(asked).await.unwrap())) };
            tokio::task::spawn_local(serving);
        } else {
            let guest = Guest {
                kernel: kernel_of_guest,
                network: NoNetwork,
                host,
                root,
                logs,
                asks: asks.clone(),
                sessions: None,
            };
            // The guest's life is not Send, and in a guest it need not be.
            let living =
                async move { end.send(End::Machine(guest.live(behaviour.prepared, asked).await)) };
            tokio::task::spawn_local(living);
        }
        Self {
            kernel,
            asks,
            etc,
            facts,
            commands,
            greeted,
            connections: proxies,
            ended,
            server,
        }
    }

    /// The facts up to and with the first that `is_last`.
    pub async fn until(&mut self, is_last: impl Fn(&Fact) -> bool) -> Vec<Fact> {
        let mut facts = Vec::new();
        let gather = async {
            while let Some(fact) = self.facts.recv().await {
                let last = is_last(&fact);
                facts.push(fact);
                if last {
                    return;
                }
            }
            panic!("the host has gone");
        };
        let result = timeout(PATIENCE, gather).await;
        assert!(result.is_ok(), "only this came: {facts:?}");
        facts
    }

    pub async fn until_line(&mut self, line: &str) -> Vec<Fact> {
        self.until(|fact| matches!(fact, Fact::Line(heard) if heard.line == line.as_bytes()))
            .await
    }

    /// All facts to the guest's last word, and the end of its machine.
    pub async fn until_the_end(&mut self) -> (Vec<Fact>, Reason, Ending) {
        let (facts, reason) = self.until_going_down().await;
        match timeout(PATIENCE, &mut self.ended).await.unwrap().unwrap() {
            End::Machine(ending) => (facts, reason, ending),
            End::Service(stopped) => panic!("this is a service, and {stopped:?}"),
        }
    }

    /// How the service ended.
    pub async fn until_stopped(&mut self) -> Stopped {
        match timeout(PATIENCE, &mut self.ended).await.unwrap().unwrap() {
            End::Service(stopped) => stopped,
            End::Machine(ending) => panic!("this is no service, and {ending:?}"),
        }
    }

    /// All facts to the guest's last word, and its reason.
    pub async fn until_going_down(&mut self) -> (Vec<Fact>, Reason) {
        let facts = self
            .until(|fact| matches!(fact, Fact::Report(Report::GoingDown(_))))
            .await;
        let Some(Fact::Report(Report::GoingDown(GoingDown { reason }))) = facts.last() else {
            unreachable!("the last fact is what was waited for");
        };
        let reason = Reason::try_from(*reason).unwrap();
        (facts, reason)
    }

    /// Whether such a fact was heard by now, and not yet taken.
    pub fn heard(&mut self, is_it: impl Fn(&Fact) -> bool) -> bool {
        std::iter::from_fn(|| self.facts.try_recv().ok()).any(|fact| is_it(&fact))
    }

    pub async fn shut_down(&self, grace: Duration) {
        let command = WatchCommandsResponse {
            command: Some(Command::Shutdown(Shutdown {
                grace_ms: grace.as_millis().try_into().unwrap(),
            })),
        };
        let sender = self.commands.lock().unwrap().clone().unwrap();
        sender.send(Ok(command)).await.unwrap();
    }

    pub async fn set_clock(&self, time: Duration) {
        let command = WatchCommandsResponse {
            command: Some(Command::SetClock(SetClock {
                time_unix_ns: time.as_nanos().try_into().unwrap(),
            })),
        };
        let sender = self.commands.lock().unwrap().clone().unwrap();
        sender.send(Ok(command)).await.unwrap();
    }

    /// Breaks all connections that there are. Who comes by the next one is not known.
    pub fn break_connections(&self) {
        self.greeted.store(false, Ordering::Relaxed);
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

/// The texts of the lines, the agent's own words apart.
pub fn lines(facts: &[Fact]) -> Vec<String> {
    facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Line(line) if line.stream != 3 => {
                Some(String::from_utf8(line.line.clone()).unwrap())
            }
            _ => None,
        })
        .collect()
}

/// How the workload ended, where the host heard of it: code and signal.
pub fn exit(facts: &[Fact]) -> Option<(u32, u32)> {
    facts.iter().find_map(|fact| match fact {
        Fact::Report(Report::WorkloadExited(exited)) => Some((exited.code, exited.signal)),
        _ => None,
    })
}

pub fn fatal(facts: &[Fact]) -> Option<&str> {
    facts.iter().find_map(|fact| match fact {
        Fact::Report(Report::Fatal(fatal)) => Some(fatal.cause.as_str()),
        _ => None,
    })
}
