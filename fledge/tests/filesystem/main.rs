//! Images of file systems: everything in a tree is in them, as the tools of each format read it.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod erofs;
mod every;
mod ext4;
mod sample;
mod squashfs;
mod thing;
