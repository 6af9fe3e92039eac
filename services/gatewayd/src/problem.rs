//! What a client is told when a request fails: RFC 9457 problem details.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use serde::Serialize;

/// What every problem's `type` begins with.
pub const TYPE_PREFIX: &str = "https://volantvm.com/problems/";

/// A request that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    pub kind: Kind,
    /// What was wrong this time, for people.
    pub detail: String,
}

/// All problems that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InvalidName,
    InvalidRequest,
    UnknownPlugin,
    UnusablePlugin,
    UntrustedPlugin,
    MissingArtifact,
    NotFound,
    NoSuchPlugin,
    NotInIndex,
    NotInRegistry,
    NoSuchVm,
    NoSuchBlob,
    MethodNotAllowed,
    VmExists,
    PluginInUse,
    SeveralVersions,
    NotInstallable,
    BeingDeleted,
    RequestTimeout,
    TooLarge,
    UnsupportedMediaType,
    Misconfigured,
    Internal,
    StartFailed,
    Unavailable,
    NoSpace,
    NotRunning,
    NotInGuest,
    UnusableInGuest,
    GuestAway,
    NotPossible,
    TooManySessions,
    VersionConflict,
    UnusableConfig,
    WaitTimedOut,
    WaitImpossible,
    NoSuchVersion,
    NoSuchDevice,
}

impl Kind {
    /// The last part of the problem's `type`.
    #[must_use]
    pub fn slug(self) -> &'static str {
        self.row().0
    }

    #[must_use]
    pub fn status(self) -> StatusCode {
        self.row().1
    }

    /// The same for every problem of the kind.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::InvalidName => ("invalid-name", S::BAD_REQUEST, "The name is not valid"),
            Self::InvalidRequest => (
                "invalid-request",
                S::BAD_REQUEST,
                "The request is not valid",
            ),
            Self::UnknownPlugin => (
                "unknown-plugin",
                S::BAD_REQUEST,
                "There is no such plugin to make a VM of",
            ),
            Self::UnusablePlugin => (
                "unusable-plugin",
                S::CONFLICT,
                "VMs cannot be made of the plugin now",
            ),
            Self::UntrustedPlugin => (
                "untrusted-plugin",
                S::FORBIDDEN,
                "The policy on signatures refuses the plugin",
            ),
            Self::MissingArtifact => (
                "missing-artifact",
                S::CONFLICT,
                "An artifact was not uploaded",
            ),
            Self::NotFound => ("not-found", S::NOT_FOUND, "There is nothing at this path"),
            Self::NoSuchPlugin => ("no-such-plugin", S::NOT_FOUND, "There is no such plugin"),
            Self::NotInIndex => (
                "not-in-index",
                S::NOT_FOUND,
                "No configured index has the plugin",
            ),
            Self::NotInRegistry => (
                "not-in-registry",
                S::NOT_FOUND,
                "The registry does not have the plugin",
            ),
            Self::NoSuchVm => ("no-such-vm", S::NOT_FOUND, "There is no such VM"),
            Self::NoSuchBlob => ("no-such-blob", S::NOT_FOUND, "There is no such artifact"),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                S::METHOD_NOT_ALLOWED,
                "The path has no such method",
            ),
            Self::VmExists => ("vm-exists", S::CONFLICT, "The VM exists already"),
            Self::PluginInUse => ("plugin-in-use", S::CONFLICT, "VMs use the plugin"),
            Self::SeveralVersions => (
                "several-versions",
                S::CONFLICT,
                "Several versions of the plugin are installed",
            ),
            Self::NotInstallable => (
                "not-installable",
                S::CONFLICT,
                "The plugin cannot be had from there",
            ),
            Self::BeingDeleted => ("being-deleted", S::CONFLICT, "The VM is being deleted"),
            Self::RequestTimeout => (
                "request-timeout",
                S::REQUEST_TIMEOUT,
                "The request did not come in time",
            ),
            Self::TooLarge => (
                "too-large",
                S::PAYLOAD_TOO_LARGE,
                "The request is too large",
            ),
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                S::UNSUPPORTED_MEDIA_TYPE,
                "The request's body is not JSON",
            ),
            Self::Misconfigured => (
                "misconfigured",
                S::INTERNAL_SERVER_ERROR,
                "The host's configuration is not valid",
            ),
            Self::Internal => (
                "internal",
                S::INTERNAL_SERVER_ERROR,
                "Volant could not do it",
            ),
            Self::StartFailed => ("start-failed", S::BAD_GATEWAY, "The VM did not start"),
            Self::Unavailable => (
                "unavailable",
                S::SERVICE_UNAVAILABLE,
                "A part of Volant, or something it needs, did not answer",
            ),
            Self::NoSpace => ("no-space", S::INSUFFICIENT_STORAGE, "There is no room left"),
            Self::NotRunning => ("not-running", S::CONFLICT, "The VM does not run"),
            Self::NotInGuest => (
                "not-in-guest",
                S::NOT_FOUND,
                "There is no such thing in the guest",
            ),
            Self::UnusableInGuest => (
                "unusable-in-guest",
                S::CONFLICT,
                "It is there, and cannot be used so",
            ),
            Self::GuestAway => (
                "guest-away",
                S::SERVICE_UNAVAILABLE,
                "The guest does not answer now",
            ),
            Self::NotPossible => ("not-possible", S::CONFLICT, "This VM cannot do it"),
            Self::TooManySessions => (
                "too-many-sessions",
                S::SERVICE_UNAVAILABLE,
                "There are too many sessions",
            ),
            Self::VersionConflict => (
                "version-conflict",
                S::PRECONDITION_FAILED,
                "The configuration has another version",
            ),
            Self::UnusableConfig => (
                "unusable-config",
                S::CONFLICT,
                "This host cannot give what the configuration asks for",
            ),
            Self::WaitTimedOut => (
                "wait-timed-out",
                S::GATEWAY_TIMEOUT,
                "It did not come in time",
            ),
            Self::WaitImpossible => ("wait-impossible", S::CONFLICT, "It cannot come any more"),
            Self::NoSuchVersion => (
                "no-such-version",
                S::NOT_FOUND,
                "The configuration has no such version",
            ),
            Self::NoSuchDevice => (
                "no-such-device",
                S::NOT_FOUND,
                "The host has no such device",
            ),
        }
    }
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { kind, detail }
    }

    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Kind::InvalidRequest, detail)
    }

    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(Kind::Internal, detail)
    }

    /// The problem as its JSON object.
    #[must_use]
    pub fn body(&self) -> Body<'_> {
        Body {
            r#type: format!("{TYPE_PREFIX}{}", self.kind.slug()),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
        }
    }
}

/// The members of a problem that RFC 9457 names.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/problem+json");
        let body = serde_json::to_vec(&self.body()).expect("a struct of texts is always JSON");
        let mut response = (self.kind.status(), [(CONTENT_TYPE, json)], body).into_response();
        // For the log.
        response.extensions_mut().insert(self);
        response
    }
}
