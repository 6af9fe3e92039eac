//! Looking again at what is installed: whether it is still what was signed.

use sha2::{Digest as _, Sha256};
use volant_spec::{Digest, Manifest, Name, PluginRef, config::ConfigError, manifest::Version};

use crate::{
    Registry,
    status::chain,
    store::{Plugin, PluginError},
    trust::Trust,
};

/// What was found about one part of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub plugin: Name,
    pub version: Version,
    /// "signature", "manifest" or the manifest's field of an artifact.
    pub subject: String,
    pub ok: bool,
    /// For people.
    pub detail: String,
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot tell which keys are trusted")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

impl Registry {
    /// Reads plugins again, those that fit or all, and tells of each part. An artifact that is found damaged is handed out
    /// no more; nothing else changes. `tell` answers whether anyone still listens.
    ///
    /// # Errors
    /// There is none that fits, or the store failed.
    pub async fn verify(
        &self,
        fitting: Option<PluginRef>,
        mut tell: impl FnMut(Finding) -> bool,
    ) -> Result<(), VerifyError> {
        let _busy = self.busy();
        let trust = self.trust().await?;
        for plugin in self.plugins(fitting).await? {
            if !self.verify_one(&plugin, &trust, &mut tell).await? {
                break;
            }
        }
        Ok(())
    }

    async fn verify_one(
        &self,
        plugin: &Plugin,
        trust: &Trust,
        tell: &mut impl FnMut(Finding) -> bool,
    ) -> Result<bool, VerifyError> {
        let mut found = |subject: &str, ok: bool, detail: String| {
            tell(Finding {
                plugin: plugin.name.clone(),
                version: plugin.version.clone(),
                subject: subject.to_owned(),
                ok,
                detail,
            })
        };
        let original = self
            .original(plugin.name.clone(), plugin.version.clone())
            .await;
        let original = match original {
            Ok(original) => original,
            // Removed since.
            Err(PluginError::NotFound(_)) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let digest = Digest::from_bytes(Sha256::digest(&original.manifest).into());
        if digest != plugin.manifest_digest {
            let detail = format!(
                "it was changed: it has the checksum {digest}, not {}",
                plugin.manifest_digest
            );
            if !found("manifest", false, detail) {
                return Ok(false);
            }
        }
        let (ok, detail) = trust.review(&plugin.name, &original);
        if !found("signature", ok, detail) {
            return Ok(false);
        }
        let manifest = match Manifest::parse_installed(&original.manifest) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(found("manifest", false, chain(&error))),
        };
        for artifact in manifest.artifacts() {
            let digest = artifact.checksum;
            let damage = self.ask(move |store| store.reread(&digest)).await;
            let detail = damage.map_err(PluginError::from)?.map(|damage| {
                format!("{digest} {damage}; install the plugin again: `volar plugins install`")
            });
            if !found(
                &artifact.field,
                detail.is_none(),
                detail.unwrap_or_default(),
            ) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
