//! The host's configuration: `/etc/volant/volant.toml`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Component, Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Where the configuration is read from. It need not exist: everything has a default.
pub const PATH: &str = "/etc/volant/volant.toml";

/// All settings of a host. Unknown keys are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub network: Network,
    pub vm: VmDefaults,
    pub plugins: Plugins,
    pub devices: Devices,
}

/// What of this host may be lent to VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    /// PCI addresses (`0000:01:00.0`), or kinds (`VENDOR:DEVICE` in hex, `*` for any device). Empty: none.
    pub pci: Vec<String>,
}

/// Where plugins come from, and which are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plugins {
    pub signatures: SignaturePolicy,
    /// http(s) URLs of indexes; the first that has a name wins.
    pub indexes: Vec<WebUrl>,
    /// Credentials for OCI registries, in the form of `auth.json`. It need not exist.
    pub auth_file: AuthFile,
}

/// What is done about a plugin that no trusted key signed. The keys are in [`TRUST_DIR`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignaturePolicy {
    /// It is refused.
    #[default]
    Require,
    /// It is installed, with a warning.
    Warn,
    /// Signatures are not looked at, which every install says.
    Off,
}

impl SignaturePolicy {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Require => "require",
            Self::Warn => "warn",
            Self::Off => "off",
        }
    }
}

/// The folder of the keys that are trusted: `NAME.pub` or `NAME.toml` each. Only root may write to it.
pub const TRUST_DIR: &str = "/etc/volant/trust.d";

/// An `http://` or `https://` URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebUrl(String);

impl WebUrl {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for WebUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let rest = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        if rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) {
            Ok(Self(text))
        } else {
            Err(format!(
                "'{}' is no http:// or https:// URL",
                text.escape_debug()
            ))
        }
    }
}

impl From<WebUrl> for String {
    fn from(url: WebUrl) -> Self {
        url.0
    }
}

/// The path of a credentials file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthFile(pub PathBuf);

impl Default for AuthFile {
    fn default() -> Self {
        Self(PathBuf::from("/etc/volant/auth.json"))
    }
}

/// The bridge and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// The bridge's name: 1 to 15 characters of `a-z A-Z 0-9 . _ -`.
    pub bridge: LinkName,
    /// VMs get addresses of this network, the host its first one. Prefix lengths 8 to 30.
    pub subnet: Subnet,
    /// Name servers for guests. Empty: the host's own, without those on loopback.
    pub dns: Vec<IpAddr>,
}

/// What VMs get unless they or their plugin say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmDefaults {
    pub vmm: Vmm,
    /// The kernel of plugins that bring none.
    pub kernel: PathBuf,
    /// The kernel of plugins that ask for `bzimage`, with the boot initramfs in it.
    pub bzimage: PathBuf,
    /// The boot initramfs: it brings up the root file system of plugins that have one.
    pub initramfs: PathBuf,
    /// What the agent checks file systems with, an initramfs too: for VMs that have disks of their own.
    pub tools: PathBuf,
    /// VMs may share directories of the host that are these or below them. Empty: none.
    pub share_paths: Vec<SharePath>,
    /// Seconds from the VMM's start to the agent's first call; 1 to 600.
    pub boot_timeout_sec: BootTimeout,
}

impl VmDefaults {
    /// Whether VMs may share `path`, as it is written.
    #[must_use]
    pub fn may_share(&self, path: &Path) -> bool {
        is_plain(path)
            && self
                .share_paths
                .iter()
                .any(|allowed| path.starts_with(&allowed.0))
    }
}

/// An absolute path without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct SharePath(PathBuf);

impl TryFrom<PathBuf> for SharePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if is_plain(&path) {
            Ok(Self(path))
        } else {
            let path = path.display().to_string();
            let path = path.escape_debug();
            Err(format!("'{path}' is no absolute path without '..'"))
        }
    }
}

impl From<SharePath> for PathBuf {
    fn from(path: SharePath) -> Self {
        path.0
    }
}

fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    path.is_absolute()
        && parts.all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// The virtual machine monitor that runs a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// Cloud Hypervisor where the processor's virtualisation is usable and it is installed, else QEMU.
    #[default]
    Auto,
    CloudHypervisor,
    Qemu,
}

impl Vmm {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Qemu => "qemu",
        }
    }
}

