//! A supervisor with a fake VMM and an agent that the test speaks for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::{FakeHypervisor, LONG, Supervised, times};
use tokio::time::timeout;
use tonic::Code;
use vmd::{
    ended::{Ended, WorkloadExit},
    handle::HandleError,
    happening::Detail,
    hypervisor::VmmExit,
    life::{Rung, Times},
};
use volant_proto::agent::v1::{
    HealthChanged, HeartbeatRequest, RunConfig, SendLogsRequest, WatchCommandsRequest,
    WorkloadExited, WorkloadRestarting, going_down::Reason, report_request::Report,
    send_logs_request::Stream, watch_commands_response::Command,
};

#[tokio::test]
async fn a_vm_is_running_once_its_workload_was_started() {
    let vmm = FakeHypervisor::new();
    let vm = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    vm.phase("booting").await;
    let mut agent = vm.agent().await;
    let config = agent.hello("boot-1").await.unwrap().run_config.unwrap();
    assert_eq!(config.hostname, "web");
    // An agent that lost its answer asks again.
    let again = agent.hello("boot-1").await.unwrap().run_config.unwrap();
    assert!(again.time_unix_ns >= config.time_unix_ns && config.time_unix_ns > 0);
    let time_unix_ns = config.time_unix_ns;
    assert_eq!(
        RunConfig {
            time_unix_ns,
            ..again
        },
        config
    );
    assert_eq!(vm.live.borrow().phase, "booting");
    assert_eq!(vm.live.borrow().ready_since_unix_ms, 0);

    agent.started(42).await;
    assert_eq!(vm.live.borrow().phase, "booting");
    agent.ready().await;
    vm.phase("running").await;
    let beat = HeartbeatRequest {
        memory_total_kib: 2048,
        memory_available_kib: 1024,
        ..HeartbeatRequest::default()
    };
    agent.0.heartbeat(beat).await.unwrap();
    let mut live = vm.live.clone();
    let beaten = live.wait_for(|live| live.heartbeat.memory_available_kib == 1024);
    let live = timeout(LONG, beaten).await.unwrap().unwrap().clone();
    assert_eq!(
        live.status,
        "running: 192.168.127.2, fake (none), workload pid 42"
    );
    assert_eq!(live.agent_version, "1.2.3");
    assert_eq!(live.vmm_pid, 4242);
    assert!(live.ready_since_unix_ms > 0);

    agent.exited(0, 0).await;
    agent.going_down(Reason::WorkloadExited).await;
    vmm.exit(VmmExit::GuestReset);
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended, Ended::Workload(WorkloadExit::new(0, 0)));
    assert_eq!(ended.exit_code(), 0);
    journal
        .has(&[
            "VOLANT_ENDED=workload-exited",
            "VOLANT_VM=web",
            "PRIORITY=6",
        ])
        .await;
}

#[tokio::test]
async fn a_workload_that_fails_gives_its_code_to_the_unit() {
    for (code, signal, expected) in [(3, 0, 3), (137, 9, 137), (70_000, 0, 255)] {
        let vmm = FakeHypervisor::new();
        let (vm, mut agent) = Supervised::running(&vmm, times()).await;
        agent.exited(code, signal).await;
        agent.going_down(Reason::WorkloadExited).await;
        vmm.exit(VmmExit::GuestReset);
        let (ended, ..) = vm.ended().await;
        assert_eq!(ended.exit_code(), expected, "{ended}");
    }
}

#[tokio::test]
async fn a_guest_without_an_agent_is_ended_after_its_time() {
    let vmm = FakeHypervisor::new();
    let times = Times {
        boot: Duration::from_millis(100),
        ..times()
    };
    let (ended, journal, _) = Supervised::start(&vmm, times).ended().await;
    assert_eq!(ended, Ended::NoAgent { seconds: 0 });
    assert_eq!(ended.exit_code(), 72);
    assert_eq!(vmm.kills(), 1);
    journal.contains("is kestrel the initramfs's /init?").await;
}

