//! virtiofsd: serves one directory of the host to the guest, to read. A process of its own for each.
//!
//! The guest speaks to it directly, so it can be taken over as a VMM can. It runs as the VM's user, and Landlock leaves it
//! nothing but the directory and the host's programs; a kernel without Landlock shares nothing.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use volant_service::{Heirlooms, confine, inherit};

use super::{
    LaunchError, MachineSpec, ShareSpec, VmmExit,
    process::{Exit, Process, ProcessState},
    remove,
};

const PROGRAM: &str = "virtiofsd";
const HINT: &str = "reinstall the package volant";
/// Where it is, besides what systems have.
const PLACES: &[&str] = &["/usr/lib/volant/virtiofsd", "/usr/libexec/virtiofsd"];
/// What a program of the host needs to start, and this one to know how many files it may open.
const PROGRAMS: &[&str] = &[
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/proc/sys/fs/nr_open",
];

/// For the end of a process that closed its socket.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A served directory. Killed when dropped.
#[derive(Debug)]
pub(super) struct Share {
    pub tag: String,
    pub socket: PathBuf,
    process: Process,
}

impl Share {
    fn start(run_dir: &Path, spec: &ShareSpec) -> Result<Self, LaunchError> {
        let prepare = |what| move |source| LaunchError::Prepare { what, source };
        let socket = run_dir.join(format!("{}.sock", spec.tag));
        remove(&socket).map_err(prepare("the socket of virtiofsd"))?;
        // Listened on before the start: who connects waits for an answer, not for the socket.
        let listener = UnixListener::bind(&socket).map_err(prepare("the socket of virtiofsd"))?;
        let program = PLACES.iter().find(|place| Path::new(place).exists());
        let mut command = Command::new(program.unwrap_or(&PLACES[0]));
        let listener = inherit(&mut command, listener.into());
        command
            .args(["--fd", &listener.to_string()])
            .arg("--shared-dir")
            .arg(&spec.path)
            // No guest sees what another program changes, unless it asks again.
            .args(["--readonly", "--cache", "auto", "--sandbox", "none"])
            .args(["--inode-file-handles=never", "--log-level", "warn"]);
        let programs: Vec<&Path> = PROGRAMS
            .iter()
            .map(Path::new)
            .filter(|path| path.exists())
            .collect();
        confine(&mut command, &[&spec.path], &programs).map_err(|source| {
            if source.raw_os_error().is_some_and(is_no_landlock) {
                LaunchError::Unsupported {
                    what: "sharing a directory",
                    reason: "this host's kernel has no Landlock (lsm=landlock), or something forbids it here (a container's system call filter)",
                }
            } else {
                LaunchError::Share {
                    path: spec.path.clone(),
                    source,
                }
            }
        })?;
        Ok(Self {
            tag: spec.tag.clone(),
            socket,
            process: Process::start(PROGRAM, HINT, command)?,
        })
    }

    /// The connection that a VMM gets.
    pub(super) async fn connect(&mut self) -> Result<OwnedFd, LaunchError> {
        match UnixStream::connect(&self.socket) {
            Ok(connection) => Ok(connection.into()),
            // The socket is closed when the process ends, which is what should be told.
            Err(source) => match timeout(LAST_WORDS, self.process.wait()).await {
                Ok(exit) => Err(self.process.ended(exit)),
                Err(_) => Err(LaunchError::Prepare {
                    what: "the connection to virtiofsd",
                    source,
                }),
            },
        }
    }
}

fn is_no_landlock(errno: i32) -> bool {
    // EPERM is the answer of a container's filter that does not know the call.
    [nix::libc::ENOSYS, nix::libc::EOPNOTSUPP, nix::libc::EPERM].contains(&errno)
}

/// All shares of a machine.
#[derive(Debug, Default)]
pub(super) struct Shares(pub Vec<Share>);

/// A share for the supervisor that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShareState {
    tag: String,
    socket: PathBuf,
    process: ProcessState,
}

impl Shares {
    /// What a supervisor needs that takes over in this process; `None` once one has ended.
    pub(super) fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<Option<Vec<ShareState>>> {
        let mut states = Vec::with_capacity(self.0.len());
        for share in &self.0 {
            let Some(process) = share.process.save(heirlooms)? else {
                return Ok(None);
            };
            states.push(ShareState {
                tag: share.tag.clone(),
                socket: share.socket.clone(),
                process,
            });
        }
        Ok(Some(states))
    }

    /// What an earlier supervisor left.
    pub(super) fn restore(states: Vec<ShareState>) -> io::Result<Self> {
        let restore = |state: ShareState| {
            Ok(Share {
                tag: state.tag,
                socket: state.socket,
                process: Process::restore(PROGRAM, state.process)?,
            })
        };
        states
            .into_iter()
            .map(restore)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    pub(super) fn start(spec: &MachineSpec) -> Result<Self, LaunchError> {
        let start = |share| Share::start(&spec.run_dir, share);
        spec.shares
            .iter()
            .map(start)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Resolves when one has ended, with what that means for the machine. May be dropped and called again.
    pub(super) async fn wait(&mut self) -> VmmExit {
        let ends = self.0.iter_mut().map(|share| {
            Box::pin(async {
                let exit: Exit = share.process.wait().await;
                share.process.exit(exit)
            })
        });
        let ends: Vec<_> = ends.collect();
        if ends.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(ends).await.0
    }

    /// Kills all, waits for their ends and removes their sockets.
    pub(super) async fn kill(&mut self) {
        for share in &mut self.0 {
            share.process.kill().await;
            if let Err(error) = remove(&share.socket) {
                tracing::warn!("cannot remove {}: {error}", share.socket.display());
            }
        }
    }
}

/// Whether the directory can be shared: it is one, and the paths that the host allows are where it really is.
///
/// # Errors
/// It cannot be looked at.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    let real = path.canonicalize()?;
    if real.metadata()?.is_dir() {
        Ok(real)
    } else {
        Err(io::ErrorKind::NotADirectory.into())
    }
}
