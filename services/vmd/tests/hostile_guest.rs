//! A guest that means harm: garbage, half-open connections, floods, and words that are not its to say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::time::Duration;

use support::{FakeHypervisor, LONG, Supervised, TOKEN, times};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use tonic::Code;
use vmd::{ended::Ended, hypervisor::VmmExit};
use volant_proto::agent::v1::{
    HealthChanged, HeartbeatRequest, SendLogsRequest, WorkloadRestarting, WorkloadStarted,
    report_request::Report, send_logs_request::Stream,
};

async fn power_off(vmm: &FakeHypervisor, vm: Supervised) -> support::FakeJournal {
    vmm.exit(VmmExit::GuestPowerOff);
    let (ended, journal, _) = vm.ended().await;
    assert_eq!(ended, Ended::GuestPowerOff);
    journal
}

#[tokio::test]
async fn garbage_is_dropped_and_told_once() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    for _ in 0..20 {
        let mut connection = UnixStream::connect(vm.socket()).await.unwrap();
        connection
            .write_all(b"GET /\x1b]0;evil HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let closed = timeout(LONG, connection.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "the connection stays open");
    }
    agent
        .0
        .heartbeat(HeartbeatRequest::default())
        .await
        .unwrap();
    let journal = power_off(&vmm, vm).await;
    let told = journal.contains("guest sent garbage on vsock").await;
    assert!(told.contains("GET /\\u{1b}]0;evil"), "{told}");
    assert_eq!(journal.count("guest sent garbage on vsock"), 1);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_dropped_and_the_agent_goes_on() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let mut open = Vec::new();
    for _ in 0..7 {
        open.push(UnixStream::connect(vm.socket()).await.unwrap());
    }
    // The agent has one, these have seven.
    let mut one_more = UnixStream::connect(vm.socket()).await.unwrap();
    let mut byte = [0];
    let read = timeout(Duration::from_secs(5), one_more.read(&mut byte)).await;
    assert_eq!(read.expect("closed at once").unwrap_or(0), 0);
    agent
        .0
        .heartbeat(HeartbeatRequest::default())
        .await
        .unwrap();
    let journal = power_off(&vmm, vm).await;
    journal.contains("too many connections at once").await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_after_ten_seconds() {
    let vmm = FakeHypervisor::new();
    let (vm, _agent) = Supervised::running(&vmm, times()).await;
    let mut silent = UnixStream::connect(vm.socket()).await.unwrap();
    // The preface of HTTP/2 alone is not a call.
    silent
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let closed = timeout(Duration::from_secs(15), silent.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "the connection stays open");
    power_off(&vmm, vm).await;
}

#[tokio::test]
async fn a_process_that_is_not_the_agent_cannot_speak_for_it() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let mut other = vm.agent().await;
    for boot in ["boot-1", "boot-2"] {
        let refused = other.hello(boot).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let fatal = Report::Fatal(volant_proto::agent::v1::Fatal {
        cause: "lie".to_owned(),
    });
    let refused = other.report(fatal).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    agent
        .0
        .heartbeat(HeartbeatRequest::default())
        .await
        .unwrap();
    assert_eq!(vm.live.borrow().phase, "running");
    power_off(&vmm, vm).await;
}

#[tokio::test]
async fn a_flood_of_a_process_that_is_not_the_agent_takes_nothing_from_it() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let mut other = vm.agent().await;
    let mut dropped = 0;
    for call in 0..600 {
        let refused = if call % 2 == 0 {
            other.0.heartbeat(HeartbeatRequest::default()).await.err()
        } else {
            other.hello("").await.err()
        };
        let refused = refused.expect("only the agent's calls are let through");
        if !matches!(
            refused.code(),
            Code::PermissionDenied | Code::InvalidArgument | Code::ResourceExhausted
        ) {
            dropped += 1;
        }
    }
    for _ in 0..20 {
        let beat = agent.0.heartbeat(HeartbeatRequest::default()).await;
        beat.expect("the agent's heartbeat is accepted");
    }
    assert!(dropped > 0, "the other's connection is never dropped");
    let journal = power_off(&vmm, vm).await;
    journal.contains("calls that are not its to make").await;
}

#[tokio::test]
async fn an_agent_that_comes_back_with_its_token_is_let_in_at_once_and_its_old_connection_is_not() {
    let vmm = FakeHypervisor::new();
    let (vm, mut old) = Supervised::running(&vmm, times()).await;
    let mut agent = vm.agent().await;
    let refused = agent.hello_as("boot-1", b"not it").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let answer = agent.hello_as("boot-1", &TOKEN).await.unwrap();
    assert_eq!(answer.token, TOKEN);
    let beat = HeartbeatRequest::default();
    agent.0.heartbeat(beat).await.unwrap();
    let refused = old.0.heartbeat(beat).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(vm.live.borrow().phase, "running");
    power_off(&vmm, vm).await;
}

