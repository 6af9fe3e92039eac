//! The program that the VM is for.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    fcntl::OFlag,
    sys::stat::{Mode, fchmod},
    unistd::{Pid, fchown, pipe2, setgroups, setresgid, setresuid, setsid},
};
use tokio::sync::oneshot;

use crate::{
    config::WorkloadConfig,
    reap::{Exit, Reaper},
    user::{self, Identity, UserError},
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A workload that was started.
#[derive(Debug)]
pub struct Workload {
    /// The leader of a session and a process group of its own.
    pub pid: Pid,
    pub exit: oneshot::Receiver<Exit>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Why there is no workload.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("cannot use the working directory {}", .dir.display())]
    Workdir { dir: PathBuf, source: io::Error },
    #[error("cannot use the volume {}", .dir.display())]
    Volume { dir: PathBuf, source: io::Error },
    #[error("cannot run it as '{user}'")]
    User { user: String, source: UserError },
    #[error("cannot make a pipe for its output")]
    Pipe(#[source] io::Error),
    #[error("cannot start {program}")]
    Start { program: String, source: io::Error },
    #[error(
        "cannot start {program}: it is there, but its interpreter or loader is not, or it is not for this machine"
    )]
    Loader { program: String },
}

/// Starts the workload, with nothing on standard input and pipes on output and error. `root` is where its `/etc` is. A
/// working directory or a volume that is not there is made, as container engines do.
///
/// # Errors
/// The user, a directory or the program cannot be used; no process is left.
pub fn start(
    config: &WorkloadConfig,
    root: &Path,
    reaper: &Reaper,
) -> Result<Workload, WorkloadError> {
    let (identity, home) = match config.user.as_str() {
        "" => (None, user::home_of_root(root)),
        wanted => {
            let found = user::find(root, wanted).map_err(|source| WorkloadError::User {
                user: wanted.to_owned(),
                source,
            })?;
            (Some(found.identity), found.home)
        }
    };
    for dir in &config.volumes {
        make_dir(dir).map_err(|source| WorkloadError::Volume {
            dir: dir.clone(),
            source,
        })?;
    }
    make_dir(&config.workdir).map_err(|source| WorkloadError::Workdir {
        dir: config.workdir.clone(),
        source,
    })?;
    let pipe = || output_pipe(identity.as_ref()).map_err(WorkloadError::Pipe);
    let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
    let mut command = command(config, &home);
    command.stdout(stdout_end).stderr(stderr_end);
    become_leader(&mut command, identity);
    let (child, exit) = reaper
        .spawn(&mut command)
        .map_err(|source| explain(&config.program, source))?;
    Ok(Workload {
        pid: Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX)),
        exit,
        stdout,
        stderr,
    })
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir),
        Err(error) => Err(error),
    }
}

/// Our end, and the workload's. Images log to `/dev/stdout`, which opens the pipe anew: with root's own pipe, another user
/// could not. Who else the workload becomes later may write to it, and not read.
fn output_pipe(identity: Option<&Identity>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some(identity) = identity {
        fchown(theirs.as_fd(), Some(identity.uid), Some(identity.gid))?;
    }
    fchmod(theirs.as_fd(), Mode::from_bits_truncate(0o622))?;
    Ok((ours, theirs))
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

fn command(config: &WorkloadConfig, home: &str) -> Command {
    let mut command = Command::new(&config.program);
    command
        .args(&config.arguments)
        .current_dir(&config.workdir)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", home)
        .env("TERM", "linux")
        .envs(&config.env)
        .stdin(Stdio::null());
    command
}

/// Has the child begin a session of its own, and become whom it runs as: the user last, who may do none of this.
fn become_leader(command: &mut Command, identity: Option<Identity>) {
    // SAFETY: the closure makes system calls alone, which are async-signal-safe, and allocates nothing.
    #[allow(unsafe_code, reason = "a session can only be begun in the child")]
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if let Some(Identity { uid, gid, groups }) = &identity {
                setgroups(groups)?;
                setresgid(*gid, *gid, *gid)?;
                setresuid(*uid, *uid, *uid)?;
            }
            Ok(())
        });
    }
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
            volumes: Vec::new(),
            user: String::new(),
            stop_signal: nix::sys::signal::Signal::SIGTERM,
            stop_grace: std::time::Duration::ZERO,
            restart: crate::config::Restart::Never,
            health: None,
            rlimits: Vec::new(),
        };
        let command = command(&config, "/root");
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
