//! vhost-device-vsock: the host's side of QEMU's vsock, a process of its own.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use volant_service::Heirlooms;

use super::{START_DEADLINE, no_answer};
use crate::hypervisor::{
    LaunchError, MachineSpec,
    process::{Process, ProcessState},
    remove,
};

const PROGRAM: &str = "vhost-device-vsock";
const HINT: &str = "reinstall the package volant";

/// The socket to QEMU, in the run folder.
const VHOST_SOCKET: &str = "vhost-vsock.sock";
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The process and its sockets.
#[derive(Debug)]
pub(super) struct Vsock {
    pub process: Process,
    vhost: PathBuf,
    guest: PathBuf,
}

/// The same for the supervisor that takes over.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VsockState {
    process: ProcessState,
    vhost: PathBuf,
    guest: PathBuf,
}

impl Vsock {
    /// What a supervisor needs that takes over in this process; `None` once it ended.
    pub(super) fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<Option<VsockState>> {
        let process = self.process.save(heirlooms)?;
        Ok(process.map(|process| VsockState {
            process,
            vhost: self.vhost.clone(),
            guest: self.guest.clone(),
        }))
    }

    /// What an earlier supervisor left.
    pub(super) fn restore(state: VsockState) -> io::Result<Self> {
        Ok(Self {
            process: Process::restore(PROGRAM, state.process)?,
            vhost: state.vhost,
            guest: state.guest,
        })
    }

    pub(super) fn start(program: &Path, spec: &MachineSpec) -> Result<Self, LaunchError> {
        let vhost = spec.run_dir.join(VHOST_SOCKET);
        let guest = spec.vsock.clone();
        for stale in [&vhost, &guest] {
            remove(stale).map_err(|source| LaunchError::Prepare {
                what: "the vsock's sockets",
                source,
            })?;
        }
        let mut command = Command::new(program);
        command.arg("--guest-cid").arg(spec.cid.to_string());
        command.arg("--socket").arg(&vhost);
        command.arg("--uds-path").arg(&guest);
        let process = Process::start(PROGRAM, HINT, command)?;
        Ok(Self {
            process,
            vhost,
            guest,
        })
    }

    /// Connects to the socket that the process makes when it is ready.
    pub(super) async fn connect(&mut self) -> Result<OwnedFd, LaunchError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match UnixStream::connect(&self.vhost) {
                Ok(stream) => return Ok(OwnedFd::from(stream)),
                // Not bound yet, or bound and not listened on yet.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(source) => {
                    return Err(LaunchError::Prepare {
                        what: "the connection to vhost-device-vsock",
                        source,
                    });
                }
            }
            if Instant::now() >= deadline {
                return Err(no_answer(&self.process));
            }
            tokio::select! {
                exit = self.process.wait() => return Err(self.process.ended(exit)),
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Kills the process, waits for its end and removes its sockets.
    pub(super) async fn kill(&mut self) {
        self.process.kill().await;
        for socket in [&self.vhost, &self.guest] {
            if let Err(error) = remove(socket) {
                tracing::warn!("cannot remove {}: {error}", socket.display());
            }
        }
    }
}