impl std::str::FromStr for Vmm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::CloudHypervisor, Self::Qemu]
            .into_iter()
            .find(|vmm| vmm.as_str() == text)
            .ok_or_else(|| {
                format!(
                    "vmm '{}' is not one of auto, cloud-hypervisor, qemu",
                    text.escape_debug()
                )
            })
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            bridge: LinkName("vbr0".to_owned()),
            subnet: Subnet(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 127, 0), 24)),
            dns: Vec::new(),
        }
    }
}

impl Default for VmDefaults {
    fn default() -> Self {
        Self {
            vmm: Vmm::Auto,
            kernel: PathBuf::from("/usr/lib/volant/kernel/vmlinux"),
            bzimage: PathBuf::from("/usr/lib/volant/kernel/bzImage"),
            initramfs: PathBuf::from("/usr/lib/volant/kernel/initramfs.cpio"),
            tools: PathBuf::from("/usr/lib/volant/kernel/tools.cpio"),
            share_paths: Vec::new(),
            boot_timeout_sec: BootTimeout(60),
        }
    }
}

/// A network interface's name, as the kernel allows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = (1..=15).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            && !matches!(text.as_str(), "." | "..");
        if fits {
            Ok(Self(text))
        } else {
            Err(format!(
                "'{}' is no name for a network link",
                text.escape_debug()
            ))
        }
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

/// The network of a bridge: the host has its first address, VMs have the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Net", into = "Ipv4Net")]
pub struct Subnet(Ipv4Net);

impl Subnet {
    #[must_use]
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    /// The host's address on the bridge: the first of the network.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.network().to_bits() + 1)
    }
}

impl TryFrom<Ipv4Net> for Subnet {
    type Error = String;

    fn try_from(net: Ipv4Net) -> Result<Self, String> {
        if net.addr() != net.network() {
            return Err(format!(
                "{net} has host bits set; did you mean {}?",
                net.trunc()
            ));
        }
        if !(8..=30).contains(&net.prefix_len()) {
            return Err(format!("{net}: the prefix length must be 8 to 30"));
        }
        Ok(Self(net))
    }
}

impl From<Subnet> for Ipv4Net {
    fn from(subnet: Subnet) -> Self {
        subnet.0
    }
}

/// Seconds, 1 to 600.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BootTimeout(u32);

impl BootTimeout {
    #[must_use]
    pub fn duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0.into())
    }
}

impl TryFrom<u32> for BootTimeout {
    type Error = String;

    fn try_from(seconds: u32) -> Result<Self, String> {
        if (1..=600).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(format!("{seconds} seconds are not possible; give 1 to 600"))
        }
    }
}

impl From<BootTimeout> for u32 {
    fn from(timeout: BootTimeout) -> Self {
        timeout.0
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not valid", path.display())]
    Parse {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads a configuration file; without one, everything is as by default.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not valid: the source names line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_written_is_the_default() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        assert_eq!(
            Config::default().network.subnet.gateway(),
            Ipv4Addr::new(192, 168, 127, 1)
        );
    }

    #[test]
    fn a_mistake_is_named() {
        let cases = [
            ("[network]\nbrigde = 'x'", "unknown field `brigde`"),
            ("[network]\nbridge = 'a b'", "no name for a network link"),
            (
                "[network]\nsubnet = '10.0.0.1/24'",
                "did you mean 10.0.0.0/24?",
            ),
            ("[network]\nsubnet = '10.0.0.0/31'", "8 to 30"),
            ("[vm]\nvmm = 'xen'", "unknown variant `xen`"),
            ("[vm]\nboot_timeout_sec = 0", "1 to 600"),
            ("[vm]\nshare_paths = ['/srv/../etc']", "no absolute path"),
            ("[plugins]\nsignatures = 'maybe'", "unknown variant `maybe`"),
            (
                "[plugins]\nindexes = ['ftp://x']",
                "no http:// or https:// URL",
            ),
        ];
        for (text, expected) in cases {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn directories_are_shared_only_below_those_that_the_host_allows() {
        let config: Config = toml::from_str("[vm]\nshare_paths = ['/srv', '/data/x/']").unwrap();
        for (path, allowed) in [
            ("/srv", true),
            ("/srv/a/b", true),
            ("/data/x", true),
            ("/srvx", false),
            ("/data", false),
            ("/srv/../etc", false),
            ("srv", false),
        ] {
            assert_eq!(config.vm.may_share(Path::new(path)), allowed, "{path}");
        }
        assert!(!Config::default().vm.may_share(Path::new("/srv")));
    }
}
