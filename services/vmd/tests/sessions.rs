//! The face for clients, with agents behind it that behave and that do not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use support::guest::{Face, Peer};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use volant_proto::{
    agent::v1::{
        FilesystemStats, GuestStats, PathInfo, ProcessStats, SessionEnd, SessionOpened,
        SessionRefused, WindowSize, session_refused, session_request::Session as Ask,
    },
    vm::v1::{
        self, ConnectRequest, ConnectTarget, ExecAttach, ExecRequest, ExecResponse, ExecStart,
        GetStatsRequest, PackRequest, StdinEnd, UnpackRequest, UnpackTarget, connect_request,
        connect_response, exec_request, exec_response, pack_response, unpack_request,
    },
};
use volant_session::{Frame, Kind};

const LONG: Duration = Duration::from_secs(20);

fn start(command: &str) -> exec_request::Message {
    exec_request::Message::Start(ExecStart {
        command: vec![command.to_owned()],
        stdin: true,
        ..ExecStart::default()
    })
}

/// A call of exec: its requests go by the sender.
async fn exec(
    face: &Face,
    first: exec_request::Message,
) -> Result<(mpsc::Sender<ExecRequest>, Streaming<ExecResponse>), tonic::Status> {
    let (requests, stream) = mpsc::channel(16);
    say(&requests, first).await;
    let mut client = face.client().await;
    let answers = timeout(LONG, client.exec(ReceiverStream::new(stream)))
        .await
        .unwrap()?;
    Ok((requests, answers.into_inner()))
}

async fn say(requests: &mpsc::Sender<ExecRequest>, message: exec_request::Message) {
    let request = ExecRequest {
        message: Some(message),
    };
    requests.send(request).await.unwrap();
}

async fn hear(answers: &mut Streaming<ExecResponse>) -> exec_response::Message {
    let answer = timeout(LONG, answers.message()).await.unwrap().unwrap();
    answer.unwrap().message.unwrap()
}

async fn started(answers: &mut Streaming<ExecResponse>) -> v1::ExecStarted {
    match hear(answers).await {
        exec_response::Message::Started(started) => started,
        other => panic!("{other:?}"),
    }
}

