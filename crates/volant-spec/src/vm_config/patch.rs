//! Changes of a configuration, as JSON merge patches (RFC 7396).

use serde_json::{Map, Value};

use super::VmConfig;

/// All fields of a configuration.
pub(super) const FIELDS: &[&str] = &[
    "cpu_cores",
    "memory_mb",
    "vmm",
    "limits",
    "entrypoint",
    "env",
    "user",
    "workdir",
    "stop_signal",
    "stop_grace_ms",
    "restart",
    "health_check",
    "rlimits",
    "init",
    "root_disk",
    "volumes",
    "cloud_init",
    "secrets",
    "devices",
    "network",
];

/// Why a patch makes no configuration.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    #[error("the patch is no JSON object")]
    NoObject,
    #[error(
        "the patch has the unknown field '{}'; fields are {}",
        .0.escape_debug(),
        FIELDS.join(", ")
    )]
    UnknownField(String),
    #[error("the configuration that the patch makes is not valid")]
    NotValid(#[source] serde_json::Error),
}

impl VmConfig {
    /// This configuration with a merge patch: what is null in it goes back to the plugin's, objects are gone into, all else is
    /// replaced.
    ///
    /// # Errors
    /// The patch is no object, has an unknown field (also one that would be taken away), or makes something that is not valid.
    pub fn merge_patch(&self, patch: &Value) -> Result<Self, PatchError> {
        let patch = patch.as_object().ok_or(PatchError::NoObject)?;
        if let Some(unknown) = patch.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return Err(PatchError::UnknownField(unknown.clone()));
        }
        let mut value = serde_json::to_value(self).map_err(PatchError::NotValid)?;
        merge(&mut value, patch);
        serde_json::from_value(value).map_err(PatchError::NotValid)
    }
}

/// RFC 7396, section 2. A [`Value`] that was parsed is nested no deeper than serde_json allows.
fn merge(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => merge(target.entry(key).or_insert(Value::Null), patch),
            value => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}
