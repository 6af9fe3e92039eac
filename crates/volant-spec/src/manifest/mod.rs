//! A plugin's manifest, version 1: what to boot and what to run in it.

mod artifact;
pub mod health;
pub mod location;
mod machine;
mod version;
mod workload;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    Name, Resources,
    vm_config::{
        Limits, MAX_MOUNTS, RootDisk, VmConfigError, check_init, check_limits, check_size,
        check_target,
    },
};

pub use artifact::{Artifact, Disk, HostKernel, Kernel, Named, Rootfs, RootfsFormat};
use location::{LocationError, artifact_location};

pub use health::{HealthCheck, HealthError, Probe};
pub use machine::{
    Action, CloudInit, Datasource, Devices, DevicesError, Document, Method, Network, NetworkMode,
    Port, SeedMode, Transport,
};
pub use version::{MAX_VERSION_LEN, Version};
pub(crate) use workload::is_user;
pub use workload::{
    DEFAULT_STOP_GRACE_MS, MAX_STOP_GRACE_MS, Protocol, Restart, STOP_SIGNALS, Workload,
    WorkloadError,
};

/// The largest manifest that is read, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// The `schema_version` of this type.
pub const SCHEMA_VERSION: &str = "1";
/// What is appended to a manifest's file name or URL to find its signature.
pub const SIGNATURE_SUFFIX: &str = ".minisig";

/// A plugin's manifest (JSON). A value that parses is valid: unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, try_from = "Written", into = "Written")]
#[cfg_attr(feature = "schema", schemars(with = "Written"))]
pub struct Manifest {
    pub schema_version: SchemaVersion,
    pub name: Name,
    pub version: Version,
    pub description: Option<String>,
    /// The kind of runtime that the plugin is, for people; the plugin's name when absent.
    pub runtime: Option<String>,
    /// At least one of `rootfs` and `initramfs` is there.
    pub rootfs: Option<Rootfs>,
    pub initramfs: Option<Artifact>,
    pub kernel: Option<Kernel>,
    pub disks: Vec<Disk>,
    pub resources: Option<Resources>,
    /// Its health check is here, also where the manifest has it at the top.
    pub workload: Workload,
    pub network: Option<Network>,
    pub cloud_init: Option<CloudInit>,
    pub devices: Option<Devices>,
    /// The program that becomes PID 1 in the guest; kestrel stays it when absent.
    pub init: Option<String>,
    pub root_disk: Option<RootDisk>,
    pub limits: Limits,
    pub actions: BTreeMap<String, Action>,
    pub openapi: Option<String>,
    /// Whether it can be used as soon as it is installed.
    pub enabled: bool,
    pub image: Option<String>,
    pub image_digest: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// A plugin: what to boot and what to run in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Manifest"))]
#[serde(deny_unknown_fields)]
struct Written {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::SchemaVersion"))]
    schema_version: SchemaVersion,
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Name"))]
    name: Name,
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Version"))]
    version: Version,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// The kind of runtime that the plugin is, for people; the plugin's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    /// The root file system's image. At least one of `rootfs` and `initramfs` is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rootfs: Option<Rootfs>,
    /// The initramfs that is booted, with kestrel as its `/init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initramfs: Option<Artifact>,
    /// The kernel; the host's `vmlinux` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<Kernel>,
    /// Disks besides the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disks: Vec<Disk>,
    /// What a VM of this plugin gets unless it asks for something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resources: Option<Resources>,
    /// It may be left out where there is an `init`.
    #[serde(default = "Workload::none", skip_serializing_if = "Workload::is_none")]
    workload: Workload,
    /// As in `workload`; in one of the two places. One with an empty `endpoint` is none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "health::unless_empty"
    )]
    health_check: Option<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cloud_init: Option<CloudInit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    devices: Option<Devices>,
    /// The program of the root that becomes PID 1 in the guest, absolute: `/sbin/init`. kestrel prepares, and runs on beside
    /// it. Absent: kestrel stays PID 1, and runs the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    init: Option<String>,
    /// The disk that keeps what a VM writes to its root; in memory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_disk: Option<RootDisk>,
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    limits: Limits,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    actions: BTreeMap<String, Action>,
    /// Where the workload's OpenAPI document is: a URL, or a path in the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    openapi: Option<String>,
    /// Whether it can be used as soon as it is installed; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    /// The OCI image that it was built from, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// The digest of that image, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_digest: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

