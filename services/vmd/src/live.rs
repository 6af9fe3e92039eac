//! What a VM is like now: published by the supervisor, shown on the bus and in `STATUS=`.

use serde::{Deserialize, Serialize};
use volant_dbus::ipam::Attachment;

use crate::{
    agent::Heartbeat,
    definition::{self, Definition},
    ended::Ended,
    happening::now_unix_ms,
    life::{Life, Rung, Step},
};

/// A VM as an operator sees it.
///
/// Another supervisor that takes over finds in its life, and in [`Live::health`], what is not written down here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    pub name: String,
    pub uuid: String,
    pub plugin: String,
    #[serde(skip)]
    pub phase: &'static str,
    pub status: String,
    pub address: String,
    pub mac: String,
    pub cid: u32,
    pub vmm: String,
    pub vmm_reason: String,
    /// `qemu (tcg)`: the VMM with its acceleration, in two words.
    pub vmm_short: String,
    pub vmm_pid: u32,
    pub workload_pid: u32,
    pub agent_version: String,
    pub ready_since_unix_ms: u64,
    pub heartbeat: Heartbeat,
    pub paused: bool,
    pub config_version: u64,
    pub cpu_cores: u32,
    pub memory_mb: u32,
    pub reboots: u32,
    pub workload_restarts: u32,
    /// Empty without a health check; `starting`, `healthy`, `unhealthy`.
    #[serde(skip)]
    pub health: &'static str,
    /// How it ended; empty before.
    #[serde(skip)]
    pub ended: &'static str,
    /// The workload's, once it ended by itself.
    pub exit_code: Option<u8>,
    /// Counts the supervisors of this run.
    pub generation: u32,
}

impl Live {
    /// A VM of which no more is known than its definition and its attachment.
    #[must_use]
    pub fn new(definition: &Definition, attachment: &Attachment) -> Self {
        Self {
            name: definition.name.to_string(),
            uuid: definition.uuid.clone(),
            plugin: definition.plugin.clone(),
            phase: "starting",
            status: "starting".to_owned(),
            address: definition::address(attachment).to_owned(),
            mac: attachment.mac.clone(),
            cid: attachment.cid,
            config_version: definition.config_version,
            cpu_cores: definition.resources.cpu_cores,
            memory_mb: definition.resources.memory_mb,
            health: if definition.has_health_check() {
                "starting"
            } else {
                ""
            },
            generation: 1,
            ..Self::default()
        }
    }

    /// Takes over phase and status of a life.
    pub fn show(&mut self, life: &Life) {
        self.phase = life.phase();
        self.status = self.line(life);
        self.paused = *life.step() == Step::Paused;
        self.reboots = life.rebooted();
        if let Step::Ended(ended) = life.step() {
            self.vmm_pid = 0;
            self.workload_pid = 0;
            self.ended = ended.name();
            if let Ended::Workload(exit) = ended {
                self.exit_code = Some(exit.code);
            }
        }
    }

    pub fn ready_now(&mut self) {
        self.ready_since_unix_ms = now_unix_ms();
    }

    /// What the health check says now.
    pub fn set_health(&mut self, healthy: bool) {
        if !self.health.is_empty() {
            self.health = if healthy { "healthy" } else { "unhealthy" };
        }
    }

    /// The health that was written down; what is none is no health check.
    pub fn restore_health(&mut self, written: &str) {
        let known = ["starting", "healthy", "unhealthy"];
        let health = known.into_iter().find(|known| *known == written);
        self.health = health.unwrap_or_default();
    }

    /// The guest boots anew.
    pub fn boots(&mut self) {
        self.workload_pid = 0;
        self.workload_restarts = 0;
        if !self.health.is_empty() {
            self.health = "starting";
        }
    }

    fn line(&self, life: &Life) -> String {
        let vmm = &self.vmm_short;
        let up_to = || life.patience().unwrap_or_default().as_secs();
        let line = match life.step() {
            Step::Starting => format!("starting: {vmm}"),
            Step::Booting { greeted: false } => format!("booting: waiting for the agent, {vmm}"),
            Step::Booting { greeted: true } => format!("booting: starting the workload, {vmm}"),
            Step::Running => format!(
                "running: {}, {vmm}, workload pid {}",
                self.address, self.workload_pid
            ),
            Step::Paused => format!("paused: {}, {vmm}", self.address),
            Step::Stopping(Rung::Guest) => "stopping: the guest goes down by itself".to_owned(),
            Step::Stopping(Rung::Agent) => {
                format!(
                    "stopping: the agent stops the workload (up to {} s)",
                    up_to()
                )
            }
            Step::Stopping(Rung::Button(presses)) => {
                format!("stopping: the agent did not answer; power button pressed ({presses})")
            }
            Step::Stopping(Rung::Kill) => "stopping: killing the VMM".to_owned(),
            Step::Ended(ended) => ended.to_string(),
        };
        match (life.step(), life.reboots()) {
            (Step::Starting | Step::Booting { .. }, reboots @ 1..) => {
                format!("{line} (reboot {reboots} within a minute)")
            }
            _ => line,
        }
    }
}
