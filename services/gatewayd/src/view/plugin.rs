//! Plugins, what is found of them in indexes, and who may sign them, as REST clients see it.

use serde::Serialize;
use serde_json::value::RawValue;
use volant_proto::registry::v1 as wire;

use crate::Problem;

/// A version of a plugin that is installed.
#[derive(Debug, Serialize)]
pub struct Plugin {
    pub name: String,
    pub version: String,
    pub enabled: bool,
    pub description: Option<String>,
    /// Of all its artifacts together.
    pub size_bytes: u64,
    pub installed_at: String,
    pub manifest_digest: String,
    /// The key that was trusted for it when it was installed.
    pub signed_by: Option<SignedBy>,
    /// A URL or an `oci://` reference; absent for an upload.
    pub source: Option<String>,
    /// The VMs that were created from it.
    pub vms: Vec<String>,
    /// What its installation is warned about; in the answer to it alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// As it was given; not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Box<RawValue>>,
}

/// The key that signed a plugin.
#[derive(Debug, Serialize)]
pub struct SignedBy {
    /// The name of the key's file at that time.
    pub key: String,
    pub key_id: String,
    /// The signature's trusted comment.
    pub comment: String,
}

/// A part of a plugin that was read again.
#[derive(Debug, Serialize)]
pub struct Checked {
    pub plugin: String,
    pub version: String,
    /// `signature`, or the manifest's field.
    pub subject: String,
    pub ok: bool,
    /// What is wrong; or which key signed it.
    pub detail: Option<String>,
}

/// What was removed as nothing refers to it.
#[derive(Debug, Serialize)]
pub struct Collected {
    pub artifacts: u64,
    pub bytes: u64,
}

/// What the configured indexes have.
#[derive(Debug, Serialize)]
pub struct Found {
    pub plugins: Vec<FoundPlugin>,
    /// Indexes that could not be read.
    pub problems: Vec<String>,
}

/// A plugin in an index.
#[derive(Debug, Serialize)]
pub struct FoundPlugin {
    pub name: String,
    pub description: Option<String>,
    /// The newest first.
    pub versions: Vec<String>,
    pub installed: Vec<String>,
    pub index: String,
}

/// The policy on signatures, and the keys that are trusted.
#[derive(Debug, Serialize)]
pub struct Trust {
    /// `require`, `warn` or `off`.
    pub policy: String,
    pub keys: Vec<TrustedKey>,
    /// Files that are no keys.
    pub problems: Vec<String>,
}

/// A key that is trusted.
#[derive(Debug, Serialize)]
pub struct TrustedKey {
    pub name: String,
    pub key_id: String,
    pub public_key: String,
    /// Which plugins it may sign.
    pub plugins: Vec<String>,
    pub comment: Option<String>,
}

impl TryFrom<wire::Plugin> for Plugin {
    type Error = Problem;

    fn try_from(plugin: wire::Plugin) -> Result<Self, Problem> {
        let manifest = match plugin.manifest.as_slice() {
            [] => None,
            bytes => Some(serde_json::from_slice(bytes).map_err(|error| {
                let (name, version) = (&plugin.name, &plugin.version);
                Problem::internal(format!(
                    "registryd's manifest of plugin {name}@{version} is no JSON: {error}"
                ))
            })?),
        };
        Ok(Self {
            name: plugin.name,
            version: plugin.version,
            enabled: plugin.enabled,
            description: some(plugin.description),
            size_bytes: plugin.size_bytes,
            installed_at: plugin.installed_at,
            manifest_digest: plugin.manifest_digest,
            signed_by: plugin.signed_by.map(|signed| SignedBy {
                key: signed.key,
                key_id: signed.key_id,
                comment: signed.comment,
            }),
            source: some(plugin.source),
            vms: plugin.vms,
            warnings: plugin.warnings,
            manifest,
        })
    }
}

impl From<wire::VerifyPluginsResponse> for Checked {
    fn from(checked: wire::VerifyPluginsResponse) -> Self {
        Self {
            plugin: checked.plugin,
            version: checked.version,
            subject: checked.subject,
            ok: checked.ok,
            detail: some(checked.detail),
        }
    }
}

impl From<wire::CollectGarbageResponse> for Collected {
    fn from(collected: wire::CollectGarbageResponse) -> Self {
        Self {
            artifacts: collected.artifacts,
            bytes: collected.bytes,
        }
    }
}

impl From<wire::SearchPluginsResponse> for Found {
    fn from(found: wire::SearchPluginsResponse) -> Self {
        let plugin = |plugin: wire::FoundPlugin| FoundPlugin {
            name: plugin.name,
            description: some(plugin.description),
            versions: plugin.versions,
            installed: plugin.installed,
            index: plugin.index,
        };
        Self {
            plugins: found.plugins.into_iter().map(plugin).collect(),
            problems: found.problems,
        }
    }
}

impl From<wire::GetTrustResponse> for Trust {
    fn from(trust: wire::GetTrustResponse) -> Self {
        let key = |key: wire::TrustedKey| TrustedKey {
            name: key.name,
            key_id: key.key_id,
            public_key: key.public_key,
            plugins: key.plugins,
            comment: some(key.comment),
        };
        Self {
            policy: trust.policy,
            keys: trust.keys.into_iter().map(key).collect(),
            problems: trust.problems,
        }
    }
}

/// On the wire, an empty text is one that is absent.
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
