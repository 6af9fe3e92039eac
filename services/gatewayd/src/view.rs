//! VMs and plugins as REST clients see them, and the pure function that puts a VM together.

pub mod plugin;

use jiff::Timestamp;
use serde::Serialize;
use volant_proto::{ipam::v1::Lease, registry::v1 as wire};

use crate::{
    ended,
    live::Live,
    phase::{self, Phase},
    systemd::UnitState,
};

/// A VM: its definition, and what it does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vm {
    pub name: String,
    pub uuid: String,
    pub plugin: String,
    pub plugin_version: String,
    pub cpu_cores: u32,
    pub memory_mb: u32,
    pub created_at: String,
    pub vmm: Vmm,
    pub phase: Phase,
    /// One line for people.
    pub status: Option<String>,
    pub address: Option<String>,
    pub mac: Option<String>,
    pub cid: Option<u32>,
    pub unit: String,
    /// Started at boot.
    pub enabled: bool,
    pub agent_version: Option<String>,
    pub memory_total_kib: Option<u64>,
    pub memory_available_kib: Option<u64>,
    /// What the agent itself takes of the guest's memory.
    pub agent_resident_kib: Option<u64>,
    pub ready_since: Option<String>,
    pub deleting: bool,
    /// How often systemd started it again by itself.
    pub restarts: u32,
    pub paused: bool,
    /// `starting`, `healthy` or `unhealthy`; absent without a health check.
    pub health: Option<String>,
    /// How it ended; absent while it runs, and when nobody knows any more.
    pub ended: Option<String>,
    /// Of the workload, if it ended by itself.
    pub exit_code: Option<i32>,
    pub config_version: u64,
    /// The configuration that this run has.
    pub running_config_version: Option<u64>,
    /// What runs is not what the newest configuration says, and only a start makes it so.
    pub restart_required: bool,
    /// Of the guest, in this run.
    pub reboots: u32,
    /// Of the workload, in this boot.
    pub workload_restarts: u32,
    /// Counts the supervisors that this run had.
    pub generation: Option<u32>,
    /// Names alone.
    pub secrets: Vec<String>,
}

/// The virtual machine monitor: asked for, and in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vmm {
    pub requested: String,
    pub used: Option<String>,
    pub reason: Option<String>,
    pub pid: Option<u32>,
}

/// Puts a VM together from those who know. `differs`: what runs is of another configuration, resources apart.
#[must_use]
pub fn vm(
    defined: wire::Vm,
    unit_name: String,
    unit: &UnitState,
    live: Option<Live>,
    lease: Option<&Lease>,
    differs: bool,
) -> Vm {
    let live = live.unwrap_or_default();
    let ended = ended::of(unit);
    let has_other = |has: Option<u32>, wanted| has.is_some_and(|has| has != wanted);
    let restart_required = differs
        || has_other(live.cpu_cores, defined.cpu_cores)
        || has_other(live.memory_mb, defined.memory_mb);
    let phase = phase::of(defined.deleting, unit, live.phase.as_deref());
    let ready_since = live
        .ready_since_unix_ms
        .and_then(|ms| i64::try_from(ms).ok())
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    Vm {
        name: defined.name,
        uuid: defined.uuid,
        plugin: defined.plugin,
        plugin_version: defined.plugin_version,
        cpu_cores: live.cpu_cores.unwrap_or(defined.cpu_cores),
        memory_mb: live.memory_mb.unwrap_or(defined.memory_mb),
        created_at: defined.created_at,
        vmm: Vmm {
            requested: defined.vmm,
            used: live.vmm,
            reason: live.vmm_reason,
            pid: live.vmm_pid,
        },
        phase,
        status: status(unit, live.status, phase),
        address: live
            .address
            .or_else(|| lease.map(|lease| lease.address.clone())),
        mac: live.mac.or_else(|| lease.map(|lease| lease.mac.clone())),
        cid: live.cid.or_else(|| lease.map(|lease| lease.cid)),
        unit: unit_name,
        enabled: unit.enabled,
        agent_version: live.agent_version,
        memory_total_kib: live.memory_total_kib,
        memory_available_kib: live.memory_available_kib,
        agent_resident_kib: live.agent_resident_kib,
        ready_since: ready_since.map(|time| time.to_string()),
        deleting: defined.deleting,
        restarts: unit.restarts,
        paused: live.paused,
        health: live.health,
        ended: live.ended.or(ended.how),
        exit_code: live.exit_code.or(ended.exit_code),
        config_version: defined.config_version,
        running_config_version: live.config_version,
        restart_required,
        reboots: live.reboots,
        workload_restarts: live.workload_restarts,
        generation: live.generation,
        secrets: defined.secrets,
    }
}

