//! Debug of messages with secrets and tokens, which says nothing of those but their length: whatever is printed of a message
//! that contains one of these stays fit for a log.

use std::fmt;

use crate::{
    agent::v1::{HelloRequest, HelloResponse, Secret, SessionRequest, session_request},
    registry::v1::SecretValue,
};

/// In the place of a value that is not shown.
struct Hidden(usize);

impl Hidden {
    fn of(value: &[u8]) -> Self {
        Self(value.len())
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0)
    }
}

impl fmt::Debug for HelloRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            version,
            boot_id,
            uptime_ms,
            token,
        } = self;
        f.debug_struct("HelloRequest")
            .field("protocol", protocol)
            .field("version", version)
            .field("boot_id", boot_id)
            .field("uptime_ms", uptime_ms)
            .field("token", &Hidden::of(token))
            .finish()
    }
}

impl fmt::Debug for HelloResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run_config, token } = self;
        f.debug_struct("HelloResponse")
            .field("run_config", run_config)
            .field("token", &Hidden::of(token))
            .finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value, env } = self;
        f.debug_struct("Secret")
            .field("name", name)
            .field("value", &Hidden::of(value))
            .field("env", env)
            .finish()
    }
}

impl fmt::Debug for SessionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, session } = self;
        f.debug_struct("SessionRequest")
            .field("token", &Hidden::of(token))
            .field("session", session)
            .finish()
    }
}

impl fmt::Debug for session_request::Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec(exec) => exec.fmt(f),
            Self::Pack(pack) => pack.fmt(f),
            Self::Unpack(unpack) => unpack.fmt(f),
            Self::Connect(connect) => connect.fmt(f),
            Self::Stats(stats) => stats.fmt(f),
        }
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value } = self;
        f.debug_struct("SecretValue")
            .field("name", name)
            .field("value", &Hidden::of(value))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::v1::RunConfig,
        registry::v1::{CreateVmRequest, PutVmSecretRequest},
    };

    /// The bytes as a derived Debug would print them.
    const PRINTED: &str = "115, 51, 99";

    fn value() -> Vec<u8> {
        b"s3cret".to_vec()
    }

    #[test]
    fn no_message_prints_a_secret_or_a_token() {
        let secret = Secret {
            name: "key".to_owned(),
            value: value(),
            env: "KEY".to_owned(),
        };
        let run_config = RunConfig {
            secrets: vec![secret.clone()],
            ..RunConfig::default()
        };
        let kept = SecretValue {
            name: "key".to_owned(),
            value: value(),
        };
        let hello = HelloRequest {
            token: value(),
            ..HelloRequest::default()
        };
        let session = SessionRequest {
            token: value(),
            session: None,
        };
        let put = PutVmSecretRequest {
            secret: Some(kept.clone()),
            ..PutVmSecretRequest::default()
        };
        let create = CreateVmRequest {
            secrets: vec![kept.clone()],
            ..CreateVmRequest::default()
        };
        let answer = HelloResponse {
            token: value(),
            run_config: Some(run_config.clone()),
        };
        let messages: [&dyn fmt::Debug; 8] = [
            &secret,
            &run_config,
            &kept,
            &hello,
            &session,
            &put,
            &create,
            &answer,
        ];
        for message in messages {
            for text in [format!("{message:?}"), format!("{message:#?}")] {
                let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(flat.contains("<6 bytes>"), "{text}");
                assert!(!flat.contains("s3c") && !flat.contains(PRINTED), "{text}");
            }
        }
    }
}
