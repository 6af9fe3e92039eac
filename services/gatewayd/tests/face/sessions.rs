//! Programs, forwarded connections and the console over WebSockets.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::{Setup, eventually};

const EXEC: &str = "v1.exec.volantvm.com";

struct Client(WebSocketStream<UnixStream>);

/// What the service said.
#[derive(Debug, PartialEq)]
enum Heard {
    Text(Value),
    Binary(Vec<u8>),
    Closed(u16),
}

impl Client {
    async fn open(setup: &Setup, path: &str, protocol: &'static str) -> Result<Self, (u16, Value)> {
        let stream = UnixStream::connect(&setup.socket).await.unwrap();
        let mut request = format!("ws://localhost/api/v1/vms/{path}")
            .into_client_request()
            .unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
        match client_async(request, stream).await {
            Ok((socket, answer)) => {
                assert_eq!(answer.headers()["sec-websocket-protocol"], protocol);
                Ok(Self(socket))
            }
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or(b"null");
                let body = serde_json::from_slice(body).unwrap_or_default();
                Err((answer.status().as_u16(), body))
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn exec(setup: &Setup, start: Value) -> Self {
        let mut client = Self::open(setup, "web/exec", EXEC).await.unwrap();
        client.text(start).await;
        client
    }

    async fn text(&mut self, json: Value) {
        let text = Message::text(json.to_string());
        self.0.send(text).await.unwrap();
    }

    async fn binary(&mut self, bytes: &[u8]) {
        let bytes = Message::binary(bytes.to_vec());
        self.0.send(bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Heard {
        let limit = Duration::from_secs(20);
        loop {
            let message = tokio::time::timeout(limit, self.0.next()).await;
            match message.expect("it says nothing").unwrap().unwrap() {
                Message::Text(text) => return Heard::Text(serde_json::from_str(&text).unwrap()),
                Message::Binary(bytes) => return Heard::Binary(bytes.to_vec()),
                Message::Close(frame) => return Heard::Closed(frame.unwrap().code.into()),
                _ => {}
            }
        }
    }
}

fn started() -> Heard {
    Heard::Text(json!({"started":{"pid":42}}))
}

fn exited(code: u32, signal: u32) -> Heard {
    Heard::Text(json!({"exited":{"code":code,"signal":signal,"error":null}}))
}

#[tokio::test]
async fn a_program_has_its_two_outputs_and_its_code() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let start = json!({"command":["both","-x"],"user":"www"});
    let mut client = Client::exec(&setup, start).await;
    assert_eq!(client.hear().await, started());
    assert_eq!(client.hear().await, Heard::Binary(b"\x01out".to_vec()));
    assert_eq!(client.hear().await, Heard::Binary(b"\x02err".to_vec()));
    assert_eq!(client.hear().await, exited(7, 0));
    assert_eq!(client.hear().await, Heard::Closed(1000));
    assert_eq!(vmd.lock().calls, ["Exec [\"both\", \"-x\"] as 'www'"]);
}

#[tokio::test]
async fn input_its_end_sizes_and_signals_reach_the_program() {
    let setup = Setup::new().await;
    let (_vmd, _process) = setup.running("web");
    let mut client = Client::exec(&setup, json!({"command":["cat"],"stdin":true})).await;
    assert_eq!(client.hear().await, started());
    client.binary(b"\x00abc").await;
    assert_eq!(client.hear().await, Heard::Binary(b"\x01abc".to_vec()));
    client.text(json!({"resize":{"rows":5,"columns":6}})).await;
    assert_eq!(client.hear().await, Heard::Binary(b"\x015x6".to_vec()));
    client.text(json!({"stdin_end":true})).await;
    assert_eq!(client.hear().await, exited(0, 0));

    let mut client = Client::exec(&setup, json!({"command":["cat"]})).await;
    assert_eq!(client.hear().await, started());
    client.text(json!({"signal":15})).await;
    assert_eq!(client.hear().await, exited(143, 15));
    assert_eq!(client.hear().await, Heard::Closed(1000));
}

#[tokio::test]
async fn a_program_outlives_the_supervisor_that_moves() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let mut client = Client::exec(&setup, json!({"command":["moves"],"stdin":true})).await;
    assert_eq!(client.hear().await, started());
    client.binary(b"\x00abc").await;
    assert_eq!(client.hear().await, Heard::Binary(b"\x01abc".to_vec()));
    // The supervisor says that it took four of the six: two come again, to the next one.
    client.binary(b"\x00def").await;
    assert_eq!(client.hear().await, Heard::Binary(b"\x01ef".to_vec()));
    client.text(json!({"stdin_end":true})).await;
    assert_eq!(client.hear().await, exited(0, 0));
    assert_eq!(vmd.lock().stdin, b"abcdef");
    assert_eq!(vmd.lock().calls[1..], ["Attach one"]);
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_program() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let mut client = Client::exec(&setup, json!({"command":["cat"]})).await;
    assert_eq!(client.hear().await, started());
    drop(client);
    eventually("the program ended", || vmd.lock().ended == 1).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_its_program_alone() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let mut slow = Client::exec(&setup, json!({"command":["flood"]})).await;
    assert_eq!(slow.hear().await, started());
    // It stands still once all that is between is full.
    let mut last = usize::MAX;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let given = vmd.lock().given;
        if given == last && given > 0 {
            break;
        }
        last = given;
        assert!(
            tokio::time::Instant::now() < deadline,
            "it never stands still"
        );
    }
    assert!(last < 200, "{last} messages of 64 KiB are in between");
    // Another one is not held up.
    let mut quick = Client::exec(&setup, json!({"command":["both"]})).await;
    assert_eq!(quick.hear().await, started());
    drop(slow);
    eventually("both ended", || vmd.lock().ended == 2).await;
}

#[tokio::test]
async fn what_cannot_be_run_is_a_problem() {
    let setup = Setup::new().await;
    let (_vmd, _process) = setup.running("web");
    let cases = [
        (json!({"command":["missing"]}), "not-in-guest", 404),
        (json!({"comand":["sh"]}), "invalid-request", 400),
    ];
    for (start, kind, status) in cases {
        let mut client = Client::exec(&setup, start).await;
        let Heard::Text(told) = client.hear().await else {
            panic!("no text");
        };
        let told = &told["problem"];
        assert!(told["type"].as_str().unwrap().ends_with(kind), "{told}");
        assert_eq!(told["status"], status);
        assert_eq!(client.hear().await, Heard::Closed(1000));
    }
}

#[tokio::test]
async fn what_fails_before_the_upgrade_has_a_status() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let status = async |path| Client::open(&setup, path, EXEC).await.err().unwrap();
    assert_eq!(status("none/exec").await.0, 404);
    let (code, problem) = status("web/exec").await;
    assert_eq!(code, 409, "{problem}");
    setup
        .systemd
        .becomes("volant-vm@web.service", "active")
        .await;
    assert_eq!(status("web/exec").await.0, 503);
    let answer = setup.get("/api/v1/vms/web/exec").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (400, "invalid-request")
    );
}

