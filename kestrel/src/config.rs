//! The run configuration, parsed: past this file there are no strings to check again.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use nix::sys::signal::Signal;
use volant_proto::agent::v1;

use crate::root::RootConfig;

const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(5);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);

/// All that the host tells this guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub hostname: String,
    pub network: Option<NetworkConfig>,
    pub workload: WorkloadConfig,
    pub heartbeat: Duration,
    /// Absent: the initramfs is the root.
    pub root: Option<RootConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    pub mac: Mac,
    pub addresses: Vec<Address>,
    pub gateways: Vec<IpAddr>,
    pub dns: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadConfig {
    pub program: String,
    pub arguments: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: PathBuf,
    /// Directories that hold data, absolute.
    pub volumes: Vec<PathBuf>,
    /// `USER[:GROUP]`, names or numbers; empty: root.
    pub user: String,
    pub stop_signal: Signal,
    pub stop_grace: Duration,
}

/// What of a run configuration cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the run configuration has no {0}")]
    Missing(&'static str),
    #[error("'{text}' is no {what}")]
    Invalid { what: &'static str, text: String },
}

fn invalid(what: &'static str, text: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        what,
        text: text.into(),
    }
}

fn parse<T: FromStr>(what: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|_| invalid(what, text))
}

fn parse_all<T: FromStr>(what: &'static str, texts: &[String]) -> Result<Vec<T>, ConfigError> {
    texts.iter().map(|text| parse(what, text)).collect()
}

impl TryFrom<v1::RunConfig> for Config {
    type Error = ConfigError;

    fn try_from(config: v1::RunConfig) -> Result<Self, ConfigError> {
        let is_hostname = (1..=64).contains(&config.hostname.len())
            && config
                .hostname
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
        if !is_hostname {
            return Err(invalid("host name", config.hostname));
        }
        let heartbeat = match config.heartbeat_interval_ms {
            0 => DEFAULT_HEARTBEAT,
            millis => Duration::from_millis(millis.into()).max(SHORTEST_HEARTBEAT),
        };
        Ok(Self {
            hostname: config.hostname,
            network: config.network.map(NetworkConfig::try_from).transpose()?,
            workload: config
                .workload
                .ok_or(ConfigError::Missing("workload"))?
                .try_into()?,
            heartbeat,
            root: config.root.map(RootConfig::try_from).transpose()?,
        })
    }
}

impl TryFrom<v1::NetworkConfig> for NetworkConfig {
    type Error = ConfigError;

    fn try_from(config: v1::NetworkConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            mac: parse("hardware address", &config.mac)?,
            addresses: parse_all("address with a prefix length", &config.addresses)?,
            gateways: parse_all("gateway", &config.gateways)?,
            dns: parse_all("name server", &config.dns)?,
        })
    }
}

impl TryFrom<v1::RootFilesystem> for RootConfig {
    type Error = ConfigError;

    fn try_from(root: v1::RootFilesystem) -> Result<Self, ConfigError> {
        if root.serial.is_empty() {
            return Err(ConfigError::Missing("serial number of the root's disk"));
        }
        Ok(Self {
            serial: root.serial,
            format: match root.format.as_str() {
                "raw" => None,
                format => Some(parse("root file system", format)?),
            },
        })
    }
}

impl TryFrom<v1::Workload> for WorkloadConfig {
    type Error = ConfigError;

    fn try_from(workload: v1::Workload) -> Result<Self, ConfigError> {
        let mut words = workload.entrypoint.into_iter();
        let program = words
            .next()
            .filter(|program| !program.is_empty())
            .ok_or(ConfigError::Missing("entrypoint"))?;
        if let Some(key) = workload
            .env
            .keys()
            .find(|key| key.is_empty() || key.contains(['=', '\0']))
        {
            return Err(invalid("name of an environment variable", key));
        }
        let workdir = match workload.workdir.as_str() {
            "" => "/",
            dir if dir.starts_with('/') => dir,
            dir => return Err(invalid("absolute working directory", dir)),
        };
        if let Some(dir) = workload.volumes.iter().find(|dir| !dir.starts_with('/')) {
            return Err(invalid("absolute directory of a volume", dir));
        }
        if workload.user.contains('\0') {
            return Err(invalid("user", workload.user));
        }
        let stop_signal = match workload.stop_signal.as_str() {
            "" => Signal::SIGTERM,
            name => parse("signal", name)?,
        };
        Ok(Self {
            program,
            arguments: words.collect(),
            workdir: workdir.into(),
            volumes: workload.volumes.into_iter().map(PathBuf::from).collect(),
            user: workload.user,
            env: workload.env.into_iter().collect(),
            stop_signal,
            stop_grace: Duration::from_millis(workload.stop_grace_ms.into()),
        })
    }
}

