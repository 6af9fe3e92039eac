//! Programs that people run in the guest.
//!
//! A program ends when it ends: what it left behind and that still holds its output is not waited for longer than
//! [`IDLE`] without a word. A program whose host is gone is told so and, if need be, killed, with all of its session.

use std::{
    fs,
    future::pending,
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    unistd::{Gid, Pid, Uid, fchown, pipe2},
};
use tokio::{
    io::AsyncWrite,
    sync::oneshot,
    time::{Instant, sleep_until},
};
use volant_proto::agent::v1::{
    ExecSession, SessionEnd, SessionOpened, WindowSize, send_logs_request::Stream,
    session_refused::Kind as Why,
};
use volant_session::{Frame, Kind};

use super::{
    Ended, Input, Output, Refusal, Sessions, answer,
    descriptor::Descriptor,
    feed::feed,
    kin,
    program::{Program, Started},
    terminal::{self, Keyboard},
};
use crate::{
    lines::{MAX_LINE, Splitter},
    logs::{self, Logs},
    reap::Exit,
};

/// The most of one OUTPUT or ERROR.
const CHUNK: usize = 32 * 1024;
/// How long the output may be silent after the program's end before it is taken for another's.
const IDLE: Duration = Duration::from_secs(1);
/// When output goes on and on after the program's end, it is another's: the program's own is what was in the pipes.
const DRAIN: Duration = Duration::from_secs(10);
const PIPES: usize = 2 * 64 * 1024;

/// Our ends of a program's input and output.
struct Ends {
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    stdout: Descriptor,
    /// Absent: it is the same as standard output.
    stderr: Option<Descriptor>,
    terminal: Option<Descriptor>,
}

/// Runs what is wanted until it ends or the host goes.
///
/// # Errors
/// It cannot be run so.
pub async fn run(
    wanted: ExecSession,
    input: &mut Input,
    output: &mut Output,
    sessions: &Sessions,
) -> Result<Ended, Refusal> {
    let program = Program::find(&wanted, sessions)?;
    if wanted.detach {
        let pid = detach(program, wanted.tty, sessions)?;
        return Ok(opened(output, pid).await.then(SessionEnd::default));
    }
    let (started, ends) = match wanted.tty {
        true => on_terminal(program, &wanted, sessions)?,
        false => on_pipes(program, wanted.stdin, sessions)?,
    };
    let pid = started.pid;
    let exit = match opened(output, pid).await {
        true => attend(started, ends, input, output).await,
        false => None,
    };
    let Some(exit) = exit else {
        kin::end(pid).await;
        return Ok(None);
    };
    if wanted.tty {
        // Whoever wants to outlive its terminal ignores this, or begins a session of its own.
        kin::hang_up(pid);
    }
    Ok(Some(SessionEnd {
        code: exit.code,
        signal: exit.signal,
        ..SessionEnd::default()
    }))
}

async fn opened(output: &mut Output, pid: Pid) -> bool {
    let opened = SessionOpened {
        pid: pid.as_raw().try_into().unwrap_or(0),
        again: true,
        ..SessionOpened::default()
    };
    answer(output, &opened).await
}

fn no_pipe(error: &io::Error) -> Refusal {
    let message = format!("cannot make the program's input and output: {error}");
    Refusal::new(Why::Unusable, message)
}

/// A standard input that ends at once.
fn nothing() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}

/// A pipe whose `theirs` end belongs to who uses it: a program may open it anew, as `/dev/stdout`.
fn pipe(user: Uid, theirs: fn(&(OwnedFd, OwnedFd)) -> &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let pipe = pipe2(OFlag::O_CLOEXEC)?;
    if !user.is_root() {
        fchown(theirs(&pipe).as_fd(), Some(user), None::<Gid>)?;
    }
    Ok(pipe)
}

