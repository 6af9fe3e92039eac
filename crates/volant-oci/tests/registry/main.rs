//! Against Debian's docker-registry with images that umoci and skopeo make, and against a server of our own that
//! misbehaves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod faults;
mod faulty;
mod local;
mod logins;
mod own;
mod plugins;
mod pulls;
mod tools;
