//! A plugin's manifest, version 1: what to boot and what to run in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Name, Resources};

/// The largest manifest that is read, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// The `schema_version` of this type.
pub const SCHEMA_VERSION: &str = "1";

/// A plugin's manifest (JSON). A value that parses is valid: unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema_version: SchemaVersion,
    pub name: Name,
    /// Free text of 1 to 64 characters from `A-Z a-z 0-9 . _ + -`.
    pub version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The initramfs that is booted, with kestrel as its `/init`.
    pub initramfs: Artifact,
    /// A kernel of the plugin's own; otherwise the host's `vmlinux`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Artifact>,
    /// What a VM of this plugin gets unless it asks for something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    pub workload: Workload,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A file that a plugin needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// `http://`, `https://`, `file://`, or a path relative to the manifest.
    pub url: String,
    pub checksum: Digest,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// The program that the VM is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, try_from = "UncheckedWorkload")]
pub struct Workload {
    /// The program and its arguments; at least the program.
    pub entrypoint: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// An absolute path; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The signal that asks the program to end; `SIGTERM` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Milliseconds from the stop signal to `SIGKILL`; 10 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u32>,
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
    entrypoint: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    workdir: Option<String>,
    stop_signal: Option<String>,
    stop_grace_ms: Option<u32>,
}

impl TryFrom<UncheckedWorkload> for Workload {
    type Error = WorkloadError;

    fn try_from(workload: UncheckedWorkload) -> Result<Self, WorkloadError> {
        let UncheckedWorkload {
            entrypoint,
            env,
            workdir,
            stop_signal,
            stop_grace_ms,
        } = workload;
        if entrypoint.first().is_none_or(String::is_empty) {
            return Err(WorkloadError::Entrypoint);
        }
        if entrypoint
            .iter()
            .chain(env.keys())
            .chain(env.values())
            .any(|text| text.contains('\0'))
        {
            return Err(WorkloadError::Nul);
        }
        if let Some(key) = env.keys().find(|key| key.is_empty() || key.contains('=')) {
            return Err(WorkloadError::EnvKey(key.clone()));
        }
        if let Some(dir) = workdir
            .as_ref()
            .filter(|dir| !dir.starts_with('/') || dir.contains('\0'))
        {
            return Err(WorkloadError::Workdir(dir.clone()));
        }
        if let Some(signal) = stop_signal
            .as_ref()
            .filter(|signal| !STOP_SIGNALS.contains(&signal.as_str()))
        {
            return Err(WorkloadError::StopSignal(signal.clone()));
        }
        if let Some(grace) = stop_grace_ms.filter(|grace| *grace > MAX_STOP_GRACE_MS) {
            return Err(WorkloadError::StopGrace(grace));
        }
        Ok(Self {
            entrypoint,
            env,
            workdir,
            stop_signal,
            stop_grace_ms,
        })
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
    #[error("workload.workdir '{}' is not an absolute path", .0.escape_debug())]
    Workdir(String),
    #[error("workload.stop_signal '{}' is not one of {}", .0.escape_debug(), STOP_SIGNALS.join(", "))]
    StopSignal(String),
    #[error("workload.stop_grace_ms {0} is more than {MAX_STOP_GRACE_MS}")]
    StopGrace(u32),
}

/// The one `schema_version` there is. `v1` and `1.0` mean the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchemaVersion;

impl TryFrom<String> for SchemaVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            SCHEMA_VERSION | "v1" | "1.0" => Ok(Self),
            _ => Err(format!(
                "schema_version '{}' is not known; this is '{SCHEMA_VERSION}'",
                text.escape_debug()
            )),
        }
    }
}

impl From<SchemaVersion> for String {
    fn from(_: SchemaVersion) -> Self {
        SCHEMA_VERSION.to_owned()
    }
}

/// A plugin's version: 1 to 64 characters of `A-Z a-z 0-9 . _ + -`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

impl Version {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = (1..=64).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-'));
        if fits {
            Ok(Self(text))
        } else {
            let start: String = text.chars().take(64).collect();
            Err(format!(
                "version '{}' is not 1 to 64 characters of A-Z a-z 0-9 . _ + -",
                start.escape_debug()
            ))
        }
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

/// Why bytes are not a [`Manifest`].
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {0} bytes; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("the manifest is not valid")]
    Json(#[source] serde_json::Error),
}

impl Manifest {
    /// Reads a manifest from JSON.
    ///
    /// # Errors
    /// Too large, or not valid: the source names the field, line and column.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Json)
    }

    /// All artifacts with the name of the field that each stands in.
    pub fn artifacts(&self) -> impl Iterator<Item = (&'static str, &Artifact)> {
        std::iter::once(("initramfs", &self.initramfs))
            .chain(self.kernel.as_ref().map(|kernel| ("kernel", kernel)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> serde_json::Value {
        serde_json::json!({
            "schema_version": "1", "name": "caddy", "version": "2.6.2",
            "initramfs": { "url": "caddy.cpio.gz", "checksum": "ab".repeat(32) },
            "workload": { "entrypoint": ["/usr/bin/caddy", "run"] },
        })
    }

    fn error(value: &serde_json::Value) -> String {
        let error = Manifest::parse(&serde_json::to_vec(value).unwrap()).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    }

    #[test]
    fn a_manifest_survives_being_written_and_read() {
        let manifest = Manifest::parse(&serde_json::to_vec(&manifest()).unwrap()).unwrap();
        assert_eq!(
            manifest,
            Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap()
        );
    }

    #[test]
    fn a_mistake_is_named() {
        let cases: [(&str, serde_json::Value, &str); 9] = [
            ("/colour", "red".into(), "unknown field `colour`"),
            (
                "/schema_version",
                "7".into(),
                "schema_version '7' is not known",
            ),
            ("/name", "a/b".into(), "has '/' in it"),
            ("/version", "".into(), "version ''"),
            (
                "/workload/entrypoint",
                serde_json::json!([]),
                "names no program",
            ),
            (
                "/workload/env",
                serde_json::json!({"A=B": "1"}),
                "the key 'A=B'",
            ),
            ("/workload/workdir", "tmp".into(), "not an absolute path"),
            ("/workload/stop_signal", "SIGSTOP".into(), "not one of"),
            (
                "/resources",
                serde_json::json!({"cpu_cores": 1, "memory_mb": 0}),
                "0 MiB",
            ),
        ];
        for (at, value, expected) in cases {
            let mut changed = manifest();
            let (parent, key) = at.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[key] = value;
            let error = error(&changed);
            assert!(error.contains(expected), "{at}: {error}");
        }
    }

    #[test]
    fn a_huge_manifest_is_not_read() {
        assert!(matches!(
            Manifest::parse(&vec![b' '; MAX_BYTES + 1]),
            Err(ManifestError::TooLarge(_))
        ));
    }
}