/// Why fields that are valid alone are not a manifest together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestConflict {
    #[error("there is neither 'rootfs' nor 'initramfs': a VM has nothing to boot")]
    NothingToBoot,
    #[error(
        "the kernel \"bzimage\" has an initramfs in it, which boots a 'rootfs' alone; use \"vmlinux\""
    )]
    BzimageInitramfs,
    #[error("two disks have the name '{0}'")]
    DiskName(Name),
    #[error("'health_check' is there twice: at the top and in 'workload'")]
    TwoHealthChecks,
    #[error("workload.entrypoint names no program, and there is no 'init' either")]
    NoProgram,
    #[error("'root_disk' is for a 'rootfs'; without one, the root is in memory")]
    RootInMemory,
    #[error("two disks have the target '{}'", .0.escape_debug())]
    TwoTargets(String),
    #[error("there are {0} disks; a VM can have {MAX_MOUNTS}")]
    TooManyDisks(usize),
    #[error(transparent)]
    Setting(#[from] VmConfigError),
    #[error(transparent)]
    Devices(#[from] DevicesError),
}

impl TryFrom<Written> for Manifest {
    type Error = ManifestConflict;

    fn try_from(written: Written) -> Result<Self, ManifestConflict> {
        let mut workload = written.workload;
        if let Some(check) = written.health_check {
            if workload.health_check.is_some() {
                return Err(ManifestConflict::TwoHealthChecks);
            }
            workload.health_check = Some(check);
        }
        let manifest = Self {
            schema_version: written.schema_version,
            name: written.name,
            version: written.version,
            description: written.description,
            runtime: written.runtime,
            rootfs: written.rootfs,
            initramfs: written.initramfs,
            kernel: written.kernel,
            disks: written.disks,
            resources: written.resources,
            workload,
            network: written.network,
            cloud_init: written.cloud_init,
            devices: written.devices,
            init: written.init,
            root_disk: written.root_disk,
            limits: written.limits,
            actions: written.actions,
            openapi: written.openapi,
            enabled: written.enabled.unwrap_or(true),
            image: written.image,
            image_digest: written.image_digest,
            labels: written.labels,
        };
        manifest.check()?;
        Ok(manifest)
    }
}

impl From<Manifest> for Written {
    fn from(manifest: Manifest) -> Self {
        Self {
            schema_version: manifest.schema_version,
            name: manifest.name,
            version: manifest.version,
            description: manifest.description,
            runtime: manifest.runtime,
            rootfs: manifest.rootfs,
            initramfs: manifest.initramfs,
            kernel: manifest.kernel,
            disks: manifest.disks,
            resources: manifest.resources,
            workload: manifest.workload,
            health_check: None,
            network: manifest.network,
            cloud_init: manifest.cloud_init,
            devices: manifest.devices,
            init: manifest.init,
            root_disk: manifest.root_disk,
            limits: manifest.limits,
            actions: manifest.actions,
            openapi: manifest.openapi,
            enabled: (!manifest.enabled).then_some(false),
            image: manifest.image,
            image_digest: manifest.image_digest,
            labels: manifest.labels,
        }
    }
}

/// The one `schema_version` there is. `v1` and `1.0` mean the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SchemaVersion;

impl TryFrom<String> for SchemaVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            SCHEMA_VERSION | "v1" | "1.0" => Ok(Self),
            _ => Err(format!(
                "schema_version '{}' is not known; this is '{SCHEMA_VERSION}'",
                text.escape_debug()
            )),
        }
    }
}

impl From<SchemaVersion> for String {
    fn from(_: SchemaVersion) -> Self {
        SCHEMA_VERSION.to_owned()
    }
}

/// Why bytes are not a [`Manifest`].
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {0} bytes; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("the manifest is not valid")]
    Json(#[source] serde_json::Error),
    #[error("{field}.url is not valid")]
    Location {
        field: String,
        source: LocationError,
    },
}

