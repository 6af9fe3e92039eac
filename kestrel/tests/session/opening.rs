//! Who gets a session, and what is told of the guest.

use tokio::io::AsyncWriteExt as _;
use volant_proto::agent::v1::{
    SessionRefused, SessionRequest, StatsSession, session_refused::Kind as Why,
    session_request::Session,
};
use volant_session::{Frame, Kind};

use crate::client::{Client, GUEST, TOKEN, exec, run, sh};

async fn refused(frame: Frame) -> SessionRefused {
    let mut client = Client::connect().await;
    client.send(frame).await;
    let answer = client.next().await.unwrap();
    assert_eq!(answer.kind, Kind::Refused);
    assert!(client.next().await.is_none());
    answer.decode().unwrap()
}

#[tokio::test]
async fn who_has_not_the_token_gets_no_session() {
    for token in [&b""[..], b"a token of that boot", &TOKEN[..5]] {
        let request = SessionRequest {
            token: token.to_vec(),
            session: Some(Session::Exec(sh("exit 0"))),
        };
        let refused = refused(Frame::message(Kind::Open, &request)).await;
        assert_eq!(refused.kind(), Why::Denied);
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let nothing = SessionRequest {
        token: TOKEN.to_vec(),
        session: None,
    };
    for frame in [
        Frame::message(Kind::Open, &nothing),
        Frame::new(Kind::Input, b"hello".to_vec()),
        Frame::new(Kind::Open, b"\xff\xff".to_vec()),
    ] {
        let refused = refused(frame).await;
        assert_eq!(refused.kind(), Why::Invalid, "{}", refused.message);
    }
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection() {
    let mut client = Client::connect().await;
    client.writer.0.write_all(&[99; 5]).await.unwrap();
    let answer = client.next().await.unwrap();
    assert_eq!(answer.kind, Kind::Refused);
    assert!(client.next().await.is_none());
    assert_eq!(run(sh("exit 4")).await.exit(), (4, 0));
}

#[tokio::test]
async fn the_guest_s_state_is_told_at_once() {
    GUEST.facts.set_restarts(2);
    GUEST.facts.set_healthy(true);
    let wanted = StatsSession { processes: 5 };
    let (client, opened) = Client::open(Session::Stats(wanted)).await.unwrap();
    let stats = opened.stats.unwrap();
    assert!(stats.cpus > 0 && stats.uptime_ms > 0 && stats.memory_total_kib > 0);
    assert!(stats.memory_available_kib <= stats.memory_total_kib);
    assert!(stats.cpu_busy_ms > 0 && stats.cpu_busy_ms <= stats.cpu_total_ms);
    assert!(stats.process_count >= 5);
    assert_eq!(stats.processes.len(), 5);
    assert!(stats.filesystems.iter().any(|found| found.total_kib > 0));
    assert_eq!((stats.restarts, &*stats.health), (2, "healthy"));
    client.done().await.exit();
}

#[tokio::test]
async fn a_connection_has_one_program_after_another() {
    let (mut client, opened) = exec(sh("exit 1")).await.unwrap();
    assert!(opened.again);
    assert_eq!(client.last().await.exit(), (1, 0));
    for code in 2..5 {
        // A host may say this before it knows of the end.
        client.signal(9).await;
        client.input(b"for nobody").await;
        client.end_input().await;
        let wanted = Session::Exec(sh(&format!("echo {code}; exit {code}")));
        client.ask(wanted).await.unwrap();
        let done = client.last().await;
        assert_eq!((done.text(), done.exit()), (format!("{code}\n"), (code, 0)));
    }
    let wanted = SessionRequest {
        token: b"another boot's".to_vec(),
        session: Some(Session::Exec(sh("exit 0"))),
    };
    client.send(Frame::message(Kind::Open, &wanted)).await;
    assert_eq!(client.next().await.unwrap().kind, Kind::Refused);
    assert!(client.next().await.is_none());
}
