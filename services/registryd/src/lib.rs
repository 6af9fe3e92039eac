//! registryd: what should exist. Plugins with their artifacts, and VM definitions.
//!
//! [`Store`] keeps them, [`Registry`] is the one handle, [`grpc`] and [`dbus`] are its faces. Nothing here knows what
//! runs: that is systemd's to say.

pub mod dbus;
pub mod disks;
mod downloads;
mod fetch;
pub mod grpc;
mod indexes;
mod install;
mod keyed;
mod readings;
mod registry;
mod sink;
mod status;
mod store;
mod trust;
mod verify;

pub use fetch::{FetchError, Fetcher, Limits};
pub use indexes::{Found, Search, SearchError};
pub use install::{Install, InstallError, Installed, Progress, Source};
pub use registry::Registry;
use registry::blocking;
pub use sink::Sink;
pub use store::{
    BlobError, Bringer, CREDENTIALS, Collect, Collected, ConfigVersion, DATABASE, Damage,
    FIRST_UID, Incoming, KEPT_CONFIGS, MIGRATIONS, NewConfig, NewPlugin, NewVm, OpenError,
    OpenStoreError, OpenVm, Original, Pinned, Plugin, PluginError, SecretValue, SignedBy, Store,
    StoreError, UNUSED_FOR, Vm, VmDevices, VmError, uid,
};
pub use trust::{Admitted, Before, Settings, Trust, TrustError};
pub use verify::{Finding, VerifyError};