/// The supervisor's line while it lives; how the last run failed where it did.
fn status(unit: &UnitState, live: Option<String>, phase: Phase) -> Option<String> {
    if unit.is_restarting() {
        return Some(format!("failed, will be started again: {}", unit.failure()));
    }
    match phase {
        Phase::Failed => Some(unit.failure()),
        Phase::Stopped => None,
        Phase::Starting | Phase::Running | Phase::Stopping | Phase::Deleting => {
            live.or_else(|| {
                let words = &unit.status_text;
                (!words.is_empty()).then(|| words.clone())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systemd::{ActiveState, Exit};

    fn defined() -> wire::Vm {
        wire::Vm {
            name: "web".to_owned(),
            vmm: "auto".to_owned(),
            ..wire::Vm::default()
        }
    }

    fn unit(active: ActiveState, sub: &str) -> UnitState {
        UnitState {
            active,
            sub: sub.to_owned(),
            enabled: true,
            result: "exit-code".to_owned(),
            restarts: 2,
            status_text: "the kernel panicked".to_owned(),
            exit: Exit { code: 1, status: 4 },
        }
    }

    fn lease() -> Lease {
        Lease {
            vm: "web".to_owned(),
            address: "192.168.127.2".to_owned(),
            mac: "52:54:00:00:00:02".to_owned(),
            cid: 3,
        }
    }

    #[test]
    fn a_stopped_vm_keeps_its_lease_and_has_no_status() {
        let unit = UnitState {
            status_text: String::new(),
            ..unit(ActiveState::Inactive, "dead")
        };
        let vm = vm(
            defined(),
            "u".to_owned(),
            &unit,
            None,
            Some(&lease()),
            false,
        );
        assert_eq!(vm.phase, Phase::Stopped);
        assert_eq!(vm.address.as_deref(), Some("192.168.127.2"));
        assert_eq!((vm.cid, vm.status, vm.vmm.used), (Some(3), None, None));
    }

    #[test]
    fn a_failed_vm_says_why() {
        let unit = unit(ActiveState::Failed, "failed");
        let vm = vm(defined(), "u".to_owned(), &unit, None, None, false);
        let expected = "the kernel panicked (the supervisor exited with code 4)";
        assert_eq!(vm.status.as_deref(), Some(expected));
        assert_eq!(vm.address, None);
    }

    #[test]
    fn a_vm_between_two_runs_says_that_it_will_be_started_again() {
        let unit = unit(ActiveState::Activating, "auto-restart");
        let vm = vm(defined(), "u".to_owned(), &unit, None, None, false);
        assert_eq!((vm.phase, vm.restarts), (Phase::Starting, 2));
        assert!(
            vm.status
                .unwrap()
                .starts_with("failed, will be started again: the kernel")
        );
    }

    #[test]
    fn the_supervisor_knows_better_than_the_lease() {
        let live = Live {
            address: Some("192.168.127.9".to_owned()),
            ready_since_unix_ms: Some(1_700_000_000_123),
            status: Some("running at 192.168.127.9".to_owned()),
            ..Live::default()
        };
        let unit = unit(ActiveState::Active, "running");
        let vm = vm(
            defined(),
            "u".to_owned(),
            &unit,
            Some(live),
            Some(&lease()),
            false,
        );
        assert_eq!(vm.address.as_deref(), Some("192.168.127.9"));
        assert_eq!(vm.mac.as_deref(), Some("52:54:00:00:00:02"));
        assert_eq!(vm.ready_since.as_deref(), Some("2023-11-14T22:13:20.123Z"));
        assert_eq!(vm.status.as_deref(), Some("running at 192.168.127.9"));
    }

    #[test]
    fn a_guest_shows_what_it_has_and_whether_a_start_would_change_it() {
        let defined = wire::Vm {
            cpu_cores: 2,
            memory_mb: 512,
            config_version: 3,
            ..defined()
        };
        let live = |memory_mb| Live {
            cpu_cores: Some(2),
            memory_mb: Some(memory_mb),
            config_version: Some(2),
            ..Live::default()
        };
        let unit = unit(ActiveState::Active, "running");
        let shown = |memory_mb, differs| {
            let live = Some(live(memory_mb));
            vm(defined.clone(), "u".to_owned(), &unit, live, None, differs)
        };
        let same = shown(512, false);
        assert_eq!(
            (same.config_version, same.running_config_version),
            (3, Some(2))
        );
        assert!(!same.restart_required);
        let less = shown(256, false);
        assert_eq!((less.memory_mb, less.restart_required), (256, true));
        assert!(shown(512, true).restart_required);
    }

    #[test]
    fn a_vm_that_is_down_says_how_it_ended() {
        let unit = UnitState {
            status_text: "the workload exited with code 7".to_owned(),
            ..unit(ActiveState::Failed, "failed")
        };
        let vm = vm(defined(), "u".to_owned(), &unit, None, None, false);
        assert_eq!(vm.ended.as_deref(), Some("workload-exited"));
        assert_eq!(vm.exit_code, Some(7));
    }
}
