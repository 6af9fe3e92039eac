//! The face for clients, with the real agent's sessions behind it: real programs and files of this machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::net::UnixListener as StdUnixListener},
    path::Path,
    sync::{Arc, LazyLock, mpsc as std_mpsc},
    thread,
    time::Duration,
};

use kestrel::{
    Logs, Reaper,
    session::{Facts, Sessions, serve},
};
use support::{TOKEN, guest::Face};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use volant_proto::vm::v1::{
    ExecAttach, ExecRequest, ExecResponse, ExecStart, PackRequest, StdinEnd, UnpackRequest,
    UnpackTarget, exec_request::Message as Say, exec_response::Message as Hear, pack_response,
    unpack_request,
};

const LONG: Duration = Duration::from_secs(30);

/// The agent, in a thread of its own: it reaps all children of this process.
static AGENT: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let listener = StdUnixListener::bind(folder.path().join("sessions")).unwrap();
    let (ready, is_ready) = std_mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let sessions = Sessions {
                token: TOKEN.to_vec(),
                env: BTreeMap::new(),
                workdir: "/".into(),
                root: "/".into(),
                reaper: Reaper::start().unwrap(),
                logs: Arc::new(Logs::default()),
                facts: Arc::new(Facts::default()),
            };
            ready.send(()).unwrap();
            serve(OwnedFd::from(listener), Arc::new(sessions)).await;
        });
    });
    is_ready.recv().unwrap();
    folder
});

/// A face whose VMM connects it to the agent.
fn face() -> Face {
    let folder = tempfile::tempdir().unwrap();
    let vmm = UnixListener::bind(folder.path().join("vsock")).unwrap();
    let agent = AGENT.path().join("sessions");
    tokio::spawn(async move {
        loop {
            let (mut host, _) = vmm.accept().await.unwrap();
            let agent = agent.clone();
            tokio::spawn(async move {
                let mut asked = [0; 13];
                host.read_exact(&mut asked).await.unwrap();
                assert_eq!(&asked, b"CONNECT 1023\n");
                host.write_all(b"OK 5000\n").await.unwrap();
                let mut agent = UnixStream::connect(agent).await.unwrap();
                let _ = copy_bidirectional(&mut host, &mut agent).await;
            });
        }
    });
    Face::on(folder)
}

struct Call {
    requests: mpsc::Sender<ExecRequest>,
    answers: Streaming<ExecResponse>,
    id: String,
}

impl Call {
    async fn begin(face: &Face, first: Say) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(16);
        let message = Some(first);
        requests.send(ExecRequest { message }).await.unwrap();
        let mut client = face.client().await;
        let answers = client.exec(ReceiverStream::new(stream));
        let answers = timeout(LONG, answers).await.unwrap()?.into_inner();
        let mut call = Self {
            requests,
            answers,
            id: String::new(),
        };
        match call.hear().await {
            Hear::Started(started) => call.id = started.id,
            other => panic!("{other:?}"),
        }
        Ok(call)
    }

    async fn shell(face: &Face, script: &str) -> Self {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let start = ExecStart {
            command,
            stdin: true,
            ..ExecStart::default()
        };
        Self::begin(face, Say::Start(start)).await.unwrap()
    }

    async fn say(&self, message: Say) {
        let message = Some(message);
        self.requests.send(ExecRequest { message }).await.unwrap();
    }

    async fn hear(&mut self) -> Hear {
        let answer = timeout(LONG, self.answers.message()).await.unwrap();
        answer.unwrap().unwrap().message.unwrap()
    }

    /// All until the end: output, errors, exit code and signal.
    async fn end(mut self) -> (String, String, u32, u32) {
        let (mut output, mut error) = (Vec::new(), Vec::new());
        loop {
            match self.hear().await {
                Hear::Stdout(bytes) => output.extend(bytes),
                Hear::Stderr(bytes) => error.extend(bytes),
                Hear::Exited(exited) => {
                    assert_eq!(exited.error, "");
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(output), text(error), exited.code, exited.signal);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_real_program_reads_writes_and_ends_with_its_code() {
    let face = face();
    let call = Call::shell(&face, "cat; echo oh >&2; exit 7").await;
    call.say(Say::Stdin(b"hello".to_vec())).await;
    call.say(Say::StdinEnd(StdinEnd {})).await;
    let expected = ("hello".to_owned(), "oh\n".to_owned(), 7, 0);
    assert_eq!(call.end().await, expected);

    let call = Call::shell(&face, "exec sleep 1000").await;
    call.say(Say::Signal(15)).await;
    assert_eq!(call.end().await, (String::new(), String::new(), 143, 15));

    let start = ExecStart {
        command: vec!["/no/such".to_owned()],
        ..ExecStart::default()
    };
    let refused = Call::begin(&face, Say::Start(start)).await.err().unwrap();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
}

#[tokio::test]
async fn fifty_programs_run_at_once() {
    let face = face();
    let mut calls = Vec::new();
    for number in 0..50 {
        calls.push(Call::shell(&face, &format!("read line; echo $line {number}")).await);
    }
    for call in &calls {
        call.say(Say::Stdin(b"number\n".to_vec())).await;
    }
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.end().await.0, format!("number {number}\n"));
    }
}

#[tokio::test]
async fn a_real_program_goes_on_with_another_supervisor_and_ends_without_a_client() {
    let mut face = face();
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!("echo $$ > {}; exec cat", pid_file.display());
    let mut call = Call::shell(&face, &script).await;
    call.say(Say::Stdin(b"one".to_vec())).await;
    assert_eq!(call.hear().await, Hear::Stdout(b"one".to_vec()));
    face.go();
    assert!(matches!(call.hear().await, Hear::Moved(moved) if moved.stdin_bytes == 3));
    face.succeed();
    let attach = Say::Attach(ExecAttach {
        id: call.id.clone(),
    });
    let mut call = Call::begin(&face, attach).await.unwrap();
    call.say(Say::Stdin(b"two".to_vec())).await;
    assert_eq!(call.hear().await, Hear::Stdout(b"two".to_vec()));
    let pid = fs::read_to_string(&pid_file).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    drop(call);
    timeout(LONG, async {
        while process.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the program ends with its client");
}

#[tokio::test]
async fn a_folder_comes_out_and_goes_in_again() {
    let face = face();
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(from.join("deep")).unwrap();
    fs::create_dir(&to).unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    fs::write(from.join("deep/file"), &content).unwrap();
    std::os::unix::fs::symlink("deep/file", from.join("link")).unwrap();

    let mut client = face.client().await;
    let request = PackRequest {
        path: from.display().to_string(),
        follow: false,
    };
    let mut packed = client.pack(request).await.unwrap().into_inner();
    let target = UnpackTarget {
        path: to.display().to_string(),
        ..UnpackTarget::default()
    };
    let mut requests = vec![unpack_request::Message::Target(target)];
    while let Some(answer) = timeout(LONG, packed.message()).await.unwrap().unwrap() {
        match answer.message.unwrap() {
            pack_response::Message::Path(path) => assert!(path.is_directory),
            pack_response::Message::Chunk(chunk) => {
                requests.push(unpack_request::Message::Chunk(chunk));
            }
        }
    }
    let requests = requests.into_iter().map(|message| UnpackRequest {
        message: Some(message),
    });
    let unpacked = client.unpack(tokio_stream::iter(requests));
    let unpacked = timeout(LONG, unpacked).await.unwrap().unwrap();
    assert_eq!(unpacked.into_inner().entries, 4);
    assert!(fs::read(to.join("from/deep/file")).unwrap() == content);
    assert!(fs::read(to.join("from/link")).unwrap() == content);
}
