//! A stand-in for systemd and for VMs' supervisors, at the other end of a real D-Bus connection.

use std::{
    collections::{HashMap, VecDeque},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::Semaphore;
use zbus::{
    Connection, Message, ObjectServer, OwnedObjectPath, Variant, connection::Builder, fdo,
    interface, object_server::SignalEmitter,
};

/// How often a unit can be started until its failures are reset.
const LIMIT: u32 = 5;

/// What a start of a unit comes to.
#[derive(Clone, Debug)]
pub enum Start {
    /// Ready at once.
    Ready,
    /// Fails, with the service's last words.
    Fails(&'static str),
    /// Its job gives way to another one, which leaves the unit in that state.
    Canceled(&'static str),
    /// What the next one says, once the semaphore has a permit.
    Waits(Arc<Semaphore>),
}

#[derive(Clone, Debug)]
pub struct Unit {
    pub active: &'static str,
    pub sub: &'static str,
    pub file: &'static str,
    pub result: &'static str,
    pub restarts: u32,
    pub status_text: String,
    pub exit: (i32, i32),
}

impl Unit {
    pub fn new(active: &'static str) -> Self {
        Self {
            active,
            sub: "",
            file: "disabled",
            result: "success",
            restarts: 0,
            status_text: String::new(),
            exit: (0, 0),
        }
    }
}

/// The state of the stand-in. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FakeSystemd(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    units: HashMap<String, Unit>,
    starts: HashMap<String, VecDeque<Start>>,
    /// How often each was started since its failures were reset.
    counts: HashMap<String, u32>,
    calls: Vec<String>,
    jobs: u32,
    denied: bool,
    loading: usize,
    most_loading: usize,
    loads: usize,
    live: Option<Live>,
    /// Who owns which name on the bus.
    names: HashMap<String, String>,
    bus: Option<Connection>,
}

/// What the supervisors say.
#[derive(Clone, Debug)]
pub struct Live {
    pub cpu_cores: u32,
    pub memory_mb: u32,
    pub config_version: u64,
    pub health: &'static str,
    pub paused: bool,
}

impl Default for Live {
    fn default() -> Self {
        Self {
            cpu_cores: 1,
            memory_mb: 256,
            config_version: 1,
            health: "",
            paused: false,
        }
    }
}

impl FakeSystemd {
    /// The stand-in and a connection to it.
    pub async fn connect() -> (Self, Connection, Connection) {
        let this = Self::default();
        let (here, there) = UnixStream::pair().unwrap();
        let server = Builder::unix_stream(there)
            .server(zbus::Guid::generate())
            .p2p()
            .serve_at("/org/freedesktop/systemd1", Manager(this.clone()))
            .serve_at("/com/volantvm/Vm1", Supervisor(this.clone()))
            .serve_at("/org/freedesktop/DBus", Bus(this.clone()))
            .build();
        let client = Builder::unix_stream(here).p2p().build();
        let (server, client) = tokio::try_join!(server, client).unwrap();
        this.0.lock().unwrap().bus = Some(server.clone());
        (this, server, client)
    }

    pub fn live(&self) -> Live {
        self.0.lock().unwrap().live.clone().unwrap_or_default()
    }

    pub fn set_live(&self, live: Live) {
        self.0.lock().unwrap().live = Some(live);
    }

    /// Somebody takes a name on the bus.
    pub async fn own(&self, name: &str, owner: &str) {
        let old = {
            let names = &mut self.0.lock().unwrap().names;
            names.insert(name.to_owned(), owner.to_owned())
        };
        let old = old.unwrap_or_default();
        let body = (name, old, owner);
        let message = Message::signal(
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "NameOwnerChanged",
        );
        self.say(message.sender("org.freedesktop.DBus").build(&body).unwrap())
            .await;
    }

    /// A supervisor's signal, from whoever has that unique name.
    pub async fn happened(&self, sender: &str, what: &str, details: HashMap<&str, Variant<'_>>) {
        let body = (what, 1_700_000_000_123_u64, details);
        let message = Message::signal("/com/volantvm/Vm1", "com.volantvm.Vm1", "Happened");
        self.say(message.sender(sender).build(&body).unwrap()).await;
    }

    /// A unit is so from now on, and systemd says so.
    pub async fn becomes(&self, name: &str, active: &'static str) {
        self.settle(name, |unit| unit.active = active);
        let path = format!(
            "/org/freedesktop/systemd1/unit/{}",
            name.replace('-', "_2d")
                .replace('@', "_40")
                .replace('.', "_2e")
        );
        let changed = HashMap::from([("ActiveState", Variant::from(active))]);
        let body = ("org.freedesktop.systemd1.Unit", changed, Vec::<&str>::new());
        let message = Message::signal(path, "org.freedesktop.DBus.Properties", "PropertiesChanged");
        self.say(message.build(&body).unwrap()).await;
    }

    async fn say(&self, message: Message) {
        let bus = self.0.lock().unwrap().bus.clone().unwrap();
        bus.send(&message).await.unwrap();
    }

    pub fn unit(&self, name: &str) -> Option<Unit> {
        self.0.lock().unwrap().units.get(name).cloned()
    }

    pub fn set(&self, name: &str, unit: Unit) {
        self.0.lock().unwrap().units.insert(name.to_owned(), unit);
    }

    /// What the unit's next start comes to; without a word it is `Ready`.
    pub fn next_start(&self, name: &str, start: Start) {
        let mut state = self.0.lock().unwrap();
        state
            .starts
            .entry(name.to_owned())
            .or_default()
            .push_back(start);
    }

    pub fn deny(&self) {
        self.0.lock().unwrap().denied = true;
    }

    /// What was asked, as "start volant-vm@web.service".
    pub fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().calls.clone()
    }

    /// How many units were being loaded at once at most.
    pub fn most_loading(&self) -> usize {
        self.0.lock().unwrap().most_loading
    }

    /// How often units were loaded.
    pub fn loads(&self) -> usize {
        self.0.lock().unwrap().loads
    }

    fn loading(&self, change: isize) {
        let mut state = self.0.lock().unwrap();
        state.loads += usize::from(change > 0);
        state.loading = state.loading.checked_add_signed(change).unwrap();
        state.most_loading = state.most_loading.max(state.loading);
    }

    fn change(&self, verb: &str, unit: &str) -> fdo::Result<u32> {
        let mut state = self.0.lock().unwrap();
        if state.denied {
            return Err(fdo::Error::AccessDenied("Access denied".to_owned()));
        }
        state.calls.push(format!("{verb} {unit}"));
        state.jobs += 1;
        Ok(state.jobs)
    }

    /// Serves a unit's properties and gives its path.
    async fn serve(&self, name: &str, server: &ObjectServer) -> fdo::Result<OwnedObjectPath> {
        let path = path(name);
        // Both answer false when they are there already.
        let general = General(self.clone(), name.to_owned());
        server.at(path.as_str(), general).await?;
        let service = Service(self.clone(), name.to_owned());
        server.at(path.as_str(), service).await?;
        Ok(OwnedObjectPath::try_from(path).unwrap())
    }

    /// Counts a start; false when there were too many.
    fn count(&self, name: &str) -> bool {
        let mut state = self.0.lock().unwrap();
        let count = state.counts.entry(name.to_owned()).or_default();
        *count += 1;
        *count <= LIMIT
    }

    fn starting(&self, name: &str) -> Start {
        let mut state = self.0.lock().unwrap();
        let start = state.starts.get_mut(name).and_then(VecDeque::pop_front);
        let unit = state
            .units
            .entry(name.to_owned())
            .or_insert(Unit::new("inactive"));
        unit.active = "activating";
        start.unwrap_or(Start::Ready)
    }

    fn settle(&self, name: &str, change: impl FnOnce(&mut Unit)) {
        let mut state = self.0.lock().unwrap();
        change(
            state
                .units
                .entry(name.to_owned())
                .or_insert(Unit::new("inactive")),
        );
    }

    /// Carries a start out and gives its job's result.
    async fn start(&self, name: &str) -> &'static str {
        for (prefix, file) in [
            ("volant-vm-enable@", "enabled"),
            ("volant-vm-disable@", "disabled"),
        ] {
            if let Some(vm) = name.strip_prefix(prefix) {
                self.settle(&format!("volant-vm@{vm}"), |unit| unit.file = file);
                return "done";
            }
        }
        if name.starts_with("volant-vm-forget@") {
            return "done";
        }
        if !self.count(name) {
            self.settle(name, |unit| {
                unit.active = "failed";
                unit.result = "start-limit-hit";
            });
            return "failed";
        }
        loop {
            match self.starting(name) {
                Start::Ready => break,
                Start::Canceled(active) => {
                    self.settle(name, |unit| unit.active = active);
                    return "canceled";
                }
                Start::Waits(semaphore) => semaphore.acquire().await.unwrap().forget(),
                Start::Fails(words) => {
                    self.settle(name, |unit| {
                        unit.active = "failed";
                        unit.result = "exit-code";
                        unit.exit = (1, 1);
                        unit.status_text = words.to_owned();
                    });
                    return "failed";
                }
            }
        }
        self.settle(name, |unit| unit.active = "active");
        "done"
    }

    fn stop(&self, name: &str) {
        self.settle(name, |unit| {
            if unit.active != "failed" {
                unit.active = "inactive";
            }
        });
    }
}