/// A link's hardware address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        parts.next().is_none().then_some(Self(octets)).ok_or(())
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An address and how much of it names the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ip, prefix) = text.split_once('/').ok_or(())?;
        let ip: IpAddr = ip.parse().map_err(|_| ())?;
        let prefix = prefix.parse().map_err(|_| ())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { ip, prefix }).ok_or(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Format;

    fn wire() -> v1::RunConfig {
        v1::RunConfig {
            hostname: "web".into(),
            network: Some(v1::NetworkConfig {
                mac: "52:54:00:0a:0B:ff".into(),
                addresses: vec!["192.168.127.2/24".into(), "fd00::2/64".into()],
                gateways: vec!["192.168.127.1".into()],
                dns: vec!["192.168.127.1".into()],
            }),
            workload: Some(v1::Workload {
                entrypoint: vec!["/bin/caddy".into(), "run".into()],
                stop_signal: "SIGQUIT".into(),
                stop_grace_ms: 1500,
                user: "web:33".into(),
                volumes: vec!["/data".into()],
                ..Default::default()
            }),
            heartbeat_interval_ms: 2000,
            root: Some(v1::RootFilesystem {
                serial: "rootfs".into(),
                format: "erofs".into(),
                ..v1::RootFilesystem::default()
            }),
            ..v1::RunConfig::default()
        }
    }

    #[test]
    fn a_whole_configuration_parses() {
        let config = Config::try_from(wire()).unwrap();
        let network = config.network.unwrap();
        assert_eq!(network.mac.0, [0x52, 0x54, 0, 0x0a, 0x0b, 0xff]);
        assert_eq!(network.addresses[1].to_string(), "fd00::2/64");
        assert_eq!(config.workload.arguments, ["run"]);
        assert_eq!(config.workload.workdir, PathBuf::from("/"));
        assert_eq!(config.workload.stop_signal, Signal::SIGQUIT);
        assert_eq!(config.workload.stop_grace, Duration::from_millis(1500));
        assert_eq!(config.workload.user, "web:33");
        assert_eq!(config.workload.volumes, [PathBuf::from("/data")]);
        assert_eq!(config.heartbeat, Duration::from_secs(2));
        let root = config.root.unwrap();
        assert_eq!(root.serial, "rootfs");
        assert_eq!(root.format, Some(Format::Erofs));
        let mut config = wire();
        config.root.as_mut().unwrap().format = "raw".into();
        assert_eq!(Config::try_from(config).unwrap().root.unwrap().format, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        fn network(config: &mut v1::RunConfig) -> &mut v1::NetworkConfig {
            config.network.as_mut().unwrap()
        }
        fn workload(config: &mut v1::RunConfig) -> &mut v1::Workload {
            config.workload.as_mut().unwrap()
        }
        type Spoil = fn(&mut v1::RunConfig);
        let cases: [(Spoil, &str); 15] = [
            (
                |c| workload(c).volumes = vec!["data".into()],
                "'data' is no absolute directory of a volume",
            ),
            (
                |c| c.root.as_mut().unwrap().format = "xfs".into(),
                "'xfs' is no root file system",
            ),
            (
                |c| c.root.as_mut().unwrap().serial.clear(),
                "the run configuration has no serial number of the root's disk",
            ),
            (|c| workload(c).user = "a\0".into(), "'a\0' is no user"),
            (|c| c.hostname.clear(), "'' is no host name"),
            (|c| c.hostname = "a\nb".into(), "'a\nb' is no host name"),
            (
                |c| c.workload = None,
                "the run configuration has no workload",
            ),
            (
                |c| workload(c).entrypoint.clear(),
                "the run configuration has no entrypoint",
            ),
            (
                |c| workload(c).workdir = "srv".into(),
                "'srv' is no absolute working directory",
            ),
            (
                |c| workload(c).stop_signal = "TERM".into(),
                "'TERM' is no signal",
            ),
            (
                |c| drop(workload(c).env.insert("a=b".into(), String::new())),
                "'a=b' is no name of an environment variable",
            ),
            (
                |c| network(c).mac = "52:54:00:0a:0b".into(),
                "'52:54:00:0a:0b' is no hardware address",
            ),
            (
                |c| network(c).mac = "52:54:00:0a:0b:+f".into(),
                "'52:54:00:0a:0b:+f' is no hardware address",
            ),
            (
                |c| network(c).addresses = vec!["10.0.0.1/33".into()],
                "'10.0.0.1/33' is no address with a prefix length",
            ),
            (
                |c| network(c).dns = vec!["dns".into()],
                "'dns' is no name server",
            ),
        ];
        for (spoil, message) in cases {
            let mut config = wire();
            spoil(&mut config);
            assert_eq!(Config::try_from(config).unwrap_err().to_string(), message);
        }
    }
}
