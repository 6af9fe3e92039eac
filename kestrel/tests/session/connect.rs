//! Connections to ports of the guest.

use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use volant_proto::agent::v1::session_refused::Kind as Why;
use volant_session::Kind;

use crate::client::{Client, connect, eventually, within};

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn each_side_ends_when_it_likes() {
    let (listener, port) = listen().await;
    let mut client = connect("", port).await.unwrap();
    let (mut peer, _) = within(listener.accept()).await.unwrap();
    client.input(b"question").await;
    client.end_input().await;
    let mut question = String::new();
    within(peer.read_to_string(&mut question)).await.unwrap();
    assert_eq!(question, "question");
    peer.write_all(b"answer").await.unwrap();
    drop(peer);
    let done = client.done().await;
    assert_eq!(done.text(), "answer");
    done.exit();

    // The other way round.
    let mut client = connect("localhost", port).await.unwrap();
    let (mut peer, _) = within(listener.accept()).await.unwrap();
    peer.write_all(b"hello").await.unwrap();
    peer.shutdown().await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&Kind::OutputEnd) {
        kinds.push(client.next().await.unwrap().kind);
    }
    client.input(b"late").await;
    client.end_input().await;
    let mut late = String::new();
    within(peer.read_to_string(&mut late)).await.unwrap();
    assert_eq!(late, "late");
    client.done().await.exit();
}

#[tokio::test]
async fn ports_of_ipv6_alone_are_found() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    for host in ["", "::1", "[::1]"] {
        connect(host, port).await.unwrap();
        within(listener.accept()).await.unwrap();
    }
}

#[tokio::test]
async fn who_does_not_answer_is_named() {
    let (listener, port) = listen().await;
    drop(listener);
    for (host, port, why, words) in [
        (
            "",
            port,
            Why::Unusable,
            format!("port {port}: Connection refused"),
        ),
        (
            "127.0.0.1",
            port,
            Why::Unusable,
            format!("127.0.0.1:{port}: Connection refused"),
        ),
        ("", 0, Why::Invalid, "1 to 65535".to_owned()),
        (
            "not a name",
            1,
            Why::NotFound,
            "no name of a host".to_owned(),
        ),
    ] {
        let refused = connect(host, port).await.err().unwrap();
        assert_eq!(refused.kind(), why, "{}", refused.message);
        assert!(refused.message.contains(&words), "{}", refused.message);
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_and_a_host_that_goes_leave_nothing() {
    let (listener, port) = listen().await;
    let mut client: Client = connect("", port).await.unwrap();
    let (mut peer, _) = within(listener.accept()).await.unwrap();
    let frame = volant_session::Frame::new(Kind::Input, vec![7; 65_536]);
    let mut sent = 0_u64;
    let stalled = async {
        loop {
            client.writer.send(&frame).await.unwrap();
            sent += 65_536;
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_millis(500), stalled).await;
    drop(client);
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0;
    // What was on its way may come, and then there is an end, or the connection breaks.
    while let Ok(count @ 1..) = within(peer.read(&mut buffer)).await {
        received += count as u64;
    }
    assert!(received <= sent + 65_536);
}

#[tokio::test]
async fn a_peer_that_breaks_the_connection_is_told() {
    let (listener, port) = listen().await;
    let mut client = connect("", port).await.unwrap();
    let (peer, _) = within(listener.accept()).await.unwrap();
    // Closed with something unread, and at once.
    client.input(b"unread").await;
    eventually("it has come", || {
        let mut byte = [0];
        peer.try_io(tokio::io::Interest::READABLE, || {
            nix::sys::socket::recv(
                std::os::fd::AsRawFd::as_raw_fd(&peer),
                &mut byte,
                nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT,
            )
            .map_err(Into::into)
        })
        .is_ok()
    })
    .await;
    drop(peer);
    let end = client.done().await.end;
    assert!(end.error.contains("broke"), "{}", end.error);
}
