//! What the API gives of VMs, as far as people are shown it. Unknown fields are no trouble: the API may grow.

use comfy_table::Color;
use serde::Deserialize;

use crate::{failure::Failure, output::Shown};

#[derive(Clone, Debug, Deserialize)]
pub struct Vm {
    pub name: String,
    pub plugin: String,
    pub plugin_version: String,
    pub cpu_cores: u32,
    pub memory_mb: u32,
    pub created_at: String,
    pub vmm: Vmm,
    pub phase: String,
    pub status: Option<String>,
    pub address: Option<String>,
    pub mac: Option<String>,
    pub cid: Option<u32>,
    pub unit: String,
    pub enabled: bool,
    pub agent_version: Option<String>,
    pub memory_total_kib: Option<u64>,
    pub memory_available_kib: Option<u64>,
    pub ready_since: Option<String>,
    pub restarts: u32,
    #[serde(default)]
    pub paused: bool,
    pub health: Option<String>,
    pub ended: Option<String>,
    pub exit_code: Option<i32>,
    pub config_version: Option<u64>,
    pub running_config_version: Option<u64>,
    #[serde(default)]
    pub restart_required: bool,
    #[serde(default)]
    pub reboots: u32,
    #[serde(default)]
    pub workload_restarts: u32,
    #[serde(default)]
    pub secrets: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Vmm {
    pub requested: String,
    pub used: Option<String>,
    pub reason: Option<String>,
    pub pid: Option<u32>,
}

impl Vm {
    pub const COLUMNS: [&str; 7] = [
        "NAME", "STATUS", "ADDRESS", "CPU", "MEMORY", "PLUGIN", "VMM",
    ];

    pub fn row(&self) -> [Shown; 7] {
        [
            self.name.as_str().into(),
            self.phase(),
            or_dash(self.address.as_deref()),
            self.cpu_cores.to_string().into(),
            format!("{} MiB", self.memory_mb).into(),
            self.plugin.as_str().into(),
            self.vmm
                .used
                .as_deref()
                .unwrap_or(&self.vmm.requested)
                .into(),
        ]
    }

    /// All of it, a title and a value each; what is not known is left out.
    pub fn facts(&self) -> Vec<(&'static str, Shown)> {
        let vmm = match (&self.vmm.used, &self.vmm.reason) {
            (Some(used), Some(reason)) if !reason.is_empty() => format!("{used} ({reason})"),
            (Some(used), _) => used.clone(),
            (None, _) => self.vmm.requested.clone(),
        };
        let memory = match (self.memory_total_kib, self.memory_available_kib) {
            (Some(total), Some(available)) => {
                let used = total.saturating_sub(available) / 1024;
                format!("{} MiB, {used} MiB in use", self.memory_mb)
            }
            _ => format!("{} MiB", self.memory_mb),
        };
        let at_boot = if self.enabled {
            "starts at boot"
        } else {
            "does not start at boot"
        };
        let optional =
            |title, value: Option<String>| value.map(|value| (title, Shown::from(value)));
        [
            Some(("Name", self.name.as_str().into())),
            Some(("Status", self.phase())),
            optional(
                "Says",
                self.status.clone().filter(|status| !status.is_empty()),
            ),
            optional("Address", self.address.clone()),
            optional("MAC", self.mac.clone()),
            optional("CID", self.cid.map(|cid| cid.to_string())),
            Some((
                "Plugin",
                format!("{} {}", self.plugin, self.plugin_version).into(),
            )),
            Some(("CPU", self.cpu_cores.to_string().into())),
            Some(("Memory", memory.into())),
            Some(("VMM", vmm.into())),
            optional("VMM PID", self.vmm.pid.map(|pid| pid.to_string())),
            optional("Agent", self.agent_version.clone()),
            optional("Ended", self.end()),
            optional("Configuration", self.configuration()),
            optional(
                "Secrets",
                (!self.secrets.is_empty()).then(|| self.secrets.join(", ")),
            ),
            Some(("Created", self.created_at.as_str().into())),
            optional("Ready since", self.ready_since.clone()),
            optional("Restarts", self.restarted()),
            Some(("Unit", format!("{} ({at_boot})", self.unit).into())),
            Some((
                "Logs",
                format!("journalctl -u {}", self.unit.trim_end_matches(".service")).into(),
            )),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// What became of it, as a sentence.
    pub fn sentence(&self) -> String {
        match &self.address {
            _ if self.paused => format!("VM {} is paused", self.name),
            Some(address) if self.phase == "running" => {
                format!("VM {} is running at {address}", self.name)
            }
            _ => format!("VM {} is {}", self.name, self.phase),
        }
    }

    /// How it ended, if it did.
    fn end(&self) -> Option<String> {
        let ended = self.ended.clone()?;
        Some(match self.exit_code {
            Some(code) => format!("{ended} (exit code {code})"),
            None => ended,
        })
    }

    fn configuration(&self) -> Option<String> {
        let newest = self.config_version?;
        Some(
            match self.running_config_version {
                Some(running) if running != newest => format!("{newest}, and {running} runs"),
                _ => newest.to_string(),
            } + if self.restart_required {
                " (restart required)"
            } else {
                ""
            },
        )
    }

    /// How often each part of it was started again.
    fn restarted(&self) -> Option<String> {
        let parts = [
            (self.restarts, "by systemd"),
            (self.reboots, "of the guest"),
            (self.workload_restarts, "of the workload"),
        ];
        let told: Vec<String> = parts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// What it does, with what a look at it must not miss.
    fn phase(&self) -> Shown {
        let mut shown = self.plain_phase();
        if self.paused && self.phase == "running" {
            shown.text = "paused".to_owned();
            shown.colour = Some(Color::Yellow);
        }
        match self.health.as_deref() {
            Some("") | None => {}
            Some(health) => {
                shown.text.push_str(&format!(" ({health})"));
                if health == "unhealthy" {
                    shown.colour = Some(Color::Red);
                }
            }
        }
        if let Some(code) = self.exit_code.filter(|_| self.phase != "running") {
            shown.text.push_str(&format!(" ({code})"));
        }
        if self.restart_required {
            shown.text.push('*');
        }
        shown
    }

    fn plain_phase(&self) -> Shown {
        let colour = match self.phase.as_str() {
            "running" => Some(Color::Green),
            "starting" | "stopping" | "deleting" => Some(Color::Yellow),
            "failed" => Some(Color::Red),
            _ => None,
        };
        Shown {
            text: self.phase.clone(),
            colour,
        }
    }
}

/// Reads an answer of the API.
pub fn read<T: serde::de::DeserializeOwned>(answer: serde_json::Value) -> Result<T, Failure> {
    serde_json::from_value(answer).map_err(|error| Failure::Answer(error.to_string()))
}

pub fn or_dash(text: Option<&str>) -> Shown {
    text.unwrap_or("-").into()
}
