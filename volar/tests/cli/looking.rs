//! Logs, events, consoles, what is used, and waiting.

use std::process::Command;

use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};

use crate::{fake::FakeGateway, stdout, terminal::Terminal, volar};

#[test]
fn a_log_is_shown_line_by_line() {
    let gateway = FakeGateway::with(&["web"]);
    // A guest has no say over the terminal.
    volar(&gateway, "vms logs web")
        .assert()
        .success()
        .stdout("hello\noh\\u{1b}[2J\n");
    assert!(!gateway.kept().logs.contains_key("tail"));
    let shown = stdout(&mut volar(
        &gateway,
        "vms logs web -f -t --since 10m --until 2026-01-02T03:04:05Z -n 5 --source stdout,vmd",
    ));
    assert!(
        shown.starts_with("2026-01-02T03:04:05.000006Z hello\n"),
        "{shown}"
    );
    let asked = gateway.kept().logs.clone();
    for (key, expected) in [
        ("follow", "true"),
        ("since", "-600s"),
        ("until", "2026-01-02T03:04:05Z"),
        ("tail", "5"),
        ("source", "stdout,vmd"),
    ] {
        assert_eq!(asked[key], expected, "{key}");
    }
    let lines = stdout(&mut volar(&gateway, "-o json vms logs web --console"));
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((lines.len(), &lines[1]["source"]), (2, &json!("stderr")));
    assert_eq!(gateway.kept().logs["source"], "console");
    volar(&gateway, "vms logs none").assert().code(3);
}

#[test]
fn events_are_shown_as_they_come() {
    let gateway = FakeGateway::with(&["web"]);
    // The fake's stream ends; a real one goes on.
    volar(&gateway, "vms events web")
        .assert()
        .code(5)
        .stdout("2026-01-02T03:04:05Z web stopped exit_code=7\n");
    volar(&gateway, "vms events -o json")
        .assert()
        .code(5)
        .stdout(contains("\"vm\":\"db\"").and(contains("\"event\":\"stopped\"")));
}

#[test]
fn what_is_used_is_shown_of_the_host_and_of_the_guest() {
    let gateway = FakeGateway::with(&["db", "web"]);
    let shown = stdout(&mut volar(&gateway, "vms stats --no-stream"));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("GUEST CPU"),
        "{shown}"
    );
    assert!(
        lines[1].starts_with("db") && lines[1].contains("20.0%"),
        "{shown}"
    );
    assert!(
        lines[2].contains("300.0 MB") && lines[2].contains("102.4 MB / 512.0 MB"),
        "{shown}"
    );
    let one = stdout(&mut volar(&gateway, "vms stats --no-stream web -o json"));
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(
        (&one["name"], &one["host"]["tasks"]),
        (&json!("web"), &json!(9))
    );
    let shown = stdout(&mut volar(&gateway, "vms top web"));
    assert!(
        shown.contains("in VM web") && shown.contains("/sbin/init"),
        "{shown}"
    );
    volar(&gateway, "vms stats none --no-stream")
        .assert()
        .code(3);
}

#[test]
fn waiting_ends_when_it_came_or_when_it_cannot_come_in_time() {
    let gateway = FakeGateway::with(&["web", "db"]);
    let broken = FakeGateway::vm("broken", "failed");
    gateway.kept().vms.insert("broken".to_owned(), broken);
    volar(&gateway, "vms wait web db")
        .assert()
        .success()
        .stdout("VM web is ready\nVM db is ready\n");
    volar(&gateway, "vms wait web --for stopped --timeout 0s")
        .assert()
        .code(6)
        .stderr(contains("VM web is not stopped yet"));
    volar(&gateway, "vms wait broken --timeout 5s")
        .assert()
        .code(1);
    volar(&gateway, "vms wait none").assert().code(3);
    let waits = gateway.kept().waits.clone();
    assert_eq!(waits[0]["for"], "ready");
    assert_eq!(waits[2]["timeout"], "0");
}

fn console(gateway: &FakeGateway, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("volar"));
    command
        .env(
            "VOLANT_HOST",
            format!("unix://{}", gateway.socket().display()),
        )
        .args(["vms", "console"])
        .args(arguments);
    command
}

#[test]
fn a_console_is_left_by_its_key() {
    let gateway = FakeGateway::with(&["web"]);
    for (round, (arguments, key)) in [
        (vec!["web"], b"x\x1dy".as_slice()),
        (vec!["web", "--escape", "ctrl-a"], b"x\x01".as_slice()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut terminal = Terminal::run(&mut console(&gateway, &arguments));
        terminal.shows("attached to VM web; Ctrl-");
        terminal.shows("login: ");
        assert!(!terminal.is_as_usual());
        terminal.type_in(b"\x03root\r");
        terminal.shows("<\x03root\r>");
        terminal.type_in(key);
        assert_eq!(terminal.ends().code(), Some(0));
        assert!(terminal.is_as_usual());
        terminal.shows("detached from VM web");
        assert!(!terminal.screen().contains('y'), "{:?}", terminal.screen());
        gateway.eventually("the console is free again", |kept| kept.gone == round + 1);
    }
    assert_eq!(gateway.kept().console["write"], "true");
}

#[test]
fn a_console_goes_on_when_the_supervisor_is_replaced() {
    let gateway = FakeGateway::with(&["web"]);
    let mut terminal = Terminal::run(&mut console(&gateway, &["web"]));
    terminal.shows("login: ");
    terminal.type_in(b"reload");
    terminal.shows("was replaced; attached again]");
    assert_eq!(gateway.kept().console["scrollback"], "0");
    terminal.type_in(b"more");
    terminal.shows("<more>");
    terminal.type_in(b"\x1d");
    assert_eq!(terminal.ends().code(), Some(0));
    assert!(terminal.is_as_usual());
}

#[test]
fn a_console_can_be_looked_at_alone() {
    let gateway = FakeGateway::with(&["web", "taken"]);
    let mut terminal = Terminal::run(&mut console(&gateway, &["--read-only", "taken"]));
    terminal.shows("login: ");
    terminal.type_in(b"x\x1d");
    assert_eq!(terminal.ends().code(), Some(0));
    assert!(!terminal.screen().contains("<x>"), "{}", terminal.screen());
    assert_eq!(gateway.kept().console["write"], "false");
    volar(&gateway, "vms console taken")
        .write_stdin("")
        .assert()
        .code(4)
        .stderr(contains("hint: --steal takes the keyboard"));
    volar(&gateway, "vms console taken --no-follow --scrollback 10")
        .assert()
        .success()
        .stdout("login: ");
    let asked = gateway.kept().console.clone();
    assert_eq!(
        (asked["follow"].as_str(), asked["scrollback"].as_str()),
        ("false", "10")
    );
    let mut terminal = Terminal::run(&mut console(&gateway, &["--steal", "taken"]));
    terminal.shows("login: ");
    terminal.signal(rustix::process::Signal::TERM);
    assert_eq!(terminal.ends().code(), Some(143));
    assert!(terminal.is_as_usual());
}
