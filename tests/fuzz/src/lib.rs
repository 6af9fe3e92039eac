//! What is fed with hostile bytes, one function each, and what must hold whatever the bytes are.
//!
//! `fuzz/` has libFuzzer call these with bytes that it makes up; the test beside feeds them the kept corpus.
//! A function that panics has found something.

mod control;
mod layers;
mod oci;
mod program;
mod session;
mod texts;
mod trust;

pub use control::control;
pub use layers::layers;
pub use oci::oci_index;
pub use session::session;
pub use texts::{manifest, recipe};
pub use trust::signature;

/// Is fed with bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their folders in `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("manifest", manifest),
    ("recipe", recipe),
    ("layers", layers),
    ("oci_index", oci_index),
    ("signature", signature),
    ("session", session),
    ("control", control),
];
