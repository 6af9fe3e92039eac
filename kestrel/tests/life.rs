//! A guest's whole life against a host in this process: real workloads, a real connection, no machine.

mod common;

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use common::{Behaviour, Fact, ONE_GUEST, World, exit, fatal, lines};
use kestrel::{Ask, Ending, GuestError, Reaper, Reason as Why};
use nix::unistd::geteuid;
use tokio::task::LocalSet;
use tonic::Status;
use volant_proto::agent::v1::{
    PROTOCOL, RootFilesystem, going_down::Reason, report_request::Report,
};

const TRAP: &str = "trap 'echo stopping; exit 7' TERM; echo ready; while :; do sleep 0.02; done";

async fn alone<F: Future>(test: F) -> F::Output {
    let _one = ONE_GUEST.lock().await;
    LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn a_workload_s_start_output_and_exit_reach_the_host_before_the_machine_ends() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(
            "echo one; echo two >&2; printf three; exit 3",
        ));
        let (facts, reason, ending) = world.until_the_end().await;
        let Fact::Hello(hello) = &facts[0] else {
            panic!("first came {:?}", facts[0]);
        };
        assert_eq!(hello.protocol, PROTOCOL);
        assert_eq!(hello.boot_id.len(), 36);
        assert!(hello.uptime_ms > 0);
        let mut written = lines(&facts);
        written.sort();
        assert_eq!(written, ["one", "three", "two"]);
        assert_eq!(exit(&facts), Some((3, 0)));
        assert_eq!((reason, ending), (Reason::WorkloadExited, Ending::PowerOff));
        let place = |wanted: fn(&Fact) -> bool| facts.iter().position(wanted).unwrap();
        let started = place(|fact| matches!(fact, Fact::Report(Report::WorkloadStarted(_))));
        let exited = place(|fact| matches!(fact, Fact::Report(Report::WorkloadExited(_))));
        assert!(started < exited);
        assert!(place(|fact| matches!(fact, Fact::LogsEnded)) < facts.len() - 1);
        assert_eq!(
            world.kernel.calls()[..3],
            ["hostname web", "kill all", "sync"]
        );
        assert_eq!(
            fs::read_to_string(world.etc.path().join("etc/hostname")).unwrap(),
            "web\n"
        );
    })
    .await;
}

#[tokio::test]
async fn the_host_s_request_stops_the_workload_with_its_signal() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(TRAP));
        world.until_line("ready").await;
        world.shut_down(Duration::from_secs(20)).await;
        let (facts, reason, ending) = world.until_the_end().await;
        assert!(lines(&facts).contains(&"stopping".to_owned()));
        assert_eq!(exit(&facts), Some((7, 0)));
        assert_eq!((reason, ending), (Reason::Requested, Ending::PowerOff));
        assert!(!world.kernel.calls().contains(&"signal SIGKILL".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn a_workload_that_does_not_heed_its_signal_is_killed_after_its_grace() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(
            "trap '' TERM; echo ready; while :; do sleep 0.02; done",
        ));
        world.until_line("ready").await;
        world.shut_down(Duration::from_millis(50)).await;
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(exit(&facts), Some((137, 9)));
        assert_eq!(reason, Reason::Requested);
    })
    .await;
}

#[tokio::test]
async fn a_reboot_from_within_the_guest_resets_the_machine() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(TRAP));
        world.until_line("ready").await;
        let ask = Ask {
            reason: Why::GuestReboot,
            grace: None,
        };
        world.asks.send(ask).await.unwrap();
        let (_, reason, ending) = world.until_the_end().await;
        assert_eq!((reason, ending), (Reason::GuestReboot, Ending::Reset));
    })
    .await;
}

#[tokio::test]
async fn a_request_before_the_workload_is_started_ends_the_machine() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.refused_dials = 4;
        let mut world = World::begin(behaviour);
        let ask = Ask {
            reason: Why::PowerButton,
            grace: None,
        };
        world.asks.send(ask).await.unwrap();
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(reason, Reason::PowerButton);
        assert_eq!(exit(&facts), None);
    })
    .await;
}

