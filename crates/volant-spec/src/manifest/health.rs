//! How to tell whether a workload does its work.

use serde::{Deserialize, Serialize};

use super::workload::is_http_url;

/// A check that is made again and again inside the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(into = "Written", try_from = "Written")]
#[cfg_attr(feature = "schema", schemars(with = "Written"))]
pub struct HealthCheck {
    pub probe: Probe,
    /// Milliseconds between two checks.
    pub interval_ms: u32,
    /// Milliseconds that one check may take.
    pub timeout_ms: u32,
    /// So many failures in a row make the workload unhealthy.
    pub retries: u32,
    /// Milliseconds after the start in which a failure does not count.
    pub start_period_ms: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A GET that is answered with 200 to 399.
    Http { url: String },
    /// A connection that is accepted on the guest's loopback address.
    Tcp { port: u16 },
    /// A program that ends with 0.
    Exec { command: Vec<String> },
}

/// Docker's defaults.
pub const DEFAULT_INTERVAL_MS: u32 = 30_000;
pub const DEFAULT_TIMEOUT_MS: u32 = 30_000;
pub const DEFAULT_RETRIES: u32 = 3;
/// The most that any of the times may be: one hour.
pub const MAX_TIME_MS: u32 = 3_600_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct Written {
    /// `http` when it is absent and there is an `endpoint`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
    /// For http: the URL, or the path of one on port 80.
    #[serde(default, skip_serializing_if = "Option::is_none", alias = "url")]
    endpoint: Option<String>,
    /// For tcp; for http with `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// For http with `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// For exec: the program and its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interval_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_period_ms: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
enum Kind {
    Http,
    Tcp,
    Exec,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HealthError {
    #[error(
        "health_check of type http needs an 'endpoint' (http://HOST:PORT/PATH), or 'port' and 'path'"
    )]
    Http,
    #[error("health_check of type tcp needs a 'port' and nothing else to ask")]
    Tcp,
    #[error("health_check of type exec needs a 'command' and nothing else to ask")]
    Exec,
    #[error("health_check has no 'type'; it is http, tcp or exec")]
    NoType,
    #[error("health_check.{0} is not 1 to {MAX_TIME_MS} milliseconds")]
    Time(&'static str),
    #[error("health_check.retries is not 1 to 1000")]
    Retries,
}

impl TryFrom<Written> for HealthCheck {
    type Error = HealthError;

    fn try_from(written: Written) -> Result<Self, HealthError> {
        let probe = probe(
            written.kind,
            written.endpoint,
            written.port,
            written.path,
            written.command,
        )?;
        let time = |name, value: Option<u32>, default| match value.unwrap_or(default) {
            value @ 1..=MAX_TIME_MS => Ok(value),
            _ => Err(HealthError::Time(name)),
        };
        let retries = written.retries.unwrap_or(DEFAULT_RETRIES);
        if !(1..=1000).contains(&retries) {
            return Err(HealthError::Retries);
        }
        let start_period_ms = written.start_period_ms.unwrap_or(0);
        if start_period_ms > MAX_TIME_MS {
            return Err(HealthError::Time("start_period_ms"));
        }
        Ok(Self {
            probe,
            interval_ms: time("interval_ms", written.interval_ms, DEFAULT_INTERVAL_MS)?,
            timeout_ms: time("timeout_ms", written.timeout_ms, DEFAULT_TIMEOUT_MS)?,
            retries,
            start_period_ms,
        })
    }
}

fn probe(
    kind: Option<Kind>,
    endpoint: Option<String>,
    port: Option<u16>,
    path: Option<String>,
    command: Option<Vec<String>>,
) -> Result<Probe, HealthError> {
    let kind = kind
        .or(endpoint.is_some().then_some(Kind::Http))
        .ok_or(HealthError::NoType)?;
    match (kind, endpoint, port, path, command) {
        (Kind::Http, Some(url), None, None, None) if is_http_url(&url) => Ok(Probe::Http { url }),
        (Kind::Http, Some(path), port, None, None)
        | (Kind::Http, None, port @ Some(_), Some(path), None)
            if path.starts_with('/') && !path.contains(|c: char| c.is_control() || c == ' ') =>
        {
            let port = port.unwrap_or(80);
            Ok(Probe::Http {
                url: format!("http://127.0.0.1:{port}{path}"),
            })
        }
        (Kind::Http, None, Some(port), None, None) => Ok(Probe::Http {
            url: format!("http://127.0.0.1:{port}/"),
        }),
        (Kind::Http, ..) => Err(HealthError::Http),
        (Kind::Tcp, None, Some(port), None, None) if port > 0 => Ok(Probe::Tcp { port }),
        (Kind::Tcp, ..) => Err(HealthError::Tcp),
        (Kind::Exec, None, None, None, Some(command))
            if command.first().is_some_and(|program| !program.is_empty())
                && !command.iter().any(|word| word.contains('\0')) =>
        {
            Ok(Probe::Exec { command })
        }
        (Kind::Exec, ..) => Err(HealthError::Exec),
    }
}

/// For the place that older manifests have it in, where an empty endpoint says that there is none.
pub(super) fn unless_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<HealthCheck>, D::Error> {
    match Option::<Written>::deserialize(deserializer)? {
        None => Ok(None),
        Some(written) if written.kind.is_none() && written.endpoint.as_deref() == Some("") => {
            Ok(None)
        }
        Some(written) => HealthCheck::try_from(written)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}

impl From<HealthCheck> for Written {
    fn from(check: HealthCheck) -> Self {
        let mut written = Self {
            kind: None,
            endpoint: None,
            port: None,
            path: None,
            command: None,
            interval_ms: Some(check.interval_ms),
            timeout_ms: Some(check.timeout_ms),
            retries: Some(check.retries),
            start_period_ms: Some(check.start_period_ms),
        };
        match check.probe {
            Probe::Http { url } => (written.kind, written.endpoint) = (Some(Kind::Http), Some(url)),
            Probe::Tcp { port } => (written.kind, written.port) = (Some(Kind::Tcp), Some(port)),
            Probe::Exec { command } => {
                (written.kind, written.command) = (Some(Kind::Exec), Some(command));
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<HealthCheck, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_check_is_read_in_each_of_its_forms() {
        let http = |url: &str| Probe::Http {
            url: url.to_owned(),
        };
        let cases = [
            (
                serde_json::json!({"type": "http", "port": 80, "path": "/up"}),
                http("http://127.0.0.1:80/up"),
            ),
            (
                serde_json::json!({"type": "http", "port": 8080}),
                http("http://127.0.0.1:8080/"),
            ),
            (
                serde_json::json!({"endpoint": "/up", "timeout_ms": 500}),
                http("http://127.0.0.1:80/up"),
            ),
            (
                serde_json::json!({"endpoint": "http://127.0.0.1:81/"}),
                http("http://127.0.0.1:81/"),
            ),
            (
                serde_json::json!({"type": "tcp", "port": 6379}),
                Probe::Tcp { port: 6379 },
            ),
            (
                serde_json::json!({"type": "exec", "command": ["true"]}),
                Probe::Exec {
                    command: vec!["true".into()],
                },
            ),
        ];
        for (json, expected) in cases {
            let check = read(json.clone()).unwrap();
            assert_eq!(check.probe, expected, "{json}");
            let again = read(serde_json::to_value(&check).unwrap()).unwrap();
            assert_eq!(again, check);
        }
    }

    #[test]
    fn a_check_that_asks_nothing_or_two_things_is_refused() {
        let cases = [
            (serde_json::json!({}), "no 'type'"),
            (serde_json::json!({"type": "http"}), "needs an 'endpoint'"),
            (
                serde_json::json!({"type": "http", "endpoint": "ftp://x"}),
                "needs an 'endpoint'",
            ),
            (
                serde_json::json!({"type": "tcp", "port": 0}),
                "needs a 'port'",
            ),
            (
                serde_json::json!({"type": "tcp", "port": 1, "command": ["x"]}),
                "nothing else",
            ),
            (
                serde_json::json!({"type": "exec", "command": []}),
                "needs a 'command'",
            ),
            (
                serde_json::json!({"type": "tcp", "port": 1, "interval_ms": 0}),
                "interval_ms",
            ),
            (
                serde_json::json!({"type": "tcp", "port": 1, "retries": 0}),
                "retries",
            ),
            (
                serde_json::json!({"type": "grpc", "port": 1}),
                "unknown variant",
            ),
        ];
        for (json, expected) in cases {
            let error = read(json.clone()).unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