#[tokio::test]
async fn a_fatal_error_of_the_agent_is_told_with_its_cause() {
    let vmm = FakeHypervisor::new();
    let vm = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    let mut agent = vm.agent().await;
    agent.hello("boot-1").await.unwrap();
    agent
        .fatal("cannot start /usr/bin/caddy: no such file\x1b[2J")
        .await;
    agent.going_down(Reason::Fatal).await;
    vmm.exit(VmmExit::GuestReset);
    let (ended, ..) = vm.ended().await;
    assert_eq!(
        ended.to_string(),
        "the agent could not go on: cannot start /usr/bin/caddy: no such file\\u{1b}[2J"
    );
    assert_eq!(ended.exit_code(), 73);
}

#[tokio::test]
async fn an_agent_of_another_protocol_is_refused_with_a_clear_word() {
    let vmm = FakeHypervisor::new();
    let vm = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    let mut agent = vm.agent().await;
    let refused = agent.hello_with("boot-1", 7).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the agent 7"), "{refused}");
    let (ended, ..) = vm.ended().await;
    assert!(ended.to_string().contains("the agent 7"), "{ended}");
}

#[tokio::test]
async fn a_vmm_that_dies_is_named() {
    let vmm = FakeHypervisor::new();
    let (vm, _agent) = Supervised::running(&vmm, times()).await;
    vmm.exit(VmmExit::Killed {
        program: "fake",
        signal: 9,
    });
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended.to_string(), "fake was killed by signal 9");
    assert_eq!(ended.exit_code(), 70);
    journal
        .has(&["VOLANT_ENDED=vmm-crashed", "PRIORITY=3"])
        .await;
}

#[tokio::test]
async fn a_vmm_that_is_not_there_is_told() {
    let vmm = FakeHypervisor::new();
    vmm.be_missing();
    let (ended, ..) = Supervised::start(&vmm, times()).ended().await;
    assert_eq!(ended.to_string(), "fake is not installed; it cannot be");
    assert_eq!(ended.exit_code(), 69);
}

#[tokio::test]
async fn a_panic_on_the_console_tells_a_reset_from_a_reboot() {
    let vmm = FakeHypervisor::new();
    let vm = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    vmm.print("[    0.1] Linux version 6.1\r\n[    0.2] Kernel panic - not syncing: No init");
    vmm.exit(VmmExit::GuestReset);
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(
        ended.to_string(),
        "the guest's kernel panicked: Kernel panic - not syncing: No init; no agent had called: is kestrel the initramfs's /init?"
    );
    assert_eq!(ended.exit_code(), 71);
    journal
        .has(&[
            "MESSAGE=[    0.1] Linux version 6.1",
            "SYSLOG_IDENTIFIER=kernel",
            "VOLANT_STREAM=console",
            "VOLANT_VM=web",
            "VOLANT_VM_UUID=0198",
        ])
        .await;
}

#[tokio::test]
async fn a_reboot_starts_the_vmm_again_within_the_same_run() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    agent.going_down(Reason::GuestReboot).await;
    drop(agent);
    vmm.exit(VmmExit::GuestReset);
    vmm.launched(2).await;
    vm.phase("booting").await;
    assert_eq!(
        vm.live.borrow().status,
        "booting: waiting for the agent, fake (none) (reboot 1 within a minute)"
    );
    let said = vm.console.reader(usize::MAX).now().bytes;
    assert_eq!(said, b"\r\n[the guest was rebooted]\r\n");
    let mut agent = vm.agent().await;
    agent.hello("boot-2").await.unwrap();
    agent.started(43).await;
    agent.ready().await;
    vm.phase("running").await;
    agent.going_down(Reason::GuestPoweroff).await;
    vmm.exit(VmmExit::GuestPowerOff);
    let (ended, ..) = vm.ended().await;
    assert_eq!(ended, Ended::GuestPowerOff);
}

