//! Programs on a pseudo terminal.

use volant_proto::agent::v1::{ExecSession, WindowSize};
use volant_session::{Frame, Kind};

use crate::client::{command, eventually, exec, processes_with, run, sh};

fn tty(wanted: ExecSession) -> ExecSession {
    ExecSession {
        tty: true,
        stdin: true,
        size: Some(WindowSize {
            rows: 40,
            columns: 132,
        }),
        ..wanted
    }
}

#[tokio::test]
async fn a_program_has_a_terminal_of_its_own_and_of_that_size() {
    let done = run(tty(sh(
        "stty size; test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM; echo mine > /dev/tty; exit 4",
    )))
    .await;
    assert_eq!(done.text(), "40 132\r\nall\r\nxterm\r\nmine\r\n");
    assert_eq!(done.exit(), (4, 0));
    let usual = ExecSession {
        size: None,
        ..tty(command(&["stty", "size"]))
    };
    assert_eq!(run(usual).await.text(), "24 80\r\n");
}

#[tokio::test]
async fn a_window_that_changes_is_told() {
    let script = "trap 'stty size; told=1' WINCH; echo ready; while :; do told=; \
        if read line; then echo got $line; elif test -z \"$told\"; then exit 0; fi; done";
    let (mut client, _) = exec(tty(sh(script))).await.unwrap();
    client.until("ready").await;
    let size = WindowSize {
        rows: 11,
        columns: 22,
    };
    client.send(Frame::message(Kind::Resize, &size)).await;
    client.until("11 22").await;
    client.input(b"word\n").await;
    client.until("got word").await;
    // The end of the input is typed.
    client.end_input().await;
    assert_eq!(client.done().await.exit(), (0, 0));
}

#[tokio::test]
async fn control_c_reaches_the_program_in_front() {
    let (mut client, _) = exec(tty(sh("echo ready; exec sleep 598"))).await.unwrap();
    client.until("ready").await;
    client.input(b"\x03").await;
    assert_eq!(client.done().await.exit(), (130, 2));
}

#[tokio::test]
async fn a_terminal_that_is_closed_leaves_nothing() {
    let marker = "volant-session-test-closed";
    let script = format!(
        "set -m; sh -c 'while :; do sleep 0.1; done' {marker} & \
         sh -c 'trap \"\" HUP; while :; do sleep 0.1; done' {marker} & echo ready; exec sh -c 'while :; do sleep 0.1; done' {marker}"
    );
    let (mut client, _) = exec(tty(sh(&script))).await.unwrap();
    client.until("ready").await;
    eventually("all run", || processes_with(marker).len() >= 3).await;
    drop(client);
    eventually("no process is left", || processes_with(marker).is_empty()).await;
}

#[tokio::test]
async fn a_shell_that_ends_leaves_no_process_but_those_that_want_to_stay() {
    let (goes, stays) = ("volant-session-test-goes", "volant-session-test-stays");
    let script = format!(
        "sh -c 'echo one; while :; do sleep 0.1; done' {goes} & \
         sh -c 'trap \"\" HUP; echo two; while :; do sleep 0.1; done' {stays} & sleep 0.5; exit 8"
    );
    let done = run(tty(sh(&script))).await;
    assert_eq!(done.exit(), (8, 0));
    eventually("it has gone", || processes_with(goes).is_empty()).await;
    let left = processes_with(stays);
    assert!(!left.is_empty());
    for pid in left {
        run(sh(&format!("kill -9 {pid}"))).await.exit();
    }
}

#[tokio::test]
async fn all_that_was_written_last_arrives() {
    let done = run(tty(command(&["seq", "1", "30000"]))).await;
    assert!(done.text().ends_with("\r\n29999\r\n30000\r\n"));
}