type Listed = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

fn job(id: u32) -> OwnedObjectPath {
    OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{id}")).unwrap()
}

fn path(unit: &str) -> String {
    let label = unit.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("/org/freedesktop/systemd1/unit/{label}")
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchUnit(String),
}

struct Manager(FakeSystemd);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    async fn load_unit(
        &self,
        name: String,
        #[zbus(object_server)] server: &ObjectServer,
    ) -> fdo::Result<OwnedObjectPath> {
        self.0.loading(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.0.loading(-1);
        self.0.serve(&name, server).await
    }

    async fn list_units_by_patterns(
        &self,
        _states: Vec<String>,
        patterns: Vec<String>,
        #[zbus(object_server)] server: &ObjectServer,
    ) -> fdo::Result<Vec<Listed>> {
        assert_eq!(patterns, ["volant-vm@*.service"]);
        let names: Vec<_> = self.0.0.lock().unwrap().units.keys().cloned().collect();
        let mut listed = Vec::new();
        for name in names {
            let path = self.0.serve(&name, server).await?;
            let text = String::new;
            let none = OwnedObjectPath::try_from("/").unwrap();
            let states = (text(), text(), text(), text(), text());
            let (description, load, mut active, sub, followed) = states;
            active.push_str(self.0.unit(&name).map_or("inactive", |unit| unit.active));
            listed.push((
                name,
                description,
                load,
                active,
                sub,
                followed,
                path,
                0,
                text(),
                none,
            ));
        }
        Ok(listed)
    }

    /// The job's end comes after the reply.
    async fn start_unit(
        &self,
        name: String,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let id = self.0.change("start", &name)?;
        let (fake, emitter) = (self.0.clone(), emitter.to_owned());
        tokio::spawn(async move {
            let result = fake.start(&name).await;
            Self::job_removed(&emitter, id, job(id), &name, result)
                .await
                .unwrap();
        });
        Ok(job(id))
    }

    /// The job's end comes before the reply.
    async fn stop_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let id = self.0.change("stop", name)?;
        self.0.stop(name);
        Self::job_removed(&emitter, id, job(id), name, "done").await?;
        Ok(job(id))
    }

    async fn restart_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let id = self.0.change("restart", name)?;
        let result = self.0.start(name).await;
        Self::job_removed(&emitter, id, job(id), name, result).await?;
        Ok(job(id))
    }

    async fn reload_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let id = self.0.change("reload", name)?;
        Self::job_removed(&emitter, id, job(id), name, "done").await?;
        Ok(job(id))
    }

    fn reset_failed_unit(&self, name: &str) -> Result<(), Error> {
        if self.0.unit(name).is_none() {
            return Err(Error::NoSuchUnit(format!("Unit {name} not loaded.")));
        }
        self.0
            .change("reset-failed", name)
            .map_err(zbus::Error::from)?;
        self.0.0.lock().unwrap().counts.remove(name);
        self.0.settle(name, |unit| {
            if unit.active == "failed" {
                unit.active = "inactive";
            }
        });
        Ok(())
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct General(FakeSystemd, String);

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl General {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0
            .unit(&self.1)
            .map_or("inactive", |unit| unit.active)
            .to_owned()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.0
            .unit(&self.1)
            .map_or("dead", |unit| unit.sub)
            .to_owned()
    }

    #[zbus(property)]
    fn unit_file_state(&self) -> String {
        self.0
            .unit(&self.1)
            .map_or("disabled", |unit| unit.file)
            .to_owned()
    }
}

