//! A supervisor that is asked for its VM: what the agent said is settled first, and nobody who is refused has changed anything.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::time::Duration;

use support::{FakeHypervisor, Supervised, times};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use vmd::{
    life::Unsaved,
    supervise::{Busy, Handover, Snapshot},
};
use volant_proto::agent::v1::{SendLogsRequest, send_logs_request::Stream};
use volant_service::Heirlooms;

const LONG: Duration = Duration::from_secs(20);

async fn ask(vm: &Supervised, is_final: bool) -> Result<(Snapshot, Heirlooms), Busy> {
    let (tell, told) = oneshot::channel();
    let take = Box::new(move |given| drop(tell.send(given)));
    let handover = Handover { is_final, take };
    vm.handovers.send(handover).await.unwrap();
    timeout(LONG, told).await.unwrap().unwrap()
}

fn line(text: &str) -> SendLogsRequest {
    SendLogsRequest {
        stream: Stream::Stdout.into(),
        line: text.as_bytes().to_vec(),
        ..SendLogsRequest::default()
    }
}

#[tokio::test]
async fn log_lines_are_counted_before_a_successor_and_go_on_without_one() {
    let vmm = FakeHypervisor::new();
    let (vm, agent) = Supervised::running(&vmm, times()).await;
    let mut host = agent.0.clone();
    let (lines, stream) = mpsc::channel(16);
    let sent = tokio::spawn(async move { host.send_logs(ReceiverStream::new(stream)).await });
    lines.send(line("one")).await.unwrap();
    vm.journal.has(&["MESSAGE=one"]).await;

    // This driver knows nothing of successors; it is asked after all else is settled.
    assert!(matches!(ask(&vm, true).await, Err(Busy::Vmm)));
    // The stream was not ended by the agent, and its line is counted.
    let answer = timeout(LONG, sent).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_inner().lines, 1);

    let mut host = agent.0.clone();
    let answer = host.send_logs(tokio_stream::iter([line("two")])).await;
    assert_eq!(answer.unwrap().into_inner().lines, 1);
    vm.journal.has(&["MESSAGE=two"]).await;
    assert_eq!(vm.live.borrow().phase, "running");
}

#[tokio::test]
async fn a_draft_ends_nothing_and_a_vm_that_starts_or_stops_is_nobodys() {
    let vmm = FakeHypervisor::new();
    let (mut vm, agent) = Supervised::running(&vmm, times()).await;
    let mut host = agent.0.clone();
    let (lines, stream) = mpsc::channel(16);
    let mut sent = tokio::spawn(async move { host.send_logs(ReceiverStream::new(stream)).await });
    lines.send(line("one")).await.unwrap();
    vm.journal.has(&["MESSAGE=one"]).await;
    assert!(matches!(ask(&vm, false).await, Err(Busy::Vmm)));
    lines.send(line("two")).await.unwrap();
    vm.journal.has(&["MESSAGE=two"]).await;
    drop(lines);
    let answer = timeout(LONG, &mut sent).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_inner().lines, 2);

    vm.stop();
    vm.phase("stopping").await;
    for is_final in [false, true] {
        let busy = ask(&vm, is_final).await.unwrap_err();
        assert!(matches!(busy, Busy::Life(Unsaved::Stops)), "{busy}");
    }
}