#[tokio::test]
async fn one_session_too_many_is_refused_and_a_place_is_given_again() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let mut open = Vec::new();
    for _ in 0..128 {
        let mut client = Client::exec(&setup, json!({"command":["cat"]})).await;
        assert_eq!(client.hear().await, started());
        open.push(client);
    }
    let (status, _) = Client::open(&setup, "web/exec", EXEC).await.err().unwrap();
    assert_eq!(status, 503);
    let answer = setup.get("/api/v1/vms/web/files?path=/x").await;
    assert_eq!(answer.problem().0, "too-many-sessions");
    open.clear();
    eventually("all ended", || vmd.lock().ended == 128).await;
    let mut client = Client::exec(&setup, json!({"command":["both"]})).await;
    assert_eq!(client.hear().await, started());
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_its_session() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let mut client = Client::exec(&setup, json!({"command":["cat"]})).await;
    assert_eq!(client.hear().await, started());
    let large = Message::binary(vec![0; 64 * 1024 + 2]);
    let _ = client.0.send(large).await;
    eventually("the program ended", || vmd.lock().ended == 1).await;
    assert!(vmd.lock().stdin.is_empty());
}

#[tokio::test]
async fn sessions_are_closed_with_a_word_when_the_service_ends() {
    let mut setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let mut client = Client::exec(&setup, json!({"command":["cat"]})).await;
    assert_eq!(client.hear().await, started());
    setup.end.take().unwrap().send(()).unwrap();
    assert_eq!(client.hear().await, Heard::Closed(1012));
    eventually("it ended", || setup.serving.is_finished()).await;
    eventually("the program ended", || vmd.lock().ended == 1).await;
}