#[tokio::test]
async fn a_guest_that_falls_silent_is_ended() {
    let vmm = FakeHypervisor::new();
    let silence = Duration::from_millis(200);
    let (vm, _agent) = Supervised::running(&vmm, Times { silence, ..times() }).await;
    let (ended, ..) = vm.ended().await;
    assert_eq!(ended, Ended::AgentSilent { seconds: 0 });
    assert_eq!(vmm.kills(), 1);
}

#[tokio::test]
async fn a_stop_is_the_agents_to_carry_out() {
    let vmm = FakeHypervisor::new();
    let grace = LONG;
    let (mut vm, mut agent) = Supervised::running(&vmm, Times { grace, ..times() }).await;
    let commands = agent.0.watch_commands(WatchCommandsRequest {}).await;
    let mut commands = commands.unwrap().into_inner();
    vm.stop();
    let command = timeout(LONG, commands.message()).await.unwrap().unwrap();
    let Some(Command::Shutdown(shutdown)) = command.unwrap().command else {
        panic!("no shutdown");
    };
    assert_eq!(shutdown.grace_ms, 20_000);
    assert!(vm.live.borrow().status.contains("up to 20 s"));
    agent.exited(143, 15).await;
    agent.going_down(Reason::Requested).await;
    vmm.exit(VmmExit::GuestReset);
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended, Ended::Stopped(Rung::Agent));
    assert_eq!(ended.exit_code(), 0);
    assert_eq!((vmm.presses(), vmm.kills()), (0, 0));
    journal
        .contains("stopped: the agent shut the guest down")
        .await;
}

#[tokio::test]
async fn a_command_waits_for_an_agent_that_does_not_listen_yet() {
    let vmm = FakeHypervisor::new();
    let grace = LONG;
    let (mut vm, mut agent) = Supervised::running(&vmm, Times { grace, ..times() }).await;
    vm.stop();
    vm.phase("stopping").await;
    let commands = agent.0.watch_commands(WatchCommandsRequest {}).await;
    let mut commands = commands.unwrap().into_inner();
    let command = timeout(LONG, commands.message()).await.unwrap().unwrap();
    assert!(command.is_some());
    // A newer stream ends the older one.
    let newer = agent.0.watch_commands(WatchCommandsRequest {}).await;
    let _newer = newer.unwrap();
    let end = timeout(LONG, commands.message()).await.unwrap().unwrap();
    assert_eq!(end, None);
    vmm.exit(VmmExit::GuestReset);
    vm.ended().await;
}

#[tokio::test]
async fn an_agent_that_does_not_answer_leaves_the_stop_to_the_power_button() {
    let vmm = FakeHypervisor::new();
    vmm.hear_the_button();
    let (mut vm, _agent) = Supervised::running(&vmm, times()).await;
    vm.stop();
    let (ended, ..) = vm.ended().await;
    assert_eq!(ended, Ended::Stopped(Rung::Button(1)));
    assert_eq!(ended.exit_code(), 0);
    assert_eq!(vmm.kills(), 0);
}

#[tokio::test]
async fn a_guest_that_hears_nothing_is_killed_in_the_end() {
    let vmm = FakeHypervisor::new();
    let (mut vm, _agent) = Supervised::running(&vmm, times()).await;
    vm.stop();
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended, Ended::Stopped(Rung::Kill));
    assert_eq!((vmm.presses(), vmm.kills()), (3, 1));
    journal.contains("stopped: the VMM was killed").await;
}

