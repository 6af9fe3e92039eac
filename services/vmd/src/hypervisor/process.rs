//! A process of a VMM: started, listened to, ended.

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{OwnedFd, RawFd},
        unix::process::ExitStatusExt,
    },
    process::{Command as StdCommand, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    task::JoinHandle,
};
use volant_service::{Heirlooms, inherited};

use super::{LaunchError, VmmExit, adopted::Adopted};

/// How much of the end of what a process printed is kept.
const KEPT: usize = 4096;
/// How many of its last lines make a message, and of how many characters.
const MESSAGE_LINES: usize = 3;
const MESSAGE_CHARS: usize = 600;
/// What a dead process printed last may still be on its way, or never end, as another holds the pipe.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A child with its output. Killed when dropped.
#[derive(Debug)]
pub(super) struct Process {
    program: &'static str,
    child: Kin,
    /// Where its output is read; `listener` has a copy.
    output: OwnedFd,
    printed: Arc<Mutex<VecDeque<u8>>>,
    listener: Option<JoinHandle<()>>,
}

/// How a process is ours.
#[derive(Debug)]
enum Kin {
    Child(Child),
    /// An earlier supervisor started it, which was this same process.
    Adopted(Adopted),
}

/// A running process for the supervisor that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessState {
    pid: u32,
    output: RawFd,
    printed: Vec<u8>,
}

