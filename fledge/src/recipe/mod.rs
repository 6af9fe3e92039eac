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
mod tests {
    use super::*;

    /// From the quick start, letter for letter.
    const QUICK_START: &str = r#"[plugin]
name = "myapp"
strategy = "initramfs"

[[file_mappings]]
source = "./mybinary"
dest = "/usr/local/bin/mybinary"
mode = 0o755

[workload]
entrypoint = ["/usr/local/bin/mybinary"]
"#;

    #[test]
    fn the_quick_start_is_a_recipe() {
        let recipe = Recipe::parse(QUICK_START).unwrap();
        assert_eq!(recipe.plugin.name.as_str(), "myapp");
        assert_eq!(recipe.plugin.version.as_str(), "0.1.0");
        assert_eq!(recipe.mappings[0].mode, Some(Mode(0o755)));
        assert_eq!(
            recipe.workload.entrypoint.unwrap(),
            ["/usr/local/bin/mybinary"]
        );
        assert_eq!(recipe.root, Root::Initramfs(None));
        assert_eq!(recipe.resources, None);
    }

    #[test]
    fn half_of_the_resources_is_enough() {
        let recipe = Recipe::parse(&format!("{QUICK_START}[resources]\nmemory_mb = 512")).unwrap();
        assert_eq!(recipe.resources, Some(Resources::new(1, 512).unwrap()));
    }

    /// From the quick start, letter for letter.
    const FROM_AN_IMAGE: &str = r#"[plugin]
name = "myapp"
strategy = "oci_rootfs"

[oci_source]
image = "docker.io/library/nginx:alpine"
"#;

    #[test]
    fn the_quick_start_from_an_image_is_a_recipe() {
        let recipe = Recipe::parse(FROM_AN_IMAGE).unwrap();
        let Root::Disk(source, filesystem) = recipe.root else {
            panic!("no disk");
        };
        assert_eq!(
            source.origin,
            Origin::Image("docker.io/library/nginx:alpine".to_owned())
        );
        assert_eq!(filesystem, Filesystem::default());
        assert_eq!(filesystem.kind, FilesystemType::Squashfs);
        assert_eq!(recipe.workload, Workload::default());
    }

    #[test]
    fn every_key_is_read() {
        let recipe = Recipe::parse(&format!(
            r##"{FROM_AN_IMAGE}platform = "linux/amd64"
[filesystem]
type = "ext4"
size_mb = 64
[base]
files = true
busybox = "./busybox"
[mappings]
"a.conf" = "/etc/a.conf"
[workload]
args = ["-x"]
env = {{ A = "b" }}
rlimits = {{ nofile = {{ soft = 1, hard = 2 }} }}
user = "www-data"
restart = "always"
[root_disk]
size_mb = 1024
[limits]
cpu_quota_percent = 150
[network]
ports = [{{ port = 80 }}]
[health_check]
type = "tcp"
port = 80
[cloud_init]
user_data = {{ path = "user.yaml" }}
[actions.reload]
method = "POST"
path = "/reload"
[labels]
team = "web"
"##
        ))
        .unwrap();
        assert_eq!(recipe.mappings.len(), 1);
        assert!(recipe.workload.health_check.is_some());
        assert_eq!(recipe.base.busybox, Busybox::Path("./busybox".into()));
        assert!(recipe.cloud_init.unwrap().user_data.is_some());
        assert_eq!(recipe.root_disk.unwrap().size_mb, 1024);
        assert_eq!(recipe.limits.cpu_quota_percent, Some(150));
        assert_eq!(recipe.workload.rlimits["nofile"].hard, Some(2));
    }

    #[test]
    fn a_guest_with_an_init_of_its_own_needs_no_program() {
        let files = QUICK_START.split("[workload]").next().unwrap();
        let files = files.replace("\n[[file", "init = \"/sbin/init\"\n[[file");
        let recipe = Recipe::parse(&files).unwrap();
        assert_eq!(recipe.plugin.init.as_deref(), Some("/sbin/init"));
        assert_eq!(recipe.workload, Workload::default());
    }

