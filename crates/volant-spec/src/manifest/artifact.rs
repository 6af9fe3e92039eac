//! The files that a plugin needs, by digest.

use serde::{Deserialize, Serialize};

use crate::{Digest, Name};

/// A file that a plugin needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// `http://`, `https://`, `file://`, or a path relative to the manifest.
    pub url: String,
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Digest"))]
    pub checksum: Digest,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A root file system: an image that VMs of the plugin share and cannot write to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// `http://`, `https://`, `file://`, or a path relative to the manifest.
    pub url: String,
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Digest"))]
    pub checksum: Digest,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What is in the image.
    #[serde(default, skip_serializing_if = "RootfsFormat::is_raw")]
    pub format: RootfsFormat,
}

/// The file system in an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RootfsFormat {
    /// One of the others, which the guest finds out by itself.
    #[default]
    Raw,
    Squashfs,
    Erofs,
    Ext4,
}

impl RootfsFormat {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    fn is_raw(&self) -> bool {
        *self == Self::Raw
    }
}

/// A disk besides the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Disk {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Name"))]
    pub name: Name,
    /// `http://`, `https://`, `file://`, or a path relative to the manifest.
    #[serde(alias = "source")]
    pub url: String,
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Digest"))]
    pub checksum: Digest,
    /// In bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default)]
    pub readonly: bool,
    /// Where the guest mounts it: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The kernel that is booted: one of the host's two, or the plugin's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(
    untagged,
    expecting = "kernel is \"vmlinux\", \"bzimage\", or an artifact with url and checksum"
)]
pub enum Kernel {
    Host(HostKernel),
    Own(Artifact),
}

/// A kernel of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum HostKernel {
    /// Uncompressed, booted with an initramfs beside it.
    Vmlinux,
    /// Compressed, with the boot initramfs for root file systems in it.
    Bzimage,
}

/// An artifact with the field that it stands in: `initramfs`, `rootfs`, `kernel`, `disks.NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    pub field: String,
    pub url: &'a str,
    pub checksum: Digest,
    pub size: Option<u64>,
}

impl Artifact {
    pub(super) fn named(&self, field: &str) -> Named<'_> {
        Named {
            field: field.to_owned(),
            url: &self.url,
            checksum: self.checksum,
            size: self.size,
        }
    }
}

impl Rootfs {
    pub(super) fn named(&self) -> Named<'_> {
        Named {
            field: "rootfs".to_owned(),
            url: &self.url,
            checksum: self.checksum,
            size: self.size,
        }
    }
}

impl Disk {
    pub(super) fn named(&self) -> Named<'_> {
        Named {
            field: format!("disks.{}", self.name),
            url: &self.url,
            checksum: self.checksum,
            size: self.size,
        }
    }
}
