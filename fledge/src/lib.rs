//! Builds plugins: files in, a bootable artifact and its manifest out. Never needs root.
//!
//! [`recipe`] reads `fledge.toml`, [`gather`] fills a tree from files, [`initramfs`] writes it down byte for
//! byte reproducibly, and [`build`] does all of it in order.

pub mod build;
mod check;
mod elf;
mod files;
mod gather;
pub mod initramfs;
pub mod keygen;
pub mod local;
mod newc;
pub mod recipe;
pub mod sign;
pub mod verify;

pub use build::{BuildError, Built, Options, build};

/// Where the packages put the guest's agent.
pub const KESTREL: &str = "/usr/lib/volant/kestrel";
