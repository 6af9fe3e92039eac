//! `fledge.toml`: what goes into a plugin. A value that parses is valid; unknown keys are refused.

mod file;
mod mapping;

use std::{collections::BTreeMap, path::PathBuf};

use volant_spec::{
    Resources,
    manifest::{Action, Devices, Network},
    vm_config::{Limits, RootDisk},
};

pub use file::{
    Base, Busybox, CloudInit, Document, Filesystem, FilesystemType, Kernel, OciSource, Plugin,
    Strategy, Workload,
};
pub use mapping::{Dest, FileMapping, Mode};

/// The largest ext4 image, in MiB: 1 TiB.
pub const MAX_SIZE_MB: u32 = 1024 * 1024;

/// A plugin that can be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub plugin: Plugin,
    pub root: Root,
    pub base: Base,
    pub mappings: Vec<FileMapping>,
    pub workload: Workload,
    pub resources: Option<Resources>,
    pub limits: Limits,
    pub root_disk: Option<RootDisk>,
    pub network: Option<Network>,
    pub cloud_init: Option<CloudInit>,
    pub devices: Option<Devices>,
    pub actions: BTreeMap<String, Action>,
    pub labels: BTreeMap<String, String>,
}

/// How the plugin's root is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// In memory, of mapped files, over an image's if there is one.
    Initramfs(Option<Source>),
    /// An image's, on a disk.
    Disk(Source, Filesystem),
}

impl Root {
    /// The image that it comes from.
    #[must_use]
    pub fn source(&self) -> Option<&Source> {
        match self {
            Self::Initramfs(source) => source.as_ref(),
            Self::Disk(source, _) => Some(source),
        }
    }
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub origin: Origin,
    /// `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Image(String),
    Dockerfile(Dockerfile),
}

/// A Dockerfile and what it is built with. Paths are as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub path: PathBuf,
    pub context: Option<PathBuf>,
    pub target: Option<String>,
    pub build_args: BTreeMap<String, String>,
}

/// Why a text is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error(transparent)]
    Toml(#[from] Box<toml::de::Error>),
    #[error(
        "plugin.strategy \"oci_rootfs\" needs an [oci_source] with an image or a dockerfile; for files alone use \
         \"initramfs\" with [[file_mappings]]"
    )]
    NoSource,
    #[error("[oci_source] has neither image nor dockerfile")]
    EmptySource,
    #[error("[oci_source] has both image and dockerfile; keep one")]
    TwoSources,
    #[error("oci_source.{0} is for a dockerfile, and there is none")]
    ForDockerfile(&'static str),
    #[error("[filesystem] is for the strategy \"oci_rootfs\"; an initramfs is no disk")]
    Filesystem,
    #[error("filesystem.{key} is for {kind}")]
    FilesystemKey {
        key: &'static str,
        kind: &'static str,
    },
    #[error("filesystem.compression_level {0} is not 1 to 22")]
    CompressionLevel(u32),
    #[error("filesystem.size_mb {0} is not 1 to {MAX_SIZE_MB}")]
    Size(u32),
    #[error("there is no [workload]; write which program the VM is for: entrypoint = [\"/path\"]")]
    NoWorkload,
    #[error("health_check is there twice: at the top and in [workload]")]
    TwoHealthChecks,
    #[error(
        "plugin.kernel \"bzimage\" has an initramfs in it already; use \"vmlinux\" for the strategy \"initramfs\""
    )]
    Bzimage,
    #[error(
        "[root_disk] is for the strategy \"oci_rootfs\"; the root of an initramfs is in memory"
    )]
    RootDisk,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Not valid: the error names line, column and key, or what is missing.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let file: file::File = toml::from_str(text).map_err(Box::new)?;
        let source = file.oci_source.map(source).transpose()?;
        let root = match (file.plugin.strategy, source) {
            (Strategy::OciRootfs, Some(source)) => {
                Root::Disk(source, filesystem(file.filesystem.unwrap_or_default())?)
            }
            (Strategy::OciRootfs, None) => return Err(RecipeError::NoSource),
            (Strategy::Initramfs, _) if file.filesystem.is_some() => {
                return Err(RecipeError::Filesystem);
            }
            (Strategy::Initramfs, source) => Root::Initramfs(source),
        };
        if matches!(root, Root::Initramfs(_))
            && file.plugin.kernel == Some(Kernel::Host(volant_spec::manifest::HostKernel::Bzimage))
        {
            return Err(RecipeError::Bzimage);
        }
        if matches!(root, Root::Initramfs(_)) && file.root_disk.is_some() {
            return Err(RecipeError::RootDisk);
        }
        let has_program = file
            .workload
            .as_ref()
            .is_some_and(|workload| workload.entrypoint.is_some());
        if !has_program && file.plugin.init.is_none() && root.source().is_none() {
            return Err(RecipeError::NoWorkload);
        }
        let mut workload = file.workload.unwrap_or_default();
        if let Some(check) = file.health_check {
            if workload.health_check.is_some() {
                return Err(RecipeError::TwoHealthChecks);
            }
            workload.health_check = Some(check);
        }
        let short = file.mappings.into_iter().map(|(source, dest)| FileMapping {
            source,
            dest,
            mode: None,
        });
        Ok(Self {
            plugin: file.plugin,
            root,
            base: file.base.unwrap_or_default(),
            mappings: file.file_mappings.into_iter().chain(short).collect(),
            workload,
            resources: file.resources.map(|partial| partial.0),
            limits: file.limits,
            root_disk: file.root_disk,
            network: file.network,
            cloud_init: file.cloud_init,
            devices: file.devices,
            actions: file.actions,
            labels: file.labels,
        })
    }

    /// The JSON Schema of `fledge.toml`.
    #[must_use]
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(file::File)
    }
}

fn source(given: OciSource) -> Result<Source, RecipeError> {
    let origin = match (given.image, given.dockerfile) {
        (Some(_), Some(_)) => return Err(RecipeError::TwoSources),
        (None, None) => return Err(RecipeError::EmptySource),
        (Some(image), None) => {
            let stray = [
                ("context", given.context.is_some()),
                ("target", given.target.is_some()),
                ("build_args", !given.build_args.is_empty()),
            ];
            if let Some((key, _)) = stray.into_iter().find(|(_, is_there)| *is_there) {
                return Err(RecipeError::ForDockerfile(key));
            }
            Origin::Image(image)
        }
        (None, Some(path)) => Origin::Dockerfile(Dockerfile {
            path,
            context: given.context,
            target: given.target,
            build_args: given.build_args,
        }),
    };
    Ok(Source {
        origin,
        platform: given.platform,
    })
}

fn filesystem(given: Filesystem) -> Result<Filesystem, RecipeError> {
    if given.size_mb.is_some() && given.kind != FilesystemType::Ext4 {
        return Err(RecipeError::FilesystemKey {
            key: "size_mb",
            kind: "ext4; the others have the size of what is in them",
        });
    }
    if given.compression_level.is_some() && given.kind != FilesystemType::Squashfs {
        return Err(RecipeError::FilesystemKey {
            key: "compression_level",
            kind: "squashfs",
        });
    }
    if let Some(size) = given
        .size_mb
        .filter(|size| !(1..=MAX_SIZE_MB).contains(size))
    {
        return Err(RecipeError::Size(size));
    }
    match given.compression_level {
        Some(level) if !(1..=22).contains(&level) => Err(RecipeError::CompressionLevel(level)),
        _ => Ok(given),
    }
}

#[cfg(test)]
mod tests;