#[tokio::test]
async fn a_stop_during_boot_works_at_once() {
    let vmm = FakeHypervisor::new();
    let mut vm = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    vm.phase("booting").await;
    let begun = std::time::Instant::now();
    vm.stop();
    let (ended, ..) = vm.ended().await;
    assert_eq!(ended, Ended::Stopped(Rung::Kill));
    assert_eq!(vmm.presses(), 0);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn logs_arrive_with_their_stream_and_what_was_lost() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let line = |stream: Stream, text: &str, dropped| SendLogsRequest {
        stream: stream.into(),
        line: text.as_bytes().to_vec(),
        time_unix_ms: 0,
        dropped,
    };
    let lines = vec![
        line(Stream::Stdout, "hello", 0),
        line(Stream::Stderr, "oh\x07", 7),
        line(Stream::Agent, "mounted", 0),
    ];
    let sent = agent.0.send_logs(tokio_stream::iter(lines)).await;
    sent.unwrap();
    vmm.exit(VmmExit::GuestPowerOff);
    let (_, journal, _) = vm.ended().await;
    journal
        .has(&["MESSAGE=hello", "SYSLOG_IDENTIFIER=caddy", "PRIORITY=6"])
        .await;
    journal
        .has(&["MESSAGE=oh\\u{7}", "VOLANT_STREAM=stderr", "PRIORITY=5"])
        .await;
    journal
        .has(&["MESSAGE=mounted", "SYSLOG_IDENTIFIER=kestrel"])
        .await;
    journal.contains("the agent dropped 7 lines").await;
}

#[tokio::test]
async fn a_paused_guest_may_be_silent_and_gets_the_time_when_it_goes_on() {
    let vmm = FakeHypervisor::new();
    let silence = Duration::from_millis(300);
    let (mut vm, mut agent) = Supervised::running(&vmm, Times { silence, ..times() }).await;
    let commands = agent.0.watch_commands(WatchCommandsRequest {}).await;
    let mut commands = commands.unwrap().into_inner();
    vm.handle.pause().await.unwrap();
    vm.handle.pause().await.unwrap();
    assert!(vm.live.borrow().paused);
    assert_eq!(vm.live.borrow().phase, "running");
    let denied = vm.handle.resize(Some(2), None).await.unwrap_err();
    assert!(matches!(denied, HandleError::Denied(why) if why.contains("resume it")));
    // Longer than a guest that runs may be silent.
    let ended = vm.happened("ended");
    assert!(timeout(silence * 3, ended).await.is_err());
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    vm.handle.resume().await.unwrap();
    vm.handle.resume().await.unwrap();
    let command = timeout(LONG, commands.message()).await.unwrap().unwrap();
    let Some(Command::SetClock(clock)) = command.unwrap().command else {
        panic!("no clock");
    };
    assert!(u128::from(clock.time_unix_ns) >= before.as_nanos());
    assert!(!vm.live.borrow().paused);
    assert_eq!(vmm.acts(), ["pause", "resume"]);
    vm.happened("resumed").await;
    vmm.exit(VmmExit::GuestPowerOff);
    let (_, journal, _) = vm.ended().await;
    journal.has(&["VOLANT_EVENT=paused", "VOLANT_VM=web"]).await;
    journal.has(&["VOLANT_EVENT=resumed"]).await;
}

#[tokio::test]
async fn a_paused_guest_that_is_stopped_goes_on_first() {
    let vmm = FakeHypervisor::new();
    let grace = LONG;
    let (mut vm, mut agent) = Supervised::running(&vmm, Times { grace, ..times() }).await;
    vm.handle.pause().await.unwrap();
    vm.stop();
    vm.phase("stopping").await;
    let commands = agent.0.watch_commands(WatchCommandsRequest {}).await;
    let mut commands = commands.unwrap().into_inner();
    let command = timeout(LONG, commands.message()).await.unwrap().unwrap();
    assert!(matches!(
        command.unwrap().command,
        Some(Command::Shutdown(_))
    ));
    let denied = vm.handle.pause().await.unwrap_err();
    assert_eq!(denied.to_string(), "the VM is being stopped");
    assert_eq!(vmm.acts(), ["pause", "resume"]);
    agent.going_down(Reason::Requested).await;
    vmm.exit(VmmExit::GuestReset);
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended, Ended::Stopped(Rung::Agent));
    journal
        .has(&["VOLANT_ENDED=stopped", "VOLANT_RUNG=agent"])
        .await;
}

