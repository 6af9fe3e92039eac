//! The D-Bus interfaces of Volant's parts, as their callers see them: one file an interface.
//!
//! The services implement them in their own `dbus.rs`; the structs here are what both sides send.

pub mod devices;
pub mod ipam;
pub mod registry;
pub mod vm;
