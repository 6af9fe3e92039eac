//! VMs' configurations: read, changed with optimistic locking, and carried over to what runs.

use serde::Serialize;
use serde_json::{Value, value::RawValue};
use volant_proto::registry::v1::{GetVmConfigResponse, VmConfigVersion};
use volant_spec::{Name, VmConfig};

use crate::{Gateway, Kind, Problem, live, systemd::Change, view};

/// How often a change is made again that somebody else's came before.
const TRIES: usize = 5;

/// A version of a VM's configuration.
#[derive(Debug, Serialize)]
pub struct Version {
    pub version: u64,
    pub created_at: String,
    pub reason: String,
    pub config: Box<RawValue>,
}

/// A version, and what it makes of the plugin's values.
#[derive(Debug, Serialize)]
pub struct Effective {
    #[serde(flatten)]
    pub version: Version,
    pub effective: Option<Box<RawValue>>,
}

/// What a VM's resources are to be; what is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_cores: Option<u32>,
    pub memory_mb: Option<u32>,
}

/// When new resources hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Applied {
    Live,
    Restarted,
    AtNextStart,
    Unchanged,
}

/// What became of new resources.
#[derive(Debug, Serialize)]
pub struct Scaled {
    pub applied: Applied,
    /// Why not live.
    pub reason: Option<String>,
    pub vm: view::Vm,
}

impl Gateway {
    /// A version of a VM's configuration; 0 is the newest.
    ///
    /// # Errors
    /// There is no such VM, or no such version.
    pub(crate) async fn config(&self, name: &Name, version: u64) -> Result<Effective, Problem> {
        self.registry().config(name, version).await?.try_into()
    }

    /// Makes `config` the newest version; `expected` is the one that must be the newest before, 0 is any.
    ///
    /// # Errors
    /// Another one is the newest; or registryd refuses the configuration.
    pub(crate) async fn set_config(
        &self,
        name: &Name,
        config: &VmConfig,
        expected: u64,
        reason: &str,
    ) -> Result<Effective, Problem> {
        self.check_changed_devices(name, config).await?;
        let made = self
            .registry()
            .set_config(name, &bytes(config), expected, reason)
            .await?;
        self.config(name, made.version).await
    }

    /// Changes the newest version. With an `expected` one that is not the newest it fails; else somebody else's change in
    /// between makes it be made again.
    ///
    /// # Errors
    /// As `set_config`; or `change` refuses.
    pub(crate) async fn change_config(
        &self,
        name: &Name,
        expected: u64,
        reason: &str,
        change: impl Fn(Value) -> Result<VmConfig, Problem>,
    ) -> Result<VmConfigVersion, Problem> {
        let mut tries = TRIES;
        loop {
            let (newest, version) = self.newest(name).await?;
            if expected != 0 && expected != version {
                let detail = format!(
                    "the newest configuration of VM {name} is version {version}, not {expected}"
                );
                return Err(Problem::new(Kind::VersionConflict, detail));
            }
            let config = change(newest)?;
            self.check_changed_devices(name, &config).await?;
            let config = bytes(&config);
            tries -= 1;
            match self
                .registry()
                .set_config(name, &config, version, reason)
                .await
            {
                Err(problem)
                    if problem.kind == Kind::VersionConflict && expected == 0 && tries > 0 => {}
                other => return other,
            }
        }
    }

    /// The newest configuration, and its version.
    async fn newest(&self, name: &Name) -> Result<(Value, u64), Problem> {
        let answer = self.registry().config(name, 0).await?;
        let version = answer.config.ok_or_else(left_out)?;
        let config = serde_json::from_slice(or_empty(&version.config))
            .map_err(|error| unreadable(&error))?;
        Ok((config, version.version))
    }

    /// Makes an older version the newest one again.
    ///
    /// # Errors
    /// There is no such VM or version; registryd refuses it now.
    pub(crate) async fn roll_back(&self, name: &Name, version: u64) -> Result<Effective, Problem> {
        let old = self.registry().config(name, version).await?;
        let old = old.config.ok_or_else(left_out)?;
        if let Ok(config) = VmConfig::parse(or_empty(&old.config)) {
            self.check_changed_devices(name, &config).await?;
        }
        let reason = format!("rolled back to {version}");
        let made = self
            .registry()
            .set_config(name, or_empty(&old.config), 0, &reason)
            .await?;
        self.config(name, made.version).await
    }

