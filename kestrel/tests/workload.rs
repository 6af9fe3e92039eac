//! How a workload is started again, checked, limited and told of: real processes, against a host in this process.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod common;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{Behaviour, Fact, ONE_GUEST, World, exit, fatal, lines};
use nix::{sys::signal::kill, unistd::Pid};
use tokio::{io::AsyncWriteExt as _, task::LocalSet, time::timeout};
use volant_proto::agent::v1::{
    self, HealthChanged, HealthCheck, Restart, Rlimit, Secret, WorkloadRestarting,
    going_down::Reason, health_check::Probe, report_request::Report,
};

async fn alone<F: Future>(test: F) -> F::Output {
    let _one = ONE_GUEST.lock().await;
    LocalSet::new().run_until(test).await
}

fn restarts(facts: &[Fact]) -> Vec<WorkloadRestarting> {
    facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Report(Report::WorkloadRestarting(restarting)) => Some(*restarting),
            _ => None,
        })
        .collect()
}

fn health(facts: &[Fact]) -> Vec<HealthChanged> {
    facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Report(Report::HealthChanged(changed)) => Some(changed.clone()),
            _ => None,
        })
        .collect()
}

fn count(facts: &[Fact], wanted: impl Fn(&Report) -> bool) -> usize {
    let is_wanted = |fact: &&Fact| matches!(fact, Fact::Report(report) if wanted(report));
    facts.iter().filter(is_wanted).count()
}

fn check(probe: Probe, interval: u32, retries: u32) -> Option<HealthCheck> {
    Some(HealthCheck {
        probe: Some(probe),
        interval_ms: interval,
        timeout_ms: 5000,
        retries,
        start_period_ms: 0,
    })
}

/// Whether a process is there, and no corpse: whoever inherits orphans here may be slow to bury them.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim();
    !state.is_empty() && !state.starts_with('Z')
}

async fn until_gone(pid: &str) {
    let gone = async {
        while lives(pid) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_workload_that_fails_is_started_again_until_it_succeeds() {
    alone(async {
        let folder = tempfile::tempdir().unwrap();
        let count_file = folder.path().join("count").display().to_string();
        let mut behaviour = Behaviour::shell(&format!(
            "echo x >> {count_file}; [ $(wc -l < {count_file}) -ge 3 ] || exit 7"
        ));
        behaviour.workload().restart = Restart::OnFailure.into();
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        let told = restarts(&facts);
        let delays: Vec<_> = told.iter().map(|one| one.delay_ms).collect();
        assert_eq!(delays, [100, 200]);
        assert_eq!((told[1].restarts, told[1].unhealthy), (2, false));
        assert_eq!(told[0].exit.unwrap().code, 7);
        assert_eq!(
            count(&facts, |one| matches!(one, Report::WorkloadStarted(_))),
            3
        );
        assert_eq!(count(&facts, |one| matches!(one, Report::Ready(_))), 1);
        assert_eq!(
            (exit(&facts), reason),
            (Some((0, 0)), Reason::WorkloadExited)
        );
    })
    .await;
}

#[tokio::test]
async fn what_a_workload_left_of_its_group_is_gone_before_the_next_start() {
    alone(async {
        let mut behaviour = Behaviour::shell(
            "trap '' TERM; (trap '' TERM; exec sleep 300) & echo child $!; exit 1",
        );
        behaviour.workload().restart = Restart::Always.into();
        let mut world = World::begin(behaviour);
        let is_start = |fact: &Fact| matches!(fact, Fact::Report(Report::WorkloadStarted(_)));
        world.until(is_start).await;
        let facts = world
            .until(|fact| matches!(fact, Fact::Line(line) if line.line.starts_with(b"child ")))
            .await;
        let child = lines(&facts).pop().unwrap();
        let child = child.strip_prefix("child ").unwrap();
        let restarting = |fact: &Fact| matches!(fact, Fact::Report(Report::WorkloadRestarting(_)));
        if !facts.iter().any(restarting) {
            world.until(restarting).await;
        }
        until_gone(child).await;
        world.shut_down(Duration::from_secs(1)).await;
        world.until_the_end().await;
    })
    .await;
}

#[tokio::test]
async fn a_workload_that_forks_floods_ignores_its_signal_and_is_asked_to_stop_leaves_no_more_than_its_code()
 {
    alone(async {
        let mut world = World::begin(Behaviour::shell(
            "trap '' TERM; sleep 300 & echo child $!; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done; sleep 0.2; exit 7",
        ));
        let facts = world.until_line("done").await;
        let written = lines(&facts);
        let child = written[0].strip_prefix("child ").unwrap().to_owned();
        // What was dropped is counted, and no piece is longer than the contract's.
        let long: Vec<_> = written.iter().filter(|line| line.starts_with('x')).collect();
        assert!(!long.is_empty() && long.iter().all(|line| line.len() <= 8192));
        world.shut_down(Duration::from_secs(20)).await;
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(exit(&facts), Some((7, 0)));
        assert!([Reason::Requested, Reason::WorkloadExited].contains(&reason));
        // In a guest it ends with the rest of the machine; here nobody kills all.
        kill(Pid::from_raw(child.parse().unwrap()), nix::sys::signal::SIGKILL).unwrap();
    })
    .await;
}

#[tokio::test]
async fn readiness_waits_for_the_first_success_of_the_check() {
    alone(async {
        let flag = tempfile::tempdir().unwrap();
        let path = flag.path().join("ready").display().to_string();
        let mut behaviour =
            Behaviour::shell(&format!("sleep 0.4; echo made; touch {path}; sleep 300"));
        let command = v1::Command {
            arguments: vec![
                "/bin/sh".into(),
                "-c".into(),
                format!("[ -e {path} ] && [ \"$A\" = b ]"),
            ],
        };
        behaviour.workload().health_check = check(Probe::Exec(command), 30_000, 3);
        behaviour.workload().env.insert("A".into(), "b".into());
        let mut world = World::begin(behaviour);
        let begun = std::time::Instant::now();
        let facts = world
            .until(|fact| matches!(fact, Fact::Report(Report::Ready(_))))
            .await;
        assert!(begun.elapsed() >= Duration::from_millis(400));
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(
            health(&facts),
            [HealthChanged {
                healthy: true,
                detail: String::new()
            }]
        );
        world.shut_down(Duration::from_secs(1)).await;
        world.until_the_end().await;
    })
    .await;
}

/// Answers each connection with this text, for as long as the runtime lives.
async fn answer(text: &'static str) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            // Who asked may be gone.
            let _ = connection.write_all(text.as_bytes()).await;
        }
    });
    port
}

