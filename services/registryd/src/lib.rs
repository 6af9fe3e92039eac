//! registryd: what should exist. Plugins with their artifacts, and VM definitions.
//!
//! [`Store`] keeps them, [`Registry`] is the one handle, [`grpc`] and [`dbus`] are its faces. Nothing here knows what
//! runs: that is systemd's to say.

pub mod dbus;
mod fetch;
pub mod grpc;
mod install;
mod registry;
mod sink;
mod status;
mod store;

pub use fetch::{FetchError, Fetcher, Limits};
pub use install::{InstallError, Progress, Source};
pub use registry::Registry;
use registry::blocking;
pub use sink::Sink;
pub use store::{
    BlobError, DATABASE, Damage, FIRST_UID, Incoming, MIGRATIONS, NewVm, OpenError, OpenStoreError,
    OpenVm, Plugin, PluginError, Store, StoreError, UNUSED_FOR, Vm, VmError, uid,
};
