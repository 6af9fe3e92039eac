//! How many sessions there are at a time, and what is left of them: alone in its process, as it counts what that has.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

#[allow(dead_code, reason = "shared with the tests of sessions")]
#[path = "session/client.rs"]
mod client;

use std::fs;

use client::{Client, command, eventually, exec, processes_with, run, sh};
use tokio::sync::Mutex;
use volant_proto::agent::v1::{ExecSession, session_refused::Kind as Why};

static ONE: Mutex<()> = Mutex::const_new(());
/// Of the agent.
const MOST_SESSIONS: usize = 128;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> usize {
    let this = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(')').next().unwrap_or_default();
            parent.split_whitespace().nth(1) == Some(&this)
        })
        .count()
}

#[tokio::test]
async fn two_hundred_programs_leave_nothing() {
    let _one = ONE.lock().await;
    run(sh("exit 0")).await.exit();
    let before = descriptors();
    for number in 0..200 {
        let wanted = ExecSession {
            tty: number % 4 == 0,
            stdin: number % 2 == 0,
            ..command(&["true"])
        };
        let (client, _) = exec(wanted).await.unwrap();
        // Some hosts go before the end.
        if number % 5 != 0 {
            assert_eq!(client.done().await.exit(), (0, 0));
        }
    }
    eventually("descriptors are closed", || descriptors() <= before).await;
    eventually("no process is left", || children() == 0).await;
}

#[tokio::test]
async fn one_session_too_many_is_refused_until_another_ends() {
    let _one = ONE.lock().await;
    let marker = "volant-session-test-many";
    let long = || exec(command(&["/bin/sh", "-c", "read word", marker]));
    let stdin = || {
        exec(ExecSession {
            stdin: true,
            ..command(&["/bin/sh", "-c", "read word; exit 0", marker])
        })
    };
    let mut held: Vec<Client> = Vec::new();
    for _ in 0..MOST_SESSIONS {
        held.push(stdin().await.unwrap().0);
    }
    let refused = long().await.err().unwrap();
    assert_eq!(refused.kind(), Why::Busy, "{}", refused.message);
    let mut last = held.pop().unwrap();
    last.end_input().await;
    last.done().await.exit();
    // Its place is free with its end.
    let (client, _) = exec(sh("exit 3")).await.unwrap();
    assert_eq!(client.done().await.exit(), (3, 0));
    drop(held);
    eventually("no process is left", || processes_with(marker).is_empty()).await;
}
