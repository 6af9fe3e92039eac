//! An image's configuration: OCI's, with the health check that Docker added.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Deserialize;
use volant_spec::Digest;

use crate::image::shown;

/// No configuration is larger.
pub(crate) const MAX_CONFIG: usize = 8 * 1024 * 1024;

/// What an image says of how it is run. What it does not say is empty or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
    /// RFC 3339, as the image has it.
    pub created: Option<String>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=VALUE` each, in the image's order.
    pub env: Vec<String>,
    pub working_dir: String,
    /// A name (`SIGQUIT`) or a number.
    pub stop_signal: Option<String>,
    pub stop_timeout: Option<Duration>,
    pub exposed_ports: Vec<Port>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub healthcheck: Option<Healthcheck>,
    /// The digest of each layer's plain tar, in order.
    pub diff_ids: Vec<Digest>,
}

/// A port that an image exposes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub number: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// Docker's HEALTHCHECK. A time that is `None` is Docker's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// Empty, `["NONE"]`, `["CMD", ARG…]` or `["CMD-SHELL", COMMAND]`.
    pub test: Vec<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
    pub retries: Option<u32>,
}

/// Why bytes are no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("it is not the JSON of an image's configuration")]
    Json(#[from] serde_json::Error),
    #[error("its layers are of type '{0}', not 'layers'")]
    Layers(String),
    #[error("it exposes '{0}', which is no PORT/PROTOCOL")]
    Port(String),
    #[error("its root file system's layers are not listed")]
    NoLayers,
}

#[derive(Deserialize)]
struct Wire {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<WireConfig>,
    rootfs: Option<WireRootfs>,
}

#[derive(Deserialize)]
struct WireRootfs {
    #[serde(rename = "type")]
    kind: Option<String>,
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct WireConfig {
    user: Option<String>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    stop_timeout: Option<Number>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
    healthcheck: Option<WireHealthcheck>,
}

/// Old images have one word where a list belongs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn list(self) -> Vec<String> {
        match self {
            Self::Many(words) => words,
            Self::One(word) => vec![word],
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WireHealthcheck {
    test: Option<Words>,
    interval: Option<Number>,
    timeout: Option<Number>,
    start_period: Option<Number>,
    start_interval: Option<Number>,
    retries: Option<Number>,
}

/// What no image is unusable for: a number that makes no sense counts as none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(i64),
    Odd(serde::de::IgnoredAny),
}

impl Number {
    /// Docker has -1 for what is not limited or not set.
    fn natural(self) -> Option<u64> {
        match self {
            Self::Whole(number) => number.try_into().ok(),
            Self::Odd(_) => None,
        }
    }
}

impl ImageConfig {
    /// Reads the JSON of a configuration blob.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let wire: Wire = serde_json::from_slice(bytes)?;
        let rootfs = wire.rootfs.ok_or(ConfigError::NoLayers)?;
        if let Some(kind) = rootfs.kind.filter(|kind| kind != "layers") {
            return Err(ConfigError::Layers(shown(&kind)));
        }
        let config = wire.config.unwrap_or_default();
        let ports = config.exposed_ports.unwrap_or_default();
        let mut exposed_ports = BTreeSet::new();
        for text in ports.keys() {
            // A set holds each once, so there are never more than three protocols have.
            exposed_ports.extend(ports_of(text)?);
        }
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self {
            os: wire.os.unwrap_or_default(),
            architecture: wire.architecture.unwrap_or_default(),
            variant: given(wire.variant),
            created: given(wire.created),
            user: config.user.unwrap_or_default(),
            entrypoint: config.entrypoint.map(Words::list).unwrap_or_default(),
            cmd: config.cmd.map(Words::list).unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            stop_signal: given(config.stop_signal),
            stop_timeout: config
                .stop_timeout
                .and_then(Number::natural)
                .map(Duration::from_secs),
            exposed_ports: exposed_ports.into_iter().collect(),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            labels: config.labels.unwrap_or_default(),
            healthcheck: config.healthcheck.map(healthcheck),
            diff_ids: rootfs.diff_ids.unwrap_or_default(),
        })
    }
}

/// Docker's times are nanoseconds, where 0 is its default.
fn healthcheck(wire: WireHealthcheck) -> Healthcheck {
    let time = |nanoseconds: Option<Number>| {
        let nanoseconds = nanoseconds?.natural()?;
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    };
    Healthcheck {
        test: wire.test.map(Words::list).unwrap_or_default(),
        interval: time(wire.interval),
        timeout: time(wire.timeout),
        start_period: time(wire.start_period),
        start_interval: time(wire.start_interval),
        retries: wire
            .retries
            .and_then(|retries| retries.natural()?.try_into().ok())
            .filter(|retries| *retries > 0),
    }
}

/// `80`, `80/tcp`, or a range of at most a thousand: `8000-8010/udp`.
fn ports_of(text: &str) -> Result<Vec<Port>, ConfigError> {
    let refused = || ConfigError::Port(shown(text));
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(refused());
    }
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0);
    let (first, last) = number(first).zip(number(last)).ok_or_else(refused)?;
    if last < first || last - first >= 1000 {
        return Err(refused());
    }
    let port = |number| Port {
        number,
        protocol: protocol.clone(),
    };
    Ok((first..=last).map(port).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overlapping_ranges_of_ports_take_no_more_than_the_ports_there_are() {
        let ranges: Vec<String> = (1..2000)
            .map(|first| format!("\"{first}-{}\":{{}}", first + 900))
            .collect();
        let text = format!(
            r#"{{"config":{{"ExposedPorts":{{{}}}}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#,
            ranges.join(",")
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.exposed_ports.len(), 2899);
    }

    #[test]
    fn a_docker_configuration_is_read_with_its_health_check() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z",
            "config":{{"User":"nginx","Entrypoint":["/docker-entrypoint.sh"],"Cmd":["nginx","-g","daemon off;"],
              "Env":["PATH=/bin","A=b=c"],"WorkingDir":"/srv","StopSignal":"SIGQUIT","StopTimeout":7,
              "ExposedPorts":{{"80/tcp":{{}},"53/udp":{{}},"9000-9002":{{}}}},"Volumes":{{"/data":{{}}}},
              "Labels":{{"a":"b"}},
              "Healthcheck":{{"Test":["CMD-SHELL","curl -f localhost"],"Interval":30000000000,"Timeout":0,
                "StartPeriod":5000000000,"Retries":3}},
              "OnBuild":null,"ArgsEscaped":true}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}},"history":[{{"created_by":"x"}}]}}"#,
            "ab".repeat(32)
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.user, "nginx");
        assert_eq!(config.cmd, ["nginx", "-g", "daemon off;"]);
        assert_eq!(config.stop_timeout, Some(Duration::from_secs(7)));
        let ports: Vec<_> = config
            .exposed_ports
            .iter()
            .map(|port| format!("{}/{}", port.number, port.protocol))
            .collect();
        assert_eq!(
            ports,
            ["53/udp", "80/tcp", "9000/tcp", "9001/tcp", "9002/tcp"]
        );
        assert_eq!(config.volumes, ["/data"]);
        let health = config.healthcheck.unwrap();
        assert_eq!(health.test, ["CMD-SHELL", "curl -f localhost"]);
        assert_eq!(health.interval, Some(Duration::from_secs(30)));
        assert_eq!(health.timeout, None);
        assert_eq!(health.retries, Some(3));
        assert_eq!(config.diff_ids.len(), 1);
    }

    #[test]
    fn what_an_image_leaves_out_or_null_is_empty() {
        for text in [
            r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#,
            r#"{"config":null,"rootfs":{"diff_ids":null}}"#,
            r#"{"config":{"Env":null,"Cmd":null,"Volumes":null,"ExposedPorts":null,"Labels":null,
                "Entrypoint":null,"Healthcheck":null,"User":null},"rootfs":{"type":"layers"}}"#,
        ] {
            let config = ImageConfig::parse(text.as_bytes()).unwrap();
            assert_eq!(config, ImageConfig::default(), "{text}");
        }
    }

    #[test]
    fn no_image_is_unusable_for_an_odd_number() {
        for odd in [
            "-1",
            "1.5",
            "18446744073709551615",
            "\"10\"",
            "[]",
            "{}",
            "null",
        ] {
            let text = format!(
                r#"{{"rootfs":{{}},"config":{{"StopTimeout":{odd},"User":"u","Healthcheck":{{"Test":["NONE"],
                  "Interval":{odd},"Timeout":{odd},"StartPeriod":{odd},"StartInterval":{odd},"Retries":{odd}}}}}}}"#
            );
            let expected = ImageConfig {
                user: "u".into(),
                healthcheck: Some(Healthcheck {
                    test: vec!["NONE".into()],
                    ..Healthcheck::default()
                }),
                ..ImageConfig::default()
            };
            assert_eq!(
                ImageConfig::parse(text.as_bytes()).unwrap(),
                expected,
                "{odd}"
            );
        }
    }

    #[test]
    fn hostile_configurations_are_refused_with_the_reason() {
        let cases = [
            ("", "JSON"),
            ("{}", "not listed"),
            (r#"{"rootfs":{"type":"tree"}}"#, "'tree'"),
            (r#"{"rootfs":{"diff_ids":["md5:1"]}}"#, "JSON"),
            (
                r#"{"rootfs":{},"config":{"ExposedPorts":{"0/tcp":{}}}}"#,
                "'0/tcp'",
            ),
            (
                r#"{"rootfs":{},"config":{"ExposedPorts":{"1-65535/tcp":{}}}}"#,
                "1-65535",
            ),
            (
                r#"{"rootfs":{},"config":{"ExposedPorts":{"80/http":{}}}}"#,
                "80/http",
            ),
        ];
        for (text, word) in cases {
            let error = ImageConfig::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_port_text_panics(text in "[-0-9/a-z]{0,12}") {
            let _ = ports_of(&text);
        }
    }
}
