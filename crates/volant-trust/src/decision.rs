//! What a signature is worth to a host, and what the host's policy makes of it.

use volant_spec::{Name, config::SignaturePolicy as Policy};

use crate::{
    keyring::Keyring,
    pattern::Pattern,
    public::KeyId,
    signature::{Signature, SignatureError, VerifyError, verify},
};

/// Who signed a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Of the key's file.
    pub key_name: String,
    pub key_id: KeyId,
    pub trusted_comment: String,
    /// When it was signed, in seconds since 1970, if the signer said so.
    pub timestamp: Option<u64>,
}

/// Why a manifest is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error(
        "the manifest is not signed: there is no .minisig beside it; its publisher makes one with `fledge sign`"
    )]
    NotSigned,
    #[error("the signature file is no signature of minisign")]
    Malformed(#[source] SignatureError),
    #[error(
        "the manifest is signed with the key {id}, which is not trusted here; if you trust its holder: \
         volar plugins trust add"
    )]
    UnknownKey { id: KeyId },
    #[error(
        "the key {key} ({id}) is trusted for {} and not for plugins called '{name}'; the administrator can \
         widen its patterns in trust.d",
        list(patterns)
    )]
    KeyNotForThisName {
        key: String,
        id: KeyId,
        name: Name,
        patterns: Vec<Pattern>,
    },
    #[error(
        "the manifest is not the one that the key {key} ({id}) signed: manifest or signature was changed since; \
         fetch both again from their publisher"
    )]
    BadSignature { key: String, id: KeyId },
    #[error(
        "the signature file was changed since the key {key} ({id}) made it: its trusted comment is another; \
         fetch it again from its publisher"
    )]
    BadComment { key: String, id: KeyId },
}

fn list(patterns: &[Pattern]) -> String {
    let quoted: Vec<_> = patterns
        .iter()
        .map(|pattern| format!("'{pattern}'"))
        .collect();
    quoted.join(", ")
}

/// What a signature is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Trusted(Trusted),
    Untrusted(Untrusted),
}

/// What the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Accepted: a trusted key signed it.
    Trusted(Trusted),
    /// Accepted by [`Policy::Warn`] though not trusted: to be said loudly.
    Warned(Untrusted),
    /// Accepted by [`Policy::Off`]: nobody looked.
    Unchecked,
    /// Not accepted.
    Refused(Untrusted),
}

/// Decides on a plugin called `name` (as its manifest says) from its manifest's exact bytes and those of the
/// signature file, if there is one.
#[must_use]
pub fn judge(
    policy: Policy,
    keyring: &Keyring,
    name: &Name,
    manifest: &[u8],
    signature: Option<&[u8]>,
) -> Decision {
    if policy == Policy::Off {
        return Decision::Unchecked;
    }
    match (examine(keyring, name, manifest, signature), policy) {
        (Verdict::Trusted(trusted), _) => Decision::Trusted(trusted),
        (Verdict::Untrusted(reason), Policy::Warn) => Decision::Warned(reason),
        (Verdict::Untrusted(reason), Policy::Require | Policy::Off) => Decision::Refused(reason),
    }
}

/// What a signature is worth, whatever the policy.
#[must_use]
pub fn examine(
    keyring: &Keyring,
    name: &Name,
    manifest: &[u8],
    signature: Option<&[u8]>,
) -> Verdict {
    match trusted(keyring, name, manifest, signature) {
        Ok(trusted) => Verdict::Trusted(trusted),
        Err(reason) => Verdict::Untrusted(reason),
    }
}

fn trusted(
    keyring: &Keyring,
    name: &Name,
    manifest: &[u8],
    signature: Option<&[u8]>,
) -> Result<Trusted, Untrusted> {
    let signature = signature.ok_or(Untrusted::NotSigned)?;
    let signature = Signature::parse(signature).map_err(Untrusted::Malformed)?;
    let id = signature.key_id();
    // An id is a hint that anyone can copy: each key that has it is tried, and the reason that got furthest told.
    let mut reason = Untrusted::UnknownKey { id };
    for trusted in keyring.with_id(id) {
        let key = trusted.name.clone();
        let found = match verify(&trusted.key, manifest, &signature) {
            Ok(()) if trusted.plugins.iter().any(|pattern| pattern.matches(name)) => {
                return Ok(Trusted {
                    key_name: key,
                    key_id: id,
                    trusted_comment: signature.trusted_comment().to_owned(),
                    timestamp: signature.timestamp(),
                });
            }
            Ok(()) => Untrusted::KeyNotForThisName {
                key,
                id,
                name: name.clone(),
                patterns: trusted.plugins.clone(),
            },
            Err(VerifyError::Comment) => Untrusted::BadComment { key, id },
            Err(VerifyError::Content | VerifyError::OtherKey { .. }) => {
                Untrusted::BadSignature { key, id }
            }
        };
        if rank(&found) > rank(&reason) {
            reason = found;
        }
    }
    Err(reason)
}

/// How far a signature came.
fn rank(reason: &Untrusted) -> u8 {
    match reason {
        Untrusted::NotSigned => 0,
        Untrusted::Malformed(_) => 1,
        Untrusted::UnknownKey { .. } => 2,
        Untrusted::BadSignature { .. } => 3,
        Untrusted::BadComment { .. } => 4,
        Untrusted::KeyNotForThisName { .. } => 5,
    }
}
