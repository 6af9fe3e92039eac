//! Programs in a guest: their input, their output and their end.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
};

use predicates::str::contains;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{fake::FakeGateway, terminal::Terminal, volar};

fn bare(gateway: &FakeGateway, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("volar"));
    command
        .env(
            "VOLANT_HOST",
            format!("unix://{}", gateway.socket().display()),
        )
        .env("TERM", "vt100")
        .args(arguments);
    command
}

#[test]
fn a_program_ends_volar_as_it_ends_itself() {
    let gateway = FakeGateway::with(&["web"]);
    let cases = [
        ("exit 0", 0, ""),
        ("exit 7", 7, ""),
        ("killed", 137, ""),
        ("missing", 127, "no program missing"),
        ("noexec", 126, "not executable"),
        ("busy", 125, "too many"),
        ("error", 125, "the agent is gone"),
        ("cut", 125, "before it said how it ended"),
    ];
    for (program, code, said) in cases {
        volar(&gateway, &format!("vms exec web -- {program}"))
            .write_stdin("")
            .assert()
            .code(code)
            .stderr(contains(said));
    }
    volar(&gateway, "vms exec none -- exit 0")
        .assert()
        .code(125)
        .stderr(contains("there is no VM none"));
    // An own failure before anything is asked.
    volar(&gateway, "vms exec -t web -- exit 0")
        .write_stdin("")
        .assert()
        .code(125)
        .stderr(contains("no terminal"));
}

#[test]
fn what_was_typed_is_what_is_run() {
    let gateway = FakeGateway::with(&["web"]);
    volar(
        &gateway,
        "vms exec -e A=b --env C=d=e --user www:www --workdir /srv web -- both -x --tty",
    )
    .write_stdin("")
    .assert()
    .success()
    .stdout("out\n")
    .stderr("err\n");
    let expected = json!({
        "command": ["both", "-x", "--tty"], "env": {"A": "b", "C": "d=e"}, "user": "www:www", "workdir": "/srv",
        "tty": false, "rows": 24, "columns": 80, "stdin": true, "detach": false,
    });
    assert_eq!(gateway.kept().exec, expected);
    volar(&gateway, "vms exec -d web -- exit 5")
        .assert()
        .success()
        .stdout("process 42 runs by itself\n");
    assert_eq!(gateway.kept().exec["detach"], true);
    assert_eq!(gateway.kept().exec["stdin"], false);
}

#[test]
fn standard_input_goes_through_whole() {
    let gateway = FakeGateway::with(&["web"]);
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = volar(&gateway, "vms exec web -- cat")
        .write_stdin(input.clone())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        output.stdout == input,
        "{} of {} bytes",
        output.stdout.len(),
        input.len()
    );
}

#[test]
fn signals_are_the_programs() {
    let gateway = FakeGateway::with(&["web"]);
    for (signal, number) in [
        (Signal::INT, 2),
        (Signal::TERM, 15),
        (Signal::HUP, 1),
        (Signal::QUIT, 3),
    ] {
        let mut child = bare(&gateway, &["vms", "exec", "web", "--", "events"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("{{\"signal\":{number}}}"));
        assert_eq!(child.wait().unwrap().code(), Some(128 + number));
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    let gateway = FakeGateway::with(&["web"]);
    let mut child = bare(&gateway, &["vms", "exec", "web", "--", "flood"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
    gateway.eventually("the program was ended", |kept| kept.gone == 1);
}

#[test]
fn a_second_signal_ends_volar_when_nobody_reads() {
    let gateway = FakeGateway::with(&["web"]);
    let mut child = bare(&gateway, &["vms", "exec", "web", "--", "flood"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    // The pipe is full, and stays so.
    let pid = Pid::from_child(&child);
    let status = loop {
        kill_process(pid, Signal::TERM).unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::yield_now();
    };
    assert_eq!(status.code(), Some(128 + 15));
}

#[test]
fn a_terminal_is_the_programs_until_it_ends() {
    let gateway = FakeGateway::with(&["web"]);
    let mut terminal = Terminal::run(&mut bare(
        &gateway,
        &["vms", "exec", "-it", "web", "--", "events"],
    ));
    terminal.shows("ready");
    assert!(!terminal.is_as_usual(), "the terminal is not raw");
    // Ctrl-C is a key like others.
    terminal.type_in(b"a\x03");
    terminal.shows("3]");
    terminal.resize(50, 132);
    terminal.signal(Signal::WINCH);
    terminal.shows("{\"resize\":{\"rows\":50,\"columns\":132}}");
    terminal.type_in(b"q");
    assert_eq!(terminal.ends().code(), Some(3));
    assert!(terminal.is_as_usual(), "the terminal stays raw");
    assert_eq!(gateway.kept().exec["tty"], true);
}

#[test]
fn a_terminal_comes_back_however_volar_ends() {
    let gateway = FakeGateway::with(&["web"]);
    for (round, (signal, code)) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)]
        .into_iter()
        .enumerate()
    {
        let mut terminal = Terminal::run(&mut bare(
            &gateway,
            &["vms", "shell", "--user", "me", "web"],
        ));
        terminal.shows("ready");
        assert!(!terminal.is_as_usual());
        terminal.signal(signal);
        assert_eq!(terminal.ends().code(), Some(code));
        assert!(terminal.is_as_usual(), "after {signal:?}");
        gateway.eventually("the shell was ended", |kept| kept.gone == round + 1);
    }
    let exec = gateway.kept().exec.clone();
    assert_eq!(
        (&exec["command"], &exec["user"]),
        (&json!([]), &json!("me"))
    );
    assert_eq!(exec["env"], json!({"TERM": "vt100"}));
}

#[test]
fn a_shell_reads_its_commands_where_nobody_types() {
    let gateway = FakeGateway::with(&["web"]);
    let mut child = bare(&gateway, &["vms", "shell", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(gateway.kept().exec["tty"], false);
}
