//! The program that the VM is for.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::unistd::{Pid, setsid};
use tokio::sync::oneshot;

use crate::{
    config::WorkloadConfig,
    reap::{Exit, Reaper},
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A workload that was started.
#[derive(Debug)]
pub struct Workload {
    /// The leader of a session and a process group of its own.
    pub pid: Pid,
    pub exit: oneshot::Receiver<Exit>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// Why there is no workload.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("cannot use the working directory {}", .dir.display())]
    Workdir { dir: PathBuf, source: io::Error },
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error(
        "cannot start {program}: it is there, but its interpreter or loader is not, or it is not for this machine"
    )]
    Loader { program: String },
}

/// Starts the workload, with nothing on standard input and pipes on output and error.
///
/// # Errors
/// The working directory or the program cannot be used; no process is left.
pub fn start(config: &WorkloadConfig, reaper: &Reaper) -> Result<Workload, WorkloadError> {
    check_workdir(&config.workdir).map_err(|source| WorkloadError::Workdir {
        dir: config.workdir.clone(),
        source,
    })?;
    let (mut child, exit) = reaper
        .spawn(&mut command(config))
        .map_err(|source| explain(&config.program, source))?;
    Ok(Workload {
        pid: Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX)),
        exit,
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
    })
}

fn check_workdir(dir: &Path) -> io::Result<()> {
    if fs::metadata(dir)?.is_dir() {
        Ok(())
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}

/// "No such file" may also speak of the program's loader, or of the shell that is tried with a file of no known format: people
/// would look at the wrong file.
fn explain(program: &str, source: io::Error) -> WorkloadError {
    let program = program.to_owned();
    if source.kind() == io::ErrorKind::NotFound
        && program.contains('/')
        && Path::new(&program).exists()
    {
        WorkloadError::Loader { program }
    } else {
        WorkloadError::Start { program, source }
    }
}

fn command(config: &WorkloadConfig) -> Command {
    let mut command = Command::new(&config.program);
    command
        .args(&config.arguments)
        .current_dir(&config.workdir)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("TERM", "linux")
        .envs(&config.env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: the closure makes one system call, which is async-signal-safe, and allocates nothing.
    #[allow(unsafe_code, reason = "a session can only be begun in the child")]
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
    command
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ffi::OsStr};

    use super::*;

    #[test]
    fn the_configured_environment_goes_over_the_defaults_and_nothing_else_is_inherited() {
        let config = WorkloadConfig {
            program: "server".to_owned(),
            arguments: vec!["--port".to_owned(), "80".to_owned()],
            env: BTreeMap::from([
                ("HOME".to_owned(), "/srv".to_owned()),
                ("A".to_owned(), "b".to_owned()),
            ]),
            workdir: "/srv".into(),
            stop_signal: nix::sys::signal::Signal::SIGTERM,
            stop_grace: std::time::Duration::ZERO,
        };
        let command = command(&config);
        let env: BTreeMap<_, _> = command
            .get_envs()
            .map(|(key, value)| (key, value.unwrap()))
            .collect();
        let expected = [
            ("A", "b"),
            ("HOME", "/srv"),
            ("PATH", PATH),
            ("TERM", "linux"),
        ];
        assert_eq!(
            env,
            expected
                .map(|(key, value)| (OsStr::new(key), OsStr::new(value)))
                .into()
        );
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["--port", "80"]);
        assert_eq!(command.get_current_dir(), Some(Path::new("/srv")));
    }
}
