//! `fledge build` of images, `push` and `inspect` from the outside, with images and registries of other tools.
//! Needs root, and what `cargo xtask test` installs.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod dockerfile;
mod interrupted;
mod layout;
mod registry;
mod work;

#[allow(dead_code, reason = "another test uses the rest")]
#[path = "../filesystem/thing.rs"]
mod thing;
