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

impl NetworkMode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridged => "bridged",
            Self::Vsock => "vsock",
        }
    }
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

/// Why devices cannot be asked for so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DevicesError {
    #[error(
        "devices.pci has '{}', which is no address as `lspci -D` shows it (0000:01:00.0)",
        .0.escape_debug()
    )]
    Address(String),
    #[error("devices.pci has '{0}' twice")]
    Twice(String),
    #[error(
        "devices.allowlist has '{}', which is no VENDOR:DEVICE in hex (10de:1eb8, or 10de:* for any device of a vendor)",
        .0.escape_debug()
    )]
    Allowed(String),
    #[error("devices.{0} has more than {MAX_DEVICES} entries")]
    TooMany(&'static str),
}

const MAX_DEVICES: usize = 64;

impl Devices {
    /// Whether addresses and patterns are ones. What the host has is another matter.
    ///
    /// # Errors
    /// The first that is none.
    pub fn check(&self) -> Result<(), DevicesError> {
        for (field, list) in [("pci", &self.pci), ("allowlist", &self.allowlist)] {
            if list.len() > MAX_DEVICES {
                return Err(DevicesError::TooMany(field));
            }
        }
        for (at, address) in self.pci.iter().enumerate() {
            if !is_pci_address(address) {
                return Err(DevicesError::Address(shortened(address)));
            }
            let mut before = self.pci[..at].iter();
            if before.any(|other| other.eq_ignore_ascii_case(address)) {
                return Err(DevicesError::Twice(address.clone()));
            }
        }
        match self.allowlist.iter().find(|allowed| !is_allowed(allowed)) {
            Some(wrong) => Err(DevicesError::Allowed(shortened(wrong))),
            None => Ok(()),
        }
    }
}

/// `DDDD:BB:DD.F`: a domain, a bus, a device of 32 and a function of 8.
fn is_pci_address(text: &str) -> bool {
    let parts = || {
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        Some((domain, bus, device, function))
    };
    parts().is_some_and(|(domain, bus, device, function)| {
        is_hex(domain, 4)
            && is_hex(bus, 2)
            && is_hex(device, 2)
            && u8::from_str_radix(device, 16).is_ok_and(|device| device < 32)
            && matches!(function.as_bytes(), [b'0'..=b'7'])
    })
}

fn is_allowed(text: &str) -> bool {
    text.split_once(':')
        .is_some_and(|(vendor, device)| is_hex(vendor, 4) && (device == "*" || is_hex(device, 4)))
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// So much of a text as an error needs to show.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
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