struct Service(FakeSystemd, String);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property)]
    fn result(&self) -> String {
        self.0
            .unit(&self.1)
            .unwrap_or(Unit::new("inactive"))
            .result
            .to_owned()
    }

    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> u32 {
        self.0
            .unit(&self.1)
            .unwrap_or(Unit::new("inactive"))
            .restarts
    }

    #[zbus(property)]
    fn status_text(&self) -> String {
        self.0
            .unit(&self.1)
            .unwrap_or(Unit::new("inactive"))
            .status_text
    }

    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        self.0.unit(&self.1).unwrap_or(Unit::new("inactive")).exit.0
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        self.0.unit(&self.1).unwrap_or(Unit::new("inactive")).exit.1
    }

    #[zbus(property)]
    fn memory_current(&self) -> u64 {
        1024
    }

    #[zbus(property)]
    fn memory_max(&self) -> u64 {
        u64::MAX
    }

    #[zbus(property, name = "CPUUsageNSec")]
    fn cpu_usage_nsec(&self) -> u64 {
        5
    }

    #[zbus(property)]
    fn tasks_current(&self) -> u64 {
        7
    }

    #[zbus(property, name = "IOReadBytes")]
    fn io_read_bytes(&self) -> u64 {
        u64::MAX
    }

    #[zbus(property, name = "IOWriteBytes")]
    fn io_write_bytes(&self) -> u64 {
        9
    }
}

