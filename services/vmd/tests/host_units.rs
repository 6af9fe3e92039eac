//! The units of root's that a supervisor has systemd start: those that lend devices, and that tell machined. Over a socketpair, with
//! stand-ins for systemd, machined and the supervisor.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::timeout;
use vmd::{
    devices::{DevicesError, lend},
    machine::{RegisterError, register},
};
use volant_dbus::vm;
use zbus::{
    Connection, OwnedObjectPath, connection::Builder, fdo, interface, object_server::SignalEmitter,
};

const LONG: Duration = Duration::from_secs(10);
const SYSTEMD: &str = "/org/freedesktop/systemd1";
const UNIT: &str = "/org/freedesktop/systemd1/unit/x";
const MACHINED: &str = "/org/freedesktop/machine1";
const MACHINE: &str = "/org/freedesktop/machine1/machine/web";

/// What was asked, in its order.
type Calls = Arc<Mutex<Vec<String>>>;

struct Systemd {
    calls: Calls,
    result: &'static str,
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {
        self.calls.lock().unwrap().push("subscribe".to_owned());
    }

    async fn restart_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let call = format!("restart {name} {mode}");
        self.calls.lock().unwrap().push(call);
        let job = |id| OwnedObjectPath::try_from(format!("{SYSTEMD}/job/{id}")).unwrap();
        // Another job's end, and this one's before its answer.
        Self::job_removed(&emitter, 1, job(1), "other.service", "failed").await?;
        Self::job_removed(&emitter, 2, job(2), name, self.result).await?;
        Ok(job(2))
    }

    fn get_unit(&self, name: &str) -> OwnedObjectPath {
        self.calls.lock().unwrap().push(format!("get {name}"));
        OwnedObjectPath::try_from(UNIT).unwrap()
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

struct Service {
    main: u32,
    said: &'static str,
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        self.main
    }

    #[zbus(property)]
    fn status_text(&self) -> String {
        self.said.to_owned()
    }
}

struct Supervisor;

#[interface(name = "com.volantvm.Vm1")]
impl Supervisor {
    #[zbus(property)]
    fn uuid(&self) -> String {
        "01980000-0000-7000-8000-0000000000ff".to_owned()
    }
}

/// What machined has of that name: unit and leader.
type Had = Arc<Mutex<Option<(&'static str, u32)>>>;

struct Machined {
    calls: Calls,
    had: Had,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.machine1")]
enum MachinedError {
    #[zbus(error)]
    ZBus(zbus::Error),
    MachineExists(String),
}

#[interface(name = "org.freedesktop.machine1.Manager")]
impl Machined {
    #[allow(
        clippy::too_many_arguments,
        clippy::needless_pass_by_value,
        reason = "machined's call"
    )]
    fn register_machine_with_network(
        &self,
        name: &str,
        id: Vec<u8>,
        service: &str,
        class: &str,
        leader: u32,
        root: &str,
        interfaces: Vec<i32>,
    ) -> Result<OwnedObjectPath, MachinedError> {
        let call = format!(
            "{name} {} {service} {class} {leader} '{root}' {interfaces:?}",
            id[15]
        );
        self.calls.lock().unwrap().push(call);
        match *self.had.lock().unwrap() {
            Some(_) => Err(MachinedError::MachineExists("there is one".to_owned())),
            None => Ok(OwnedObjectPath::try_from(MACHINE).unwrap()),
        }
    }

    fn unregister_machine(&self, name: &str) {
        self.calls
            .lock()
            .unwrap()
            .push(format!("unregister {name}"));
        *self.had.lock().unwrap() = None;
    }

    fn get_machine(&self, _name: &str) -> OwnedObjectPath {
        OwnedObjectPath::try_from(MACHINE).unwrap()
    }
}

struct Machine(Had);

#[interface(name = "org.freedesktop.machine1.Machine")]
impl Machine {
    #[zbus(property)]
    fn unit(&self) -> String {
        self.0.lock().unwrap().unwrap().0.to_owned()
    }

