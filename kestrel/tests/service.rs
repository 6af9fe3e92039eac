//! Another program as PID 1, and the agent as a service beside it, against a host in this process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use common::{Behaviour, Fact, ONE_GUEST, TOKEN, World, fatal};
use kestrel::Stopped;
use nix::{
    sys::signal::{Signal, kill},
    unistd::getpid,
};
use tokio::task::LocalSet;
use volant_proto::agent::v1::{
    HealthCheck, going_down::Reason, health_check::Probe, report_request::Report,
};

async fn alone<F: Future>(test: F) -> F::Output {
    let _one = ONE_GUEST.lock().await;
    LocalSet::new().run_until(test).await
}

fn with_init() -> Behaviour {
    let mut behaviour = Behaviour::shell("exit 0");
    behaviour.config.as_mut().unwrap().init = "/sbin/init".to_owned();
    behaviour
}

fn furnish_systemd(root: &Path) {
    fs::create_dir_all(root.join("sbin")).unwrap();
    fs::write(root.join("sbin/systemd"), "").unwrap();
    symlink("systemd", root.join("sbin/init")).unwrap();
}

/// For an init that a request to end is enough for.
fn furnish_other(root: &Path) {
    fs::create_dir_all(root.join("sbin")).unwrap();
    fs::write(root.join("sbin/init"), "").unwrap();
}

fn is_ready(fact: &Fact) -> bool {
    matches!(fact, Fact::Report(Report::Ready(_)))
}

#[tokio::test]
async fn pid_1_is_handed_over_with_all_prepared_and_no_workload_runs() {
    alone(async {
        let mut world = World::begin_in(with_init(), furnish_systemd);
        let (facts, reason, _) = world.until_the_end().await;
        let calls = world.kernel.calls();
        assert!(calls.contains(&"become /sbin/init".to_owned()), "{calls:?}");
        assert!(calls.contains(&"hostname web".to_owned()));
        let path = |name: &str| world.etc.path().join(name);
        assert!(path("run/kestrel/kestrel").is_file());
        assert!(path("run/systemd/system/sysinit.target.wants/kestrel.service").is_file());
        assert_eq!(fs::read_to_string(path("etc/hostname")).unwrap(), "web\n");
        let started = |fact: &Fact| matches!(fact, Fact::Report(Report::WorkloadStarted(_)));
        assert!(!facts.iter().any(started));
        // The kernel of a test does not let it become anything.
        assert_eq!(
            fatal(&facts),
            Some("cannot hand over to /sbin/init: cannot execute it: permission denied")
        );
        assert_eq!(reason, Reason::Fatal);
    })
    .await;
}

#[tokio::test]
async fn an_init_that_the_image_lacks_is_named() {
    alone(async {
        let mut world = World::begin(with_init());
        let (facts, _, _) = world.until_the_end().await;
        assert_eq!(
            fatal(&facts),
            Some(
                "cannot hand over to /sbin/init: it cannot be found: No such file or directory (os error 2)"
            )
        );
    })
    .await;
}

#[tokio::test]
async fn a_service_says_hello_with_the_token_and_asks_systemd_to_power_off() {
    alone(async {
        let mut world = World::begin_service(with_init(), furnish_systemd);
        let facts = world.until(is_ready).await;
        let Fact::Hello(hello) = &facts[0] else {
            panic!("first came {:?}", facts[0]);
        };
        assert_eq!(hello.token, TOKEN);
        world.until(|fact| matches!(fact, Fact::Heartbeat(_))).await;
        world.shut_down(Duration::from_millis(300)).await;
        // Nobody ends this machine: its time is over.
        let (_, reason) = world.until_going_down().await;
        assert_eq!(reason, Reason::Requested);
        assert_eq!(world.until_stopped().await, Stopped::Overdue);
        let asked = format!("signal init {}", nix::libc::SIGRTMIN() + 4);
        let calls = world.kernel.calls();
        assert_eq!(calls.iter().filter(|call| **call == asked).count(), 1);
        assert!(!calls.contains(&"kill all".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_service_that_alone_is_stopped_says_nothing_of_the_machine() {
    alone(async {
        let mut world = World::begin_service(with_init(), furnish_systemd);
        world.until(is_ready).await;
        kill(getpid(), Signal::SIGTERM).unwrap();
        assert_eq!(world.until_stopped().await, Stopped::Alone);
        assert!(!world.heard(|fact| matches!(fact, Fact::Report(Report::GoingDown(_)))));
    })
    .await;
}

#[tokio::test]
async fn a_service_whose_init_ends_all_processes_says_that_the_machine_goes_down() {
    alone(async {
        let mut world = World::begin_service(with_init(), furnish_other);
        world.until(is_ready).await;
        kill(getpid(), Signal::SIGTERM).unwrap();
        let (_, reason) = world.until_going_down().await;
        assert_eq!(reason, Reason::GuestPoweroff);
        assert_eq!(world.until_stopped().await, Stopped::GoingDown);
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_does_not_get_well_is_ended_by_its_init() {
    alone(async {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let mut behaviour = with_init();
        behaviour.workload().health_check = Some(HealthCheck {
            probe: Some(Probe::TcpPort(port.into())),
            interval_ms: 100,
            timeout_ms: 1000,
            retries: 2,
            start_period_ms: 0,
        });
        let mut world = World::begin_service(behaviour, furnish_systemd);
        let facts = world
            .until(|fact| matches!(fact, Fact::Report(Report::HealthChanged(_))))
            .await;
        assert!(!facts.iter().any(is_ready));
        let asked = format!("signal init {}", nix::libc::SIGRTMIN() + 4);
        let kernel = world.kernel.clone();
        world.until(|_| kernel.calls().contains(&asked)).await;
    })
    .await;
}
