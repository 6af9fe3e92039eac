//! From the supervisors' common user to the VM's own, for good, before any guest exists.
//!
//! A VMM that is taken over then has a user of its own, no group but that of `/dev/kvm`, no capability, and nothing to
//! gain one by.

use std::{fs, io};

use caps::{CapSet, Capability, errors::CapsError};
use nix::{
    errno::Errno,
    sys::prctl,
    unistd::{Gid, Group, Uid, getgroups, setgroups, setresgid, setresuid},
};
use volant_spec::unit::{FIRST_UID, LAST_UID};

/// It opens `/dev/kvm`.
const KVM: &str = "kvm";

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
    #[error("user id {0} is no VM's: these are from {FIRST_UID} to {LAST_UID}")]
    Reserved(u32),
    #[error("cannot count the threads of this process")]
    CountThreads(#[source] io::Error),
    #[error(
        "this process has {0} threads, and a capability that is dropped is dropped by one alone"
    )]
    Threads(usize),
    #[error("cannot {act}")]
    Groups { act: &'static str, source: Errno },
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

/// Makes this process the VM's: user and group `uid`, no capabilities, none to be had. Of the supplementary groups `kvm`
/// alone stays, where it is one of them. Call it while the process has one thread.
///
/// # Errors
/// A part of it failed: the process must not go on.
pub fn become_vm(uid: u32) -> Result<Identity, IdentityError> {
    if !(FIRST_UID..=LAST_UID).contains(&uid) {
        return Err(IdentityError::Reserved(uid));
    }
    let identity = if may_switch()? {
        single_threaded()?;
        leave_groups()?;
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

fn leave_groups() -> Result<(), IdentityError> {
    let failed = |act| move |source| IdentityError::Groups { act, source };
    let held = getgroups().map_err(failed("read the groups of this process"))?;
    if held.is_empty() {
        return Ok(());
    }
    let kvm = Group::from_name(KVM).map_err(failed("look up the group 'kvm'"))?;
    let needed = needed(&held, kvm.map(|kvm| kvm.gid));
    setgroups(&needed).map_err(failed("leave the groups that no VM needs"))
}

/// What a VM keeps of the groups that its supervisor has.
fn needed(held: &[Gid], kvm: Option<Gid>) -> Vec<Gid> {
    kvm.into_iter().filter(|kvm| held.contains(kvm)).collect()
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
        let none = [
            0,
            1000,
            61_000,
            65_534,
            FIRST_UID - 1,
            LAST_UID + 1,
            u32::MAX,
        ];
        for uid in none {
            assert!(matches!(become_vm(uid), Err(IdentityError::Reserved(_))));
        }
    }

    #[test]
    fn of_the_groups_kvms_alone_is_kept_and_none_is_gained() {
        let gid = Gid::from_raw;
        let cases: [(&[Gid], Option<Gid>, &[Gid]); 4] = [
            (&[gid(7), gid(36), gid(998)], Some(gid(36)), &[gid(36)]),
            (&[gid(7), gid(998)], Some(gid(36)), &[]),
            (&[gid(7)], None, &[]),
            (&[], Some(gid(36)), &[]),
        ];
        for (held, kvm, expected) in cases {
            assert_eq!(needed(held, kvm), expected, "{held:?}");
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