    #[zbus(property)]
    fn leader(&self) -> u32 {
        self.0.lock().unwrap().unwrap().1
    }
}

struct World {
    calls: Calls,
    bus: Connection,
    _host: Connection,
}

async fn world(result: &'static str, service: Service, had: Option<(&'static str, u32)>) -> World {
    let calls = Calls::default();
    let had: Had = Arc::new(Mutex::new(had));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let systemd = Systemd {
        calls: Arc::clone(&calls),
        result,
    };
    let machined = Machined {
        calls: Arc::clone(&calls),
        had: Arc::clone(&had),
    };
    let host = Builder::unix_stream(theirs)
        .server(zbus::Guid::generate())
        .p2p()
        .serve_at(SYSTEMD, systemd)
        .serve_at(UNIT, service)
        .serve_at(MACHINED, machined)
        .serve_at(MACHINE, Machine(had))
        .serve_at(vm::PATH, Supervisor)
        .build();
    let bus = Builder::unix_stream(ours).p2p().build();
    let (host, bus) = tokio::try_join!(host, bus).unwrap();
    World {
        calls,
        bus,
        _host: host,
    }
}

impl World {
    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

async fn lent(result: &'static str, said: &'static str) -> (Result<(), DevicesError>, World) {
    let world = world(result, Service { main: 0, said }, None).await;
    let name = "web".parse().unwrap();
    let asked = lend(&world.bus, &name);
    let answer = timeout(LONG, asked).await.unwrap();
    (answer, world)
}

#[tokio::test]
async fn devices_are_lent_by_a_unit_whose_job_is_waited_for() {
    let (lent, world) = lent("done", "").await;
    lent.unwrap();
    assert_eq!(
        world.calls(),
        ["subscribe", "restart volant-vm-devices@web.service replace"]
    );
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_who_refused() {
    for (said, expected) in [
        (
            "this host has no IOMMU in use",
            "this host has no IOMMU in use",
        ),
        (
            "",
            "volant-vm-devices@web.service did not start (failed); see: journalctl",
        ),
    ] {
        let (lent, _world) = lent("failed", said).await;
        let error = lent.unwrap_err();
        assert_eq!(error.exit_code(), 69, "{error}");
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

async fn registered(
    main: u32,
    had: Option<(&'static str, u32)>,
) -> (Result<(), RegisterError>, Vec<String>) {
    let world = world("done", Service { main, said: "" }, had).await;
    let name = "web".parse().unwrap();
    let asked = register(&world.bus, &name);
    let answer = timeout(LONG, asked).await.unwrap();
    (answer, world.calls())
}

#[tokio::test]
async fn machined_is_told_of_the_supervisor_of_a_vm() {
    let get = "get volant-vm@web.service";
    let told = "web 255 volant vm 7 '' []";
    let (answer, calls) = registered(7, None).await;
    answer.unwrap();
    assert_eq!(calls, [get, told]);
    // An earlier run of the same VM makes room; this run is known already.
    let (answer, calls) = registered(7, Some(("volant-vm@web.service", 6))).await;
    answer.unwrap();
    assert_eq!(calls, [get, told, "unregister web", told]);
    let (answer, calls) = registered(7, Some(("volant-vm@web.service", 7))).await;
    answer.unwrap();
    assert_eq!(calls, [get, told]);
}

#[tokio::test]
async fn another_machine_of_that_name_stays_and_a_vm_that_does_not_run_is_none() {
    let (answer, calls) = registered(7, Some(("systemd-nspawn@web.service", 6))).await;
    let error = answer.unwrap_err().to_string();
    assert!(error.contains("of systemd-nspawn@web.service"), "{error}");
    assert_eq!(calls.len(), 2, "{calls:?}");
    let (answer, calls) = registered(0, None).await;
    assert!(matches!(answer, Err(RegisterError::NotRunning(_))));
    assert_eq!(calls.len(), 1, "{calls:?}");
}
