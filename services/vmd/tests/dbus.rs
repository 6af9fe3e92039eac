//! The VM on the bus, and what the supervisor asks there: over a socketpair, without a bus.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use support::services::{FakeIpam, FakeRegistry, attachment, definition, file};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use vmd::{
    agent::Token,
    dbus::{Vm, announce},
    ended::{Ended, WorkloadExit},
    handle::{Handle, HandleError, Wish},
    happening::Happening,
    live::Live,
    prepare::prepare,
};
use volant_dbus::{
    ipam::{self, Attachment},
    registry::{self, VmDefinition},
    vm,
};
use volant_spec::unit::FIRST_UID;
use zbus::{Connection, connection::Builder, interface};

const LONG: Duration = Duration::from_secs(10);

async fn pair(serve: impl FnOnce(Builder) -> Builder) -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Builder::unix_stream(ours)
        .server(zbus::Guid::generate())
        .p2p();
    let client = Builder::unix_stream(theirs).p2p();
    let (server, client) = tokio::join!(serve(server).build(), client.build());
    (server.unwrap(), client.unwrap())
}

#[tokio::test]
async fn properties_are_live_and_their_changes_are_told() {
    let (live, watched) = watch::channel(Live {
        name: "web".to_owned(),
        phase: "booting",
        cid: 3,
        ..Live::default()
    });
    let token = Token::known([0; 32]);
    let (handle, mut asks) = Handle::new(watched.clone(), "/vsock".into(), token);
    let (events, happenings) = mpsc::channel(4);
    let (server, client) = pair(|builder| builder.serve_at(vm::PATH, Vm::new(handle))).await;
    let announcing = tokio::spawn(announce(server, watched, happenings));
    let name = vm::bus_name("web");
    let proxy = vm::VmProxy::builder(&client)
        .destination(name)
        .build()
        .await
        .unwrap();
    assert_eq!(proxy.name().await.unwrap(), "web");
    assert_eq!(proxy.phase().await.unwrap(), "booting");
    assert_eq!(proxy.cid().await.unwrap(), 3);

    let mut phases = proxy.receive_phase_changed().await;
    let mut pids = proxy.receive_workload_pid_changed().await;
    live.send_modify(|live| {
        live.phase = "running";
        live.workload_pid = 42;
        live.heartbeat.memory_total_kib = 2048;
        live.heartbeat.agent_resident_kib = 1536;
    });
    let phase = async {
        while phases.next().await.unwrap().get().await.unwrap() != "running" {}
        while pids.next().await.unwrap().get().await.unwrap() != 42 {}
    };
    timeout(LONG, phase).await.expect("told in time");
    assert_eq!(proxy.phase().await.unwrap(), "running");
    assert_eq!(proxy.memory_total_kib().await.unwrap(), 2048);
    assert_eq!(proxy.agent_resident_kib().await.unwrap(), 1536);

    assert_eq!(proxy.exit_code().await.unwrap(), -1);
    let granted = async {
        let ask = asks.recv().await.unwrap();
        assert_eq!(ask.wish, Wish::Pause);
        ask.answer.send(Ok(())).unwrap();
        let ask = asks.recv().await.unwrap();
        assert_eq!(ask.wish, Wish::Resume);
        let denied = HandleError::Denied("the VM is being stopped".to_owned());
        ask.answer.send(Err(denied)).unwrap();
    };
    let wished = async {
        proxy.pause().await.unwrap();
        let denied = proxy.resume().await.unwrap_err().to_string();
        assert!(denied.contains("Vm1.Error.NotNow"), "{denied}");
        assert!(denied.contains("being stopped"), "{denied}");
    };
    tokio::join!(granted, wished);

    // The end is told, too, though its publisher is gone.
    let mut happened = proxy.receive_happened().await.unwrap();
    let mut ends = proxy.receive_ended_changed().await;
    live.send_modify(|live| {
        live.ended = "workload-exited";
        live.exit_code = Some(7);
    });
    events
        .try_send(Happening::ended(&Ended::Workload(WorkloadExit::new(7, 0))))
        .unwrap();
    drop((live, events));
    let told = async {
        while ends.next().await.unwrap().get().await.unwrap() != "workload-exited" {}
        let told = happened.next().await.unwrap();
        let told = told.args().unwrap();
        assert_eq!(*told.what(), "ended");
        assert!(*told.time_unix_ms() > 1_700_000_000_000);
        let code = told.details()["exit_code"].downcast_ref::<u64>();
        assert_eq!(code.unwrap(), 7);
    };
    timeout(LONG, told).await.expect("told in time");
    assert_eq!(proxy.exit_code().await.unwrap(), 7);
    timeout(LONG, announcing).await.unwrap().unwrap().unwrap();
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Registry1.Error")]
enum NoVm {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchVm(String),
}

struct EmptyRegistry;

#[interface(name = "com.volantvm.Registry1.Manager")]
impl EmptyRegistry {
    async fn open_vm(&self) -> Result<(VmDefinition, HashMap<String, zbus::OwnedFd>), NoVm> {
        Err(NoVm::NoSuchVm("there is no VM 'web'".to_owned()))
    }
}

fn read(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn a_vm_gets_its_artifacts_and_its_tap() {
    let registry = FakeRegistry {
        answer: Ok(VmDefinition {
            kernel: "own".to_owned(),
            rootfs_format: "squashfs".to_owned(),
            ..definition()
        }),
        artifacts: vec![
            ("initramfs", "cpio"),
            ("kernel", "elf"),
            ("rootfs", "image"),
        ],
    };
    let (_server, client) = pair(|builder| {
        builder
            .serve_at(registry::PATH, registry)
            .serve_at(ipam::PATH, FakeIpam)
    })
    .await;
    let prepared = prepare(&"web".parse().unwrap(), &client).await.unwrap();
    assert_eq!(prepared.definition.uid, FIRST_UID);
    assert_eq!(prepared.attachment.cid, 3);
    assert_eq!(read(prepared.initramfs.unwrap()), "cpio");
    assert_eq!(read(prepared.rootfs.unwrap()), "image");
    assert_eq!(read(prepared.kernel.unwrap()), "elf");
    assert_eq!(read(prepared.tap), "tap");
}

#[tokio::test]
async fn a_vm_with_a_root_file_system_needs_no_initramfs_of_its_own() {
    let registry = FakeRegistry {
        answer: Ok(VmDefinition {
            rootfs_format: "raw".to_owned(),
            ..definition()
        }),
        artifacts: vec![("rootfs", "image")],
    };
    let (_server, client) = pair(|builder| {
        builder
            .serve_at(registry::PATH, registry)
            .serve_at(ipam::PATH, FakeIpam)
    })
    .await;
    let prepared = prepare(&"web".parse().unwrap(), &client).await.unwrap();
    assert!(prepared.initramfs.is_none() && prepared.kernel.is_none());
    assert_eq!(read(prepared.rootfs.unwrap()), "image");
}

#[tokio::test]
async fn what_cannot_be_started_is_told_with_a_code_that_says_whether_to_try_again() {
    type Case = (FakeRegistry, &'static str, u8);
    let cases: [Case; 5] = [
        (
            FakeRegistry {
                answer: Err(zbus::fdo::Error::Failed(String::new())),
                artifacts: Vec::new(),
            },
            "the store is broken",
            75,
        ),
        (
            FakeRegistry {
                answer: Ok(definition()),
                artifacts: Vec::new(),
            },
            "gave no initramfs for VM 'web'",
            78,
        ),
        (
            FakeRegistry {
                answer: Ok(VmDefinition {
                    rootfs_format: "erofs".to_owned(),
                    ..definition()
                }),
                artifacts: vec![("initramfs", "cpio")],
            },
            "gave no rootfs for VM 'web'",
            78,
        ),
        (
            FakeRegistry {
                answer: Ok(VmDefinition {
                    kernel: "own".to_owned(),
                    ..definition()
                }),
                artifacts: vec![("initramfs", "cpio")],
            },
            "gave no kernel for VM 'web'",
            78,
        ),
        (
            FakeRegistry {
                answer: Ok(VmDefinition {
                    name: "db".to_owned(),
                    ..definition()
                }),
                artifacts: Vec::new(),
            },
            "answered for VM 'db'",
            78,
        ),
    ];
    for (registry, expected, code) in cases {
        let (_server, client) = pair(|builder| builder.serve_at(registry::PATH, registry)).await;
        let error = prepare(&"web".parse().unwrap(), &client).await.unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        let chain = format!("{:#}", anyhow::Error::new(error));
        assert!(chain.contains(expected), "{chain}");
    }
}

#[tokio::test]
async fn a_vm_that_is_not_defined_is_told_in_the_registrys_words() {
    let (_server, client) = pair(|builder| builder.serve_at(registry::PATH, EmptyRegistry)).await;
    let error = prepare(&"web".parse().unwrap(), &client).await.unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(
        error.to_string().contains("there is no VM 'web'"),
        "{error}"
    );
}

/// What the bus or the manager answers for a service that is not there, and a service for itself.
#[derive(Clone, Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "DBus.Error.NoReply")]
    Killed(String),
    #[zbus(name = "systemd1.TransactionIsDestructive")]
    NotActivated(String),
    #[zbus(name = "DBus.Error.Failed")]
    Failed(String),
}

/// A service that answers only after some calls, and counts them.
struct Flaky {
    refusals: u32,
    refusal: Refusal,
    calls: Arc<AtomicU32>,
}

impl Flaky {
    fn answer<T>(&self, answer: T) -> Result<T, Refusal> {
        match self.calls.fetch_add(1, Ordering::Relaxed) {
            call if call < self.refusals => Err(self.refusal.clone()),
            _ => Ok(answer),
        }
    }
}

struct FlakyRegistry(Flaky);

#[interface(name = "com.volantvm.Registry1.Manager")]
impl FlakyRegistry {
    async fn open_vm(&self) -> Result<(VmDefinition, HashMap<String, zbus::OwnedFd>), Refusal> {
        let artifacts = HashMap::from([("initramfs".to_owned(), file("cpio").into())]);
        self.0.answer((definition(), artifacts))
    }
}

struct FlakyIpam(Flaky);

#[interface(name = "com.volantvm.Ipam1.Manager")]
impl FlakyIpam {
    async fn attach(&self) -> Result<(Attachment, zbus::OwnedFd), Refusal> {
        self.0.answer((attachment(), file("tap").into()))
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_is_asked_again_and_one_that_refuses_is_not() {
    let killed = Refusal::Killed("it disconnected".to_owned());
    let not_activated = Refusal::NotActivated("it is being stopped".to_owned());
    let failed = Refusal::Failed("the store is broken".to_owned());
    // Refusals, their kind, the calls that are made then, and whether all is well at the end.
    let cases = [
        (2, killed.clone(), 3, true),
        (1, not_activated, 2, true),
        (9, killed, 3, false),
        (1, failed, 1, false),
    ];
    for (refusals, refusal, expected, well) in cases {
        for flaky_registry in [true, false] {
            let calls = Arc::<AtomicU32>::default();
            let flaky = |of_this: bool| Flaky {
                refusals: if of_this { refusals } else { 0 },
                refusal: refusal.clone(),
                calls: if of_this {
                    Arc::clone(&calls)
                } else {
                    Arc::default()
                },
            };
            let (_server, client) = pair(|builder| {
                builder
                    .serve_at(registry::PATH, FlakyRegistry(flaky(flaky_registry)))
                    .serve_at(ipam::PATH, FlakyIpam(flaky(!flaky_registry)))
            })
            .await;
            let prepared = prepare(&"web".parse().unwrap(), &client).await;
            assert_eq!(prepared.is_ok(), well, "{refusal:?}: {prepared:?}");
            assert_eq!(calls.load(Ordering::Relaxed), expected, "{refusal:?}");
        }
    }
}