// Each case has a runtime of its own: with it ends its reaper, which would take the next one's children.
#[test]
fn a_workload_that_cannot_be_started_is_fatal_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("plain"), "text").unwrap();
    fs::write(path("script"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(path("script"), Permissions::from_mode(0o755)).unwrap();
    for (program, workdir, cause) in [
        (
            "/no/such",
            "",
            "cannot start /no/such: No such file or directory (os error 2)".to_owned(),
        ),
        (
            "no-such",
            "",
            "cannot start no-such: No such file or directory (os error 2)".to_owned(),
        ),
        (
            &path("plain"),
            "",
            format!(
                "cannot start {}: Permission denied (os error 13)",
                path("plain")
            ),
        ),
        (
            &path("script"),
            "",
            format!(
                "cannot start {}: it is there, but its interpreter or loader is not, or it is not for this machine",
                path("script")
            ),
        ),
        (
            "/bin/true",
            "/proc/no/dir",
            "cannot use the working directory /proc/no/dir: No such file or directory (os error 2)"
                .to_owned(),
        ),
        (
            "/bin/true",
            "/etc/passwd",
            "cannot use the working directory /etc/passwd: not a directory".to_owned(),
        ),
    ] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(alone(async {
            let mut behaviour = Behaviour::run(&[program]);
            behaviour
                .config
                .as_mut()
                .unwrap()
                .workload
                .as_mut()
                .unwrap()
                .workdir = workdir.to_owned();
            let mut world = World::begin(behaviour);
            let (facts, reason, ending) = world.until_the_end().await;
            assert_eq!(
                fatal(&facts),
                Some(format!("cannot run the workload: {cause}").as_str())
            );
            assert_eq!((reason, ending), (Reason::Fatal, Ending::PowerOff));
        }));
    }
}

#[tokio::test]
async fn a_working_directory_that_is_not_there_is_made() {
    alone(async {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b").display().to_string();
        let mut behaviour = Behaviour::shell("pwd");
        behaviour.workload().workdir = dir.clone();
        let mut world = World::begin(behaviour);
        let (facts, _, _) = world.until_the_end().await;
        assert_eq!(lines(&facts), [dir]);
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_made() {
    alone(async {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data/db").display().to_string();
        let mut behaviour = Behaviour::shell(&format!("cd {dir} && pwd"));
        behaviour.workload().volumes = vec![dir.clone()];
        let mut world = World::begin(behaviour);
        let (facts, _, _) = world.until_the_end().await;
        assert_eq!(lines(&facts), [dir]);
    })
    .await;
}

#[tokio::test]
async fn a_user_whom_the_root_does_not_know_is_named() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.workload().user = "nginx".to_owned();
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(
            fatal(&facts),
            Some("cannot run the workload: cannot run it as 'nginx': there is no user 'nginx' in /etc/passwd")
        );
        assert_eq!(reason, Reason::Fatal);
    })
    .await;
}

#[tokio::test]
async fn a_workload_of_another_user_has_its_groups_its_home_and_its_output() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    alone(async {
        let mut behaviour = Behaviour::shell(
            "id -u; id -g; id -G; echo $HOME; echo opened >/dev/stdout; echo opened too >>/dev/stderr",
        );
        behaviour.workload().user = "web".to_owned();
        let mut world = World::begin(behaviour);
        let etc = world.etc.path().join("etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("passwd"), "web:x:4321:4322::/srv/web:/bin/sh\n").unwrap();
        fs::write(etc.join("group"), "logs:x:4400:web\n").unwrap();
        let (facts, _, _) = world.until_the_end().await;
        let mut written = lines(&facts);
        written.sort();
        assert_eq!(
            written,
            ["/srv/web", "4321", "4322", "4322 4400", "opened", "opened too"]
        );
    })
    .await;
}