#[tokio::test]
async fn a_wish_that_the_vmm_does_not_grant_changes_nothing() {
    let vmm = FakeHypervisor::new();
    let booting = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    let denied = booting.handle.pause().await.unwrap_err();
    assert!(denied.to_string().contains("boots"), "{denied}");
    drop(booting);

    let vmm = FakeHypervisor::new();
    let (vm, _agent) = Supervised::running(&vmm, times()).await;
    vmm.refuse(true);
    for failed in [
        vm.handle.pause().await.unwrap_err(),
        vm.handle.resize(Some(2), None).await.unwrap_err(),
    ] {
        assert_eq!(
            failed,
            HandleError::Failed("fake did not do it: it refuses".to_owned())
        );
    }
    assert!(!vm.live.borrow().paused);
    assert_eq!(vm.live.borrow().cpu_cores, 0);
    let handle = vm.handle.clone();
    vmm.exit(VmmExit::GuestPowerOff);
    vm.ended().await;
    assert_eq!(handle.pause().await, Err(HandleError::Gone));
}

#[tokio::test]
async fn a_resized_guest_has_its_new_resources_after_a_reboot_as_well() {
    let vmm = FakeHypervisor::new();
    let (mut vm, mut agent) = Supervised::running(&vmm, times()).await;
    let handle = vm.handle.clone();
    handle.resize(Some(2), Some(512)).await.unwrap();
    handle.resize(None, Some(512)).await.unwrap();
    assert_eq!(vmm.acts(), ["resize 2 512"]);
    assert_eq!(vm.live.borrow().memory_mb, 512);
    let told = vm.happened("resized").await;
    assert_eq!(told.details[0], ("cpu_cores", Detail::Number(2)));
    let unsupported = handle.resize(Some(16), None).await.unwrap_err();
    assert!(matches!(unsupported, HandleError::Unsupported(_)));
    let invalid = handle.resize(Some(1000), None).await.unwrap_err();
    assert!(matches!(invalid, HandleError::Invalid(_)), "{invalid}");
    agent.going_down(Reason::GuestReboot).await;
    drop(agent);
    vmm.exit(VmmExit::GuestReset);
    vmm.launched(2).await;
    assert_eq!(vmm.resources().memory_mb, 512);
    vm.happened("rebooting").await;
    assert_eq!(vm.live.borrow().reboots, 1);
    vmm.exit(VmmExit::GuestPowerOff);
    vm.ended().await;
}

#[tokio::test]
async fn a_workload_that_is_started_again_or_not_well_is_told_and_does_not_end_the_vm() {
    let vmm = FakeHypervisor::new();
    let (mut vm, mut agent) = Supervised::running(&vmm, times()).await;
    let exit = |code, signal| WorkloadExited {
        code,
        signal,
        out_of_memory: signal == 9,
    };
    for restarts in [1, 1] {
        let restarting = Report::WorkloadRestarting(WorkloadRestarting {
            exit: Some(exit(137, 9)),
            restarts,
            delay_ms: 200,
            unhealthy: false,
        });
        agent.report(restarting).await.unwrap();
    }
    let told = vm.happened("workload-restarting").await;
    assert_eq!(
        told.text,
        "the workload is started again in 0.2 s (start 1 after the first), as it was killed by signal 9; the guest had no memory left: give it more, or let it need less"
    );
    agent.started(77).await;
    for (healthy, what) in [(false, "unhealthy"), (false, ""), (true, "healthy")] {
        let detail = "status 500\x07".to_owned();
        let health = HealthChanged { healthy, detail };
        agent.report(Report::HealthChanged(health)).await.unwrap();
        if !what.is_empty() {
            vm.happened(what).await;
        }
        assert_eq!(vm.live.borrow().phase, "running");
    }
    assert_eq!(vm.live.borrow().workload_restarts, 1);
    assert_eq!(vm.live.borrow().health, "healthy");
    agent.going_down(Reason::Unhealthy).await;
    vmm.exit(VmmExit::GuestReset);
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended.name(), "unhealthy");
    assert_eq!(ended.exit_code(), 79);
    journal
        .has(&["MESSAGE=the workload is not healthy: status 500\\u{7}"])
        .await;
    assert_eq!(journal.count("VOLANT_EVENT=workload-restarting"), 1);
}
