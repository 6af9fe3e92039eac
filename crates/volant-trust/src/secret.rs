//! Secret keys, as minisign writes them, and signing with one. What is secret is overwritten when dropped,
//! and never shown.

use std::fmt;

use blake2::{Blake2b, Blake2b512, Digest as _, digest::consts::U32};
use ed25519_dalek::{Signer as _, SigningKey};
use zeroize::Zeroizing;

use crate::{
    kdf,
    lines::{self, TRUSTED, UNTRUSTED, is_plain, lines},
    public::{KEY_ALGORITHM, KeyId, PublicKey},
    signature::{HASHED, MAX_COMMENT_BYTES, commented},
};

const SCRYPT: [u8; 2] = *b"Sc";
const NO_KDF: [u8; 2] = [0; 2];
const BLAKE2B: [u8; 2] = *b"B2";

/// Algorithms, salt and limits: what stands before the hidden part.
const HEAD: usize = 2 + 2 + 2 + 32 + 8 + 8;
/// Key id, secret and public key, checksum.
const BODY: usize = 8 + 64 + 32;

/// The secret half of a key pair.
pub struct SecretKey {
    id: KeyId,
    key: SigningKey,
}

/// The id alone.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Why there is no new key, or no file of one.
#[derive(Debug, thiserror::Error)]
pub enum SecretKeyError {
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    #[error("the password is empty")]
    Password,
}

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error(
        "a trusted comment is one line of at most {MAX_COMMENT_BYTES} bytes, with no control characters"
    )]
    Comment,
}

impl SecretKey {
    /// Makes a key pair.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, SecretKeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        random(seed.as_mut())?;
        let mut id = [0; 8];
        random(&mut id)?;
        Ok(Self {
            id: KeyId(id),
            key: SigningKey::from_bytes(&seed),
        })
    }

    /// The half that others verify with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::new(self.id, self.key.verifying_key())
    }

    /// The signature file over `bytes` and `trusted_comment`: what `minisign -S` would write.
    ///
    /// # Errors
    /// The comment cannot stand in the file.
    pub fn sign(&self, bytes: &[u8], trusted_comment: &str) -> Result<String, SignError> {
        if trusted_comment.len() > MAX_COMMENT_BYTES || !is_plain(trusted_comment) {
            return Err(SignError::Comment);
        }
        // Readers drop blanks at a line's end, and would then find the signature wrong.
        let comment = trusted_comment.trim_end();
        let signature = self.key.sign(&Blake2b512::digest(bytes)).to_bytes();
        let global = self.key.sign(&commented(&signature, comment)).to_bytes();
        let line = [&HASHED, &self.id.0[..], &signature].concat();
        Ok(format!(
            "{UNTRUSTED}signature from fledge with the key {}\n{}\n{TRUSTED}{comment}\n{}\n",
            self.id,
            lines::encode(&line),
            lines::encode(&global),
        ))
    }

    /// The key's file as minisign writes it: hidden by `password`, or in the open without one.
    ///
    /// With a password this takes 1 GiB of memory and some seconds.
    ///
    /// # Errors
    /// The password is empty, or the system gives no random bytes.
    pub fn to_file(&self, password: Option<&str>) -> Result<Zeroizing<String>, SecretKeyError> {
        let pair = Zeroizing::new(self.key.to_keypair_bytes());
        let mut body = Zeroizing::new([0; BODY]);
        body[..8].copy_from_slice(&self.id.0);
        body[8..72].copy_from_slice(pair.as_ref());
        let (mut kdf, mut salt, mut ops, mut memory) = (NO_KDF, [0; 32], 0, 0);
        if let Some(password) = password {
            if password.is_empty() {
                return Err(SecretKeyError::Password);
            }
            random(&mut salt)?;
            (kdf, ops, memory) = (SCRYPT, kdf::OPS, kdf::MEMORY);
            let check = checksum(&body);
            body[72..].copy_from_slice(&check);
            let params = kdf::params(ops, memory).expect("minisign's own limits are in bounds");
            hide(&mut body, password, &salt, &params);
        }
        let (ops, memory) = (ops.to_le_bytes(), memory.to_le_bytes());
        let head = [&KEY_ALGORITHM, &kdf, &BLAKE2B, &salt[..], &ops, &memory].concat();
        let bytes = Zeroizing::new([&head[..], body.as_ref()].concat());
        let line = Zeroizing::new(lines::encode(&bytes));
        let is = if password.is_some() { "encrypted " } else { "" };
        Ok(Zeroizing::new(format!(
            "{UNTRUSTED}minisign {is}secret key {}\n{}\n",
            self.id, *line
        )))
    }
}

