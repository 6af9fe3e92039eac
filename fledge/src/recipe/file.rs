//! `fledge.toml` as it is written: every key that there is.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use volant_spec::{
    Name, Resources,
    manifest::{
        self as spec, Action, Devices, HealthCheck, HostKernel, Network, Protocol, Restart,
        Version, WorkloadError,
    },
    schema,
    vm_config::{Limits, Rlimit, RootDisk, check_init, check_limits, check_size},
};

use super::mapping::{Dest, FileMapping};

/// A recipe: what goes into a plugin.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "fledge.toml")]
pub(super) struct File {
    pub plugin: Plugin,
    /// The image that the root comes from: always for `oci_rootfs`, beneath the mapped files for `initramfs`.
    #[serde(alias = "source")]
    pub oci_source: Option<OciSource>,
    /// How the root file system's image is made; for `oci_rootfs` alone.
    pub filesystem: Option<Filesystem>,
    /// What else is put into the root.
    pub base: Option<Base>,
    /// Files of the host that are put into the root.
    #[serde(default)]
    pub file_mappings: Vec<FileMapping>,
    /// The same, shorter: `"SOURCE" = "DEST"`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<PathBuf, String>")]
    pub mappings: BTreeMap<PathBuf, Dest>,
    /// The program that the VM is for. What is absent is taken from the image.
    #[serde(default, deserialize_with = "workload")]
    pub workload: Option<Workload>,
    pub resources: Option<PartialResources>,
    /// What a VM's control group allows, unless the VM says otherwise.
    #[serde(default, deserialize_with = "limits")]
    pub limits: Limits,
    /// The disk that keeps what a VM writes to its root; for `oci_rootfs` alone. In memory when absent.
    #[serde(default, deserialize_with = "root_disk")]
    pub root_disk: Option<RootDisk>,
    pub network: Option<Network>,
    /// As in `[workload]`; in one of the two places.
    pub health_check: Option<HealthCheck>,
    pub cloud_init: Option<CloudInit>,
    pub devices: Option<Devices>,
    /// Requests that the workload answers at its `base_url`, by name.
    #[serde(default)]
    pub actions: BTreeMap<String, Action>,
    /// Texts by name, for whoever looks at the plugin.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The plugin's name and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    #[schemars(with = "schema::Name")]
    pub name: Name,
    pub strategy: Strategy,
    /// `0.1.0` when absent.
    #[serde(default = "first_version")]
    #[schemars(with = "Option<schema::Version>")]
    pub version: Version,
    /// One line for people.
    pub description: Option<String>,
    /// The kind of runtime that the plugin is, for people.
    pub runtime: Option<String>,
    /// `vmlinux` (the default) or `bzimage` of the host, or the path of a kernel of the plugin's own.
    #[schemars(with = "Option<String>")]
    pub kernel: Option<Kernel>,
    /// Where the workload's OpenAPI document is: a URL, or a path in the guest.
    pub openapi: Option<String>,
    /// The root's own program that becomes PID 1 in the guest: `/sbin/init`. The image's command is not run then; one in
    /// `[workload]` is.
    #[serde(default, deserialize_with = "init")]
    pub init: Option<String>,
}

/// How the plugin's root reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// In memory, as the initramfs that is booted.
    Initramfs,
    /// As a disk image that all VMs of the plugin share.
    OciRootfs,
}

/// The kernel that the plugin boots.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Kernel {
    Host(HostKernel),
    Own(PathBuf),
}

impl From<String> for Kernel {
    fn from(text: String) -> Self {
        match text.as_str() {
            "vmlinux" => Self::Host(HostKernel::Vmlinux),
            "bzimage" => Self::Host(HostKernel::Bzimage),
            _ => Self::Own(text.into()),
        }
    }
}

/// An image, or the Dockerfile that makes one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OciSource {
    /// A registry's image (`docker.io/library/nginx:alpine`), `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`,
    /// `docker-archive:FILE[:TAG]`, `dir:DIR` or `tar:FILE`. Paths are relative to the folder of `fledge.toml`.
    pub image: Option<String>,
    /// Instead of an image; built with buildah.
    pub dockerfile: Option<PathBuf>,
    /// The Dockerfile's context; its folder when absent.
    pub context: Option<PathBuf>,
    /// The stage of the Dockerfile; the last when absent.
    pub target: Option<String>,
    /// The Dockerfile's ARGs.
    #[serde(default)]
    pub build_args: BTreeMap<String, String>,
    /// `OS/ARCHITECTURE[/VARIANT]`; `linux/amd64` when absent.
    pub platform: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    #[serde(default, rename = "type")]
    pub kind: FilesystemType,
    /// Of an ext4 image, in MiB; what is needed and a tenth when absent.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub size_mb: Option<u32>,
    /// Of zstd in a squashfs image, 1 to 22; 9 when absent.
    #[schemars(range(min = 1, max = 22))]
    pub compression_level: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FilesystemType {
    #[default]
    Squashfs,
    Erofs,
    Ext4,
}

