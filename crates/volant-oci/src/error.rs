//! Why a registry did not do what it was asked.

use std::{fmt, time::Duration};

use reqwest::StatusCode;
use volant_spec::Digest;

use crate::{auth::AuthError, registries_conf::EndpointError};

/// What was tried, where, and why it did not work.
#[derive(Debug)]
pub struct RegistryError {
    /// `pull manifest latest`.
    pub(crate) act: String,
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) trouble: Box<Trouble>,
    /// Mirrors that were asked before, and what they said.
    pub(crate) mirrors: Vec<String>,
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            act,
            registry,
            repository,
            ..
        } = self;
        write!(f, "cannot {act} of {repository} at {registry}")?;
        for mirror in &self.mirrors {
            write!(f, " (before, {mirror})")?;
        }
        Ok(())
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.trouble.as_ref())
    }
}

impl RegistryError {
    #[must_use]
    pub fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// Whether the registry says that there is no such thing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(*self.trouble, Trouble::NotFound { .. })
    }

    /// Whether another try may well succeed: the transfer broke off, or the server was slow or busy.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.trouble.is_passing()
    }

    /// The whole chain in one line.
    pub(crate) fn line(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Credentials(#[from] AuthError),
    #[error("cannot set up an HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error(
        "{host} does not speak TLS; a plain-http registry needs insecure = true in registries.conf"
    )]
    NotTls {
        host: String,
        source: reqwest::Error,
    },
    #[error(
        "it needs a login ({status}); run 'skopeo login {host}' or 'docker login {host}'{detail}"
    )]
    Unauthorized {
        host: String,
        status: StatusCode,
        detail: String,
    },
    #[error("there is no such image, tag or blob ({status}){detail}")]
    NotFound { status: StatusCode, detail: String },
    #[error("the registry answered {status}{detail}")]
    Answer { status: StatusCode, detail: String },
    #[error("the registry said nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the registry sent {got} bytes in {} ms and was given up", window.as_millis())]
    Slow { got: u64, window: Duration },
    #[error("the download broke off after {got} bytes")]
    Broken { got: u64, source: reqwest::Error },
    #[error("it ended after {got} of {size} bytes")]
    Short { got: u64, size: u64 },
    #[error("it is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("it has the digest {got}, not {expected}")]
    Digest { got: Digest, expected: Digest },
    #[error("the registry's answer makes no sense: {0}")]
    Protocol(String),
    #[error("cannot read what is to be sent")]
    Source(#[source] std::io::Error),
}

impl Trouble {
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Request(error) => !error.is_redirect() && !error.is_builder(),
            Self::Answer { status, .. } => is_passing(*status),
            Self::Silent(_) | Self::Slow { .. } | Self::Broken { .. } | Self::Short { .. } => true,
            _ => false,
        }
    }
}

/// Whether a server that answers so may answer better soon.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}
