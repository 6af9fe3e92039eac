//! The manifest and its signature, from where they are. Nothing in the manifest is believed here.

use url::Url;
use volant_oci::{Client, Credentials, Limits, Reference, Registries, plugin};
use volant_spec::{Digest, Manifest, PluginRef, manifest::MAX_BYTES};
use volant_trust::MAX_SIGNATURE_BYTES;

use super::{
    InstallError, OCI, Source,
    urls::{shown, signature_url, web_url},
};
use crate::{Registry, status::chain, store::Original, trust::Trust};

/// A manifest as it came.
#[derive(Debug)]
pub(super) struct Obtained {
    pub(super) original: Original,
    pub(super) from: From,
    /// For people and the record.
    pub(super) source: String,
    pub(super) warnings: Vec<String>,
    /// What an index said of it.
    promised: Option<Promise>,
}

/// Where its artifacts are.
#[derive(Debug)]
pub(super) enum From {
    /// In the store, or at URLs of their own.
    Store,
    /// Also beside the manifest.
    Web(Url),
    /// Also in the repository of the manifest.
    Repository(Repository),
}

/// A plugin in a registry.
#[derive(Debug)]
pub(super) struct Repository {
    pub(super) client: Client,
    pub(super) reference: Reference,
    pub(super) artifacts: Vec<plugin::Artifact>,
}

#[derive(Debug)]
struct Promise {
    index: String,
    plugin: PluginRef,
    checksum: Option<Digest>,
}

impl Registry {
    pub(super) async fn obtain(
        &self,
        source: Source,
        trust: &Trust,
    ) -> Result<Obtained, InstallError> {
        match source {
            Source::Bytes(original) => Ok(Obtained {
                original,
                from: From::Store,
                source: String::new(),
                warnings: Vec::new(),
                promised: None,
            }),
            Source::Url(url) => {
                let url = web_url(&url).ok_or(InstallError::Url { url })?;
                self.obtain_from_web(url, trust).await
            }
            Source::Oci(reference) => self.obtain_from_registry(&reference, trust).await,
            Source::Name(plugin) => self.obtain_by_name(plugin, trust).await,
        }
    }

    async fn obtain_from_web(&self, url: Url, trust: &Trust) -> Result<Obtained, InstallError> {
        let fetched = self.fetcher().small(&url, MAX_BYTES).await;
        let manifest = fetched.map_err(|source| InstallError::ManifestFetch {
            url: shown(&url),
            source,
        })?;
        let beside = signature_url(&url);
        let mut warnings = Vec::new();
        let signature = self
            .fetcher()
            .small_if_there(&beside, MAX_SIGNATURE_BYTES)
            .await
            .map_err(|source| InstallError::SignatureFetch {
                url: shown(&beside),
                source,
            });
        let signature = match signature {
            Ok(signature) => signature,
            Err(error) if trust.requires_signatures() => return Err(error),
            Err(error) => {
                warnings.push(chain(&error));
                None
            }
        };
        Ok(Obtained {
            original: Original {
                manifest,
                signature,
            },
            source: shown(&url),
            from: From::Web(url),
            warnings,
            promised: None,
        })
    }

    async fn obtain_by_name(
        &self,
        plugin: PluginRef,
        trust: &Trust,
    ) -> Result<Obtained, InstallError> {
        let past_unreadable = !trust.requires_signatures();
        let indexes = &trust.config.plugins.indexes;
        let found = self.look_up(plugin, indexes, past_unreadable).await?;
        let mut obtained = if found.at.starts_with(OCI) {
            self.obtain_from_registry(&found.at, trust).await?
        } else {
            let url = web_url(&found.at).ok_or(InstallError::Url { url: found.at })?;
            self.obtain_from_web(url, trust).await?
        };
        obtained.warnings.extend(found.problems);
        obtained.promised = Some(Promise {
            index: found.index,
            plugin: found.plugin,
            checksum: found.checksum,
        });
        Ok(obtained)
    }

    async fn obtain_from_registry(
        &self,
        reference: &str,
        trust: &Trust,
    ) -> Result<Obtained, InstallError> {
        let reference: Reference = reference.parse()?;
        let registries = crate::blocking(Registries::from_env).await?;
        let patience = self.fetcher().limits();
        let limits = Limits {
            connect: patience.connect,
            window: patience.window,
            bytes: patience.bytes,
            ..Limits::default()
        };
        let credentials = Credentials::file(&trust.config.plugins.auth_file.0);
        let client = Client::new(credentials, registries, limits);
        let pulled = plugin::pull(&client, &reference).await;
        let pulled = pulled.map_err(|error| InstallError::Pull(Box::new(error)))?;
        Ok(Obtained {
            original: Original {
                manifest: pulled.manifest,
                signature: pulled.signature,
            },
            source: format!("{OCI}{reference}"),
            from: From::Repository(Repository {
                client,
                // What the tag is now, whatever it becomes.
                reference: reference.at(pulled.digest),
                artifacts: pulled.artifacts,
            }),
            warnings: Vec::new(),
            promised: None,
        })
    }
}

impl Obtained {
    /// Whether this is what the index promised.
    pub(super) fn check(&self, manifest: &Manifest, digest: Digest) -> Result<(), InstallError> {
        let Some(promise) = &self.promised else {
            return Ok(());
        };
        let (index, plugin) = (promise.index.clone(), promise.plugin.clone());
        if let Some(expected) = promise.checksum.filter(|expected| *expected != digest) {
            return Err(InstallError::IndexChecksum {
                index,
                plugin: plugin.to_string(),
                expected,
                found: digest,
            });
        }
        let found = PluginRef {
            name: manifest.name.clone(),
            version: Some(manifest.version.clone()),
        };
        if found != plugin {
            return Err(InstallError::IndexName {
                index,
                expected: plugin,
                found,
            });
        }
        Ok(())
    }
}