impl Manifest {
    /// A manifest of that name and workload; everything else is absent. It boots nothing until `rootfs` or `initramfs` is set.
    #[must_use]
    pub fn new(name: Name, version: Version, workload: Workload) -> Self {
        Self {
            schema_version: SchemaVersion,
            name,
            version,
            description: None,
            runtime: None,
            rootfs: None,
            initramfs: None,
            kernel: None,
            disks: Vec::new(),
            resources: None,
            workload,
            network: None,
            cloud_init: None,
            devices: None,
            init: None,
            root_disk: None,
            limits: Limits::default(),
            actions: BTreeMap::new(),
            openapi: None,
            enabled: true,
            image: None,
            image_digest: None,
            labels: BTreeMap::new(),
        }
    }

    /// Reads a manifest from JSON.
    ///
    /// # Errors
    /// Too large, or not valid: the source names the field, line and column.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest = Self::parse_installed(bytes)?;
        for artifact in manifest.artifacts() {
            artifact_location(artifact.url).map_err(|source| ManifestError::Location {
                field: artifact.field.clone(),
                source,
            })?;
        }
        Ok(manifest)
    }

    /// Reads the manifest of a plugin that is installed: where its artifacts came from does not matter any more, so it need
    /// not make sense to this version of Volant.
    ///
    /// # Errors
    /// As [`Manifest::parse`], but for the artifacts' URLs.
    pub fn parse_installed(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(ManifestError::Json)
    }

    /// All artifacts, each with the field that it stands in.
    pub fn artifacts(&self) -> impl Iterator<Item = Named<'_>> {
        let own = self.kernel.as_ref().and_then(|kernel| match kernel {
            Kernel::Own(artifact) => Some(artifact.named("kernel")),
            Kernel::Host(_) => None,
        });
        self.initramfs
            .iter()
            .map(|artifact| artifact.named("initramfs"))
            .chain(self.rootfs.iter().map(Rootfs::named))
            .chain(own)
            .chain(self.disks.iter().map(Disk::named))
    }

    /// What this manifest asks for that no VM can be given by this version of Volant, as its fields.
    #[must_use]
    pub fn unsupported(&self) -> Vec<String> {
        let disks = self.disks.iter().filter_map(|disk| {
            let name = &disk.name;
            match (disk.readonly, &disk.target) {
                // All VMs of the plugin share it.
                (false, _) => Some(format!("disks.{name} without 'readonly'")),
                (true, None) => Some(format!("disks.{name} without 'target'")),
                (true, Some(_)) => None,
            }
        });
        disks.collect()
    }

    fn check(&self) -> Result<(), ManifestConflict> {
        if self.rootfs.is_none() && self.initramfs.is_none() {
            return Err(ManifestConflict::NothingToBoot);
        }
        if self.initramfs.is_some() && self.kernel == Some(Kernel::Host(HostKernel::Bzimage)) {
            return Err(ManifestConflict::BzimageInitramfs);
        }
        if self.workload.entrypoint.is_empty() && self.init.is_none() {
            return Err(ManifestConflict::NoProgram);
        }
        if self.root_disk.is_some() && self.rootfs.is_none() {
            return Err(ManifestConflict::RootInMemory);
        }
        if let Some(init) = &self.init {
            check_init(init)?;
        }
        if let Some(disk) = self.root_disk {
            check_size("root_disk.size_mb", disk.size_mb)?;
        }
        check_limits(&self.limits)?;
        if let Some(devices) = &self.devices {
            devices.check()?;
        }
        self.check_disks()
    }

    fn check_disks(&self) -> Result<(), ManifestConflict> {
        if self.disks.len() > MAX_MOUNTS {
            return Err(ManifestConflict::TooManyDisks(self.disks.len()));
        }
        for (at, disk) in self.disks.iter().enumerate() {
            let before = &self.disks[..at];
            if before.iter().any(|other| other.name == disk.name) {
                return Err(ManifestConflict::DiskName(disk.name.clone()));
            }
            let Some(target) = &disk.target else {
                continue;
            };
            check_target(&format!("disks.{}.target", disk.name), Path::new(target))?;
            if before
                .iter()
                .any(|other| other.target.as_ref() == Some(target))
            {
                return Err(ManifestConflict::TwoTargets(target.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
