//! What a VM is like now: published by the supervisor, shown on the bus and in `STATUS=`.

use std::time::{SystemTime, UNIX_EPOCH};

use volant_dbus::ipam::Attachment;

use crate::{
    agent::Heartbeat,
    definition::{self, Definition},
    life::{Life, Rung, Step},
};

/// A VM as an operator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    pub name: String,
    pub uuid: String,
    pub plugin: String,
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
            ..Self::default()
        }
    }

    /// Takes over phase and status of a life.
    pub fn show(&mut self, life: &Life) {
        self.phase = life.phase();
        self.status = self.line(life);
        if matches!(life.step(), Step::Ended(_)) {
            self.vmm_pid = 0;
            self.workload_pid = 0;
        }
    }

    pub fn ready_now(&mut self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        self.ready_since_unix_ms = since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        });
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
