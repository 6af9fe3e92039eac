//! Signatures, as minisign writes them, and whether one is a key's over some bytes.

use std::str;

use blake2::{Blake2b512, Digest as _};
use ed25519_dalek::Signature as Ed25519;

use crate::{
    lines::{self, TRUSTED, UNTRUSTED, is_plain, lines},
    public::{KeyId, PublicKey},
};

/// The largest signature file that is read, in bytes; minisign writes at most some 10 000.
pub const MAX_SIGNATURE_BYTES: usize = 16 * 1024;
/// The longest trusted comment, in bytes: minisign's own limit, less what goes before it.
pub(crate) const MAX_COMMENT_BYTES: usize = 8192 - TRUSTED.len() - 2;

/// The algorithm of a signature over the BLAKE2b-512 digest.
pub(crate) const HASHED: [u8; 2] = *b"ED";
/// The algorithm of a signature over the bytes themselves, as old versions of minisign made.
const LEGACY: [u8; 2] = *b"Ed";

/// A signature file. It has been parsed; [`verify`] says whether it is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    key_id: KeyId,
    is_hashed: bool,
    signature: [u8; 64],
    trusted_comment: String,
    global: [u8; 64],
}

/// Why bytes are no [`Signature`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("it has {0} bytes; at most {MAX_SIGNATURE_BYTES} are read")]
    TooLarge(usize),
    #[error("it is no text")]
    NoText,
    #[error("line 1 does not begin with 'untrusted comment: '")]
    UntrustedComment,
    #[error("line 2 is no signature: not the base64 of 74 bytes")]
    Signature,
    #[error("line 2 is a signature of an unknown algorithm")]
    Algorithm,
    #[error("line 3 does not begin with 'trusted comment: '")]
    TrustedComment,
    #[error(
        "line 3, the trusted comment, has control characters or more than {MAX_COMMENT_BYTES} bytes"
    )]
    Comment,
    #[error("line 4 is no signature: not the base64 of 64 bytes")]
    Global,
    #[error("there is more after line 4")]
    Trailing,
}

impl Signature {
    /// Reads a `.minisig` file.
    ///
    /// # Errors
    /// It is too large, or not of the form that minisign writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        if bytes.len() > MAX_SIGNATURE_BYTES {
            return Err(SignatureError::TooLarge(bytes.len()));
        }
        let text = str::from_utf8(bytes).map_err(|_| SignatureError::NoText)?;
        let mut lines = lines(text);
        let mut line = || lines.next().unwrap_or_default();
        if !line().starts_with(UNTRUSTED) {
            return Err(SignatureError::UntrustedComment);
        }
        let bytes: [u8; 74] = lines::decode(line()).ok_or(SignatureError::Signature)?;
        let mut bytes = bytes.as_slice();
        let is_hashed = match lines::take(&mut bytes) {
            HASHED => true,
            LEGACY => false,
            _ => return Err(SignatureError::Algorithm),
        };
        let key_id = KeyId(lines::take(&mut bytes));
        let signature = lines::take(&mut bytes);
        let trusted_comment = line()
            .strip_prefix(TRUSTED)
            .ok_or(SignatureError::TrustedComment)?;
        if trusted_comment.len() > MAX_COMMENT_BYTES || !is_plain(trusted_comment) {
            return Err(SignatureError::Comment);
        }
        let trusted_comment = trusted_comment.to_owned();
        let global = lines::decode(line()).ok_or(SignatureError::Global)?;
        if lines.next().is_some() {
            return Err(SignatureError::Trailing);
        }
        Ok(Self {
            key_id,
            is_hashed,
            signature,
            trusted_comment,
            global,
        })
    }

    /// The key that it says it was made with.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// What the signer said beside; to be believed once [`verify`] has agreed. One line, fit for a terminal.
    #[must_use]
    pub fn trusted_comment(&self) -> &str {
        &self.trusted_comment
    }

    /// When it was signed, in seconds since 1970, if the trusted comment says so (`timestamp:N`).
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        self.trusted_comment
            .split('\t')
            .find_map(|part| part.strip_prefix("timestamp:"))
            .and_then(|number| number.parse().ok())
    }
}

/// Why a signature is not a key's over some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the signature was made with the key {signed}, not with {given}")]
    OtherKey { signed: KeyId, given: KeyId },
    #[error("the signature is not of these bytes: they were changed after they were signed")]
    Content,
    #[error("the signature's trusted comment was changed after it was signed")]
    Comment,
}

