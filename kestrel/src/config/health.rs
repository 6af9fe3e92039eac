//! How the workload's health is found out.

use std::{net::Ipv6Addr, time::Duration};

use volant_proto::agent::v1::{self, health_check};

use super::{ConfigError, invalid};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_RETRIES: u32 = 3;
/// More often than this a check would be the guest's only work.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
const SCHEME: &str = "http://";

/// A check as docker has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    /// At least 1.
    pub retries: u32,
    pub start_period: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Http(HttpProbe),
    /// A port of the loopback address.
    Tcp(u16),
    /// A program and its arguments; at least the program.
    Exec(Vec<String>),
}

/// What to GET, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
    /// As in the URL, with its port where it had one.
    pub authority: String,
    /// Path and query, from `/`.
    pub path: String,
}

impl TryFrom<v1::HealthCheck> for HealthConfig {
    type Error = ConfigError;

    fn try_from(check: v1::HealthCheck) -> Result<Self, ConfigError> {
        let probe = match check
            .probe
            .ok_or(ConfigError::Missing("probe of the health check"))?
        {
            health_check::Probe::HttpUrl(url) => {
                Probe::Http(http(&url).ok_or_else(|| invalid("http:// URL", url))?)
            }
            health_check::Probe::TcpPort(port) => match u16::try_from(port) {
                Ok(port) if port != 0 => Probe::Tcp(port),
                _ => return Err(invalid("port of a health check", port.to_string())),
            },
            health_check::Probe::Exec(command) => {
                if command.arguments.first().is_none_or(String::is_empty) {
                    return Err(ConfigError::Missing("program of the health check"));
                }
                if let Some(word) = command.arguments.iter().find(|word| word.contains('\0')) {
                    return Err(invalid("argument of the health check", word));
                }
                Probe::Exec(command.arguments)
            }
        };
        let or = |millis: u32, default| match millis {
            0 => default,
            millis => Duration::from_millis(millis.into()),
        };
        Ok(Self {
            probe,
            interval: or(check.interval_ms, DEFAULT_INTERVAL).max(SHORTEST_INTERVAL),
            timeout: or(check.timeout_ms, DEFAULT_TIMEOUT),
            retries: match check.retries {
                0 => DEFAULT_RETRIES,
                retries => retries,
            },
            start_period: Duration::from_millis(check.start_period_ms.into()),
        })
    }
}

/// The parts of an `http://` URL; `None` for any other text. A fragment is not sent, as no client sends one.
fn http(url: &str) -> Option<HttpProbe> {
    let head = url.get(..SCHEME.len())?;
    if !head.eq_ignore_ascii_case(SCHEME) || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let rest = url[SCHEME.len()..].split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        // The colons within brackets are the address's.
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse().ok().filter(|port| *port != 0)?)
        }
        _ => (authority, 80),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().ok()?.to_string(),
        None if is_name(host) => host.to_owned(),
        None => return None,
    };
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Some(HttpProbe {
        host,
        port,
        authority: authority.to_owned(),
        path,
    })
}

/// Whether it is a name or an IPv4 address, by its letters.
fn is_name(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (url, host, port, path) in [
            ("http://127.0.0.1", "127.0.0.1", 80, "/"),
            (
                "http://127.0.0.1:8080/healthz?full=1#x",
                "127.0.0.1",
                8080,
                "/healthz?full=1",
            ),
            ("HTTP://10.0.0.7?a", "10.0.0.7", 80, "/?a"),
            ("http://[::1]:81/", "::1", 81, "/"),
            ("http://[fd00::2]/x:y", "fd00::2", 80, "/x:y"),
            ("http://db.internal:81", "db.internal", 81, "/"),
        ] {
            let probe = http(url).unwrap();
            assert_eq!(probe.host, host, "{url}");
            assert_eq!((probe.port, probe.path.as_str()), (port, path), "{url}");
        }
        let local = http("http://localhost:8080").unwrap();
        assert_eq!((local.host.as_str(), local.port), ("localhost", 8080));
        assert_eq!(local.authority, "localhost:8080");
        for url in [
            "",
            "http://",
            "https://127.0.0.1/",
            "127.0.0.1",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:65536/",
            "http://127.0.0.1:/",
            "http://user@127.0.0.1/",
            "http://::1/",
            "http://127.0.0.1/a b",
            "http://127.0.0.1/\r\nHost: x",
            "http://127.0.0.1/ü",
        ] {
            assert_eq!(http(url), None, "{url}");
        }
    }

    #[test]
    fn what_is_not_told_is_as_docker_has_it() {
        let check = |probe| v1::HealthCheck {
            probe: Some(probe),
            ..v1::HealthCheck::default()
        };
        let parsed = HealthConfig::try_from(check(health_check::Probe::TcpPort(80))).unwrap();
        assert_eq!(parsed.interval, Duration::from_secs(30));
        assert_eq!(
            (parsed.timeout, parsed.retries),
            (Duration::from_secs(30), 3)
        );
        assert_eq!(parsed.start_period, Duration::ZERO);
        let quick = v1::HealthCheck {
            interval_ms: 1,
            ..check(health_check::Probe::TcpPort(80))
        };
        assert_eq!(
            HealthConfig::try_from(quick).unwrap().interval,
            SHORTEST_INTERVAL
        );
        for (probe, message) in [
            (
                health_check::Probe::TcpPort(0),
                "'0' is no port of a health check",
            ),
            (
                health_check::Probe::TcpPort(65536),
                "'65536' is no port of a health check",
            ),
            (
                health_check::Probe::Exec(v1::Command::default()),
                "the run configuration has no program of the health check",
            ),
            (
                health_check::Probe::HttpUrl("https://localhost".into()),
                "'https://localhost' is no http:// URL",
            ),
        ] {
            let error = HealthConfig::try_from(check(probe)).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
