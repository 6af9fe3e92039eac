//! What a host does in a guest, against real programs, terminals, files and ports.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod client;
mod connect;
mod exec;
mod files;
mod opening;
mod terminal;
