//! The name of an image or a plugin in a registry: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, after docker's rules.

use std::{fmt, net::IpAddr, str::FromStr};

use volant_spec::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_TEXT: usize = 1024;
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// A name in a registry. It has a tag or a digest, or both; then the digest counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a [`Reference`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no image reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// The registry's host and port as people write it: `docker.io`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    #[must_use]
    pub fn identifier(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.as_deref().unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }

    /// The same repository at `digest`.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Whether the registry is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }
}

/// Whether `host`, with a port or without, is `localhost` or an address of the loopback.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Reads docker's form, where `nginx` is `docker.io/library/nginx:latest`, and `oci://HOST/REPOSITORY…`, where
    /// the host is never left out.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError {
            text: text
                .chars()
                .take(200)
                .flat_map(char::escape_debug)
                .collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.len() > MAX_TEXT {
        return Err("it is too long");
    }
    let (text, host_is_given) = match text.strip_prefix("oci://") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") => {
            let digest = digest
                .parse()
                .map_err(|_| "after @ comes sha256: and 64 hex digits")?;
            (rest, Some(digest))
        }
        Some(_) => return Err("after @ comes sha256: and 64 hex digits"),
        None => (text, None),
    };
    let (host, path) = split_host(rest, host_is_given)?;
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let repository = if host == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    check_repository(&repository)?;
    let default_tag = digest.is_none().then_some(DEFAULT_TAG);
    Ok(Reference {
        registry: host,
        repository,
        tag: tag.or(default_tag).map(str::to_owned),
        digest,
    })
}

/// Docker's rule: the first part is a host if it has a dot or a port, is `localhost` or not in lower case.
fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.chars().any(|c| c.is_ascii_uppercase())
}

/// Splits the registry from the rest.
fn split_host(text: &str, host_is_given: bool) -> Result<(String, &str), &'static str> {
    let split = text
        .split_once('/')
        .filter(|(first, _)| host_is_given || looks_like_host(first));
    match split {
        Some((host, path)) => {
            check_host(host)?;
            let host = match host {
                "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
                host => host.to_ascii_lowercase(),
            };
            Ok((host, path))
        }
        None if host_is_given => Err("write oci://HOST/REPOSITORY:TAG"),
        None => Ok((DEFAULT_REGISTRY.to_owned(), text)),
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    const WHY: &str = "the registry is no host name, address or HOST:PORT";
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(WHY)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| WHY)?;
            match after.strip_prefix(':') {
                Some(port) => ("", Some(port)),
                None if after.is_empty() => ("", None),
                None => return Err(WHY),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if port.is_some_and(|port| {
        !port.bytes().all(|c| c.is_ascii_digit()) || port.parse::<u16>().is_err()
    }) {
        return Err(WHY);
    }
    let label_is_fine = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    if !host.starts_with('[') && !name.split('.').all(label_is_fine) {
        return Err(WHY);
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let fine = (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().all(|c| word(c) || matches!(c, b'.' | b'-'))
        && tag.bytes().next().is_some_and(word);
    fine.then_some(())
        .ok_or("a tag is of letters, digits, '_', '.' and '-', at most 128")
}

/// Lower-case letters and digits, in parts joined by `.`, `_`, `__` or any number of `-`.
pub(crate) fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err("the repository must be in lower case");
    }
    let part_is_fine = |part: &str| {
        let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        !part.is_empty()
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
            && separators.into_iter().all(|between| {
                matches!(between, "" | "." | "_" | "__") || between.bytes().all(|c| c == b'-')
            })
    };
    if repository.len() > MAX_REPOSITORY || !repository.split('/').all(part_is_fine) {
        return Err("the repository is no path of lower-case words");
    }
    Ok(())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A host that docker's rule would take for a part of the repository.
        if !looks_like_host(&self.registry) {
            f.write_str("oci://")?;
        }
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_are_read_after_dockers_rules() {
        let hex = "ab".repeat(32);
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            (
                "nginx:1.27-alpine",
                "docker.io/library/nginx:1.27-alpine".into(),
            ),
            ("docker.io/x", "docker.io/library/x:latest".into()),
            ("index.docker.io/x", "docker.io/library/x:latest".into()),
            ("user/app", "docker.io/user/app:latest".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1".into()),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest".into()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".into()),
            ("GHCR.io/Owner/x", String::new()),
            (
                "ghcr.io/a__b/c--d/e.f_g",
                "ghcr.io/a__b/c--d/e.f_g:latest".into(),
            ),
            ("oci://registry/app:v2", "oci://registry/app:v2".into()),
            ("oci://docker.io/x", "docker.io/library/x:latest".into()),
        ];
        for (text, expected) in cases {
            let read = text.parse::<Reference>();
            match read {
                Ok(reference) => assert_eq!(reference.to_string(), expected, "{text}"),
                Err(error) => assert!(expected.is_empty(), "{error}"),
            }
        }
        let both: Reference = format!("quay.io/a/b:t@sha256:{hex}").parse().unwrap();
        assert_eq!(both.identifier(), format!("sha256:{hex}"));
        assert_eq!(both.tag(), Some("t"));
        let digest_alone: Reference = format!("quay.io/a/b@sha256:{hex}").parse().unwrap();
        assert_eq!(digest_alone.tag(), None);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        let cases = [
            ("", "repository"),
            ("Nginx", "lower case"),
            ("a//b", "path"),
            ("../etc", "host name"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a@sha256:00", "64 hex"),
            ("a@md5:00", "64 hex"),
            ("host:99999/a", "HOST:PORT"),
            ("host:+1/a", "HOST:PORT"),
            ("-a.b/c", "host name"),
            ("[::g]/a", "host name"),
            ("oci://nginx", "oci://HOST"),
            ("a.b/c d", "path"),
            ("a.b/c?x=1", "path"),
            ("a_.b/c", "host name"),
        ];
        for (text, word) in cases {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn loopback_is_told_from_other_hosts() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.8.9.1:5",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example.com",
            "10.0.0.1:5000",
            "[::2]",
            "docker.io",
            "127.example",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_and_what_it_reads_reads_back(text in "(oci://)?[-a-zA-Z0-9:/@.\\[\\]_ é]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