/// A secret key's file that has been read; [`SecretKeyFile::open`] gives the key.
pub struct SecretKeyFile {
    /// Salt and scrypt's parameters.
    lock: Option<([u8; 32], scrypt::Params)>,
    body: Zeroizing<[u8; BODY]>,
}

impl fmt::Debug for SecretKeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKeyFile")
            .field("needs_password", &self.needs_password())
            .finish_non_exhaustive()
    }
}

/// Why a file gives no secret key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("this is no minisign secret key")]
    Form,
    #[error("this is a public key; signing needs the secret key")]
    Public,
    #[error("the key's algorithms are not Ed25519, BLAKE2b, and scrypt or none")]
    Algorithm,
    #[error("the key's scrypt limits are beyond those of minisign")]
    Limits,
    #[error("the key is protected by a password, and none was given")]
    NoPassword,
    #[error("the password is wrong")]
    WrongPassword,
    #[error("the key is damaged: its two halves do not belong together")]
    Damaged,
}

impl SecretKeyFile {
    /// Reads what minisign, rsign or `fledge keygen` wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, OpenError> {
        let mut lines = lines(text);
        let mut line = lines.next().unwrap_or_default();
        if line.starts_with(UNTRUSTED) {
            line = lines.next().unwrap_or_default();
        }
        if PublicKey::parse(line).is_ok() {
            return Err(OpenError::Public);
        }
        let bytes: Zeroizing<[u8; HEAD + BODY]> =
            Zeroizing::new(lines::decode(line.trim()).ok_or(OpenError::Form)?);
        let mut bytes = bytes.as_slice();
        let algorithm: [u8; 2] = lines::take(&mut bytes);
        let kdf: [u8; 2] = lines::take(&mut bytes);
        let check: [u8; 2] = lines::take(&mut bytes);
        let salt = lines::take(&mut bytes);
        let ops = u64::from_le_bytes(lines::take(&mut bytes));
        let memory = u64::from_le_bytes(lines::take(&mut bytes));
        let body = Zeroizing::new(lines::take(&mut bytes));
        if algorithm != KEY_ALGORITHM || check != BLAKE2B {
            return Err(OpenError::Algorithm);
        }
        let lock = match kdf {
            SCRYPT => Some((salt, kdf::params(ops, memory).ok_or(OpenError::Limits)?)),
            NO_KDF => None,
            _ => return Err(OpenError::Algorithm),
        };
        Ok(Self { lock, body })
    }

    /// Whether [`SecretKeyFile::open`] needs a password.
    #[must_use]
    pub fn needs_password(&self) -> bool {
        self.lock.is_some()
    }

    /// Takes the key out; a password that is not needed is not looked at. With one this takes up to 1 GiB of
    /// memory and some seconds.
    ///
    /// # Errors
    /// The password is missing or wrong, or the key is damaged.
    pub fn open(self, password: Option<&str>) -> Result<SecretKey, OpenError> {
        let mut body = self.body;
        if let Some((salt, params)) = &self.lock {
            let password = password.ok_or(OpenError::NoPassword)?;
            hide(&mut body, password, salt, params);
            if checksum(&body) != body[72..] {
                return Err(OpenError::WrongPassword);
            }
        }
        let mut bytes = body.as_slice();
        let id = KeyId(lines::take(&mut bytes));
        let pair = Zeroizing::new(lines::take(&mut bytes));
        let key = SigningKey::from_keypair_bytes(&pair).map_err(|_| OpenError::Damaged)?;
        Ok(SecretKey { id, key })
    }
}

/// Hides what is in the open, and the other way round.
fn hide(body: &mut [u8; BODY], password: &str, salt: &[u8; 32], params: &scrypt::Params) {
    let mut stream = Zeroizing::new([0; BODY]);
    scrypt::scrypt(password.as_bytes(), salt, params, stream.as_mut())
        .expect("scrypt can give 104 bytes");
    for (byte, with) in body.iter_mut().zip(stream.iter()) {
        *byte ^= with;
    }
}

