//! The program of an exec: what is run, as whom, where, with which environment; and its start.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Pid, Uid};
use tokio::sync::oneshot;
use volant_proto::agent::v1::{ExecSession, session_refused::Kind as Why};

use super::{
    Refusal, Sessions,
    spawn::{self, Plan},
};
use crate::{
    reap::{Exit, Reaper},
    user::{self, Identity},
};

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHELL: &str = "/bin/sh";
const TERMINAL: &str = "xterm";

/// A program that can be started.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    name: String,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    workdir: PathBuf,
    /// Absent: whom this process runs as, which is root.
    identity: Option<Identity>,
}

/// A program that was started: the leader of a session and a group of its own.
#[derive(Debug)]
pub struct Started {
    pub pid: Pid,
    pub exit: oneshot::Receiver<Exit>,
}

impl Program {
    /// What `wanted` means in this guest.
    ///
    /// # Errors
    /// The user, the folder or the program is not there or of no use.
    pub fn find(wanted: &ExecSession, sessions: &Sessions) -> Result<Self, Refusal> {
        let user = match wanted.user.as_str() {
            "" => "0",
            user => user,
        };
        let user = user::find(&sessions.root, user).map_err(|error| {
            let why = match error {
                user::UserError::Absent { .. } => Why::NotFound,
                _ => Why::Unusable,
            };
            Refusal::new(why, chain(&error))
        })?;
        let home = match wanted.user.as_str() {
            "" => user::home_or_usual(user.home),
            _ => user.home,
        };
        let shell = Some(user.shell)
            .filter(|shell| is_program(Path::new(shell)))
            .unwrap_or_else(|| SHELL.to_owned());
        let env = environment(wanted, sessions, home, user.name, &shell)?;
        let workdir = workdir(&wanted.workdir, &sessions.workdir)?;
        let (path, name, arguments) = match wanted.command.split_first() {
            Some((name, arguments)) => {
                let search = env.get("PATH").map_or(PATH, String::as_str);
                let path = look_up(name, search, &workdir)?;
                (path, name.clone(), arguments.to_vec())
            }
            None => {
                let name = shell.rsplit('/').next().unwrap_or_default();
                (PathBuf::from(&shell), format!("-{name}"), Vec::new())
            }
        };
        Ok(Self {
            path,
            name,
            arguments,
            env,
            workdir,
            identity: Some(user.identity).filter(|_| !wanted.user.is_empty()),
        })
    }

    /// Whom what the program opens should belong to.
    pub fn user(&self) -> Uid {
        self.identity
            .as_ref()
            .map_or(Uid::from_raw(0), |identity| identity.uid)
    }

    /// Starts it. With `terminal`, standard input is one that becomes its own.
    ///
    /// # Errors
    /// It cannot be started so; no process is left.
    pub fn start(
        self,
        reaper: &Reaper,
        stdio: &[OwnedFd; 3],
        terminal: bool,
    ) -> Result<Started, Refusal> {
        let none = || {
            let message = "a word of the command has a nul byte in it";
            Refusal::new(Why::Invalid, message)
        };
        let path = c_string(self.path.as_os_str().as_bytes()).ok_or_else(none)?;
        let workdir = c_string(self.workdir.as_os_str().as_bytes()).ok_or_else(none)?;
        let words = [&self.name].into_iter().chain(&self.arguments);
        let arguments = words.map(|word| c_string(word.as_bytes()));
        let arguments: Vec<_> = arguments.collect::<Option<_>>().ok_or_else(none)?;
        let variables = self.env.iter();
        let env = variables.map(|(key, value)| c_string(format!("{key}={value}").as_bytes()));
        let env: Vec<_> = env.collect::<Option<_>>().ok_or_else(none)?;
        let plan = Plan {
            path: &path,
            arguments: &arguments,
            env: &env,
            workdir: &workdir,
            identity: self.identity.as_ref(),
            stdio: [0, 1, 2].map(|number| stdio[number].as_fd()),
            terminal,
        };
        let (pid, exit) = reaper
            .promise(|| spawn::start(&plan).map(|pid| (pid, pid)))
            .map_err(|error| explain(&self.path, &error))?;
        Ok(Started { pid, exit })
    }
}

fn c_string(bytes: &[u8]) -> Option<CString> {
    CString::new(bytes).ok()
}