fn on_pipes(
    program: Program,
    has_stdin: bool,
    sessions: &Sessions,
) -> Result<(Started, Ends), Refusal> {
    let user = program.user();
    let make = || {
        let (stdin, sink) = match has_stdin {
            true => {
                let (theirs, ours) = pipe(user, |pipe| &pipe.0)?;
                let ours: Box<dyn AsyncWrite + Send + Unpin> = Box::new(Descriptor::new(ours)?);
                (theirs, Some(ours))
            }
            false => (nothing()?, None),
        };
        let (stdout, stdout_end) = pipe(user, |pipe| &pipe.1)?;
        let (stderr, stderr_end) = pipe(user, |pipe| &pipe.1)?;
        let ends = Ends {
            stdin: sink,
            stdout: Descriptor::new(stdout)?,
            stderr: Some(Descriptor::new(stderr)?),
            terminal: None,
        };
        Ok((stdin, stdout_end, stderr_end, ends))
    };
    let (stdin, stdout, stderr, ends) = make().map_err(|error| no_pipe(&error))?;
    let started = program.start(&sessions.reaper, &[stdin, stdout, stderr], false)?;
    Ok((started, ends))
}

fn on_terminal(
    program: Program,
    wanted: &ExecSession,
    sessions: &Sessions,
) -> Result<(Started, Ends), Refusal> {
    let size = wanted.size.unwrap_or_default();
    let (ours, theirs) = pair(program.user(), size)?;
    let ours = Descriptor::new(ours).map_err(|error| no_pipe(&error))?;
    let started = start_on(program, theirs, sessions)?;
    let ends = Ends {
        stdin: wanted
            .stdin
            .then(|| Box::new(Keyboard(ours.clone())) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: ours.clone(),
        stderr: None,
        terminal: Some(ours),
    };
    Ok((started, ends))
}

fn pair(user: Uid, size: WindowSize) -> Result<(OwnedFd, OwnedFd), Refusal> {
    let make = || {
        let pair = terminal::open_pair(user)?;
        terminal::resize(&pair.1, size)?;
        Ok(pair)
    };
    make().map_err(|error| Refusal::system("cannot make a pseudo terminal", &error))
}

fn start_on(program: Program, theirs: OwnedFd, sessions: &Sessions) -> Result<Started, Refusal> {
    let copy = || theirs.try_clone().map_err(|error| no_pipe(&error));
    let (stdin, stdout) = (copy()?, copy()?);
    program.start(&sessions.reaper, &[stdin, stdout, theirs], true)
}

/// Starts a program that nobody attends. Its output goes where the workload's does.
fn detach(program: Program, tty: bool, sessions: &Sessions) -> Result<Pid, Refusal> {
    if tty {
        let (ours, theirs) = pair(program.user(), WindowSize::default())?;
        let ours = Descriptor::new(ours).map_err(|error| no_pipe(&error))?;
        let started = start_on(program, theirs, sessions)?;
        tokio::spawn(log_terminal(ours, Arc::clone(&sessions.logs)));
        return Ok(started.pid);
    }
    let user = program.user();
    let make = || pipe(user, |pipe| &pipe.1).map_err(|error| no_pipe(&error));
    let ((stdout, stdout_end), (stderr, stderr_end)) = (make()?, make()?);
    let stdin = nothing().map_err(|error| no_pipe(&error))?;
    let started = program.start(&sessions.reaper, &[stdin, stdout_end, stderr_end], false)?;
    for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
        let logs = Arc::clone(&sessions.logs);
        tokio::spawn(async move { logs::read(pipe, stream, &logs).await });
    }
    Ok(started.pid)
}

async fn log_terminal(terminal: Descriptor, logs: Arc<Logs>) {
    let mut splitter = Splitter::default();
    while let Ok(bytes) = terminal.chunk(MAX_LINE).await {
        if bytes.is_empty() {
            break;
        }
        splitter.push(&bytes, |mut line| {
            line.pop_if(|byte| *byte == b'\r');
            logs.push(Stream::Stdout, line);
        });
    }
    if let Some(line) = splitter.finish() {
        logs.push(Stream::Stdout, line);
    }
}