#[tokio::test]
async fn an_unhealthy_workload_ends_the_machine_where_it_may_not_be_started_again() {
    alone(async {
        let port = answer("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
        let mut behaviour = Behaviour::shell("trap 'exit 3' TERM; while :; do sleep 0.02; done");
        let url = format!("http://localhost:{port}/healthz");
        behaviour.workload().health_check = check(Probe::HttpUrl(url), 100, 2);
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        let told = health(&facts);
        assert_eq!((told.len(), told[0].healthy), (1, false));
        assert_eq!(told[0].detail, "the answer is 503");
        assert_eq!((exit(&facts), reason), (Some((3, 0)), Reason::Unhealthy));
        assert_eq!(count(&facts, |one| matches!(one, Report::Ready(_))), 0);
    })
    .await;
}

#[tokio::test]
async fn an_unhealthy_workload_is_started_again_and_its_health_told_anew() {
    alone(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ill").display().to_string();
        // Well, then ill once, then well.
        let script = format!(
            "[ -e {path}.was ] || {{ sleep 0.5; touch {path} {path}.was; }}; trap '' TERM; while :; do sleep 0.02; done"
        );
        let mut behaviour = Behaviour::shell(&script);
        let command = v1::Command {
            arguments: vec![
                "/bin/sh".into(),
                "-c".into(),
                format!("if [ -e {path} ]; then rm {path}; exit 4; fi"),
            ],
        };
        let workload = behaviour.workload();
        workload.health_check = check(Probe::Exec(command), 100, 1);
        workload.restart = Restart::OnFailure.into();
        workload.stop_grace_ms = 50;
        let mut world = World::begin(behaviour);
        let mut well = 0;
        let mut facts = Vec::new();
        while well < 2 {
            facts.extend(
                world
                    .until(|fact| matches!(fact, Fact::Report(Report::HealthChanged(changed)) if changed.healthy))
                    .await,
            );
            well += 1;
        }
        let told: Vec<_> = health(&facts).into_iter().map(|one| one.healthy).collect();
        assert_eq!(told, [true, false, true]);
        assert_eq!(health(&facts)[1].detail, "/bin/sh ended with 4");
        let restarted = restarts(&facts);
        assert_eq!((restarted.len(), restarted[0].unhealthy), (1, true));
        assert_eq!(restarted[0].exit.unwrap().signal, 9);
        assert_eq!(count(&facts, |one| matches!(one, Report::Ready(_))), 1);
        world.shut_down(Duration::from_millis(50)).await;
        world.until_the_end().await;
    })
    .await;
}