    /// Gives a VM other resources: in its configuration, and in the running guest where the VMM can; or by a restart, if
    /// that is asked for. Goes on when the caller does not wait.
    ///
    /// # Errors
    /// registryd refuses the resources; or the restart fails.
    pub async fn scale(&self, name: Name, to: Resources, restart: bool) -> Result<Scaled, Problem> {
        let this = self.clone();
        self.see_through(async move {
            let before = this.present(&name).await?.config_version;
            let scale = |newest| with(newest, to);
            let made = this.change_config(&name, 0, "scaled", scale).await?;
            // What the guest would get now: also by a change that was made before, and waits for a start.
            let wanted = this.registry().vm(&name).await?;
            let (applied, reason) = match this.running(&name).await {
                None if made.version == before => (Applied::Unchanged, None),
                None => (
                    Applied::AtNextStart,
                    Some(format!("VM {name} does not run")),
                ),
                Some(has)
                    if (has.cpu_cores, has.memory_mb)
                        == (Some(wanted.cpu_cores), Some(wanted.memory_mb)) =>
                {
                    (Applied::Unchanged, None)
                }
                Some(has) => {
                    let changed = |now: Option<u32>, then| if now == Some(then) { 0 } else { then };
                    let cpu_cores = changed(has.cpu_cores, wanted.cpu_cores);
                    let memory_mb = changed(has.memory_mb, wanted.memory_mb);
                    match this.resize(&name, cpu_cores, memory_mb).await {
                        Ok(()) => (Applied::Live, None),
                        Err(problem) if restart => (Applied::Restarted, Some(problem.detail)),
                        Err(problem) => (Applied::AtNextStart, Some(problem.detail)),
                    }
                }
            };
            let vm = match applied {
                Applied::Restarted => this.change(name, Change::Restart).await?,
                Applied::Live | Applied::AtNextStart | Applied::Unchanged => this.vm(&name).await?,
            };
            Ok(Scaled {
                applied,
                reason,
                vm,
            })
        })
        .await
    }

    /// What the running guest has; `None` when it does not run.
    async fn running(&self, name: &Name) -> Option<Resources> {
        let live = live::ask(self.systemd(), name).await?;
        Some(Resources {
            cpu_cores: live.cpu_cores,
            memory_mb: live.memory_mb,
        })
    }

    /// Whether a running guest, of version `running`, is to be started again to be as the newest configuration says. What it
    /// has of its resources is looked at apart.
    pub(crate) async fn differs(&self, name: &Name, running: u64, newest: &[u8]) -> bool {
        match self.registry().config(name, running).await {
            Ok(GetVmConfigResponse {
                config: Some(old), ..
            }) => !alike(&old.config, newest),
            Ok(_) => true,
            Err(problem) => {
                tracing::debug!("cannot compare configurations of VM {name}: {problem}");
                true
            }
        }
    }
}

/// Whether two configurations differ in nothing but resources.
fn alike(one: &[u8], other: &[u8]) -> bool {
    let rest = |bytes: &[u8]| {
        let mut value: Value = serde_json::from_slice(or_empty(bytes)).ok()?;
        let fields = value.as_object_mut()?;
        fields.remove("cpu_cores");
        fields.remove("memory_mb");
        Some(value)
    };
    match (rest(one), rest(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// A configuration with these resources.
fn with(config: Value, to: Resources) -> Result<VmConfig, Problem> {
    let mut config: VmConfig =
        serde_json::from_value(config).map_err(|error| unreadable(&error))?;
    config.cpu_cores = to.cpu_cores.or(config.cpu_cores);
    config.memory_mb = to.memory_mb.or(config.memory_mb);
    Ok(config)
}

/// RFC 7396: what `patch` has replaces what `target` has, and `null` removes it.
#[must_use]
pub fn merge(target: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch;
    };
    let mut merged = match target {
        Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            merged.remove(&key);
        } else {
            let old = merged.remove(&key).unwrap_or(Value::Null);
            merged.insert(key, merge(old, value));
        }
    }
    Value::Object(merged)
}

pub(crate) fn bytes(config: &VmConfig) -> Vec<u8> {
    serde_json::to_vec(config).expect("a configuration is always JSON")
}

/// A VM of before configurations has none.
pub(crate) fn or_empty(config: &[u8]) -> &[u8] {
    if config.is_empty() { b"{}" } else { config }
}

fn left_out() -> Problem {
    Problem::internal("registryd left the configuration out of its answer")
}

fn unreadable(error: &serde_json::Error) -> Problem {
    Problem::internal(format!(
        "registryd gave a configuration that is none: {error}"
    ))
}

fn raw(json: &[u8]) -> Result<Box<RawValue>, Problem> {
    serde_json::from_slice(or_empty(json)).map_err(|error| unreadable(&error))
}

impl TryFrom<VmConfigVersion> for Version {
    type Error = Problem;

    fn try_from(version: VmConfigVersion) -> Result<Self, Problem> {
        Ok(Self {
            config: raw(&version.config)?,
            version: version.version,
            created_at: version.created_at,
            reason: version.reason,
        })
    }
}

impl TryFrom<GetVmConfigResponse> for Effective {
    type Error = Problem;

    fn try_from(answer: GetVmConfigResponse) -> Result<Self, Problem> {
        let effective = match answer.effective.as_slice() {
            [] => None,
            json => Some(raw(json)?),
        };
        Ok(Self {
            version: answer.config.ok_or_else(left_out)?.try_into()?,
            effective,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_is_as_the_rfc_has_it() {
        // RFC 7396, appendix A.
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ];
        for (target, patch, expected) in cases {
            assert_eq!(
                merge(target.clone(), patch.clone()),
                expected,
                "{target} {patch}"
            );
        }
    }

    #[test]
    fn configurations_are_alike_but_for_resources() {
        let alike = |one: &str, other: &str| alike(one.as_bytes(), other.as_bytes());
        assert!(alike(r#"{"cpu_cores":1}"#, r#"{"memory_mb":512}"#));
        assert!(alike("", r#"{"cpu_cores":4}"#));
        assert!(!alike(r#"{"user":"www"}"#, "{}"));
        assert!(!alike("no JSON", "no JSON"));
    }
}