/// Carries input and output until the program has ended; `None`: the host went first. Our ends are closed after.
async fn attend(
    started: Started,
    ends: Ends,
    input: &mut Input,
    output: &mut Output,
) -> Option<Exit> {
    let Started { pid, exit } = started;
    let connection = output.0.clone();
    // Then its number may be another's.
    let has_ended = AtomicBool::new(false);
    let control = |frame: &Frame| match frame.kind {
        Kind::Signal if !has_ended.load(Ordering::Relaxed) => signal(pid, frame),
        Kind::Resize => {
            if let (Some(terminal), Ok(size)) = (&ends.terminal, frame.decode::<WindowSize>()) {
                // It is a terminal, and one that is closed needs no size.
                let _ = terminal::resize(terminal, size);
            }
        }
        _ => {}
    };
    tokio::select! {
        exit = carry(output, ends.stdout, ends.stderr, exit, &has_ended) => exit,
        _gone = feed(input, &connection, ends.stdin, control) => None,
    }
}

/// Sends a signal to the program's group, if it is one that the kernel has.
fn signal(group: Pid, frame: &Frame) {
    let Some(number) = frame
        .payload
        .first_chunk::<4>()
        .map(|bytes| i32::from_le_bytes(*bytes))
        .filter(|number| (1..=64).contains(number))
    else {
        return;
    };
    // SAFETY: the call touches no memory.
    #[allow(unsafe_code, reason = "nix has no names for real-time signals")]
    unsafe {
        // ESRCH: its exit is on its way.
        nix::libc::killpg(group.as_raw(), number);
    }
}

/// What the output is waited for after the program's end.
struct Drain {
    exit: Exit,
    idle: Instant,
    last: Instant,
    bytes: usize,
}

/// Carries the output to the host until all of it has gone and the program has ended. `None`: the host is gone.
async fn carry(
    output: &mut Output,
    stdout: Descriptor,
    stderr: Option<Descriptor>,
    mut exit: oneshot::Receiver<Exit>,
    has_ended: &AtomicBool,
) -> Option<Exit> {
    let (mut stdout, mut stderr) = (Some(stdout), stderr);
    let mut drain: Option<Drain> = None;
    loop {
        let until = match &drain {
            Some(drain) if stdout.is_none() && stderr.is_none() => return Some(drain.exit),
            Some(drain) if drain.bytes >= PIPES && Instant::now() >= drain.last => {
                return Some(drain.exit);
            }
            Some(drain) => Some(drain.idle),
            None => None,
        };
        let (kind, source, bytes) = tokio::select! {
            bytes = chunk(stdout.as_ref()) => (Kind::Output, &mut stdout, bytes),
            bytes = chunk(stderr.as_ref()) => (Kind::Error, &mut stderr, bytes),
            ended = &mut exit, if until.is_none() => {
                has_ended.store(true, Ordering::Relaxed);
                let now = Instant::now();
                drain = Some(Drain {
                    // The reaper ends with this process alone.
                    exit: ended.unwrap_or(Exit { code: 255, signal: 0 }),
                    idle: now + IDLE,
                    last: now + DRAIN,
                    bytes: 0,
                });
                continue;
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                return drain.map(|drain| drain.exit);
            }
        };
        match bytes {
            Ok(bytes) if !bytes.is_empty() => {
                let count = bytes.len();
                output.send(&Frame::new(kind, bytes)).await.ok()?;
                if let Some(drain) = &mut drain {
                    drain.bytes += count;
                    // The time that the host took does not count.
                    drain.idle = Instant::now() + IDLE;
                }
            }
            // The end, or what cannot be read: there is nothing more.
            _ => *source = None,
        }
    }
}

async fn chunk(source: Option<&Descriptor>) -> io::Result<Vec<u8>> {
    match source {
        Some(source) => source.chunk(CHUNK).await,
        None => pending().await,
    }
}