async fn exited(answers: &mut Streaming<ExecResponse>) -> v1::ExecExited {
    loop {
        match hear(answers).await {
            exec_response::Message::Exited(exited) => return exited,
            exec_response::Message::Stdout(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A program that says what it is told, and ends with 3 when its input does.
async fn echo(mut peer: Peer) {
    peer.opened(42).await;
    while let Some(frame) = peer.next().await {
        match frame.kind {
            Kind::Input => {
                peer.send(Frame::new(Kind::Output, frame.payload)).await;
            }
            Kind::InputEnd => {
                let end = SessionEnd {
                    code: 3,
                    ..SessionEnd::default()
                };
                return peer.end(end).await;
            }
            Kind::Resize => {
                let size: WindowSize = frame.decode().unwrap();
                let text = format!("{}x{}", size.rows, size.columns);
                peer.send(Frame::new(Kind::Error, text.into_bytes())).await;
            }
            Kind::Signal => {
                peer.send(Frame::new(Kind::Error, frame.payload)).await;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_program_gets_what_its_client_says_and_the_client_what_it_answers() {
    let face = Face::serve(|peer| async move {
        let Ask::Exec(exec) = &peer.ask else {
            panic!("{:?}", peer.ask)
        };
        assert_eq!(exec.command, ["cat"]);
        assert!(exec.stdin && !exec.tty);
        echo(peer).await;
    })
    .await;
    let (requests, mut answers) = exec(&face, start("cat")).await.unwrap();
    assert_eq!(started(&mut answers).await.pid, 42);
    say(&requests, exec_request::Message::Stdin(vec![b'x'; 200_000])).await;
    let mut got = 0;
    while got < 200_000 {
        match hear(&mut answers).await {
            exec_response::Message::Stdout(bytes) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, 200_000);
    let size = v1::WindowSize {
        rows: 40,
        columns: 100,
    };
    say(&requests, exec_request::Message::Resize(size)).await;
    let said = exec_response::Message::Stderr(b"40x100".to_vec());
    assert_eq!(hear(&mut answers).await, said);
    say(&requests, exec_request::Message::Signal(15)).await;
    let said = exec_response::Message::Stderr(vec![15, 0, 0, 0]);
    assert_eq!(hear(&mut answers).await, said);
    say(&requests, exec_request::Message::StdinEnd(StdinEnd {})).await;
    assert_eq!(exited(&mut answers).await.code, 3);
    assert!(
        timeout(LONG, answers.message())
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_client_that_says_no_more_gives_the_input_an_end_and_one_that_goes_ends_the_session() {
    let (tell, mut gone) = mpsc::channel(4);
    let face = Face::serve(move |peer| {
        let tell = tell.clone();
        async move {
            echo(peer).await;
            tell.send(()).await.unwrap();
        }
    })
    .await;
    let (requests, mut answers) = exec(&face, start("cat")).await.unwrap();
    drop(requests);
    started(&mut answers).await;
    assert_eq!(exited(&mut answers).await.code, 3);
    timeout(LONG, gone.recv()).await.unwrap().unwrap();

    let (requests, mut answers) = exec(&face, start("cat")).await.unwrap();
    started(&mut answers).await;
    drop((requests, answers));
    timeout(LONG, gone.recv()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_has_the_code_of_its_kind_and_the_guests_words_made_harmless() {
    use session_refused::Kind as K;
    let kinds = [
        (K::Denied, Code::Unavailable),
        (K::Invalid, Code::InvalidArgument),
        (K::NotFound, Code::NotFound),
        (K::Unusable, Code::FailedPrecondition),
        (K::Busy, Code::ResourceExhausted),
    ];
    let next = Arc::new(AtomicU64::new(0));
    let face = Face::serve(move |mut peer| {
        let next = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
        async move {
            let refused = SessionRefused {
                kind: kinds[next].0.into(),
                message: format!("no\x1b[1m {}", "x".repeat(10_000)),
            };
            peer.send(Frame::message(Kind::Refused, &refused)).await;
        }
    })
    .await;
    for (kind, code) in kinds {
        let status = exec(&face, start("cat")).await.unwrap_err();
        assert_eq!(status.code(), code, "{kind:?}");
        assert!(status.message().contains("no\\u{1b}[1m x"), "{status}");
        assert!(status.message().len() < 1200, "{}", status.message().len());
    }
}

#[tokio::test]
async fn without_an_agent_a_call_is_refused_at_once() {
    let face = Face::serve(|_| async {}).await;
    std::fs::remove_file(face.folder.path().join("vsock")).unwrap();
    let status = exec(&face, start("cat")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("agent cannot be reached: "),
        "{status}"
    );
    face.live.send_modify(|live| live.paused = true);
    let status = exec(&face, start("cat")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the VM is paused");
    let status = exec(&face, exec_request::Message::Signal(1))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_is_no_frame_or_comes_at_a_wrong_time_ends_its_session_alone() {
    let scripts: Vec<Vec<u8>> = vec![
        vec![99, 0, 0, 0, 0],
        vec![6, 0xff, 0xff, 0xff, 0xff],
        vec![11, 2, 0, 0, 0, 0xff, 0xff],
        vec![4, 0, 0, 0, 0],
        vec![2, 0, 0, 0, 0],
        vec![6, 9, 0, 0, 0, 1],
        Vec::new(),
    ];
    let count = scripts.len();
    let next = Arc::new(AtomicU64::new(0));
    let face = Face::serve(move |mut peer| {
        let next = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
        let script = scripts.get(next.wrapping_sub(1)).cloned();
        async move {
            match script {
                None => echo(peer).await,
                Some(script) => {
                    peer.opened(1).await;
                    peer.raw(&script).await;
                }
            }
        }
    })
    .await;
    let (good, mut good_answers) = exec(&face, start("cat")).await.unwrap();
    started(&mut good_answers).await;
    for _ in 0..count {
        let (_requests, mut answers) = exec(&face, start("cat")).await.unwrap();
        started(&mut answers).await;
        let exited = exited(&mut answers).await;
        assert!(
            exited
                .error
                .starts_with("the session with the guest broke: "),
            "{exited:?}"
        );
    }
    say(&good, exec_request::Message::StdinEnd(StdinEnd {})).await;
    assert_eq!(exited(&mut good_answers).await.code, 3);
}

#[tokio::test]
async fn sixty_four_sessions_that_flood_hold_next_to_nothing_and_one_more_is_refused() {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let face = Face::serve(move |mut peer| {
        let counter = Arc::clone(&counter);
        async move {
            peer.opened(1).await;
            let chunk = vec![b'x'; 60_000];
            while peer.output(&chunk).await {
                counter.fetch_add(60_000, Ordering::Relaxed);
            }
        }
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..vmd::session::MAX_SESSIONS {
        open.push(exec(&face, start("yes")).await.unwrap());
    }
    let status = exec(&face, start("yes")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    // Until nobody gets anything rid any more: then all that is anywhere is on its way.
    let mut before = u64::MAX;
    while before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        let _ = timeout(Duration::from_millis(300), std::future::pending::<()>()).await;
    }
    let each = before / 64;
    assert!(each < 1_000_000, "{each} bytes of each session are held");
    open.truncate(1);
    let (_requests, answers) = &mut open[0];
    started(answers).await;
    let mut got = 0;
    while got < 5_000_000 {
        match hear(answers).await {
            exec_response::Message::Stdout(bytes) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_program_goes_on_with_another_supervisor_and_nothing_is_lost_or_doubled() {
    let mut face = Face::serve(|mut peer| async move {
        peer.opened(42).await;
        let Peer {
            mut reader,
            mut writer,
            ..
        } = peer;
        let count = tokio::spawn(async move {
            for at in (0..500_000u32).step_by(1000) {
                let numbers: Vec<u8> = (at..at + 1000).flat_map(u32::to_le_bytes).collect();
                writer
                    .send(&Frame::new(Kind::Output, numbers))
                    .await
                    .unwrap();
            }
            writer
        });
        let mut input = Vec::new();
        while let Some(Frame {
            kind: Kind::Input,
            payload,
        }) = reader.next().await.unwrap()
        {
            input.extend_from_slice(&payload);
        }
        let expected: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
        let code = u32::from(input != expected);
        let end = SessionEnd {
            code,
            signal: 9,
            ..SessionEnd::default()
        };
        let mut writer = count.await.unwrap();
        writer.send(&Frame::message(Kind::End, &end)).await.unwrap();
    })
    .await;
    let input: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let (mut requests, mut answers) = exec(&face, start("count")).await.unwrap();
    let id = started(&mut answers).await.id;
    let (mut sent, mut taken, mut output) = (0, 0, Vec::new());
    for round in 0..4 {
        for chunk in input[sent..].chunks(10_000).take(8) {
            say(&requests, exec_request::Message::Stdin(chunk.to_vec())).await;
        }
        face.go();
        loop {
            match hear(&mut answers).await {
                exec_response::Message::Stdout(bytes) => output.extend(bytes),
                exec_response::Message::Moved(moved) => {
                    taken += usize::try_from(moved.stdin_bytes).unwrap();
                    break;
                }
                other => panic!("{round}: {other:?}"),
            }
        }
        sent = taken;
        face.succeed();
        let attach = exec_request::Message::Attach(ExecAttach { id: id.clone() });
        (requests, answers) = exec(&face, attach).await.unwrap();
        assert_eq!(
            started(&mut answers).await,
            v1::ExecStarted {
                id: id.clone(),
                pid: 42
            }
        );
    }
    for chunk in input[sent..].chunks(10_000) {
        say(&requests, exec_request::Message::Stdin(chunk.to_vec())).await;
    }
    while output.len() < 2_000_000 {
        match hear(&mut answers).await {
            exec_response::Message::Stdout(bytes) => output.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<u8> = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    assert!(output == expected);
    say(&requests, exec_request::Message::StdinEnd(StdinEnd {})).await;
    let exited = exited(&mut answers).await;
    assert_eq!(
        (exited.code, exited.signal, exited.error.as_str()),
        (0, 9, "")
    );
    let gone = exec(&face, exec_request::Message::Attach(ExecAttach { id })).await;
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn files_come_out_with_their_error() {
    let face = Face::serve(|mut peer| async move {
        let Ask::Pack(pack) = peer.ask.clone() else {
            panic!("{:?}", peer.ask)
        };
        let path = PathInfo {
            is_directory: true,
            size: 7,
        };
        let opened = SessionOpened {
            path: Some(path),
            ..SessionOpened::default()
        };
        peer.send(Frame::message(Kind::Opened, &opened)).await;
        peer.output(b"tar").await;
        let error = if pack.path == "/bad" {
            "cannot read /bad"
        } else {
            ""
        };
        peer.end(SessionEnd {
            error: error.to_owned(),
            ..SessionEnd::default()
        })
        .await;
    })
    .await;
    for (path, error) in [("/etc", None), ("/bad", Some("cannot read /bad"))] {
        let request = PackRequest {
            path: path.to_owned(),
            follow: true,
        };
        let mut answers = face
            .client()
            .await
            .pack(request)
            .await
            .unwrap()
            .into_inner();
        let head = answers.message().await.unwrap().unwrap().message.unwrap();
        let expected = v1::PackedPath {
            is_directory: true,
            size: 7,
        };
        assert_eq!(head, pack_response::Message::Path(expected));
        let chunk = answers.message().await.unwrap().unwrap().message.unwrap();
        assert_eq!(chunk, pack_response::Message::Chunk(b"tar".to_vec()));
        match (answers.message().await, error) {
            (Ok(None), None) => {}
            (Err(status), Some(error)) => assert_eq!(status.message(), error),
            other => panic!("{other:?}"),
        }
    }
}

async fn unpack(face: &Face, size: usize) -> Result<u64, tonic::Status> {
    let target = UnpackTarget {
        path: "/srv".to_owned(),
        ..UnpackTarget::default()
    };
    let mut requests = vec![UnpackRequest {
        message: Some(unpack_request::Message::Target(target)),
    }];
    let chunks = vec![b'x'; size];
    requests.extend(chunks.chunks(500_000).map(|chunk| UnpackRequest {
        message: Some(unpack_request::Message::Chunk(chunk.to_vec())),
    }));
    let mut client = face.client().await;
    let answer = timeout(LONG, client.unpack(tokio_stream::iter(requests)))
        .await
        .unwrap()?;
    Ok(answer.into_inner().entries)
}

#[tokio::test]
async fn files_go_in_and_what_stops_them_is_told_even_while_they_come() {
    let face = Face::serve(|mut peer| async move {
        peer.opened(0).await;
        let mut got = 0;
        loop {
            let Some(frame) = peer.next().await else {
                return;
            };
            got += frame.payload.len();
            let end = |error: &str| SessionEnd {
                error: error.to_owned(),
                entries: 5,
                ..SessionEnd::default()
            };
            match frame.kind {
                Kind::InputEnd if got == 1 => return peer.end(end("")).await,
                Kind::InputEnd => {
                    assert_eq!(got, 2_000_000);
                    return peer.end(end("")).await;
                }
                _ if got > 2_000_000 => return peer.end(end("no space left for /srv/big")).await,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(unpack(&face, 2_000_000).await.unwrap(), 5);
    let status = unpack(&face, 50_000_000).await.unwrap_err();
    assert_eq!(status.message(), "no space left for /srv/big");
}

#[tokio::test]
async fn a_connection_ends_one_side_at_a_time() {
    let face = Face::serve(|mut peer| async move {
        assert!(matches!(&peer.ask, Ask::Connect(connect) if connect.port == 80));
        peer.opened(0).await;
        peer.output(b"hello").await;
        peer.send(Frame::new(Kind::OutputEnd, Vec::new())).await;
        let data = peer.next().await.unwrap();
        assert_eq!((data.kind, &data.payload[..]), (Kind::Input, &b"late"[..]));
        assert_eq!(peer.next().await.unwrap().kind, Kind::InputEnd);
        peer.end(SessionEnd::default()).await;
    })
    .await;
    let (requests, stream) = mpsc::channel(4);
    let send = async |message| {
        requests
            .send(ConnectRequest {
                message: Some(message),
            })
            .await
            .unwrap();
    };
    let target = ConnectTarget {
        host: String::new(),
        port: 80,
    };
    send(connect_request::Message::Target(target)).await;
    let mut client = face.client().await;
    let answers = client.connect(ReceiverStream::new(stream)).await.unwrap();
    let mut answers = answers.into_inner();
    let mut hear = async || timeout(LONG, answers.message()).await.unwrap().unwrap();
    let data = |bytes: &[u8]| Some(connect_response::Message::Data(bytes.to_vec()));
    let connected = Some(connect_response::Message::Connected(v1::Connected {}));
    assert_eq!(hear().await.unwrap().message, connected);
    assert_eq!(hear().await.unwrap().message, data(b"hello"));
    assert_eq!(hear().await.unwrap().message, data(b""));
    send(connect_request::Message::Data(b"late".to_vec())).await;
    drop(requests);
    assert_eq!(hear().await, None);
}

#[tokio::test]
async fn the_guests_own_figures_are_shown_and_its_words_made_harmless() {
    let face = Face::serve(|mut peer| async move {
        let process = ProcessStats {
            pid: 1,
            command: "a\x07b".to_owned(),
            ..ProcessStats::default()
        };
        let stats = GuestStats {
            cpus: 2,
            // More than anybody asks for.
            processes: vec![process; 1000],
            filesystems: vec![FilesystemStats::default(); 1000],
            ..GuestStats::default()
        };
        let opened = SessionOpened {
            stats: Some(stats),
            ..SessionOpened::default()
        };
        peer.send(Frame::message(Kind::Opened, &opened)).await;
    })
    .await;
    let stats = face
        .client()
        .await
        .get_stats(GetStatsRequest { processes: 1 })
        .await
        .unwrap();
    let stats = stats.into_inner();
    assert_eq!(stats.cpus, 2);
    assert_eq!(stats.processes[0].command, "a\\u{7}b");
    assert_eq!((stats.processes.len(), stats.filesystems.len()), (1, 64));
}
