//! The registry as its callers see it: the store, and each face with a real client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod check;
mod common;
mod configs;
mod daemon;
mod dbus;
mod download;
mod grpc;
mod index;
mod install;
mod migrate;
mod objects;
mod oci;
mod plugins;
mod properties;
mod refers;
mod secrets;
mod store;
mod trust;
mod versions;
mod web;
