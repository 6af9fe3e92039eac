//! Who may sign a plugin: minisign's public keys, secret keys and signatures, the keys that a host trusts,
//! and what its policy makes of a signature.
//!
//! Nothing here logs, asks or has a clock; [`Keyring::load`] alone touches the file system. All that is read
//! is bounded, and what minisign writes is read byte for byte as it means it.

mod decision;
mod kdf;
mod key_file;
mod keyring;
mod lines;
mod pattern;
mod public;
mod replay;
mod secret;
mod signature;

pub use decision::{Decision, Trusted, Untrusted, Verdict, examine, judge};
pub use key_file::{KeyFileError, key_file};
pub use keyring::{Keyring, Loaded, Problem, ProblemKind, TrustedKey};
pub use pattern::{Pattern, PatternError};
pub use public::{KeyId, PublicKey, PublicKeyError};
pub use replay::{Accepted, Replay, replay};
pub use secret::{OpenError, SecretKey, SecretKeyError, SecretKeyFile, SignError};
pub use signature::{MAX_SIGNATURE_BYTES, Signature, SignatureError, VerifyError, verify};
/// What a host does about plugins that no trusted key signed.
pub use volant_spec::config::SignaturePolicy as Policy;