/// Checks that `signature` was made over `bytes` with the secret half of `key`, trusted comment included.
///
/// # Errors
/// It was not, and in which part.
pub fn verify(key: &PublicKey, bytes: &[u8], signature: &Signature) -> Result<(), VerifyError> {
    if key.id != signature.key_id {
        return Err(VerifyError::OtherKey {
            signed: signature.key_id,
            given: key.id,
        });
    }
    let hash;
    let signed = if signature.is_hashed {
        hash = Blake2b512::digest(bytes);
        hash.as_slice()
    } else {
        bytes
    };
    let is_signed = |bytes: &[u8], signature: &[u8; 64]| {
        key.key
            .verify_strict(bytes, &Ed25519::from_bytes(signature))
            .is_ok()
    };
    if !is_signed(signed, &signature.signature) {
        return Err(VerifyError::Content);
    }
    let commented = commented(&signature.signature, &signature.trusted_comment);
    if !is_signed(&commented, &signature.global) {
        return Err(VerifyError::Comment);
    }
    Ok(())
}

/// What the global signature is made over.
pub(crate) fn commented(signature: &[u8; 64], comment: &str) -> Vec<u8> {
    [signature, comment.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    /// Of the text `test`, by minisign, hashed.
    const FILE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1633700835\tfile:test\tprehashed\n\
        wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==\n";
    const SIGNED: &[u8] = b"test";

    fn changed(line: usize, text: &str) -> String {
        let mut lines: Vec<_> = FILE.lines().collect();
        lines[line - 1] = text;
        lines.join("\n")
    }

    #[test]
    fn a_signature_of_minisign_is_read_and_verified() {
        let key = PublicKey::parse(KEY).unwrap();
        for text in [FILE.to_owned(), FILE.replace('\n', "\r\n")] {
            let signature = Signature::parse(text.as_bytes()).unwrap();
            assert_eq!(signature.key_id(), key.id());
            assert_eq!(signature.timestamp(), Some(1_633_700_835));
            assert!(signature.trusted_comment().ends_with("\tprehashed"));
            assert_eq!(verify(&key, SIGNED, &signature), Ok(()));
            assert_eq!(verify(&key, b"Test", &signature), Err(VerifyError::Content));
        }
        let comment = FILE.replace("1633700835", "1633700836");
        let signature = Signature::parse(comment.as_bytes()).unwrap();
        assert_eq!(verify(&key, SIGNED, &signature), Err(VerifyError::Comment));
    }

    #[test]
    fn no_byte_but_of_the_untrusted_comment_can_be_changed() {
        let key = PublicKey::parse(KEY).unwrap();
        for at in 0..FILE.len() - 1 {
            for change in [0x01, 0x10, 0x80] {
                let mut bytes = FILE.as_bytes().to_vec();
                bytes[at] ^= change;
                let is_free = (UNTRUSTED.len()..53).contains(&at) && change != 0x80;
                let still = Signature::parse(&bytes)
                    .is_ok_and(|signature| verify(&key, SIGNED, &signature).is_ok());
                assert_eq!(still, is_free, "byte {at} changed by {change}");
            }
        }
    }

    #[test]
    fn another_form_is_told_by_its_line() {
        let long = format!("{TRUSTED}{}", "c".repeat(MAX_COMMENT_BYTES + 1));
        let odd = lines::encode(&[b'E'; 74]);
        let cases = [
            (String::new(), SignatureError::UntrustedComment),
            (changed(1, "comment: x"), SignatureError::UntrustedComment),
            (changed(2, "RUQ="), SignatureError::Signature),
            (changed(2, &odd), SignatureError::Algorithm),
            (changed(3, "comment"), SignatureError::TrustedComment),
            (
                changed(3, "trusted comment: \x1b[2J"),
                SignatureError::Comment,
            ),
            (changed(3, &long), SignatureError::Comment),
            (changed(4, "AAAA"), SignatureError::Global),
            (format!("{FILE}more\n"), SignatureError::Trailing),
            (
                " ".repeat(MAX_SIGNATURE_BYTES + 1),
                SignatureError::TooLarge(MAX_SIGNATURE_BYTES + 1),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Signature::parse(text.as_bytes()), Err(expected), "{text}");
        }
        assert_eq!(Signature::parse(b"\xff"), Err(SignatureError::NoText));
    }

    #[test]
    fn a_timestamp_that_is_no_number_is_none() {
        for comment in ["", "file:a", "timestamp:", "timestamp:-1", "xtimestamp:1"] {
            let text = changed(3, &format!("{TRUSTED}{comment}"));
            assert_eq!(Signature::parse(text.as_bytes()).unwrap().timestamp(), None);
        }
    }
}