/// What programs expect in a root that has no distribution in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// `/etc/passwd` and `/etc/group` with root and nobody, `/etc/nsswitch.conf`, `/etc/os-release`, where they are missing.
    #[serde(default)]
    pub files: bool,
    /// A static busybox as `/bin/busybox` with a link for each of its commands that is missing: `true` for the host's own, or a path.
    #[serde(default)]
    pub busybox: Busybox,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "busybox is true, false, or the path of a static busybox"
)]
pub enum Busybox {
    Wanted(bool),
    Path(PathBuf),
}

impl Default for Busybox {
    fn default() -> Self {
        Self::Wanted(false)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The program and its arguments, in place of the image's entrypoint and command.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entrypoint, in place of the image's command.
    pub args: Option<Vec<String>>,
    /// Over the image's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `USER` or `USER:GROUP`, by name or number.
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub stop_signal: Option<String>,
    pub stop_grace_ms: Option<u32>,
    pub restart: Option<Restart>,
    pub health_check: Option<HealthCheck>,
    /// Resource limits by name, `nofile = { soft = 1024, hard = 4096 }`; one that is absent is none.
    #[serde(default)]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Directories that hold data, beside the image's.
    #[serde(default)]
    pub volumes: Vec<String>,
    #[serde(rename = "type")]
    pub protocol: Option<Protocol>,
    pub base_url: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "Unchecked")]
pub(super) struct PartialResources(#[schemars(with = "Unchecked")] pub Resources);

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Resources")]
struct Unchecked {
    cpu_cores: Option<u32>,
    memory_mb: Option<u32>,
}

impl TryFrom<Unchecked> for PartialResources {
    type Error = volant_spec::resources::ResourcesError;

    fn try_from(given: Unchecked) -> Result<Self, Self::Error> {
        let usual = Resources::default();
        Resources::new(
            given.cpu_cores.unwrap_or(usual.cpu_cores),
            given.memory_mb.unwrap_or(usual.memory_mb),
        )
        .map(Self)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    pub datasource: Option<volant_spec::manifest::Datasource>,
    pub user_data: Option<Document>,
    pub meta_data: Option<Document>,
    pub network_config: Option<Document>,
    pub vendor_data: Option<Document>,
}

/// A document: its text, or the file that it is read from when the plugin is built.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a document is { content = \"…\" } or { path = \"…\" }"
)]
pub enum Document {
    Content(Content),
    Path(DocumentPath),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Content {
    pub content: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentPath {
    pub path: PathBuf,
}

/// Checked where it stands, so that a mistake is told with its place.
fn workload<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Workload>, D::Error> {
    let given = Workload::deserialize(deserializer)?;
    given.checked().map_err(serde::de::Error::custom)?;
    Ok(Some(given))
}

fn limits<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Limits, D::Error> {
    let limits = Limits::deserialize(deserializer)?;
    check_limits(&limits).map_err(serde::de::Error::custom)?;
    Ok(limits)
}

fn root_disk<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RootDisk>, D::Error> {
    let disk = RootDisk::deserialize(deserializer)?;
    check_size("size_mb", disk.size_mb).map_err(serde::de::Error::custom)?;
    Ok(Some(disk))
}

fn init<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let init = String::deserialize(deserializer)?;
    check_init(&init).map_err(serde::de::Error::custom)?;
    Ok(Some(init))
}

impl Workload {
    /// These keys over another workload's values, but for the command line.
    ///
    /// # Errors
    /// The first value that is not valid.
    pub fn over(&self, below: &spec::Workload) -> Result<spec::Workload, WorkloadError> {
        let mut workload = below.clone();
        workload.env.extend(self.env.clone());
        workload.rlimits.extend(
            self.rlimits
                .iter()
                .map(|(name, limit)| (name.clone(), *limit)),
        );
        for volume in &self.volumes {
            if !workload.volumes.contains(volume) {
                workload.volumes.push(volume.clone());
            }
        }
        let set = |into: &mut Option<String>, value: &Option<String>| {
            if value.is_some() {
                into.clone_from(value);
            }
        };
        set(&mut workload.user, &self.user);
        set(&mut workload.workdir, &self.workdir);
        set(&mut workload.stop_signal, &self.stop_signal);
        set(&mut workload.base_url, &self.base_url);
        workload.stop_grace_ms = self.stop_grace_ms.or(workload.stop_grace_ms);
        workload.restart = self.restart.or(workload.restart);
        workload.protocol = self.protocol.or(workload.protocol);
        if self.health_check.is_some() {
            workload.health_check.clone_from(&self.health_check);
        }
        workload.check()?;
        Ok(workload)
    }

    fn checked(&self) -> Result<(), WorkloadError> {
        let mut words = self
            .entrypoint
            .clone()
            .unwrap_or_else(|| vec!["/".to_owned()]);
        words.extend(self.args.iter().flatten().cloned());
        self.over(&spec::Workload::new(words)?).map(drop)
    }
}

fn first_version() -> Version {
    "0.1.0".parse().expect("digits and dots are a version")
}
