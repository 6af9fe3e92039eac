//! What the host's administrator trusts: the policy on signatures and the keys, both read anew each time.

use std::path::PathBuf;

use volant_spec::{
    Config, Digest, Manifest, PluginRef,
    config::{ConfigError, SignaturePolicy},
};
use volant_trust::{
    Accepted, Decision, Keyring, Policy, Replay, Trusted, Untrusted, Verdict, examine, judge,
    replay,
};

use crate::{
    status::chain,
    store::{Original, SignedBy},
};

/// Where the administrator's word is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `volant.toml`. It need not exist.
    pub config: PathBuf,
    /// The folder of the keys. It need not exist.
    pub trust_dir: PathBuf,
    /// The user that the folder and the keys must belong to: root's 0 on a host.
    pub trust_owner: u32,
}

/// The administrator's word of this moment.
#[derive(Debug)]
pub struct Trust {
    pub config: Config,
    pub keyring: Keyring,
    /// Files that give no key, for people.
    pub problems: Vec<String>,
}

/// Why a plugin is not let in.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the plugin '{plugin}' is refused, as only signed plugins are installed here{}", also(.problems))]
    Untrusted {
        plugin: PluginRef,
        problems: Vec<String>,
        source: Box<Untrusted>,
    },
    #[error("the plugin '{plugin}' is refused; allow a downgrade if you mean it")]
    Replayed {
        plugin: PluginRef,
        source: Box<Replay>,
    },
}

/// A plugin that is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    pub signed_by: Option<SignedBy>,
    pub accepted: Option<Accepted>,
    /// To be said loudly.
    pub warnings: Vec<String>,
}

/// What is known of the plugin before.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The newest of its name that was ever accepted.
    pub newest: Option<Accepted>,
    /// The very same bytes are installed now.
    pub installed: bool,
    /// The caller means it.
    pub allow_downgrade: bool,
}

impl Settings {
    /// Reads what the administrator says now. Blocks.
    ///
    /// # Errors
    /// The configuration cannot be read, or is not valid.
    pub fn read(&self) -> Result<Trust, ConfigError> {
        let config = Config::load(&self.config)?;
        let loaded = Keyring::load(&self.trust_dir, self.trust_owner);
        let problems = loaded.problems.iter().map(|problem| chain(problem));
        Ok(Trust {
            config,
            keyring: loaded.keyring,
            problems: problems.collect(),
        })
    }
}

impl Trust {
    #[must_use]
    pub fn requires_signatures(&self) -> bool {
        self.config.plugins.signatures == SignaturePolicy::Require
    }

    /// Decides whether a plugin is let in. Nothing in its manifest was used yet.
    ///
    /// # Errors
    /// It is not.
    pub fn admit(
        &self,
        manifest: &Manifest,
        original: &Original,
        digest: Digest,
        before: &Before,
    ) -> Result<Admitted, TrustError> {
        let plugin = PluginRef {
            name: manifest.name.clone(),
            version: Some(manifest.version.clone()),
        };
        let policy = match self.config.plugins.signatures {
            SignaturePolicy::Require => Policy::Require,
            SignaturePolicy::Warn => Policy::Warn,
            SignaturePolicy::Off => Policy::Off,
        };
        let signature = original.signature.as_deref();
        let decision = judge(
            policy,
            &self.keyring,
            &manifest.name,
            &original.manifest,
            signature,
        );
        let trusted = match decision {
            Decision::Trusted(trusted) => trusted,
            Decision::Refused(reason) => {
                let source = Box::new(reason);
                let problems = self.problems.clone();
                return Err(TrustError::Untrusted {
                    plugin,
                    problems,
                    source,
                });
            }
            Decision::Warned(reason) => {
                let reason = chain(&reason);
                return Ok(warned(format!(
                    "the plugin '{plugin}' is not trusted: {reason}"
                )));
            }
            Decision::Unchecked => {
                return Ok(warned(format!(
                    "signatures are off: nobody checked who made the plugin '{plugin}'"
                )));
            }
        };
        let accepted = Accepted {
            version: manifest.version.clone(),
            timestamp: trusted.timestamp,
            manifest: digest,
        };
        let mut warnings = Vec::new();
        match replay(before.newest.as_ref(), &accepted) {
            Ok(()) => {}
            Err(_) if before.installed => {}
            Err(reason) if policy == Policy::Require && !before.allow_downgrade => {
                let source = Box::new(reason);
                return Err(TrustError::Replayed { plugin, source });
            }
            Err(replay) => warnings.push(format!("the plugin '{plugin}' goes back: {replay}")),
        }
        Ok(Admitted {
            signed_by: Some(signed_by(trusted)),
            accepted: Some(accepted),
            warnings,
        })
    }

    /// What the signature of an installed plugin is worth now: whether all is well, and why, for people.
    #[must_use]
    pub fn review(&self, name: &volant_spec::Name, original: &Original) -> (bool, String) {
        let signature = original.signature.as_deref();
        match examine(&self.keyring, name, &original.manifest, signature) {
            Verdict::Trusted(trusted) => {
                let (key, id) = (&trusted.key_name, trusted.key_id);
                (true, format!("signed by the key {key} ({id})"))
            }
            Verdict::Untrusted(reason) => {
                let unsigned = reason == Untrusted::NotSigned;
                (unsigned && !self.requires_signatures(), chain(&reason))
            }
        }
    }
}

fn warned(warning: String) -> Admitted {
    Admitted {
        warnings: vec![warning],
        ..Admitted::default()
    }
}

fn signed_by(trusted: Trusted) -> SignedBy {
    SignedBy {
        key: trusted.key_name,
        key_id: trusted.key_id.to_string(),
        comment: trusted.trusted_comment,
    }
}

/// Keys that are there and not taken: likely the reason.
fn also(problems: &[String]) -> String {
    match problems {
        [] => String::new(),
        [one] => format!(" ({one})"),
        [one, more @ ..] => format!(" ({one}; and {} more files of that kind)", more.len()),
    }
}
