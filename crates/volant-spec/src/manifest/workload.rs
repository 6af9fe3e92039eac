//! The program that a VM is for, and how it is kept going.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::health::HealthCheck;
use crate::vm_config::{Rlimit, VmConfigError, check_rlimits};

/// The program that the VM is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, try_from = "UncheckedWorkload")]
#[cfg_attr(feature = "schema", schemars(!try_from))]
pub struct Workload {
    /// The program and its arguments; at least the program, unless the manifest has an `init`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `USER` or `USER:GROUP`, each a name that the guest's own files know or a number; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// An absolute path; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The signal that asks the program to end; `SIGTERM` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Milliseconds from the stop signal to `SIGKILL`; 10 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u32>,
    /// Whether the program is started again when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// How to tell whether the program does its work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Resource limits by name: `{"nofile": {"soft": 1024, "hard": 4096}}`; a limit that is absent is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Directories that the image declares as holding data, absolute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// The protocol of `base_url`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Where the program answers inside the guest, for actions: `http://127.0.0.1:8080`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
}

/// Whether the workload is started again when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    Never,
    OnFailure,
    Always,
}

/// What a workload speaks at its `base_url`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http,
}

/// What [`Workload::stop_grace_ms`] is when absent.
pub const DEFAULT_STOP_GRACE_MS: u32 = 10_000;
/// The most that [`Workload::stop_grace_ms`] may be: five minutes.
pub const MAX_STOP_GRACE_MS: u32 = 300_000;
/// The stop signals that a workload can name.
pub const STOP_SIGNALS: &[&str] = &[
    "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGWINCH",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedWorkload {
    #[serde(default)]
    entrypoint: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    user: Option<String>,
    workdir: Option<String>,
    stop_signal: Option<String>,
    stop_grace_ms: Option<u32>,
    restart: Option<Restart>,
    health_check: Option<HealthCheck>,
    #[serde(default)]
    rlimits: BTreeMap<String, Rlimit>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(rename = "type")]
    protocol: Option<Protocol>,
    base_url: Option<String>,
}

impl TryFrom<UncheckedWorkload> for Workload {
    type Error = WorkloadError;

    fn try_from(workload: UncheckedWorkload) -> Result<Self, WorkloadError> {
        let UncheckedWorkload {
            entrypoint,
            env,
            user,
            workdir,
            stop_signal,
            stop_grace_ms,
            restart,
            health_check,
            rlimits,
            volumes,
            protocol,
            base_url,
        } = workload;
        let workload = Self {
            entrypoint,
            env,
            user,
            workdir,
            stop_signal,
            stop_grace_ms,
            restart,
            health_check,
            rlimits,
            volumes,
            protocol,
            base_url,
        };
        workload.check()?;
        Ok(workload)
    }
}

impl Workload {
    /// A workload of that command line; everything else is as by default.
    ///
    /// # Errors
    /// It names no program, or has a NUL character.
    pub fn new(entrypoint: Vec<String>) -> Result<Self, WorkloadError> {
        if entrypoint.is_empty() {
            return Err(WorkloadError::Entrypoint);
        }
        let workload = Self {
            entrypoint,
            ..Self::none()
        };
        workload.check()?;
        Ok(workload)
    }

    /// No program: for a guest that is all its init's.
    #[must_use]
    pub fn none() -> Self {
        Self {
            entrypoint: Vec::new(),
            env: BTreeMap::new(),
            user: None,
            workdir: None,
            stop_signal: None,
            stop_grace_ms: None,
            restart: None,
            health_check: None,
            rlimits: BTreeMap::new(),
            volumes: Vec::new(),
            protocol: None,
            base_url: None,
        }
    }

    /// Whether nothing is said, not even a program.
    pub(super) fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// Checks values that were put together by hand; one that was read from a manifest is valid already.
    ///
    /// # Errors
    /// The first field that is not valid.
    pub fn check(&self) -> Result<(), WorkloadError> {
        if self.entrypoint.first().is_some_and(String::is_empty) {
            return Err(WorkloadError::Entrypoint);
        }
        let mut texts = self
            .entrypoint
            .iter()
            .chain(self.env.keys())
            .chain(self.env.values());
        if texts.any(|text| text.contains('\0')) {
            return Err(WorkloadError::Nul);
        }
        if let Some(key) = self
            .env
            .keys()
            .find(|key| key.is_empty() || key.contains('='))
        {
            return Err(WorkloadError::EnvKey(key.clone()));
        }
        if let Some(user) = self.user.as_ref().filter(|user| !is_user(user)) {
            return Err(WorkloadError::User(user.clone()));
        }
        if let Some(dir) = self.workdir.as_ref().filter(|dir| !is_absolute(dir)) {
            return Err(WorkloadError::Workdir(dir.clone()));
        }
        if let Some(dir) = self.volumes.iter().find(|dir| !is_absolute(dir)) {
            return Err(WorkloadError::Volume(dir.clone()));
        }
        if let Some(signal) = self
            .stop_signal
            .as_ref()
            .filter(|signal| !STOP_SIGNALS.contains(&signal.as_str()))
        {
            return Err(WorkloadError::StopSignal(signal.clone()));
        }
        if let Some(grace) = self
            .stop_grace_ms
            .filter(|grace| *grace > MAX_STOP_GRACE_MS)
        {
            return Err(WorkloadError::StopGrace(grace));
        }
        if let Some(url) = self.base_url.as_ref().filter(|url| !is_http_url(url)) {
            return Err(WorkloadError::BaseUrl(url.clone()));
        }
        check_rlimits(&self.rlimits).map_err(WorkloadError::Rlimits)
    }
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

pub(super) fn is_http_url(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.starts_with('/')
            && !rest.contains(|c: char| c.is_control() || c == ' ')
    })
}

/// `USER` or `USER:GROUP`, of what passwd files can hold.
pub(crate) fn is_user(text: &str) -> bool {
    let is_part = |part: &str| {
        (1..=256).contains(&part.len())
            && !part.contains(|c: char| c.is_control() || c.is_whitespace() || c == ':')
    };
    match text.split_once(':') {
        Some((user, group)) => is_part(user) && is_part(group),
        None => is_part(text),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    #[error("workload.entrypoint names no program")]
    Entrypoint,
    #[error("workload has a text with a NUL character")]
    Nul,
    #[error("workload.env has the key '{}'; a key is not empty and has no '='", .0.escape_debug())]
    EnvKey(String),
    #[error("workload.user '{}' is not USER or USER:GROUP", .0.escape_debug())]
    User(String),
    #[error("workload.workdir '{}' is not an absolute path", .0.escape_debug())]
    Workdir(String),
    #[error("workload.volumes has '{}', which is not an absolute path", .0.escape_debug())]
    Volume(String),
    #[error("workload.stop_signal '{}' is not one of {}", .0.escape_debug(), STOP_SIGNALS.join(", "))]
    StopSignal(String),
    #[error("workload.stop_grace_ms {0} is more than {MAX_STOP_GRACE_MS}")]
    StopGrace(u32),
    #[error("workload.base_url '{}' is no http:// or https:// URL", .0.escape_debug())]
    BaseUrl(String),
    #[error("workload.{0}")]
    Rlimits(VmConfigError),
}
