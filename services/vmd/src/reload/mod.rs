//! `systemctl reload`: the running vmd executes its new binary in its own place. It stays the same process, so the VMM stays its
//! child and systemd notices nothing; descriptors stay open, and all else goes in a document ([`Document`]) that the new one reads.
//!
//! ```text
//! vmd --reload NAME ── control.sock ──▶ vmd (old)
//!                                        │ a draft of the document ──▶ vmd --check-state (new): does it understand?
//!                                        │ programs are parked, clients told that they are to come back, the console rests
//!                                        │ the document ──▶ execve: vmd --take-over FD (new)
//!       "ok" ◀───────────────────────────┴──────────────────────────── it serves
//! ```
//! Whatever fails before `execve` has changed nothing: the old one goes on, and `vmd --reload` tells why.

mod arrive;
pub mod bus;
mod leave;
mod programs;
mod request;

pub use arrive::take_over;
pub use leave::{Estate, Leaver};
pub use request::{RequestError, request};

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use serde::{Deserialize, Serialize};
use volant_service::inherited;

use self::{bus::BusState, programs::ProgramState};
use crate::{
    console::HubState, definition::Share, hypervisor::detect::Choice, logs::Labels,
    supervise::Snapshot,
};

/// Of the document. It changes with every change of what is in it that another vmd would misunderstand.
pub const VERSION: u32 = 1;
/// The longest document that is read: a console's ring, and the buffers of some sessions.
const MOST: u64 = 128 * 1024 * 1024;

/// All that the next vmd must know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    version: u32,
    /// Where vmd was started from: what is there now is executed next time, too.
    program: PathBuf,
    labels: Labels,
    choice: Choice,
    share: Share,
    bus: BusState,
    /// The listeners of [`crate::sockets`].
    clients: RawFd,
    control: RawFd,
    /// Who asked for the reload waits for an answer here.
    answer: RawFd,
    vm: Snapshot,
    console: HubState,
    programs: Vec<ProgramState>,
    program_count: u64,
}

/// Why a document is not understood.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("cannot read the state of the VM")]
    Read(#[source] io::Error),
    #[error("the state of the VM has the version {0}, and this vmd understands {VERSION}")]
    Version(u32),
    #[error("the state of the VM is not understood")]
    Parse(#[source] serde_json::Error),
}

/// What every version has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

impl Document {
    /// This document in a file of no folder, which nobody can change any more.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn write(&self) -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let mut file = File::from(memfd_create(c"vmd", flags)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        let seals = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file.into())
    }

    /// The document in `file`.
    ///
    /// # Errors
    /// It is none, or one of another version.
    pub fn read(file: impl Read) -> Result<Self, DocumentError> {
        let mut bytes = Vec::new();
        let read = file.take(MOST).read_to_end(&mut bytes);
        read.map_err(DocumentError::Read)?;
        let any: AnyVersion = serde_json::from_slice(&bytes).map_err(DocumentError::Parse)?;
        if any.version != VERSION {
            return Err(DocumentError::Version(any.version));
        }
        serde_json::from_slice(&bytes).map_err(DocumentError::Parse)
    }

    /// The document that was left under the number `fd`.
    fn left(fd: RawFd) -> Result<Self, DocumentError> {
        let mut file = File::from(inherited(fd).map_err(DocumentError::Read)?);
        file.rewind().map_err(DocumentError::Read)?;
        Self::read(file)
    }
}
