//! Choosing an image of an index: by platform, and by name in a layout.

use std::{fmt, str::FromStr};

use volant_spec::Digest;

use crate::{
    image::shown,
    manifest::{Descriptor, Index},
};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// For which machine an image is: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            os: "linux".into(),
            architecture: "amd64".into(),
            variant: None,
        }
    }
}

/// Why there is no image to take. Its texts are those of others, as they are; they are escaped where they are shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    #[error("'{}' is no platform; write OS/ARCHITECTURE, as linux/amd64", shown(.0))]
    Text(String),
    #[error("there is no image for {wanted}; there are: {}", list(there))]
    NotThere {
        wanted: Platform,
        there: Vec<String>,
    },
    #[error(
        "there is no image named '{}'; there are: {}",
        shown(wanted),
        list(there)
    )]
    NoName { wanted: String, there: Vec<String> },
    #[error("there are several images; name one of: {}", list(.0))]
    SeveralNames(Vec<String>),
    #[error("there is no image in it")]
    Empty,
}

fn list(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        let words: Vec<String> = words.iter().map(|word| shown(word)).collect();
        words.join(", ")
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refused = || PlatformError::Text(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |text: &&str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(refused());
        }
        Ok(Self {
            os: parts[0].to_owned(),
            architecture: normal_architecture(parts[1]).to_owned(),
            variant: parts.get(2).map(|&variant| variant.to_owned()),
        })
    }
}

/// Go's names are the ones that images use; people write the kernel's.
fn normal_architecture(text: &str) -> &str {
    match text {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Without a variant, arm64 is v8, amd64 is v1 and arm is v7, as other tools have it.
fn variant_number(architecture: &str, variant: Option<&str>) -> Option<u8> {
    match variant.filter(|text| !text.is_empty()) {
        Some(text) => text.strip_prefix('v').unwrap_or(text).parse().ok(),
        None => match architecture {
            "amd64" => Some(1),
            "arm" => Some(7),
            "arm64" => Some(8),
            _ => Some(0),
        },
    }
}

impl Platform {
    /// Whether an image for `os/architecture/variant` runs on this, and how well it fits: more is better.
    fn fits(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<u8> {
        let architecture = normal_architecture(architecture);
        if os != self.os || architecture != self.architecture {
            return None;
        }
        if variant.filter(|text| !text.is_empty()) == self.variant.as_deref() {
            return Some(u8::MAX);
        }
        let wanted = variant_number(architecture, self.variant.as_deref())?;
        variant_number(architecture, variant).filter(|has| *has <= wanted)
    }

    /// Whether an image with this configuration runs here. One that does not say is taken.
    pub(crate) fn admits(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let os = if os.is_empty() { &self.os } else { os };
        if architecture.is_empty() {
            return os == self.os;
        }
        self.fits(os, architecture, variant).is_some()
    }
}

impl Index {
    /// The entry for `platform`; without one, those that do not say what they are for.
    ///
    /// # Errors
    /// There is neither.
    pub fn choose(&self, platform: &Platform) -> Result<Vec<&Descriptor>, PlatformError> {
        choose(self, platform)
    }

    /// The entries that `name` names; without a name, all if that is clear.
    ///
    /// # Errors
    /// There is no such name, or there are several and none was given.
    pub fn named(&self, name: Option<&str>) -> Result<Vec<&Descriptor>, PlatformError> {
        named(self, name)
    }
}

/// The entry for `platform`. Nested indexes that do not say what they are for come last, all of them, for the caller
/// to look into.
fn choose<'a>(index: &'a Index, platform: &Platform) -> Result<Vec<&'a Descriptor>, PlatformError> {
    let usable = || {
        index
            .manifests
            .iter()
            .filter(|entry| !is_attestation(entry))
    };
    let mut best: Option<(u8, &Descriptor)> = None;
    for entry in usable() {
        if let Some(told) = &entry.platform
            && let Some(fit) = platform.fits(&told.os, &told.architecture, told.variant.as_deref())
            && best.is_none_or(|(so_far, _)| fit > so_far)
        {
            best = Some((fit, entry));
        }
    }
    if let Some((_, entry)) = best {
        return Ok(vec![entry]);
    }
    let silent: Vec<&Descriptor> = usable().filter(|entry| entry.platform.is_none()).collect();
    if !silent.is_empty() {
        return Ok(silent);
    }
    Err(PlatformError::NotThere {
        wanted: platform.clone(),
        there: platforms(index),
    })
}

/// The platforms that an index names, as it writes them.
pub(crate) fn platforms(index: &Index) -> Vec<String> {
    let mut there: Vec<String> = index
        .manifests
        .iter()
        .filter(|entry| !is_attestation(entry))
        .filter_map(|entry| {
            let told = entry.platform.as_ref()?;
            let platform = Platform {
                os: told.os.clone(),
                architecture: told.architecture.clone(),
                variant: told.variant.clone(),
            };
            Some(platform.to_string())
        })
        .collect();
    there.sort();
    there.dedup();
    there
}

/// What BuildKit puts beside images: provenance, which no machine runs.
fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
        || entry
            .platform
            .as_ref()
            .is_some_and(|told| told.os == "unknown" && told.architecture == "unknown")
}