    #[test]
    fn keys_that_do_not_go_together_are_refused() {
        let image = |more: &str| format!("{FROM_AN_IMAGE}{more}");
        let cases = [
            (
                QUICK_START.replace("initramfs", "oci_rootfs"),
                "needs an [oci_source]",
            ),
            (
                format!("{QUICK_START}[filesystem]"),
                "an initramfs is no disk",
            ),
            (image("dockerfile = 'Dockerfile'"), "has both"),
            (
                image("target = 'x'"),
                "oci_source.target is for a dockerfile",
            ),
            (
                FROM_AN_IMAGE.replace("image =", "platform ="),
                "neither image nor dockerfile",
            ),
            (
                image("[filesystem]\nsize_mb = 7"),
                "filesystem.size_mb is for ext4",
            ),
            (
                image("[filesystem]\ntype = 'erofs'\ncompression_level = 7"),
                "is for squashfs",
            ),
            (image("[filesystem]\ncompression_level = 23"), "not 1 to 22"),
            (
                image("[filesystem]\ntype = 'ext4'\nsize_mb = 4000000"),
                "not 1 to 1048576",
            ),
            (image("[filesystem]\ntype = 'xfs'"), "unknown variant `xfs`"),
            (
                image(
                    "[health_check]\ntype = 'tcp'\nport = 1\n[workload.health_check]\ntype = 'tcp'\nport = 1",
                ),
                "there twice",
            ),
            (
                QUICK_START.replace("[[file", "kernel = 'bzimage'\n[[file"),
                "use \"vmlinux\"",
            ),
            (
                QUICK_START.replace("entrypoint =", "args ="),
                "no [workload]",
            ),
            (
                format!("{QUICK_START}[root_disk]\nsize_mb = 64"),
                "root of an initramfs is in memory",
            ),
            (image("[root_disk]\nsize_mb = 1"), "size_mb 1"),
            (image("[limits]\ncpu_weight = 0"), "limits.cpu_weight 0"),
            (
                image("[workload.rlimits]\nfiles = {}"),
                "rlimits has 'files'",
            ),
            (
                FROM_AN_IMAGE.replace("[oci_source]", "init = \"init\"\n[oci_source]"),
                "init 'init'",
            ),
        ];
        for (text, expected) in cases {
            let error = Recipe::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let cases = [
            (
                "name = \"myapp\"",
                "name = \"My/App\"",
                "line 2",
                "has 'M' in it",
            ),
            (
                "strategy = \"initramfs\"",
                "strategy = \"iso\"",
                "line 3",
                "unknown variant `iso`",
            ),
            (
                "mode = 0o755",
                "mood = 0o755",
                "line 8",
                "unknown field `mood`",
            ),
            ("mode = 0o755", "mode = 755", "line 8", "write 0o755"),
            (
                "mode = 0o755",
                "mode = 0o77777",
                "line 8",
                "more than 0o7777",
            ),
            ("mode = 0o755", "mode = -1", "line 8", "negative"),
            (
                "dest = \"/usr/local",
                "dest = \"usr/local",
                "line 7",
                "not an absolute path",
            ),
            (
                "dest = \"/usr/local",
                "dest = \"/usr/../local",
                "line 7",
                "has '..'",
            ),
            (
                "bin/mybinary\"\nmode",
                "bin/\"\nmode",
                "line 7",
                "ends with '/'",
            ),
            (
                "[workload]",
                "[worklaod]",
                "line 10",
                "unknown field `worklaod`",
            ),
            (
                "[workload]\n",
                "[resources]\ncpu_cores = 0\n[workload]\n",
                "line 10",
                "0 CPUs",
            ),
            (
                "[\"/usr/local/bin/mybinary\"]",
                "[]",
                "line 10",
                "names no program",
            ),
        ];
        for (from, to, line, expected) in cases {
            let error = Recipe::parse(&QUICK_START.replacen(from, to, 1))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(line) && error.contains(expected),
                "{to}: {error}"
            );
        }
    }

    #[test]
    fn a_recipe_without_a_workload_is_refused() {
        let text = QUICK_START.split("[workload]").next().unwrap();
        assert!(matches!(Recipe::parse(text), Err(RecipeError::NoWorkload)));
    }
}
