//! What a VM is configured to be, over what its plugin says.
//!
//! A field that is absent is the plugin's. registryd keeps every version of it; the newest holds from the next start.

mod check;
mod effective;
mod patch;
mod secret;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Name,
    config::Vmm,
    manifest::{CloudInit, Devices, HealthCheck, NetworkMode, Restart},
};

pub(crate) use check::check_target;
pub use check::{
    MAX_CPU_QUOTA_PERCENT, MAX_DISK_MB, MAX_MOUNTS, MAX_WEIGHT, MIN_DISK_MB, RLIMITS,
    VmConfigError, check_init, check_limits, check_rlimits, check_size,
};
pub use effective::{ConfigConflict, Effective, Image};
pub use patch::PatchError;
pub use secret::{MAX_SECRET_BYTES, MAX_SECRETS_BYTES, SecretName, SecretNameError};

/// The largest configuration that is read, in bytes of JSON.
pub const MAX_BYTES: usize = 256 * 1024;

/// A VM's own configuration. A value that deserialises is valid in itself; unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct VmConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    /// In MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub vmm: Option<Vmm>,
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// The program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Set beyond, and over, the plugin's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// By name ("nofile", "nproc", ...), set beyond, and over, the plugin's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// The program that becomes PID 1 in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The disk that keeps what the guest writes to its root; absent: memory, and it is gone with the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<RootDisk>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Each document replaces the plugin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Secrets that the workload gets; their values are kept elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
}

/// Why bytes are not a [`VmConfig`].
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error("the configuration has {0} bytes; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("the configuration is not valid")]
    Json(#[source] serde_json::Error),
}

impl VmConfig {
    /// Reads a configuration from JSON; nothing at all is one that sets nothing.
    ///
    /// # Errors
    /// Too large, or not valid: the source names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if bytes.len() > MAX_BYTES {
            return Err(ParseError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(ParseError::Json)
    }

    /// As it is kept and sent.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a configuration has no keys but texts")
    }
}

impl Serialize for VmConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for VmConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Self::deserialize(deserializer)?;
        config.check().map_err(serde::de::Error::custom)?;
        Ok(config)
    }
}

/// What the unit's control group allows; systemd's own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// `CPUQuota=`: percent of one CPU, 1 to 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota_percent: Option<u32>,
    /// `CPUWeight=`: 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// `IOWeight=`: 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u32>,
}

impl Limits {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A resource limit of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<u64>,
    /// Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<u64>,
}

/// The disk below a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RootDisk {
    /// It is sparse on the host, and grows with this number; it never shrinks.
    pub size_mb: u32,
}

/// A named disk of the VM, or a directory of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Volume {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Name"))]
    pub name: Name,
    /// Where the guest mounts it, absolute.
    pub target: PathBuf,
    /// Of a disk. One of `size_mb` and `host_path` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mb: Option<u32>,
    /// A directory of the host, absolute, which the guest reads by virtiofs and cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A secret that the workload gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Of the file in /run/secrets.
    pub name: String,
    /// The variable of the workload's environment that has it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
}

#[cfg(test)]
mod tests;