#[tokio::test]
async fn a_port_that_accepts_is_healthy() {
    alone(async {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = open.local_addr().unwrap().port();
        let mut behaviour = Behaviour::shell("sleep 300");
        behaviour.workload().health_check = check(Probe::TcpPort(port.into()), 1000, 1);
        let mut world = World::begin(behaviour);
        world
            .until(|fact| matches!(fact, Fact::Report(Report::Ready(_))))
            .await;
        world.shut_down(Duration::from_secs(5)).await;
        assert_eq!(world.until_the_end().await.1, Reason::Requested);
    })
    .await;
}

#[tokio::test]
async fn a_port_that_stays_closed_is_named() {
    alone(async {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let mut behaviour = Behaviour::shell("sleep 300");
        behaviour.workload().health_check = check(Probe::TcpPort(port.into()), 100, 2);
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        let detail = health(&facts).remove(0).detail;
        let expected = format!("cannot connect to 127.0.0.1:{port}: Connection refused");
        assert!(detail.starts_with(&expected), "{detail}");
        assert_eq!(reason, Reason::Unhealthy);
    })
    .await;
}

#[tokio::test]
async fn limits_are_the_workload_s_and_an_unknown_one_is_fatal() {
    alone(async {
        let mut behaviour =
            Behaviour::shell("ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj");
        let limit = |name: &str| Rlimit {
            name: name.to_owned(),
            soft: 77,
            hard: 99,
        };
        behaviour.workload().rlimits = vec![limit("nofile")];
        let mut world = World::begin(behaviour);
        let (facts, _, _) = world.until_the_end().await;
        assert_eq!(lines(&facts), ["77", "99", "0"]);
    })
    .await;
}

#[tokio::test]
async fn a_configuration_that_makes_no_sense_is_fatal_and_named() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.workload().restart = 99;
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(
            fatal(&facts),
            Some("cannot use the run configuration: '99' is no restart policy")
        );
        assert_eq!(reason, Reason::Fatal);
    })
    .await;
}

#[tokio::test]
async fn secrets_are_files_and_variables_of_the_workload_and_in_nothing_that_is_told() {
    alone(async {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen").display().to_string();
        let secret = |name: &str, value: &str, env: &str| Secret {
            name: name.to_owned(),
            value: value.into(),
            env: env.to_owned(),
        };
        let mut behaviour = Behaviour::shell(&format!("echo $KEY >{seen}; exit 5"));
        let config = behaviour.config.as_mut().unwrap();
        config.secrets = vec![
            secret("key", "hunter2", "KEY"),
            secret("file", "hunter3", ""),
        ];
        let mut world = World::begin_in(behaviour, |root| {
            fs::create_dir_all(root.join("run/secrets")).unwrap();
        });
        let (facts, _, _) = world.until_the_end().await;
        assert_eq!(exit(&facts), Some((5, 0)));
        let place = world.etc.path().join("run/secrets");
        assert_eq!(fs::read(place.join("file")).unwrap(), b"hunter3");
        assert_eq!(mode(&place.join("file")), 0o400);
        assert_eq!(fs::read_to_string(&seen).unwrap(), "hunter2\n");
        assert!(!format!("{facts:?}").contains("hunter"));
    })
    .await;
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn the_clock_follows_the_host_s() {
    alone(async {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let later = now + Duration::from_secs(3600);
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
        let mut behaviour = Behaviour::shell("sleep 300");
        behaviour.config.as_mut().unwrap().time_unix_ns = nanos(later);
        let mut world = World::begin(behaviour);
        world.until(|fact| matches!(fact, Fact::Watching)).await;
        let much_later = later + Duration::from_secs(3600);
        world.set_clock(much_later).await;
        world.shut_down(Duration::from_secs(5)).await;
        world.until_the_end().await;
        let calls = world.kernel.calls();
        for time in [later, much_later] {
            assert!(
                calls.contains(&format!("clock {}", time.as_nanos())),
                "{calls:?}"
            );
        }
    })
    .await;
}
