//! The serial console: a guest's end of it, and clients.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::time::Duration;

use support::{FakeJournal, guest::Face};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use vmd::{
    console,
    journal::Journal,
    logs::{Labels, Limits, Logs},
};
use volant_proto::vm::v1::{
    ConsoleOpen, ConsoleRequest, ConsoleResponse, console_request, console_response::Message,
};

const LONG: Duration = Duration::from_secs(20);

/// The guest's end of the console, and what reads ours.
fn console(face: &Face, journal: &FakeJournal) -> (UnixStream, JoinHandle<()>) {
    let (guest, host) = UnixStream::pair().unwrap();
    let journal = Journal::connect(&journal.path).unwrap();
    let (logs, _writer) = Logs::open(journal, Labels::default(), Limits::default());
    let (panics, _) = mpsc::channel(1);
    let serve = console::serve(host, face.hub.clone(), logs, panics);
    (guest, tokio::spawn(serve))
}

struct Client {
    requests: mpsc::Sender<ConsoleRequest>,
    answers: Streaming<ConsoleResponse>,
}

impl Client {
    async fn open(face: &Face, open: ConsoleOpen) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(16);
        let message = Some(console_request::Message::Open(open));
        requests.send(ConsoleRequest { message }).await.unwrap();
        let mut client = face.client().await;
        let answers = client.console(ReceiverStream::new(stream)).await?;
        Ok(Self {
            requests,
            answers: answers.into_inner(),
        })
    }

    async fn write(&self, bytes: &[u8]) {
        let message = Some(console_request::Message::Input(bytes.to_vec()));
        self.requests
            .send(ConsoleRequest { message })
            .await
            .unwrap();
    }

    async fn hear(&mut self) -> Option<Message> {
        let answer = timeout(LONG, self.answers.message()).await.unwrap();
        answer.unwrap().map(|answer| answer.message.unwrap())
    }

    async fn hear_until(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            match self.hear().await.unwrap() {
                Message::Output(bytes) => heard.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        String::from_utf8(heard).unwrap()
    }
}

fn writer(steal: bool) -> ConsoleOpen {
    ConsoleOpen {
        write: true,
        steal,
        ..ConsoleOpen::default()
    }
}

#[tokio::test]
async fn many_read_one_writes_and_the_journal_has_the_lines() {
    let face = Face::serve(|_| async {}).await;
    let journal = FakeJournal::new(face.folder.path());
    let (mut guest, _task) = console(&face, &journal);
    guest.write_all(b"booted\r\nlogin: ").await.unwrap();
    journal.contains("MESSAGE=booted").await;

    let back = ConsoleOpen {
        scrollback_bytes: 100_000,
        ..ConsoleOpen::default()
    };
    let mut reader = Client::open(&face, back).await.unwrap();
    assert_eq!(reader.hear_until("login: ").await, "booted\r\nlogin: ");
    let once = ConsoleOpen {
        scrollback_bytes: 7,
        no_follow: true,
        ..ConsoleOpen::default()
    };
    let mut once = Client::open(&face, once).await.unwrap();
    assert_eq!(
        once.hear().await,
        Some(Message::Output(b"login: ".to_vec()))
    );
    assert_eq!(once.hear().await, None);

    let mut first = Client::open(&face, writer(false)).await.unwrap();
    let refused = Client::open(&face, writer(false)).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    first.write(b"root\n").await;
    let mut input = [0; 5];
    timeout(LONG, guest.read_exact(&mut input))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&input, b"root\n");
    let second = Client::open(&face, writer(true)).await.unwrap();
    assert!(matches!(first.hear().await, Some(Message::Stolen(_))));
    second.write(b"ok").await;
    timeout(LONG, guest.read_exact(&mut input[..2]))
        .await
        .unwrap()
        .unwrap();
    guest.write_all(b"hi").await.unwrap();
    for reader in [&mut first, &mut reader] {
        reader.hear_until("hi").await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_bytes_and_holds_nobody_up() {
    let face = Face::serve(|_| async {}).await;
    let journal = FakeJournal::new(face.folder.path());
    let (mut guest, _task) = console(&face, &journal);
    let mut slow = Client::open(&face, ConsoleOpen::default()).await.unwrap();
    let mut fast = face.hub.reader(0);
    let all = 3_000_000;
    // Without newlines: lines have a rate of their own.
    let write = async { guest.write_all(&vec![b'x'; all]).await.unwrap() };
    let read = async {
        let mut got = 0;
        while got < all as u64 {
            let chunk = fast.next().await.unwrap();
            got += chunk.lost + chunk.bytes.len() as u64;
        }
    };
    timeout(LONG, async { tokio::join!(write, read) })
        .await
        .unwrap();
    let (mut got, mut lost) = (0, 0);
    while got + lost < all as u64 {
        match slow.hear().await.unwrap() {
            Message::Output(bytes) => got += bytes.len() as u64,
            Message::LostBytes(bytes) => lost += bytes,
            other @ Message::Stolen(_) => panic!("{other:?}"),
        }
    }
    assert_eq!(got + lost, all as u64);
    assert!(lost > 1_000_000, "{lost}");
}

#[tokio::test]
async fn a_guest_that_reads_no_input_is_told_on_and_nobody_waits_for_it() {
    let face = Face::serve(|_| async {}).await;
    let journal = FakeJournal::new(face.folder.path());
    let (_guest, _task) = console(&face, &journal);
    let client = Client::open(&face, writer(false)).await.unwrap();
    for _ in 0..20 {
        client.write(&vec![b'x'; 100_000]).await;
    }
    journal
        .contains("bytes of the console's input: the guest does not read them")
        .await;
}

#[tokio::test]
async fn readers_outlive_a_boot_and_end_with_the_console() {
    let face = Face::serve(|_| async {}).await;
    let journal = FakeJournal::new(face.folder.path());
    let mut reader = Client::open(&face, ConsoleOpen::default()).await.unwrap();
    for boot in ["one", "two"] {
        let (mut guest, task) = console(&face, &journal);
        guest.write_all(boot.as_bytes()).await.unwrap();
        reader.hear_until(boot).await;
        drop(guest);
        timeout(LONG, task).await.unwrap().unwrap();
        face.hub.mark("the guest boots again");
        reader.hear_until("\r\n[the guest boots again]\r\n").await;
    }
    face.hub.close();
    assert_eq!(reader.hear().await, None);
}
