//! Programs without a terminal.

use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt as _, time::Duration};

use nix::unistd::geteuid;
use tokio::time::Instant;
use volant_proto::agent::v1::{
    ExecSession, send_logs_request::Stream, session_refused::Kind as Why,
};
use volant_session::{Frame, Kind};

use crate::client::{Client, GUEST, command, eventually, exec, processes_with, run, sh, within};

#[tokio::test]
async fn output_error_and_exit_are_told_apart() {
    let done = run(sh("printf out; printf err >&2; exit 7")).await;
    assert_eq!((&*done.output, &*done.error), (&b"out"[..], &b"err"[..]));
    assert_eq!(done.exit(), (7, 0));
    assert_eq!(run(sh("kill -9 $$")).await.exit(), (137, 9));
}

#[tokio::test]
async fn input_reaches_the_program_and_so_does_its_end() {
    let (client, _) = exec(ExecSession {
        stdin: true,
        ..command(&["cat"])
    })
    .await
    .unwrap();
    let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let sent = text.clone();
    let Client { reader, mut writer } = client;
    let feeding = tokio::spawn(async move {
        for chunk in sent.chunks(60_000) {
            let frame = Frame::new(Kind::Input, chunk.to_vec());
            writer.send(&frame).await.unwrap();
        }
        writer
            .send(&Frame::new(Kind::InputEnd, Vec::new()))
            .await
            .unwrap();
        writer
    });
    // Both ways at once: more than all that lies between.
    let mut output: Vec<u8> = Vec::new();
    let mut reader = reader;
    let end = loop {
        let frame = within(reader.next()).await.unwrap().unwrap();
        match frame.kind {
            Kind::Output => output.extend(&frame.payload),
            kind => break kind,
        }
    };
    assert_eq!(end, Kind::End);
    assert!(output == text);
    drop(feeding.await.unwrap());
}

#[tokio::test]
async fn without_input_there_is_an_end_at_once_and_a_program_need_not_read() {
    assert_eq!(run(command(&["cat"])).await.exit(), (0, 0));
    let (mut client, _) = exec(ExecSession {
        stdin: true,
        ..sh("exec 0<&-; sleep 0.2; exit 3")
    })
    .await
    .unwrap();
    client.input(&vec![0; 1_000_000]).await;
    assert_eq!(client.done().await.exit(), (3, 0));
}