impl Process {
    /// Starts `command`, which dies with this thread and inherits neither environment nor input.
    pub(super) fn start(
        program: &'static str,
        hint: &'static str,
        mut command: StdCommand,
    ) -> Result<Self, LaunchError> {
        let output = |source| LaunchError::Prepare {
            what: "a pipe for the VMM's output",
            source,
        };
        let (reader, writer) = io::pipe().map_err(output)?;
        let reader = OwnedFd::from(reader);
        let kept = reader.try_clone().map_err(output)?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(output)?;
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(output)?)
            .stderr(writer);
        volant_service::die_with_parent(&mut command);
        let mut command = Command::from(command);
        let child = command.kill_on_drop(true).spawn().map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                LaunchError::NotInstalled { program, hint }
            } else {
                LaunchError::Spawn { program, source }
            }
        })?;
        // Its ends of what the child inherits must close here, else their end is never seen.
        drop(command);
        let child = Kin::Child(child);
        Ok(Self::listened_to(
            program,
            child,
            kept,
            reader,
            VecDeque::new(),
        ))
    }

    fn listened_to(
        program: &'static str,
        child: Kin,
        output: OwnedFd,
        reader: pipe::Receiver,
        printed: VecDeque<u8>,
    ) -> Self {
        let printed = Arc::new(Mutex::new(printed));
        let listener = tokio::spawn(listen(reader, Arc::clone(&printed)));
        Self {
            program,
            child,
            output,
            printed,
            listener: Some(listener),
        }
    }

    /// What a supervisor needs that takes over in this process; `None` once it ended.
    pub(super) fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<Option<ProcessState>> {
        let pid = self.pid();
        if pid == 0 {
            return Ok(None);
        }
        Ok(Some(ProcessState {
            pid,
            output: heirlooms.keep(&self.output)?,
            printed: lock(&self.printed).iter().copied().collect(),
        }))
    }

    /// The process `program` that an earlier supervisor left.
    pub(super) fn restore(program: &'static str, state: ProcessState) -> io::Result<Self> {
        let child = Kin::Adopted(Adopted::new(state.pid)?);
        let output = inherited(state.output)?;
        let reader = pipe::Receiver::from_owned_fd(output.try_clone()?)?;
        let printed = state.printed.into();
        Ok(Self::listened_to(program, child, output, reader, printed))
    }

    pub(super) fn program(&self) -> &'static str {
        self.program
    }

    /// The process id; 0 after the end.
    pub(super) fn pid(&self) -> u32 {
        match &self.child {
            Kin::Child(child) => child.id().unwrap_or(0),
            Kin::Adopted(adopted) => adopted.pid(),
        }
    }

    /// Resolves at the end, when all that was printed is read. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> Exit {
        let exit = match &mut self.child {
            Kin::Child(child) => match child.wait().await {
                Ok(status) => Exit::from(status),
                // Somebody else took its status: all that is known is that it ended.
                Err(_) => Exit::Code(-1),
            },
            Kin::Adopted(adopted) => adopted.wait().await,
        };
        if let Some(listener) = &mut self.listener {
            let _ = tokio::time::timeout(LAST_WORDS, listener).await;
            self.listener = None;
        }
        exit
    }

    /// Kills the process, if it still runs, and waits for its end.
    pub(super) async fn kill(&mut self) {
        match &mut self.child {
            // It fails for a process that ended already.
            Kin::Child(child) => drop(child.kill().await),
            Kin::Adopted(adopted) => adopted.kill().await,
        }
    }

    /// The last lines that were printed, fit for a message.
    pub(super) fn said(&self) -> String {
        let bytes: Vec<u8> = lock(&self.printed).iter().copied().collect();
        last_lines(&bytes)
    }

    /// What this end means for a VM whose guest did not bring it about.
    pub(super) fn exit(&self, exit: Exit) -> VmmExit {
        match exit {
            Exit::Code(code) => VmmExit::Exited {
                program: self.program,
                code,
                message: self.said(),
            },
            Exit::Signal(signal) => VmmExit::Killed {
                program: self.program,
                signal,
            },
        }
    }

    /// What this end means for a launch.
    pub(super) fn ended(&self, exit: Exit) -> LaunchError {
        let status = match exit {
            Exit::Code(code) => format!("code {code}"),
            Exit::Signal(signal) => format!("signal {signal}"),
        };
        LaunchError::Ended {
            program: self.program,
            status,
            message: self.said(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

async fn listen(mut reader: pipe::Receiver, printed: Arc<Mutex<VecDeque<u8>>>) {
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = reader.read(&mut chunk).await {
        let mut printed = lock(&printed);
        printed.extend(&chunk[..count]);
        let excess = printed.len().saturating_sub(KEPT);
        printed.drain(..excess);
    }
}

fn lock(printed: &Mutex<VecDeque<u8>>) -> MutexGuard<'_, VecDeque<u8>> {
    printed.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(MESSAGE_LINES)..].join("; ");
    if last.is_empty() {
        return "it printed nothing".to_owned();
    }
    let excess = last.chars().count().saturating_sub(MESSAGE_CHARS);
    last.chars()
        .skip(excess)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = StdCommand::new("/bin/sh");
        command.args(["-c", script]);
        Process::start("sh", "install a shell", command).unwrap()
    }

    #[tokio::test]
    async fn the_last_words_of_a_process_are_kept() {
        let mut process = shell("seq 100000; echo; echo 'cannot\tgo on' >&2; exit 3");
        assert_eq!(process.wait().await, Exit::Code(3));
        assert_eq!(
            process.exit(Exit::Code(3)),
            VmmExit::Exited {
                program: "sh",
                code: 3,
                message: "99999; 100000; cannot go on".to_owned()
            }
        );
        assert_eq!(process.wait().await, Exit::Code(3));
    }

    #[tokio::test]
    async fn a_killed_process_tells_its_signal() {
        let mut process = shell("exec sleep 1000");
        process.kill().await;
        assert_eq!(process.wait().await, Exit::Signal(9));
        process.kill().await;
    }

    #[tokio::test]
    async fn an_end_is_seen_though_a_grandchild_holds_the_output() {
        let mut process = shell("sleep 3 & echo gone");
        let waited = tokio::time::timeout(Duration::from_secs(2), process.wait()).await;
        assert_eq!(waited, Ok(Exit::Code(0)));
        assert_eq!(process.said(), "gone");
    }

    #[tokio::test]
    async fn a_process_gets_nothing_of_the_environment() {
        let mut process = shell("echo ${CARGO_MANIFEST_DIR:-none}; cat");
        process.wait().await;
        assert_eq!(process.said(), "none");
    }

    #[tokio::test]
    async fn an_absent_program_is_told_with_how_to_get_it() {
        let command = StdCommand::new("/nowhere/vmm");
        let error = Process::start("vmm", "install the package vmm", command).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vmm is not installed; install the package vmm"
        );
    }

    #[test]
    fn a_message_is_short_and_has_no_control_characters() {
        assert_eq!(last_lines(b""), "it printed nothing");
        assert_eq!(last_lines(b"a\n\n b\x1b[1m\r\n"), "a; b [1m");
        assert_eq!(last_lines(&[0xff; 4000]).chars().count(), MESSAGE_CHARS);
    }
}
