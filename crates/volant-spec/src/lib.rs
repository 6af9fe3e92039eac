//! What every part of Volant agrees on: names, digests, plugin manifests, VM resources, the host's
//! configuration and the names of units.
//!
//! Everything here is pure: no clock, no log, no socket. Past these types there are no strings to check again.

pub mod config;
pub mod digest;
pub mod index;
pub mod manifest;
pub mod name;
pub mod plugin;
pub mod resources;
#[cfg(feature = "schema")]
pub mod schema;
pub mod unit;
pub mod vm_config;

pub use config::Config;
pub use digest::Digest;
pub use manifest::Manifest;
pub use name::Name;
pub use plugin::PluginRef;
pub use resources::Resources;
pub use vm_config::VmConfig;
