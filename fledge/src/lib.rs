//! Builds plugins: files in, a bootable artifact and its manifest out. Never needs root.
//!
//! [`recipe`] reads `fledge.toml`; a tree is merged from an image's layers and filled from files; [`filesystem`] or
//! [`initramfs`] writes it down byte for byte reproducibly; [`build`] does all of it in order. [`sign`], [`verify`] and
//! [`push`] are for what was built.

mod base;
pub mod build;
mod cancel;
mod check;
pub mod dockerfile;
mod elf;
mod files;
pub mod filesystem;
mod gather;
pub mod image;
pub mod initramfs;
pub mod keygen;
pub mod local;
mod newc;
pub mod push;
pub mod recipe;
pub mod schema;
pub mod sign;
pub mod verify;

pub use build::{BuildError, Built, Options, build};
pub use cancel::{Cancel, Cancelled};

/// Where the packages put the guest's agent.
pub const KESTREL: &str = "/usr/lib/volant/kestrel";
