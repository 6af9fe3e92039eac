//! What the interfaces answer when they cannot do what was asked.

use tonic::{Code, Status};
use volant_spec::plugin::PluginRefError;

use super::callers::CallersError;
use crate::{
    status::{self, chain},
    store::{Damage, OpenError, PluginError},
};

/// An error of `com.volantvm.Registry1`.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Registry1.Error")]
pub enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The caller is no part of a VM's unit.
    NotAVm(String),
    /// The caller is not root.
    NotRoot(String),
    NoSuchVm(String),
    BeingDeleted(String),
    ArtifactMissing(String),
    ArtifactDamaged(String),
    /// A disk of the VM's own cannot be made, grown or opened.
    NoDisk(String),
    NoSuchPlugin(String),
    /// VMs use the plugin.
    InUse(String),
    /// The plugin has several versions, and none was named.
    SeveralVersions(String),
    /// The policy on signatures refuses the plugin.
    NotTrusted(String),
    /// What was given makes no sense.
    Invalid(String),
    /// It cannot be done as things are.
    NotPossible(String),
    /// A server cannot be reached, or does not answer as it should.
    Unreachable(String),
    /// The store failed.
    Failed(String),
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        let text = chain(&error);
        match error {
            OpenError::NotFound(_) => Self::NoSuchVm(text),
            OpenError::BeingDeleted(_) => Self::BeingDeleted(text),
            OpenError::Artifact { damage, .. } => match damage {
                Damage::Missing => Self::ArtifactMissing(text),
                Damage::Size { .. } | Damage::Bytes => Self::ArtifactDamaged(text),
            },
            OpenError::Manifest { .. } => Self::ArtifactDamaged(text),
            OpenError::Disk(_) => Self::NoDisk(text),
            OpenError::Store(_) => Self::Failed(text),
        }
    }
}

impl From<CallersError> for Error {
    fn from(error: CallersError) -> Self {
        let text = chain(&error);
        match error {
            CallersError::Caller(_) => Self::NotAVm(text),
            CallersError::Bus(_) | CallersError::NoProcess | CallersError::NoUser => {
                Self::Failed(text)
            }
        }
    }
}

impl From<PluginError> for Error {
    fn from(error: PluginError) -> Self {
        let text = chain(&error);
        match error {
            PluginError::NotFound(_) => Self::NoSuchPlugin(text),
            PluginError::InUse { .. } => Self::InUse(text),
            PluginError::SeveralVersions { .. } => Self::SeveralVersions(text),
            PluginError::NoArtifact { .. } => Self::NotPossible(text),
            PluginError::Store(_) => Self::Failed(text),
        }
    }
}

impl From<PluginRefError> for Error {
    fn from(error: PluginRefError) -> Self {
        Self::Invalid(format!("no plugin can be named so: {error}"))
    }
}

impl Error {
    /// As the other face tells it.
    pub(super) fn of(status: &Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => Self::NotTrusted(text),
            Code::NotFound => Self::NoSuchPlugin(text),
            Code::InvalidArgument => Self::Invalid(text),
            Code::FailedPrecondition | Code::Aborted => Self::NotPossible(text),
            Code::Unavailable => Self::Unreachable(text),
            _ => Self::Failed(text),
        }
    }

    pub(super) fn property(error: &PluginError) -> zbus::fdo::Error {
        match error {
            PluginError::NotFound(_) => zbus::fdo::Error::UnknownObject(status::chain(error)),
            _ => zbus::fdo::Error::Failed(status::chain(error)),
        }
    }
}
