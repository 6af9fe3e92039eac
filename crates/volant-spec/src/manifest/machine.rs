//! What a plugin asks of the machine around its workload: network, cloud-init, devices, actions.

use serde::{Deserialize, Serialize};

/// How a VM is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Network {
    #[serde(default)]
    pub mode: NetworkMode,
    /// The ports that the workload listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty", alias = "expose")]
    pub ports: Vec<Port>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// An address of its own on the host's bridge, which the host gives: `dhcp` means the same.
    #[default]
    #[serde(alias = "dhcp")]
    Bridged,
    /// No network but the host's vsock.
    Vsock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// 1 to 65535.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub port: std::num::NonZeroU16,
    #[serde(default)]
    pub protocol: Transport,
    /// The host's port that the plugin's author thinks of; whoever runs the VM decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<std::num::NonZeroU16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    Tcp,
    Udp,
}

/// Documents for cloud-init in the guest (NoCloud).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datasource: Option<Datasource>,
    /// The file system of the seed; there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed_mode: Option<SeedMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Document>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<Document>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_config: Option<Document>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor_data: Option<Document>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Datasource {
    NoCloud,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SeedMode {
    Vfat,
}

/// A document's own text. It stands in the manifest: what is signed is what runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Document {
    pub content: String,
    /// Says that the text is here, where it always is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<bool>,
}

/// Devices of the host that a VM may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// PCI addresses (`0000:01:00.0`).
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        alias = "pci_passthrough"
    )]
    pub pci: Vec<String>,
    /// `VENDOR:DEVICE` in hex, `*` for any device of a vendor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowlist: Vec<String>,
}

/// A request that the workload answers at its `base_url`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Action {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An HTTP method.
    pub method: Method,
    /// Begins with `/`.
    #[serde(deserialize_with = "path")]
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

fn path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let path = String::deserialize(deserializer)?;
    if path.starts_with('/') && !path.contains(char::is_control) {
        Ok(path)
    } else {
        Err(serde::de::Error::custom(format!(
            "the path '{}' of an action does not begin with '/'",
            path.escape_debug()
        )))
    }
}