#[tokio::test]
async fn a_session_keeps_the_service_from_ending() {
    let setup = Setup::ending_after(Some(Duration::from_millis(200))).await;
    let (_vmd, _process) = setup.running("web");
    let mut client = Client::exec(&setup, json!({"command":["cat"]})).await;
    assert_eq!(client.hear().await, started());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!setup.serving.is_finished(), "it ended with a session open");
    drop(client);
    eventually("it ended", || setup.serving.is_finished()).await;
}

#[tokio::test]
async fn a_connection_is_forwarded_both_ways_to_its_end() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let protocol = "v1.forward.volantvm.com";
    let mut client = Client::open(&setup, "web/forward?port=80", protocol)
        .await
        .unwrap();
    assert_eq!(client.hear().await, Heard::Text(json!({"connected":true})));
    client.binary(b"GET /").await;
    assert_eq!(client.hear().await, Heard::Binary(b"GET /".to_vec()));
    client.text(json!({"end":true})).await;
    assert_eq!(client.hear().await, Heard::Text(json!({"end":true})));
    assert_eq!(client.hear().await, Heard::Closed(1000));
    assert_eq!(vmd.lock().calls, ["Connect :80"]);

    let mut client = Client::open(&setup, "web/forward?port=1", protocol)
        .await
        .unwrap();
    let Heard::Text(told) = client.hear().await else {
        panic!("no text");
    };
    assert_eq!(told["problem"]["status"], 409);
    for path in [
        "web/forward",
        "web/forward?port=0",
        "web/forward?port=70000",
    ] {
        let refused = Client::open(&setup, path, protocol).await.err().unwrap();
        assert_eq!(refused.0, 400, "{path}");
    }
}

#[tokio::test]
async fn the_console_is_read_written_and_taken() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let open = async |query| {
        let path = format!("web/console?{query}");
        Client::open(&setup, &path, "v1.console.volantvm.com").await
    };
    let mut client = open("follow=false&scrollback=7").await.unwrap();
    // In pieces that are not too large.
    assert_eq!(client.hear().await, Heard::Binary(vec![b'x'; 64 * 1024]));
    assert_eq!(client.hear().await, Heard::Binary(vec![b'x'; 36 * 1024]));
    assert_eq!(client.hear().await, Heard::Text(json!({"lost_bytes":5})));
    assert_eq!(client.hear().await, Heard::Closed(1000));
    assert_eq!(vmd.lock().calls, ["Console 7 false"]);

    assert_eq!(open("write=true").await.err().unwrap().0, 409);
    let mut client = open("write=true&steal=true").await.unwrap();
    for _ in 0..3 {
        client.hear().await;
    }
    client.binary(b"ls\n").await;
    assert_eq!(client.hear().await, Heard::Binary(b"ls\n".to_vec()));

    let mut client = open("").await.unwrap();
    for _ in 0..3 {
        client.hear().await;
    }
    client.binary(b"ls\n").await;
    let Heard::Text(told) = client.hear().await else {
        panic!("no text");
    };
    assert_eq!(told["problem"]["status"], 400);
}