fn environment(
    wanted: &ExecSession,
    sessions: &Sessions,
    home: String,
    name: String,
    shell: &str,
) -> Result<BTreeMap<String, String>, Refusal> {
    let mut env = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    if wanted.tty {
        env.insert("TERM".to_owned(), TERMINAL.to_owned());
    }
    env.extend(sessions.env.clone());
    env.insert("HOME".to_owned(), home);
    env.insert("USER".to_owned(), name);
    env.insert("SHELL".to_owned(), shell.to_owned());
    for (key, value) in &wanted.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            let message = format!("'{}' is no environment variable", key.escape_debug());
            return Err(Refusal::new(Why::Invalid, message));
        }
        env.insert(key.clone(), value.clone());
    }
    Ok(env)
}

fn workdir(wanted: &str, usual: &Path) -> Result<PathBuf, Refusal> {
    let dir = match wanted {
        "" => usual.to_owned(),
        dir => PathBuf::from(dir),
    };
    let act = format!("cannot use the working directory {}", dir.display());
    if !dir.is_absolute() {
        return Err(Refusal::new(
            Why::Invalid,
            format!("{act}: it is not absolute"),
        ));
    }
    match fs::metadata(&dir) {
        Ok(meta) if meta.is_dir() => Ok(dir),
        Ok(_) => Err(Refusal::new(
            Why::Unusable,
            format!("{act}: it is no folder"),
        )),
        Err(error) => Err(Refusal::system(&act, &error)),
    }
}

/// Finds a program as a shell does: a name without '/' in the folders of `search`.
fn look_up(name: &str, search: &str, workdir: &Path) -> Result<PathBuf, Refusal> {
    if name.is_empty() || name.contains('\0') {
        return Err(Refusal::new(Why::Invalid, "the program has no name"));
    }
    if name.contains('/') {
        let path = workdir.join(name);
        return match fs::metadata(&path) {
            Ok(_) if is_program(&path) => Ok(path),
            Ok(_) => Err(no_program(name)),
            Err(error) => Err(Refusal::system(&format!("cannot run {name}"), &error)),
        };
    }
    let mut is_there = false;
    for folder in search.split(':') {
        // An empty one is the working directory, as everywhere.
        let path = workdir.join(folder).join(name);
        match fs::metadata(&path) {
            Ok(meta) if is_executable(&meta) => return Ok(path),
            found => is_there |= found.is_ok_and(|meta| meta.is_file()),
        }
    }
    if is_there {
        return Err(no_program(name));
    }
    let message = format!("there is no program '{}' in {search}", name.escape_debug());
    Err(Refusal::new(Why::NotFound, message))
}

fn no_program(name: &str) -> Refusal {
    Refusal::new(
        Why::Unusable,
        format!("cannot run {name}: it is no file that may be executed"),
    )
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| is_executable(&meta))
}

fn is_executable(meta: &fs::Metadata) -> bool {
    meta.is_file() && meta.permissions().mode() & 0o111 != 0
}

/// "No such file" speaks of the program's interpreter or loader: the program itself was there.
fn explain(path: &Path, error: &io::Error) -> Refusal {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            let message = format!("cannot run {path}: its interpreter or loader is not there");
            Refusal::new(Why::Unusable, message)
        }
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => {
            Refusal::new(Why::Busy, format!("cannot run {path}: {error}"))
        }
        _ => Refusal::system(&format!("cannot run {path}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_up_as_a_shell_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, mode) in [("one/run", 0o755), ("two/run", 0o755), ("one/data", 0o644)] {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), "").unwrap();
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(path("one/folder")).unwrap();
        let search = format!(
            "/nowhere:{}:{}",
            path("one").display(),
            path("two").display()
        );
        let found =
            |name: &str| look_up(name, &search, &path("two")).map_err(|refusal| refusal.why);
        assert_eq!(found("run").unwrap(), path("one/run"));
        assert_eq!(found("./run").unwrap(), path("two/./run"));
        assert_eq!(found("../one/run").unwrap(), path("two/../one/run"));
        assert_eq!(found("data").unwrap_err(), Why::Unusable);
        assert_eq!(found("../one/data").unwrap_err(), Why::Unusable);
        assert_eq!(found("folder").unwrap_err(), Why::NotFound);
        assert_eq!(found("gone").unwrap_err(), Why::NotFound);
        assert_eq!(found("./gone").unwrap_err(), Why::NotFound);
        assert_eq!(found("").unwrap_err(), Why::Invalid);
        // An empty part is the working directory.
        assert_eq!(
            look_up("run", "", &path("two")).map_err(|refusal| refusal.why),
            Ok(path("two/run"))
        );
    }
}