#[tokio::test]
async fn a_process_that_says_hello_once_the_agents_connection_is_closed_is_refused_and_told() {
    let vmm = FakeHypervisor::new();
    let (vm, agent) = Supervised::running(&vmm, times()).await;
    drop(agent);
    let mut other = vm.agent().await;
    for boot in ["boot-1", "boot-2"] {
        let refused = other.hello(boot).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let mut agent = vm.agent().await;
    agent.hello_as("boot-1", &TOKEN).await.unwrap();
    let journal = power_off(&vmm, vm).await;
    journal
        .has(&["VOLANT_EVENT=not-the-agent", "VOLANT_VM=web", "PRIORITY=4"])
        .await;
    assert_eq!(journal.count("does not know the agent's token"), 1);
}

#[tokio::test]
async fn nothing_counts_before_hello() {
    let vmm = FakeHypervisor::new();
    let vm = Supervised::start(&vmm, times());
    vmm.launched(1).await;
    let mut agent = vm.agent().await;
    let started = Report::WorkloadStarted(WorkloadStarted { pid: 1 });
    let refused = agent.report(started).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let refused = agent.hello("").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    vm.phase("booting").await;
    power_off(&vmm, vm).await;
}

#[tokio::test]
async fn a_flood_of_calls_is_refused() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let mut refused = 0;
    for _ in 0..400 {
        if let Err(status) = agent.0.heartbeat(HeartbeatRequest::default()).await {
            assert_eq!(status.code(), Code::ResourceExhausted);
            refused += 1;
        }
    }
    assert!(refused > 0);
    power_off(&vmm, vm).await;
}

#[tokio::test]
async fn a_flood_of_restarts_and_of_changes_of_health_is_bounded_and_says_nothing_to_a_terminal() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let begun = std::time::Instant::now();
    let mut refused = 0;
    for round in 0..300_u32 {
        let report = if round % 2 == 0 {
            Report::WorkloadRestarting(WorkloadRestarting {
                restarts: u32::MAX - round,
                delay_ms: u32::MAX,
                ..WorkloadRestarting::default()
            })
        } else {
            Report::HealthChanged(HealthChanged {
                healthy: round % 4 == 1,
                detail: "\x1b]0;owned\x07".repeat(200),
            })
        };
        if let Err(status) = agent.report(report).await {
            assert_eq!(status.code(), Code::ResourceExhausted);
            refused += 1;
        }
    }
    let most = 60 + 4 * (begun.elapsed().as_secs() + 1);
    assert!(300 - refused <= most, "{refused} were refused");
    assert!(refused > 0, "all are taken");
    assert_eq!(vm.live.borrow().phase, "running");
    let journal = power_off(&vmm, vm).await;
    // Its reader may be behind.
    journal.has(&["VOLANT_EVENT=ended"]).await;
    assert!(journal.count("u{1b}") > 0, "no change of health is told");
    assert_eq!(journal.count("\x1b"), 0);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let line = SendLogsRequest {
        stream: Stream::Stdout.into(),
        line: vec![b'x'; 100 * 1024],
        ..SendLogsRequest::default()
    };
    let refused = agent.0.send_logs(tokio_stream::iter([line])).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    power_off(&vmm, vm).await;
}

#[tokio::test]
async fn a_flood_of_lines_is_bounded_and_told() {
    let vmm = FakeHypervisor::new();
    let (vm, mut agent) = Supervised::running(&vmm, times()).await;
    let lines = (0..40_000).map(|number| SendLogsRequest {
        stream: Stream::Stdout.into(),
        line: format!("line {number}").into_bytes(),
        ..SendLogsRequest::default()
    });
    let begun = std::time::Instant::now();
    agent.0.send_logs(tokio_stream::iter(lines)).await.unwrap();
    let seconds = begun.elapsed().as_secs() + 1;
    let journal = power_off(&vmm, vm).await;
    // Its reader may be behind.
    journal.has(&["VOLANT_EVENT=ended"]).await;
    let kept = journal.count("MESSAGE=line ");
    assert!(kept >= 20_000, "{kept}");
    assert!(kept as u64 <= 20_000 + 5_000 * seconds, "{kept}");
    if kept < 40_000 {
        journal.contains("it writes faster than it may").await;
    }
}