/// The entries of a layout's index that `name` names; without a name, all if they have one name or none at all.
fn named<'a>(index: &'a Index, name: Option<&str>) -> Result<Vec<&'a Descriptor>, PlatformError> {
    let name_of = |entry: &'a Descriptor| {
        let own = entry.annotation(REF_NAME);
        own.or_else(|| entry.annotation(CONTAINERD_NAME))
    };
    let mut names: Vec<String> = index
        .manifests
        .iter()
        .filter_map(name_of)
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    let Some(wanted) = name else {
        let distinct: std::collections::BTreeSet<Digest> =
            index.manifests.iter().map(|entry| entry.digest).collect();
        return match (index.manifests.len(), names.len()) {
            (0, _) => Err(PlatformError::Empty),
            (_, several) if several > 1 && distinct.len() > 1 => {
                Err(PlatformError::SeveralNames(names))
            }
            _ => Ok(index.manifests.iter().collect()),
        };
    };
    // Some tools write the tag, some the whole reference.
    let matches = |entry: &&'a Descriptor| {
        [REF_NAME, CONTAINERD_NAME].iter().any(|key| {
            entry.annotation(key).is_some_and(|has| {
                has == wanted || has.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
            })
        }) || entry.digest.to_string() == wanted
    };
    let found: Vec<&Descriptor> = index.manifests.iter().filter(matches).collect();
    if found.is_empty() {
        return Err(PlatformError::NoName {
            wanted: wanted.to_owned(),
            there: names,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::DescribedPlatform;

    fn entry(seed: u8, platform: Option<&str>, name: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::from_bytes([seed; 32]),
            size: 1,
            annotations: name.map(|name| [(REF_NAME.to_owned(), name.to_owned())].into()),
            platform: platform.map(|text| {
                let mut parts = text.split('/').map(str::to_owned);
                DescribedPlatform {
                    os: parts.next().unwrap(),
                    architecture: parts.next().unwrap(),
                    variant: parts.next(),
                }
            }),
            artifact_type: None,
        }
    }

    fn index(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: None,
            manifests,
        }
    }

    #[test]
    fn the_entry_for_the_platform_is_chosen() {
        let index = index(vec![
            entry(1, Some("unknown/unknown"), None),
            entry(2, Some("linux/arm/v6"), None),
            entry(3, Some("linux/arm/v7"), None),
            entry(4, Some("linux/amd64/v3"), None),
            entry(5, Some("linux/amd64"), None),
            entry(6, Some("linux/arm64/v8"), None),
            entry(7, Some("windows/amd64"), None),
        ]);
        let cases = [
            ("linux/amd64", 5),
            ("linux/amd64/v1", 5),
            ("linux/x86_64", 5),
            ("linux/amd64/v3", 4),
            ("linux/amd64/v2", 5),
            ("linux/amd64/v4", 4),
            ("linux/arm/v7", 3),
            ("linux/arm/v6", 2),
            ("linux/arm", 3),
            ("linux/arm/v8", 3),
            ("linux/arm64", 6),
            ("linux/aarch64", 6),
        ];
        for (wanted, seed) in cases {
            let platform = wanted.parse().unwrap();
            let chosen = choose(&index, &platform).unwrap();
            assert_eq!(chosen[0].digest, Digest::from_bytes([seed; 32]), "{wanted}");
        }
        let error = choose(&index, &"linux/s390x".parse().unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("linux/arm/v7, linux/arm64/v8, windows/amd64"),
            "{text}"
        );
        assert!(!text.contains("unknown"), "{text}");
    }

    #[test]
    fn entries_that_say_nothing_are_looked_into() {
        let index = index(vec![
            entry(1, None, None),
            entry(2, Some("linux/arm64"), None),
        ]);
        assert_eq!(choose(&index, &Platform::default()).unwrap().len(), 1);
    }

    #[test]
    fn a_layouts_images_are_found_by_name() {
        let index = index(vec![
            entry(1, None, Some("v1")),
            entry(2, None, Some("registry.example/app:v2")),
        ]);
        let digests = |name| named(&index, name).map(|found| found[0].digest);
        assert_eq!(digests(Some("v1")), Ok(Digest::from_bytes([1; 32])));
        assert_eq!(digests(Some("v2")), Ok(Digest::from_bytes([2; 32])));
        let error = digests(Some("v3")).unwrap_err().to_string();
        assert!(error.contains("registry.example/app:v2, v1"), "{error}");
        assert!(matches!(digests(None), Err(PlatformError::SeveralNames(_))));
        let one = super::named(
            &Index {
                manifests: index.manifests[..1].to_vec(),
                ..index.clone()
            },
            None,
        )
        .map(|found| found.len());
        assert_eq!(one, Ok(1));
    }

    #[test]
    fn no_text_of_others_speaks_to_the_terminal() {
        let text = || "\u{1b}[2J\u{9b}2J\n".to_owned();
        let index = index(vec![entry(1, Some(&format!("{}/x", text())), None)]);
        for error in [
            PlatformError::Text(text()),
            choose(&index, &Platform::default()).unwrap_err(),
            named(&index, Some(&text())).unwrap_err(),
            PlatformError::SeveralNames(vec![text(), text()]),
        ] {
            let shown = error.to_string();
            assert!(!shown.contains(char::is_control), "{shown:?}");
            assert!(shown.contains("\\u{1b}[2J\\u{9b}2J\\n"), "{shown:?}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
