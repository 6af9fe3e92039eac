//! From the supervisors' common user to the VM's own, for good, before any guest exists.
//!
//! A VMM that is taken over then has a user of its own, no capability, and nothing to gain one by.

use std::{fs, io};

use caps::{CapSet, Capability, errors::CapsError};
use nix::{
    errno::Errno,
    sys::prctl,
    unistd::{Gid, Uid, setresgid, setresuid},
};

/// What became of the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The VM's own.
    Switched,
    /// Run by hand, without the right to switch.
    Kept,
}

/// Why the identity was not given up.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("user id {0} is no VM's: it is the superuser's or nobody's")]
    Reserved(u32),
    #[error("cannot count the threads of this process")]
    CountThreads(#[source] io::Error),
    #[error(
        "this process has {0} threads, and a capability that is dropped is dropped by one alone"
    )]
    Threads(usize),
    #[error("cannot become {what} {id}")]
    Become {
        what: &'static str,
        id: u32,
        source: Errno,
    },
    #[error("cannot {act} this process's capabilities")]
    Capabilities {
        act: &'static str,
        source: CapsError,
    },
    #[error("cannot forbid new privileges")]
    NoNewPrivileges(#[source] Errno),
}

/// Makes this process the VM's: user and group `uid`, no capabilities, none to be had. Supplementary groups stay: they
/// open the devices. Call it while the process has one thread.
///
/// # Errors
/// A part of it failed: the process must not go on.
pub fn become_vm(uid: u32) -> Result<Identity, IdentityError> {
    // The last two are "no change" and nobody.
    if uid == 0 || uid == u32::MAX || uid == 65534 {
        return Err(IdentityError::Reserved(uid));
    }
    let identity = if may_switch()? {
        single_threaded()?;
        let group = Gid::from_raw(uid);
        setresgid(group, group, group).map_err(|source| IdentityError::Become {
            what: "group",
            id: uid,
            source,
        })?;
        let user = Uid::from_raw(uid);
        setresuid(user, user, user).map_err(|source| IdentityError::Become {
            what: "user",
            id: uid,
            source,
        })?;
        Identity::Switched
    } else {
        Identity::Kept
    };
    // Effective goes before permitted, which bounds it.
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).map_err(|source| IdentityError::Capabilities {
            act: "drop",
            source,
        })?;
    }
    prctl::set_no_new_privs().map_err(IdentityError::NoNewPrivileges)?;
    Ok(identity)
}

fn may_switch() -> Result<bool, IdentityError> {
    if Uid::effective().is_root() {
        return Ok(true);
    }
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SETUID).map_err(|source| {
        IdentityError::Capabilities {
            act: "read",
            source,
        }
    })
}

fn single_threaded() -> Result<(), IdentityError> {
    let tasks = fs::read_dir("/proc/self/task").map_err(IdentityError::CountThreads)?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(IdentityError::Threads(threads)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_that_no_vm_has_are_refused() {
        for uid in [0, 65534, u32::MAX] {
            assert!(matches!(become_vm(uid), Err(IdentityError::Reserved(_))));
        }
    }

    #[test]
    fn a_process_with_threads_does_not_switch() {
        // The test harness has a thread beside this one.
        assert!(matches!(
            single_threaded(),
            Err(IdentityError::Threads(2..))
        ));
    }
}
