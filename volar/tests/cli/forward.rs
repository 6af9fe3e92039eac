//! Ports of a guest that are reachable here.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    process::{Child, Command, Stdio},
};

use predicates::str::contains;
use serde_json::Value;

use crate::{fake::FakeGateway, volar};

struct Forward(Child);

impl Forward {
    /// A forward on free ports, and where they are.
    fn start(gateway: &FakeGateway, ports: &[&str]) -> (Self, Vec<String>) {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("volar"))
            .env(
                "VOLANT_HOST",
                format!("unix://{}", gateway.socket().display()),
            )
            .args(["--output", "json", "vms", "forward", "web"])
            .args(ports)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let local = lines.take(ports.len()).map(|line| {
            let told: Value = serde_json::from_str(&line.unwrap()).unwrap();
            told["local"].as_str().unwrap().to_owned()
        });
        let local = local.collect();
        (Self(child), local)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn many_connections_at_once_each_end_one_way_first() {
    let gateway = FakeGateway::with(&["web"]);
    let (_forward, local) = Forward::start(&gateway, &["0:80", "127.0.0.1:0:db:80"]);
    let mut connections: Vec<TcpStream> = (0..20)
        .map(|n| TcpStream::connect(&local[n % 2]).unwrap())
        .collect();
    for (n, connection) in connections.iter_mut().enumerate() {
        let said = n.to_string().repeat(10_000);
        connection.write_all(said.as_bytes()).unwrap();
    }
    for (n, connection) in connections.iter_mut().enumerate() {
        // The guest answers once it has heard all.
        connection.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer == n.to_string().repeat(10_000), "connection {n}");
    }
    let asked = gateway.kept().forwards.clone();
    assert_eq!(asked.len(), 20);
    assert!(
        asked
            .iter()
            .any(|asked| asked["host"] == "db" && asked["port"] == "80")
    );
    assert!(asked.iter().any(|asked| asked["host"].is_empty()));
}

#[test]
fn a_port_that_refuses_is_told_and_others_go_on() {
    let gateway = FakeGateway::with(&["web"]);
    let (mut forward, local) = Forward::start(&gateway, &["0:81", "0:80"]);
    let mut refused = TcpStream::connect(&local[0]).unwrap();
    let mut answer = Vec::new();
    let _ = refused.read_to_end(&mut answer);
    assert!(answer.is_empty());
    let mut line = String::new();
    let mut stderr = BufReader::new(forward.0.stderr.take().unwrap());
    while !line.contains("connection refused") {
        assert!(stderr.read_line(&mut line).unwrap() > 0, "{line}");
    }
    let mut other = TcpStream::connect(&local[1]).unwrap();
    other.write_all(b"still here").unwrap();
    other.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "still here");
}

#[test]
fn what_cannot_be_forwarded_is_told_at_once() {
    let gateway = FakeGateway::with(&["web"]);
    volar(&gateway, "vms forward none 0:80")
        .assert()
        .code(3)
        .stderr(contains("there is no VM none"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    volar(&gateway, &format!("vms forward web {port}:80"))
        .assert()
        .code(1)
        .stderr(contains(format!("cannot listen at 127.0.0.1:{port}")));
}
