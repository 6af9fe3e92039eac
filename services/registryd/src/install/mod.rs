//! Installing a plugin: its manifest, whether it is trusted, then the artifacts that are not there yet, then the plugin at
//! once.

mod download;
mod obtain;
mod urls;
mod waiting;

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use volant_oci::{ReferenceError, RegistryError, registries_conf::RegistriesError};
use volant_spec::{
    Digest, Manifest, PluginRef, config::ConfigError, manifest::ManifestError,
    plugin::PluginRefError,
};

use crate::{
    Registry,
    fetch::FetchError,
    store::{BlobError, NewPlugin, Original, Plugin, PluginError, StoreError},
    trust::{Before, TrustError},
};

pub(crate) use urls::{is_web, shown, web_url};

/// What a plugin in a registry begins with.
const OCI: &str = "oci://";

/// What is to be installed.
#[derive(Clone, Debug)]
pub struct Install {
    pub source: Source,
    /// Lets an older plugin follow a newer one.
    pub allow_downgrade: bool,
}

/// Where a plugin comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The manifest and, if it is signed, its signature. Artifacts are in the store, or have URLs.
    Bytes(Original),
    /// http or https.
    Url(String),
    /// `oci://HOST/REPO[:TAG|@DIGEST]`.
    Oci(String),
    /// Through the configured indexes.
    Name(PluginRef),
}

impl Source {
    /// From what people write: a URL, an `oci://` reference, or a name.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &str) -> Result<Self, PluginRefError> {
        if text.starts_with(OCI) {
            return Ok(Self::Oci(text.to_owned()));
        }
        if text.contains("://") {
            return Ok(Self::Url(text.to_owned()));
        }
        text.parse().map(Self::Name)
    }
}

impl From<Source> for Install {
    fn from(source: Source) -> Self {
        Self {
            source,
            allow_downgrade: false,
        }
    }
}

/// A plugin that was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    pub plugin: Plugin,
    pub original: Original,
    /// For people.
    pub warnings: Vec<String>,
}

/// How far an artifact's download is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The manifest's field.
    pub artifact: String,
    pub done_bytes: u64,
    pub total_bytes: Option<u64>,
}

/// Why a plugin was not installed. Artifacts that were fetched before may be in the store, for an hour.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(
        "cannot install from '{}': only http://, https:// and oci:// URLs are fetched",
        .url.escape_debug()
    )]
    Url { url: String },
    #[error("cannot fetch the manifest {url}")]
    ManifestFetch { url: String, source: FetchError },
    #[error("cannot fetch the manifest's signature {url}")]
    SignatureFetch { url: String, source: FetchError },
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("cannot tell how registries are reached")]
    Registries(#[from] RegistriesError),
    #[error("cannot pull the plugin")]
    Pull(#[source] Box<volant_oci::plugin::PluginError>),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot tell which plugins are trusted")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(
        "cannot look up the plugin '{0}': no index is configured; name one in volant.toml ([plugins], indexes), or give \
         the URL of a manifest"
    )]
    NoIndex(PluginRef),
    #[error("the plugin '{plugin}' is in no index{}; `volar plugins search` shows what there is", reasons(.problems))]
    NotInIndex {
        plugin: PluginRef,
        /// Of indexes that could not be read.
        problems: Vec<String>,
    },
    #[error("the index {index} has '{}', but no version {}: {}", .plugin.name, version(.plugin), has(.versions))]
    NotThatVersion {
        index: String,
        plugin: PluginRef,
        /// That it has, the newest first.
        versions: Vec<String>,
    },
    #[error("no index can be read: {}", .0.join("; "))]
    NoReadableIndex(Vec<String>),
    #[error(
        "cannot look up the plugin '{plugin}', as an index that may have it cannot be read, and only signed plugins are \
         installed here ({problem}); try again, or install it by the URL of its manifest: `volar plugins install \
         --manifest`"
    )]
    IndexUnreadable { plugin: PluginRef, problem: String },
    #[error(
        "the index {index} has another checksum for '{plugin}' ({expected}) than its manifest has ({found})"
    )]
    IndexChecksum {
        index: String,
        plugin: String,
        expected: Digest,
        found: Digest,
    },
    #[error("the index {index} leads from '{expected}' to the manifest of '{found}'")]
    IndexName {
        index: String,
        expected: PluginRef,
        found: PluginRef,
    },
    #[error(
        "the artifact '{artifact}' ('{}') is not in the store, and only http:// and https:// URLs are fetched; \
         upload it first: `volar plugins install` does",
        url.escape_debug()
    )]
    NotUploaded { artifact: String, url: String },
    /// Of one that was sent, or came for another plugin.
    #[error("the artifact '{artifact}' has {found} bytes, not {declared} as the manifest says")]
    DeclaredSize {
        artifact: String,
        found: u64,
        declared: u64,
    },
    /// Of what a server has.
    #[error("the artifact '{artifact}' has {found} bytes, not {declared} as the manifest says")]
    Size {
        artifact: String,
        found: u64,
        declared: u64,
    },
    #[error("cannot fetch the artifact '{artifact}' from {url}")]
    Fetch {
        artifact: String,
        url: String,
        source: FetchError,
    },
    #[error("cannot pull the artifact '{artifact}'")]
    PullArtifact {
        artifact: String,
        source: Box<RegistryError>,
    },
    #[error("the artifact '{artifact}' ({digest}) is not in the repository {reference}")]
    NotPushed {
        artifact: String,
        digest: Digest,
        reference: String,
    },
    #[error("cannot keep the artifact '{artifact}' from {url}")]
    Keep {
        artifact: String,
        url: String,
        source: Box<BlobError>,
    },
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn version(plugin: &PluginRef) -> String {
    let version = plugin.version.as_ref();
    version.map_or_else(|| "at all".to_owned(), ToString::to_string)
}