#[tokio::test]
async fn the_root_is_entered_before_anything_is_looked_for_in_it() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.config.as_mut().unwrap().root = Some(RootFilesystem {
            serial: "rootfs".to_owned(),
            format: "squashfs".to_owned(),
            ..RootFilesystem::default()
        });
        let mut world = World::begin(behaviour);
        world.until_the_end().await;
        assert_eq!(
            world.kernel.calls()[..2],
            ["root /.kestrel/root", "hostname web"]
        );
    })
    .await;
}

#[tokio::test]
async fn a_root_that_cannot_be_entered_is_fatal_with_its_cause() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.config.as_mut().unwrap().root = Some(RootFilesystem {
            serial: "rootfs".to_owned(),
            format: "ext4".to_owned(), ..RootFilesystem::default() });
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(
            fatal(&facts),
            Some("cannot enter the root file system: /dev/vda has squashfs, not ext4 as the plugin says")
        );
        assert_eq!(reason, Reason::Fatal);
    })
    .await;
}

#[tokio::test]
async fn a_host_that_is_slow_to_listen_is_dialled_again() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.refused_dials = 5;
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(reason, Reason::WorkloadExited);
        assert_eq!(exit(&facts), Some((0, 0)));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_refuses_the_agent_is_not_asked_again() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.config = Err(Status::failed_precondition("this host speaks protocol 9"));
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(
            facts
                .iter()
                .filter(|fact| matches!(fact, Fact::Hello(_)))
                .count(),
            1
        );
        assert_eq!(
            fatal(&facts),
            Some("cannot get the run configuration: the host refuses: this host speaks protocol 9")
        );
        assert_eq!(reason, Reason::Fatal);
    })
    .await;
}

#[tokio::test]
async fn a_preparation_that_failed_is_told_to_the_host() {
    alone(async {
        let mut behaviour = Behaviour::shell("exit 0");
        behaviour.prepared = Err(GuestError::Signals(io::ErrorKind::PermissionDenied.into()));
        let mut world = World::begin(behaviour);
        let (facts, reason, _) = world.until_the_end().await;
        assert_eq!(
            fatal(&facts),
            Some("cannot handle signals: permission denied")
        );
        assert_eq!(reason, Reason::Fatal);
    })
    .await;
}

#[tokio::test]
async fn a_broken_connection_is_made_again_and_the_workload_runs_on() {
    alone(async {
        let mut world = World::begin(Behaviour::shell(TRAP));
        world.until_line("ready").await;
        world.until(|fact| matches!(fact, Fact::Heartbeat(_))).await;
        world.break_connections();
        world.until(|fact| matches!(fact, Fact::Watching)).await;
        world
            .until(|fact| matches!(fact, Fact::Heartbeat(beat) if beat.agent_resident_kib > 0))
            .await;
        world.shut_down(Duration::from_secs(20)).await;
        let (facts, reason, _) = world.until_the_end().await;
        assert!(lines(&facts).contains(&"stopping".to_owned()));
        assert_eq!(reason, Reason::Requested);
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_lines_is_bounded_and_what_is_dropped_is_counted() {
    alone(async {
        const LINES: u64 = 100_000;
        let mut behaviour = Behaviour::shell(&format!("yes | head -n {LINES}"));
        behaviour.reads_late = true;
        let mut world = World::begin(behaviour);
        let (facts, _, _) = world.until_the_end().await;
        let dropped: u64 = facts
            .iter()
            .map(|fact| {
                if let Fact::Line(line) = fact {
                    line.dropped
                } else {
                    0
                }
            })
            .sum();
        assert!(dropped > LINES / 2, "only {dropped} lines were dropped");
        assert_eq!(lines(&facts).len() as u64 + dropped, LINES);
    })
    .await;
}

#[tokio::test]
async fn an_exit_that_comes_at_once_is_not_lost() {
    alone(async {
        let reaper = Reaper::start().unwrap();
        for code in 0..100 {
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", &format!("exit {code}")]);
            let (_, exit) = reaper.spawn(&mut command).unwrap();
            let exit = tokio::time::timeout(Duration::from_secs(10), exit)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(exit.code, code);
        }
        tokio::time::timeout(Duration::from_secs(10), reaper.childless())
            .await
            .unwrap();
    })
    .await;
}
