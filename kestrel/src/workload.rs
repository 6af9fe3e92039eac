//! The program that the VM is for.

use std::{
    ffi::OsString,
    fmt, fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    fcntl::OFlag,
    sys::stat::{Mode, fchmod},
    unistd::{Pid, fchown, pipe2},
};
use tokio::sync::oneshot;

use crate::{
    child,
    config::{Secret, WorkloadConfig},
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

/// The workload as it can be started: whom it runs as is known.
pub struct Program {
    config: WorkloadConfig,
    identity: Option<Identity>,
    home: String,
    root: PathBuf,
    /// Variables whose values are secret.
    secrets: Vec<(String, OsString)>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("config", &self.config)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Program {
    /// Finds whom it runs as, by the `/etc` in `root`. Secrets that are for the environment are in no other one.
    ///
    /// # Errors
    /// There is no such user or group.
    pub fn new(
        config: WorkloadConfig,
        root: &Path,
        secrets: &[Secret],
    ) -> Result<Self, WorkloadError> {
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
        let secrets = secrets
            .iter()
            .filter_map(|secret| {
                let value = OsString::from_vec(secret.value.clone());
                Some((secret.env.clone()?, value))
            })
            .collect();
        Ok(Self {
            config,
            identity,
            home,
            root: root.to_owned(),
            secrets,
        })
    }

    #[must_use]
    pub fn config(&self) -> &WorkloadConfig {
        &self.config
    }

    /// Where its `/etc` is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whom it runs as; `None`: as the agent.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        self.identity.clone()
    }

    /// Makes its directories where they are missing, as container engines do.
    ///
    /// # Errors
    /// One is something else, or cannot be made.
    pub fn make_dirs(&self) -> Result<(), WorkloadError> {
        for dir in &self.config.volumes {
            make_dir(dir).map_err(|source| WorkloadError::Volume {
                dir: dir.clone(),
                source,
            })?;
        }
        make_dir(&self.config.workdir).map_err(|source| WorkloadError::Workdir {
            dir: self.config.workdir.clone(),
            source,
        })
    }

    /// Starts it, with nothing on standard input and pipes on output and error.
    ///
    /// # Errors
    /// A directory or the program cannot be used; no process is left.
    pub fn start(&self, reaper: &Reaper) -> Result<Workload, WorkloadError> {
        self.make_dirs()?;
        let pipe = || output_pipe(self.identity.as_ref()).map_err(WorkloadError::Pipe);
        let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
        let mut command = self.command(&self.config.program, &self.config.arguments);
        command.stdout(stdout_end).stderr(stderr_end);
        child::prepare(
            &mut command,
            self.identity.clone(),
            self.config.rlimits.clone(),
        );
        let (child, exit) = reaper
            .spawn(&mut command)
            .map_err(|source| explain(&self.config.program, source))?;
        Ok(Workload {
            pid: Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX)),
            exit,
            stdout,
            stderr,
        })
    }

    /// A program with the workload's environment and working directory, and no input. It is not yet run as the user.
    #[must_use]
    pub fn command(&self, program: &str, arguments: &[String]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.config.workdir)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &self.home)
            .env("TERM", "linux")
            .envs(&self.config.env)
            .envs(self.secrets.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }
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
        let secret = |name: &str, value: &str, env: Option<&str>| Secret {
            name: name.to_owned(),
            value: value.into(),
            env: env.map(str::to_owned),
        };
        let secrets = [
            secret("key", "hunter2", Some("KEY")),
            secret("file", "x", None),
        ];
        let root = tempfile::tempdir().unwrap();
        let program = Program::new(config, root.path(), &secrets).unwrap();
        let command = program.command("server", &program.config.arguments);
        let env: BTreeMap<_, _> = command
            .get_envs()
            .map(|(key, value)| (key, value.unwrap()))
            .collect();
        let expected = [
            ("A", "b"),
            ("HOME", "/srv"),
            ("KEY", "hunter2"),
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
