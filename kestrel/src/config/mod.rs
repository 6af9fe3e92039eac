//! The run configuration, parsed: past these files there are no strings to check again.

mod health;
mod network;
mod rlimit;
mod secret;
mod volume;
mod workload;

use std::{path::PathBuf, str::FromStr, time::Duration};

use volant_proto::agent::v1;

pub use self::{
    health::{HealthConfig, HttpProbe, Probe},
    network::{Address, Mac, NetworkConfig},
    rlimit::Rlimit,
    secret::Secret,
    volume::{VolumeConfig, VolumeSource},
    workload::{Restart, WorkloadConfig},
};
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
    /// What is mounted besides the root, in this order.
    pub volumes: Vec<VolumeConfig>,
    /// The program that becomes PID 1 when all is prepared; absent: the agent stays it, and runs the workload.
    pub init: Option<PathBuf>,
    pub secrets: Vec<Secret>,
    /// The host's clock when it answered, since the epoch.
    pub time: Option<Duration>,
}

/// What of a run configuration cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the run configuration has no {0}")]
    Missing(&'static str),
    #[error("'{text}' is no {what}")]
    Invalid { what: &'static str, text: String },
    #[error("two {what} are called '{name}'")]
    Twice { what: &'static str, name: String },
    #[error("the secret '{0}' has a zero byte, which no environment variable can hold")]
    SecretInEnv(String),
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
        let init = match config.init.as_str() {
            "" => None,
            path if path.starts_with('/') && !path.contains('\0') => Some(PathBuf::from(path)),
            path => return Err(invalid("absolute path of an init", path)),
        };
        let workload = match (config.workload, &init) {
            (Some(workload), None) => workload,
            (None, None) => return Err(ConfigError::Missing("workload")),
            // The init is all that runs; what it runs needs no name.
            (workload, Some(_)) => with_entrypoint(workload.unwrap_or_default(), config.init),
        };
        Ok(Self {
            hostname: config.hostname,
            network: config.network.map(NetworkConfig::try_from).transpose()?,
            workload: workload.try_into()?,
            heartbeat,
            root: config.root.map(RootConfig::try_from).transpose()?,
            volumes: config
                .volumes
                .into_iter()
                .map(VolumeConfig::try_from)
                .collect::<Result<_, _>>()?,
            init,
            secrets: secrets(config.secrets)?,
            time: (config.time_unix_ns > 0).then(|| Duration::from_nanos(config.time_unix_ns)),
        })
    }
}

fn with_entrypoint(mut workload: v1::Workload, init: String) -> v1::Workload {
    if workload.entrypoint.is_empty() {
        workload.entrypoint.push(init);
    }
    workload
}

fn secrets(wire: Vec<v1::Secret>) -> Result<Vec<Secret>, ConfigError> {
    let mut secrets: Vec<Secret> = Vec::with_capacity(wire.len());
    for secret in wire {
        let secret = Secret::try_from(secret)?;
        if secrets.iter().any(|other| other.name == secret.name) {
            let (what, name) = ("secrets", secret.name);
            return Err(ConfigError::Twice { what, name });
        }
        secrets.push(secret);
    }
    Ok(secrets)
}

/// Whether an environment can have a variable of that name.
fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
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
            layer_serial: Some(root.layer_serial).filter(|serial| !serial.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

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