fn has(versions: &[String]) -> String {
    match versions {
        [] => "it has none".to_owned(),
        versions => format!("it has {}", versions.join(", ")),
    }
}

fn reasons(problems: &[String]) -> String {
    match problems {
        [] => String::new(),
        problems => format!(" that can be read ({})", problems.join("; ")),
    }
}

/// How many artifacts of a plugin are downloaded at a time.
const AT_A_TIME: usize = 2;

impl Registry {
    /// Installs a plugin; durable when answered. The same again changes nothing, and downloads nothing. `progress` is
    /// called at most ten times a second for each artifact, and each second while another install's download is waited for.
    ///
    /// # Errors
    /// The manifest or an artifact cannot be fetched, is not trusted, does not match, or cannot be kept: no plugin is
    /// changed then.
    pub async fn install(
        &self,
        install: impl Into<Install> + Send,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Installed, InstallError> {
        let _busy = self.busy();
        let Install {
            source,
            allow_downgrade,
        } = install.into();
        let trust = self.trust().await?;
        let obtained = self.obtain(source, &trust).await?;
        let manifest = Manifest::parse(&obtained.original.manifest)?;
        let digest = Digest::from_bytes(Sha256::digest(&obtained.original.manifest).into());
        obtained.check(&manifest, digest)?;

        // Before anything is fetched for it.
        let before = self.before(&manifest, digest, allow_downgrade).await?;
        let admitted = match trust.admit(&manifest, &obtained.original, digest, &before) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                if matches!(obtained.from, obtain::From::Store) {
                    // What was sent for it costs nothing any more.
                    let sent: Vec<_> = manifest.artifacts().map(|one| one.checksum).collect();
                    self.ask(move |store| store.forget_uploads(&sent)).await?;
                }
                return Err(refusal.into());
            }
        };
        let mut warnings = obtained.warnings;
        warnings.extend(admitted.warnings);
        for warning in &warnings {
            tracing::warn!("{warning}");
        }

        let needed: Vec<_> = manifest.artifacts().map(|one| one.checksum).collect();
        let store = self.store();
        let _pinned = crate::blocking(move || store.pin(needed)).await;
        let turns = Semaphore::new(AT_A_TIME);
        let provided = manifest.artifacts().map(|artifact| {
            let (turns, from, progress) = (&turns, &obtained.from, &progress);
            async move {
                let _turn = turns.acquire().await;
                self.provide(&artifact, from, progress).await
            }
        });
        futures_util::future::try_join_all(provided).await?;

        // Another may have been installed while this one was fetched: what is newest then is asked again, and stays so until
        // this one is there. Nobody waits here for a server.
        let _alone = self.installing(&manifest.name).await;
        let before = self.before(&manifest, digest, allow_downgrade).await?;
        let admitted = trust.admit(&manifest, &obtained.original, digest, &before)?;
        let new = Arc::new(NewPlugin {
            manifest,
            original: obtained.original,
            signed_by: admitted.signed_by,
            accepted: admitted.accepted,
            source: obtained.source,
        });
        let put = Arc::clone(&new);
        let plugin = self
            .ask(move |store| store.put_plugin(&put, jiff::Timestamp::now()))
            .await?;
        self.changed();
        tracing::info!("installed {}@{}", plugin.name, plugin.version);
        Ok(Installed {
            plugin,
            original: new.original.clone(),
            warnings,
        })
    }

    async fn before(
        &self,
        manifest: &Manifest,
        digest: Digest,
        allow_downgrade: bool,
    ) -> Result<Before, InstallError> {
        let this = PluginRef {
            name: manifest.name.clone(),
            version: Some(manifest.version.clone()),
        };
        self.ask(move |store| {
            let installed = match store.plugin(&this) {
                Ok(plugin) => plugin.manifest_digest == digest,
                Err(PluginError::NotFound(_)) => false,
                Err(error) => return Err(error.into()),
            };
            Ok(Before {
                newest: store.accepted(&this.name)?,
                installed,
                allow_downgrade,
            })
        })
        .await
    }
}
