//! `fledge.toml`: what goes into a plugin. A value that parses is valid; unknown keys are refused.

use std::path::{Component, PathBuf};

use serde::Deserialize;
use volant_spec::{
    Name, Resources,
    manifest::{Version, Workload},
};

/// A plugin of the `initramfs` strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub plugin: Plugin,
    pub mappings: Vec<FileMapping>,
    pub workload: Workload,
    pub resources: Option<Resources>,
}

/// The plugin's name and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    pub name: Name,
    pub strategy: Strategy,
    #[serde(default = "first_version")]
    pub version: Version,
    pub description: Option<String>,
}

/// How the plugin's root reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    Initramfs,
    OciRootfs,
}

/// A file or folder of the host, and where the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMapping {
    /// Relative to the folder of `fledge.toml`, or absolute.
    pub source: PathBuf,
    pub dest: Dest,
    /// For a file alone. By default 0755 when its owner may execute it, else 0644.
    pub mode: Option<Mode>,
}

/// An absolute path in the guest, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Dest(pub PathBuf);

/// Permission bits, up to 0o7777.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Mode(pub u32);

/// Why a text is no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error(transparent)]
    Toml(#[from] Box<toml::de::Error>),
    #[error(
        "plugin.strategy \"oci_rootfs\" is not possible with this version of fledge; \
         use \"initramfs\" with [[file_mappings]]"
    )]
    OciRootfs,
    #[error("plugin.strategy \"initramfs\" takes no [oci_source]")]
    OciSource,
    #[error("there is no [workload]; write which program the VM is for: entrypoint = [\"/path\"]")]
    NoWorkload,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    plugin: Plugin,
    #[serde(default)]
    file_mappings: Vec<FileMapping>,
    oci_source: Option<OciSource>,
    workload: Option<Workload>,
    resources: Option<PartialResources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OciSource {
    #[serde(rename = "image")]
    _image: String,
}

#[derive(Deserialize)]
#[serde(try_from = "Unchecked")]
struct PartialResources(Resources);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    cpu_cores: Option<u32>,
    memory_mb: Option<u32>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// Not valid: the error names line, column and key, or what is missing.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let file: File = toml::from_str(text).map_err(Box::new)?;
        match (file.plugin.strategy, file.oci_source) {
            (Strategy::OciRootfs, _) => return Err(RecipeError::OciRootfs),
            (Strategy::Initramfs, Some(_)) => return Err(RecipeError::OciSource),
            (Strategy::Initramfs, None) => {}
        }
        Ok(Self {
            plugin: file.plugin,
            mappings: file.file_mappings,
            workload: file.workload.ok_or(RecipeError::NoWorkload)?,
            resources: file.resources.map(|partial| partial.0),
        })
    }
}

fn first_version() -> Version {
    Version::try_from("0.1.0".to_owned()).expect("digits and dots are a version")
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

impl TryFrom<String> for Dest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let shown = text.escape_debug();
        if !text.starts_with('/') {
            return Err(format!("dest '{shown}' is not an absolute path"));
        }
        let path = PathBuf::from(&text);
        if text.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
            return Err(format!("dest '{shown}' has '..' or a NUL character in it"));
        }
        if text.len() > 1 && text.ends_with('/') {
            return Err(format!(
                "dest '{shown}' ends with '/'; write the whole path of the file or folder"
            ));
        }
        Ok(Self(path))
    }
}

impl TryFrom<i64> for Mode {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        let digits = value.to_string();
        // 755 where 0o755 was meant: as octal it would be a sticky file, which nobody wants.
        if (0o1000..1000).contains(&value) && digits.bytes().all(|digit| digit < b'8') {
            return Err(format!("mode {value} is a decimal number; write 0o{value}"));
        }
        u32::try_from(value)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .map(Self)
            .ok_or_else(|| format!("mode {value} is more than 0o7777 or negative"))
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
        assert_eq!(recipe.workload.entrypoint, ["/usr/local/bin/mybinary"]);
        assert_eq!(recipe.resources, None);
    }

    #[test]
    fn half_of_the_resources_is_enough() {
        let recipe = Recipe::parse(&format!("{QUICK_START}[resources]\nmemory_mb = 512")).unwrap();
        assert_eq!(recipe.resources, Some(Resources::new(1, 512).unwrap()));
    }

    #[test]
    fn an_oci_recipe_is_understood_and_refused() {
        let text = "[plugin]\nname = \"myapp\"\nstrategy = \"oci_rootfs\"\n\n[oci_source]\nimage = \"a/b:c\"\n";
        assert!(matches!(Recipe::parse(text), Err(RecipeError::OciRootfs)));
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
        let text = format!("{QUICK_START}[oci_source]\nimage = 'x'");
        assert!(matches!(Recipe::parse(&text), Err(RecipeError::OciSource)));
    }
}