#[tokio::test]
async fn the_environment_is_the_workload_s_and_what_is_asked_for() {
    let done = run(ExecSession {
        env: HashMap::from([
            ("ASKED".to_owned(), "a b".to_owned()),
            ("USER".to_owned(), "me".to_owned()),
        ]),
        ..command(&["env"])
    })
    .await;
    let text = done.text();
    let lines: Vec<_> = text.lines().collect();
    for expected in ["OF_WORKLOAD=yes", "ASKED=a b", "USER=me"] {
        assert!(lines.contains(&expected), "{text}");
    }
    for key in ["PATH=/", "HOME=/", "SHELL=/"] {
        assert!(lines.iter().any(|line| line.starts_with(key)), "{text}");
    }
    assert!(!text.contains("TERM="), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
    assert_eq!(run(command(&["pwd"])).await.text(), "/usr\n");
    let elsewhere = ExecSession {
        workdir: "/etc".to_owned(),
        ..command(&["pwd"])
    };
    assert_eq!(run(elsewhere).await.text(), "/etc\n");
}

#[tokio::test]
async fn a_user_has_its_numbers_and_its_home() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can run programs as others");
        return;
    }
    let done = run(ExecSession {
        user: "daemon".to_owned(),
        ..sh("id -u; id -g; echo $HOME $USER; echo again > /dev/stdout")
    })
    .await;
    assert_eq!(done.text(), "1\n1\n/usr/sbin daemon\nagain\n");
    let done = run(ExecSession {
        user: "4242:4343".to_owned(),
        ..sh("id -u; id -g; id -G; echo $USER")
    })
    .await;
    assert_eq!(done.text(), "4242\n4343\n4343\n4242\n");
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("data"), "x").unwrap();
    fs::write(path("script"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(path("script"), fs::Permissions::from_mode(0o755)).unwrap();
    let user = |user: &str| ExecSession {
        user: user.to_owned(),
        ..sh("exit")
    };
    let workdir = |workdir: &str| ExecSession {
        workdir: workdir.to_owned(),
        ..sh("exit")
    };
    for (wanted, why, words) in [
        (
            command(&["no-such-program"]),
            Why::NotFound,
            "no program 'no-such-program'",
        ),
        (
            command(&["/no/such/program"]),
            Why::NotFound,
            "/no/such/program",
        ),
        (command(&[&path("data")]), Why::Unusable, "may be executed"),
        (command(&["/etc"]), Why::Unusable, "may be executed"),
        (command(&[&path("script")]), Why::Unusable, "interpreter"),
        (command(&[""]), Why::Invalid, "no name"),
        (command(&["true", "a\0b"]), Why::Invalid, "nul byte"),
        (user("nobody-here"), Why::NotFound, "no user 'nobody-here'"),
        (
            workdir("/no/such/folder"),
            Why::NotFound,
            "working directory",
        ),
        (workdir(&path("data")), Why::Unusable, "no folder"),
        (workdir("relative"), Why::Invalid, "not absolute"),
    ] {
        let refused = exec(wanted).await.err().unwrap();
        assert_eq!(refused.kind(), why, "{}", refused.message);
        assert!(refused.message.contains(words), "{}", refused.message);
    }
}

#[tokio::test]
async fn without_a_command_there_is_a_login_shell() {
    let (mut client, _) = exec(ExecSession {
        stdin: true,
        ..ExecSession::default()
    })
    .await
    .unwrap();
    client.input(b"echo \"shell $0\"; exit 5\n").await;
    let done = client.done().await;
    assert!(done.text().contains("shell -"), "{}", done.text());
    assert_eq!(done.exit(), (5, 0));
}

#[tokio::test]
async fn a_signal_reaches_the_whole_group() {
    let script = "trap 'echo parent; exit 3' USR1; \
        (trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.05; done) & wait; wait";
    let (mut client, _) = exec(sh(script)).await.unwrap();
    client.until("ready").await;
    client.signal(10).await;
    let done = client.done().await;
    let text = done.text();
    assert!(text.contains("parent") && text.contains("child"), "{text}");
    assert_eq!(done.exit(), (3, 0));
    // Real-time signals too; what is no signal is none.
    let (mut client, _) = exec(sh("echo ready; exec sleep 300")).await.unwrap();
    client.until("ready").await;
    for number in [0, -1, 65, i32::MAX] {
        client.signal(number).await;
    }
    client.signal(34).await;
    assert_eq!(client.done().await.exit(), (162, 34));
}

#[tokio::test]
async fn a_program_is_waited_for_and_what_it_left_behind_is_not() {
    let begun = Instant::now();
    let done = run(sh("echo first; (sleep 600) & echo last; exit 6")).await;
    assert_eq!(
        (done.text(), done.exit()),
        ("first\nlast\n".to_owned(), (6, 0))
    );
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    // Even when what it left behind has much to say, and all that was its own comes.
    let done = run(sh("yes & seq 1 20000; exit 2")).await;
    assert_eq!(done.exit(), (2, 0));
    assert!(done.text().contains("\n20000\n"));
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_host_that_goes_takes_the_whole_session_with_it() {
    let marker = "volant-session-test-gone";
    let script = format!(
        "trap '' HUP; set -m; \
         sh -c 'trap \"\" HUP; while :; do sleep 0.1; done' {marker} & \
         sh -c 'while :; do sleep 0.1; done' {marker} & echo ready; \
         while :; do sleep 0.1; done"
    );
    // Other shells make no groups without a terminal.
    let wanted = command(&["/bin/bash", "-c", &script, marker]);
    let (mut client, opened) = exec(wanted).await.unwrap();
    client.until("ready").await;
    assert!(processes_with(marker).len() >= 3);
    assert!(processes_with(marker).contains(&opened.pid));
    drop(client);
    eventually("no process is left", || processes_with(marker).is_empty()).await;
}

#[tokio::test]
async fn a_host_that_goes_is_missed_even_while_a_program_does_not_read() {
    let marker = "volant-session-test-stalled";
    let (mut client, _) = exec(ExecSession {
        stdin: true,
        ..command(&["/bin/sh", "-c", "echo ready; exec sleep 600", marker])
    })
    .await
    .unwrap();
    client.until("ready").await;
    // More than all that lies between: the last of it is never taken.
    let frame = Frame::new(Kind::Input, vec![0; 65_536]);
    let stalled = async {
        loop {
            client.writer.send(&frame).await.unwrap();
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), stalled).await;
    let pid = sleeping(marker).await;
    drop(client);
    eventually("the program has ended", || !is_there(pid)).await;
}

/// The process that is called so, however its arguments became others.
async fn sleeping(_: &str) -> u32 {
    let mut found = None;
    eventually("sleep runs", || {
        found = processes_with("600").into_iter().next_back();
        found.is_some()
    })
    .await;
    found.unwrap()
}

fn is_there(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_host_that_does_not_read_stops_the_program_and_nobody_else() {
    let (mut client, opened) = exec(command(&["yes"])).await.unwrap();
    client.until("y\n").await;
    let written = || {
        let io = fs::read_to_string(format!("/proc/{}/io", opened.pid)).unwrap_or_default();
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        line.and_then(|number| number.parse::<u64>().ok()).unwrap()
    };
    let mut before = written();
    let mut same = 0;
    eventually("the program is held up", || {
        let now = written();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same > 30
    })
    .await;
    assert!(before < 4 * 1024 * 1024, "{before} bytes");
    assert_eq!(run(sh("exit 9")).await.exit(), (9, 0));
    // A signal reaches it all the same, and what it wrote is not lost.
    client.signal(15).await;
    eventually("it has ended", || !is_there(opened.pid)).await;
    let done = client.done().await;
    assert_eq!(done.exit(), (143, 15));
    let received = done.output.len() as u64;
    assert!(
        received <= before + 4096 && received + 65_536 >= before,
        "{received} of {before}"
    );
}

#[tokio::test]
async fn a_detached_program_goes_on_and_is_heard_in_the_log() {
    let (client, opened) = exec(ExecSession {
        detach: true,
        ..sh("echo detached-out; echo detached-err >&2; sleep 0.3; echo detached-end; exec sleep 599")
    })
    .await
    .unwrap();
    client.done().await.exit();
    let mut missing = vec![
        (Stream::Stdout, "detached-out"),
        (Stream::Stderr, "detached-err"),
        (Stream::Stdout, "detached-end"),
    ];
    while !missing.is_empty() {
        let line = within(GUEST.logs.next()).await.unwrap();
        missing.retain(|(stream, text)| (line.stream(), text.as_bytes()) != (*stream, &line.line));
    }
    assert!(is_there(opened.pid));
    run(sh(&format!("kill -9 {}", opened.pid))).await.exit();
    eventually("it is gone", || !is_there(opened.pid)).await;
}

#[tokio::test]
async fn fifty_programs_at_once_are_told_apart() {
    let all: Vec<_> = (0..50)
        .map(|number| {
            tokio::spawn(async move {
                let (mut client, _) = exec(ExecSession {
                    stdin: true,
                    ..sh(&format!("read word; echo $word {number}; exit {number}"))
                })
                .await
                .unwrap();
                client.input(b"hello\n").await;
                client.done().await
            })
        })
        .collect();
    for (number, one) in all.into_iter().enumerate() {
        let done = within(one).await.unwrap();
        assert_eq!(done.text(), format!("hello {number}\n"));
        assert_eq!(done.exit(), (u32::try_from(number).unwrap(), 0));
    }
}

#[tokio::test]
async fn a_program_has_signals_as_they_are_by_default() {
    let of = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let mask = line.unwrap().split_whitespace().nth(1).unwrap().to_owned();
        u64::from_str_radix(&mask, 16).unwrap()
    };
    let text = run(command(&["cat", "/proc/self/status"])).await.text();
    assert_eq!(
        (of(&text, "SigBlk:"), of(&text, "SigCgt:")),
        (0, 0),
        "{text}"
    );
    // Whoever runs this test may ignore others.
    let broken_pipe = 1 << (13 - 1);
    assert_eq!(of(&text, "SigIgn:") & broken_pipe, 0, "{text}");
}

#[tokio::test]
async fn a_script_without_an_interpreter_is_the_shell_s() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    fs::write(&path, "echo $0 $1; exit 4").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let path = path.to_str().unwrap();
    let done = run(command(&[path, "word"])).await;
    assert_eq!(
        (done.text(), done.exit()),
        (format!("{path} word\n"), (4, 0))
    );
}