/// The bus itself.
struct Bus(FakeSystemd);

#[interface(name = "org.freedesktop.DBus")]
impl Bus {
    fn list_names(&self) -> Vec<String> {
        let state = self.0.0.lock().unwrap();
        state.names.keys().cloned().collect()
    }

    fn get_name_owner(&self, name: &str) -> fdo::Result<String> {
        let owner = self.0.0.lock().unwrap().names.get(name).cloned();
        owner.ok_or_else(|| fdo::Error::NameHasNoOwner(name.to_owned()))
    }
}

/// Every VM's supervisor.
struct Supervisor(FakeSystemd);

#[interface(name = "com.volantvm.Vm1")]
impl Supervisor {
    #[zbus(property)]
    fn phase(&self) -> String {
        "running".to_owned()
    }

    #[zbus(property)]
    fn status(&self) -> String {
        "running at 192.168.127.2".to_owned()
    }

    #[zbus(property)]
    fn address(&self) -> String {
        "192.168.127.2".to_owned()
    }

    #[zbus(property)]
    fn vmm(&self) -> String {
        "qemu".to_owned()
    }

    #[zbus(property)]
    fn vmm_pid(&self) -> u32 {
        4711
    }

    #[zbus(property)]
    fn ready_since_unix_ms(&self) -> u64 {
        1_700_000_000_123
    }

    #[zbus(property)]
    fn memory_total_kib(&self) -> u64 {
        0
    }

    #[zbus(property)]
    fn agent_resident_kib(&self) -> u64 {
        3072
    }

    #[zbus(property)]
    fn cpu_cores(&self) -> u32 {
        self.0.live().cpu_cores
    }

    #[zbus(property)]
    fn memory_mb(&self) -> u32 {
        self.0.live().memory_mb
    }

    #[zbus(property)]
    fn config_version(&self) -> u64 {
        self.0.live().config_version
    }

    #[zbus(property)]
    fn health(&self) -> String {
        self.0.live().health.to_owned()
    }

    #[zbus(property)]
    fn paused(&self) -> bool {
        self.0.live().paused
    }

    #[zbus(property)]
    fn exit_code(&self) -> i32 {
        -1
    }

    #[zbus(property)]
    fn generation(&self) -> u32 {
        1
    }
}
