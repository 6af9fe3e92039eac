//! The registry as its callers see it: the store, and each face with a real client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod daemon;
mod dbus;
mod grpc;
mod install;
mod properties;
mod store;
mod web;
