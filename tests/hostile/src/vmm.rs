//! What a VMM that was taken over could try. In QEMU's place it starts the real one, so that its VM runs, and carries out
//! attacks beside it as the same user in the same sandbox.
//!
//! The test asks by the files `/tmp/ask-1`, `/tmp/ask-2` and so on: lines of words, an attack each. The answer, `/tmp/answer-1` and so
//! on, has a line for each: `ok`, an errno's name, `killed SIGNAL` or `exit CODE`. Each attack has a process of its own, so
//! one that is killed is told.

use std::{
    ffi::CString,
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::FileExt,
            net::{SocketAddr, UnixStream},
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    sys::stat::Mode,
    unistd::{ForkResult, Pid, fork},
};

/// Where the test puts the real one.
const QEMU: &str = "/usr/bin/qemu-real";
/// How often the question is looked for.
const PAUSE: Duration = Duration::from_millis(50);

/// Becomes the real QEMU, and leaves a child that attacks.
#[allow(
    unsafe_code,
    reason = "fork: the child must have all that QEMU was given"
)]
pub fn run() -> ExitCode {
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => serve(),
        Ok(ForkResult::Parent { .. }) => {
            let error = Command::new(QEMU).args(std::env::args_os().skip(1)).exec();
            eprintln!("hostile: cannot become {QEMU}: {error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("hostile: cannot fork: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> ExitCode {
    for round in 1_u32.. {
        let ask = format!("/tmp/ask-{round}");
        let asked = loop {
            match fs::read_to_string(&ask) {
                Ok(asked) => break asked,
                Err(_) => thread::park_timeout(PAUSE),
            }
        };
        let answers: String = asked
            .lines()
            .map(|line| format!("{}\n", in_a_process(line)))
            .collect();
        let answer = format!("/tmp/answer-{round}");
        let new = format!("{answer}.new");
        let told = fs::write(&new, answers).and_then(|()| fs::rename(&new, &answer));
        if let Err(error) = told {
            eprintln!("hostile: cannot answer: {error}");
        }
    }
    ExitCode::SUCCESS
}

/// What becomes of a process of this program that does one attack.
fn in_a_process(line: &str) -> String {
    let child = Command::new("/proc/self/exe")
        .args(["attack", line])
        .output();
    match child {
        Ok(output) => match told(output.status) {
            Some(end) => format!("{end} {}", text(&output.stderr)),
            None => text(&output.stdout),
        },
        Err(error) => format!("cannot start: {error}"),
    }
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn told(status: ExitStatus) -> Option<String> {
    match (status.signal(), status.code()) {
        (Some(signal), _) => Some(format!("killed {signal}")),
        (None, Some(0)) => None,
        (None, code) => Some(format!("exit {}", code.unwrap_or(-1))),
    }
}

/// One attack, here and now. What is given by number may not be there at all; the test sees to that.
#[allow(clippy::print_stdout, reason = "its parent reads it")]
pub fn attack(line: &str) -> ExitCode {
    let words: Vec<&str> = line.split_whitespace().collect();
    let done = match words.as_slice() {
        ["read", path] => opens(path, OFlag::O_RDONLY),
        ["list", path] => fs::read_dir(path).map(drop),
        ["write", path] => opens(path, OFlag::O_WRONLY),
        ["create", path] => opens(path, OFlag::O_WRONLY | OFlag::O_CREAT),
        ["chmod", path] => fs::metadata(path).and_then(|found| {
            let mut permissions = found.permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o777);
            fs::set_permissions(path, permissions)
        }),
        ["connect", path] => UnixStream::connect(path).map(drop),
        ["connect-abstract", name] => SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixStream::connect_addr(&address))
            .map(drop),
        ["memory-of", pid] => fs::File::open(format!("/proc/{pid}/mem"))
            .and_then(|file| file.read_at(&mut [0], 0).map(drop)),
        ["reopen"] => reopen(),
        ["descriptors-of", pid] => fs::read_dir(format!("/proc/{pid}/fd")).map(drop),
        ["run", program, arguments @ ..] => run_program(program, arguments),
        ["forks", most] => forks(most.parse().unwrap_or(0)),
        ["memory", mebibytes] => memory(mebibytes.parse().unwrap_or(0)),
        // A system call by its number, with numbers or texts.
        ["call", number, arguments @ ..] => call(number, arguments).map(drop),
        _ => return ExitCode::from(2),
    };
    match done {
        Ok(()) => println!("ok"),
        Err(error) => match error.raw_os_error() {
            Some(number) => println!("{:?}", Errno::from_raw(number)),
            None => println!("{error}"),
        },
    }
    ExitCode::SUCCESS
}

fn opens(path: &str, flags: OFlag) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(0o600);
    open(path, flags | OFlag::O_NONBLOCK, mode)?;
    Ok(())
}

/// Opens anew, to be written to, each file of which this process was given a descriptor.
fn reopen() -> io::Result<()> {
    let mut files = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        // A pipe, a socket and the folder itself are no files.
        if !fs::metadata(&path).is_ok_and(|found| found.is_file()) {
            continue;
        }
        files += 1;
        if fs::OpenOptions::new().write(true).open(&path).is_ok() {
            return Ok(());
        }
    }
    Err(io::Error::other(format!("none of {files} files")))
}

/// A program of the host, of which the last words tell why it failed.
fn run_program(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    match told(output.status) {
        None => Ok(()),
        Some(end) => Err(io::Error::other(format!("{end} {}", text(&output.stderr)))),
    }
}

/// Processes that wait, until there may be no more.
fn forks(most: u32) -> io::Result<()> {
    let mut started: Vec<Child> = Vec::new();
    let mut failed = None;
    for _ in 0..most {
        match Command::new("/usr/bin/sleep").arg("60").spawn() {
            Ok(child) => started.push(child),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    for child in &mut started {
        child.kill()?;
        child.wait()?;
    }
    failed.map_or(Ok(()), Err)
}

/// Memory that is really there.
fn memory(mebibytes: usize) -> io::Result<()> {
    let mut held = Vec::new();
    for _ in 0..mebibytes {
        held.push(vec![1_u8; 1 << 20]);
    }
    std::hint::black_box(&held);
    Ok(())
}

#[allow(
    unsafe_code,
    reason = "calls that no wrapper makes: the point is what the kernel says"
)]
fn call(number: &str, arguments: &[&str]) -> io::Result<i64> {
    let number: libc::c_long = number.parse().map_err(io::Error::other)?;
    let mut texts = Vec::new();
    let mut values = [0_i64; 6];
    for (value, argument) in values.iter_mut().zip(arguments) {
        *value = if *argument == "self" {
            i64::from(Pid::this().as_raw())
        } else if let Ok(plain) = argument.parse() {
            plain
        } else {
            let text = CString::new(*argument)?;
            let pointer = text.as_ptr().expose_provenance();
            texts.push(text);
            i64::try_from(pointer).map_err(io::Error::other)?
        };
    }
    let [a, b, c, d, e, f] = values;
    // SAFETY: pointers are of texts that live until the end; what a call would write to is given as 0, which it refuses.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