/// Of the algorithm, the id and the pair.
fn checksum(body: &[u8; BODY]) -> [u8; 32] {
    Blake2b::<U32>::new()
        .chain_update(KEY_ALGORITHM)
        .chain_update(&body[..72])
        .finalize()
        .into()
}

fn random(bytes: &mut [u8]) -> Result<(), SecretKeyError> {
    getrandom::fill(bytes).map_err(SecretKeyError::Random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::{Signature, verify};

    #[test]
    fn a_key_without_password_is_written_read_and_signs() {
        let key = SecretKey::generate().unwrap();
        let file = SecretKeyFile::parse(&key.to_file(None).unwrap()).unwrap();
        assert!(!file.needs_password());
        let again = file.open(None).unwrap();
        assert_eq!(again.public(), key.public());
        let text = again.sign(b"bytes", "timestamp:7\tname:caddy \t").unwrap();
        let signature = Signature::parse(text.as_bytes()).unwrap();
        assert_eq!(signature.timestamp(), Some(7));
        assert_eq!(verify(&key.public(), b"bytes", &signature), Ok(()));
    }

    #[test]
    fn two_keys_are_never_the_same() {
        let (one, other) = (
            SecretKey::generate().unwrap(),
            SecretKey::generate().unwrap(),
        );
        assert_ne!(one.public().id(), other.public().id());
        assert_ne!(one.public().to_string(), other.public().to_string());
    }

    #[test]
    fn what_is_secret_is_not_shown() {
        let key = SecretKey::generate().unwrap();
        let file = SecretKeyFile::parse(&key.to_file(None).unwrap()).unwrap();
        let id = key.public().id();
        assert_eq!(format!("{key:?}"), format!("SecretKey {{ id: {id}, .. }}"));
        assert_eq!(
            format!("{file:?}"),
            "SecretKeyFile { needs_password: false, .. }"
        );
    }

    #[test]
    fn a_comment_that_minisign_would_not_read_is_not_signed() {
        let key = SecretKey::generate().unwrap();
        for comment in ["two\nlines", "\x1b[2J", &"c".repeat(MAX_COMMENT_BYTES + 1)] {
            assert_eq!(key.sign(b"", comment), Err(SignError::Comment));
        }
        let longest = "c".repeat(MAX_COMMENT_BYTES);
        let text = key.sign(b"", &longest).unwrap();
        assert!(Signature::parse(text.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_no_secret_key_is_told_why() {
        let key = SecretKey::generate().unwrap();
        let file = |change: &dyn Fn(&mut [u8])| {
            let text = key.to_file(None).unwrap();
            let line = text.lines().nth(1).unwrap();
            let mut bytes = lines::decode::<{ HEAD + BODY }>(line).unwrap();
            change(&mut bytes);
            let text = format!("{UNTRUSTED}x\n{}\n", lines::encode(&bytes));
            SecretKeyFile::parse(&text).and_then(|file| file.open(None).map(|_| ()))
        };
        assert_eq!(file(&|_| ()), Ok(()));
        assert_eq!(file(&|bytes| bytes[0] = 0), Err(OpenError::Algorithm));
        assert_eq!(file(&|bytes| bytes[2] = 1), Err(OpenError::Algorithm));
        assert_eq!(file(&|bytes| bytes[70] ^= 1), Err(OpenError::Damaged));
        let locked = |ops: u64| {
            move |bytes: &mut [u8]| {
                bytes[2..4].copy_from_slice(&SCRYPT);
                bytes[38..46].copy_from_slice(&ops.to_le_bytes());
                bytes[46..54].copy_from_slice(&(1_u64 << 20).to_le_bytes());
            }
        };
        assert_eq!(file(&locked(u64::MAX)), Err(OpenError::Limits));
        assert_eq!(file(&locked(1)), Err(OpenError::NoPassword));
        let public = key.public().to_file();
        assert_eq!(
            SecretKeyFile::parse(&public).unwrap_err(),
            OpenError::Public
        );
        assert_eq!(SecretKeyFile::parse("text").unwrap_err(), OpenError::Form);
        assert!(matches!(
            key.to_file(Some("")),
            Err(SecretKeyError::Password)
        ));
    }
}
