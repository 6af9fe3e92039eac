//! Installing a plugin: its manifest, then the artifacts that are not there yet, then the plugin at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use url::Url;
use volant_spec::{
    Manifest,
    manifest::{Artifact, MAX_BYTES, ManifestError},
};

use crate::{
    Registry, blocking,
    fetch::FetchError,
    sink::Sink,
    store::{BlobError, Plugin, PluginError, StoreError},
};

/// Where a manifest comes from.
#[derive(Clone, Debug)]
pub enum Source {
    Bytes(Vec<u8>),
    /// http or https.
    Url(String),
}

/// How far an artifact's download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The manifest's field.
    pub artifact: &'static str,
    pub done_bytes: u64,
    pub total_bytes: Option<u64>,
}

/// Why a plugin was not installed. Artifacts that were fetched before may be in the store, for an hour.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot install from '{}': only http:// and https:// URLs are fetched", .url.escape_debug())]
    Url { url: String },
    #[error("cannot fetch the manifest {url}")]
    ManifestFetch { url: String, source: FetchError },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(
        "the artifact '{artifact}' ('{}') is not in the store, and only http:// and https:// URLs are fetched; \
         upload it first: `volar plugins install` does",
        url.escape_debug()
    )]
    NotUploaded { artifact: &'static str, url: String },
    #[error("the artifact '{artifact}' has {found} bytes, not {declared} as the manifest says")]
    Size {
        artifact: &'static str,
        found: u64,
        declared: u64,
    },
    #[error("cannot fetch the artifact '{artifact}' from {url}")]
    Fetch {
        artifact: &'static str,
        url: String,
        source: FetchError,
    },
    #[error("cannot keep the artifact '{artifact}' from {url}")]
    Keep {
        artifact: &'static str,
        url: String,
        source: Box<BlobError>,
    },
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Between two progress messages of an artifact.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// An artifact that was there may go while another is fetched, if the plugin that used it is removed.
const ATTEMPTS: usize = 3;

impl Registry {
    /// Installs a plugin; durable when answered. The same again changes nothing. `progress` is called at most ten
    /// times a second.
    ///
    /// # Errors
    /// The manifest or an artifact cannot be fetched, does not match, or cannot be kept: no plugin is changed then.
    pub async fn install(
        &self,
        source: Source,
        mut progress: impl FnMut(Progress),
    ) -> Result<Plugin, InstallError> {
        let _busy = self.busy();
        let (bytes, base) = match source {
            Source::Bytes(bytes) => (bytes, None),
            Source::Url(url) => {
                let url = web_url(&url).ok_or(InstallError::Url { url })?;
                let fetched = self.fetcher().small(&url, MAX_BYTES).await;
                let bytes = fetched.map_err(|source| InstallError::ManifestFetch {
                    url: shown(&url),
                    source,
                })?;
                (bytes, Some(url))
            }
        };
        let manifest = Manifest::parse(&bytes)?;
        let _alone = self.installing(&manifest.name).await;
        let given = Arc::new((manifest, bytes));
        let mut attempt = 1;
        loop {
            for (artifact, spec) in given.0.artifacts() {
                self.provide(artifact, spec, base.as_ref(), &mut progress)
                    .await?;
            }
            let put = blocking({
                let (given, store) = (Arc::clone(&given), self.store());
                move || store.put_plugin(&given.0, &given.1, jiff::Timestamp::now())
            });
            match put.await {
                Err(PluginError::NoArtifact { .. }) if attempt < ATTEMPTS => attempt += 1,
                answer => return Ok(answer?),
            }
        }
    }

    /// Has the artifact in the store, from where it is if need be.
    async fn provide(
        &self,
        artifact: &'static str,
        spec: &Artifact,
        base: Option<&Url>,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), InstallError> {
        let checked = |found: u64| match spec.size {
            Some(declared) if declared != found => Err(InstallError::Size {
                artifact,
                found,
                declared,
            }),
            _ => Ok(()),
        };
        if let Some(size) = self.blob(spec.checksum).await? {
            return checked(size);
        }
        let url = artifact_url(&spec.url, base).ok_or_else(|| InstallError::NotUploaded {
            artifact,
            url: spec.url.clone(),
        })?;
        let fetch = |source| InstallError::Fetch {
            artifact,
            url: shown(&url),
            source,
        };
        let keep = |source| InstallError::Keep {
            artifact,
            url: shown(&url),
            source: Box::new(source),
        };
        let limit = self.store().max_blob_bytes();
        let mut download = self.fetcher().get(&url).await.map_err(fetch)?;
        let announced = download.total();
        if let Some(size) = announced {
            checked(size)?;
        }
        if announced.or(spec.size).is_some_and(|size| size > limit) {
            return Err(keep(BlobError::TooLarge { limit }));
        }
        let mut sink = Sink::open(self.store()).await.map_err(keep)?;
        let mut throttle = Throttle::default();
        let mut done = 0;
        let mut tell = |done_bytes| {
            progress(Progress {
                artifact,
                done_bytes,
                total_bytes: announced.or(spec.size),
            });
        };
        while let Some(chunk) = download.chunk().await.map_err(fetch)? {
            sink.push(&chunk).await.map_err(keep)?;
            done += chunk.len() as u64;
            if spec.size.is_some_and(|declared| done > declared) {
                return checked(done);
            }
            if throttle.due(Instant::now()) {
                tell(done);
            }
        }
        checked(done)?;
        sink.finish(spec.checksum).await.map_err(keep)?;
        tell(done);
        Ok(())
    }
}

fn web_url(text: &str) -> Option<Url> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// Where an artifact is fetched from; `None` when that is nowhere on the web.
fn artifact_url(text: &str, base: Option<&Url>) -> Option<Url> {
    match Url::parse(text) {
        Ok(url) => Some(url),
        Err(url::ParseError::RelativeUrlWithoutBase) => base?.join(text).ok(),
        Err(_) => None,
    }
    .filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// A URL for people: what may be a secret in it is left out.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Refused only for URLs that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.into()
}

#[derive(Debug, Default)]
struct Throttle(Option<Instant>);

impl Throttle {
    fn due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|last| now.duration_since(last) >= PROGRESS_EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_come_from_the_web_or_nowhere() {
        let base = Url::parse("https://a.example/p/caddy.manifest.json?x=1").unwrap();
        let cases = [
            ("http://b.example/i", None, Some("http://b.example/i")),
            (
                "i.cpio.gz",
                Some(&base),
                Some("https://a.example/p/i.cpio.gz"),
            ),
            (
                "/i.cpio.gz",
                Some(&base),
                Some("https://a.example/i.cpio.gz"),
            ),
            ("i.cpio.gz", None, None),
            ("/etc/shadow", None, None),
            ("file:///etc/shadow", Some(&base), None),
            ("file:///etc/shadow", None, None),
            ("ftp://b.example/i", None, None),
            ("http://", None, None),
        ];
        for (text, base, expected) in cases {
            let url = artifact_url(text, base).map(String::from);
            assert_eq!(url.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let url = Url::parse("https://me:secret@a.example/x?token=secret").unwrap();
        assert_eq!(shown(&url), "https://a.example/x");
    }

    #[test]
    fn progress_is_told_ten_times_a_second_at_most() {
        let begun = Instant::now();
        let mut throttle = Throttle::default();
        let told = (0..1000)
            .filter(|ms| throttle.due(begun + Duration::from_millis(*ms)))
            .count();
        assert_eq!(told, 10);
    }
}
