//! What vmd says with a `MESSAGE_ID=`; `units/volant.catalog` explains each, with what to do. How a VM ended has ids of its own:
//! [`crate::ended`].

/// The VM was not started.
pub const NOT_STARTED: &str = "413caa32fe9b42f2aeeb9e146d3a98c7";
pub const READY: &str = "bf0ffd04a24f4a7dae3f66f0ee9bbf80";
pub const STOPPING: &str = "0d3d5b1d6c0c4bd5a1c58e1c1f0a9a4e";
pub const REBOOTING: &str = "7e4f3c5de05a49e5b0ae3b3a0c2a1d4c";
pub const PAUSED: &str = "c43de9a1f4b64f6f9f3f1c1dd0a9b6e2";
pub const RESUMED: &str = "2f6b51dbb0a34dc0a9c8ef2f0f6d7a11";
pub const RESIZED: &str = "9e1d8a6c1f3b4a54b6a0d5f8e7c4b320";
pub const UNHEALTHY: &str = "5a8f0d7be3d14c7c8f5e2a9b6d1c4e73";
pub const HEALTHY: &str = "b1c7e2d94f6a4b0d8e3f5c2a7d9b1e60";
pub const WORKLOAD_RESTARTING: &str = "e6a3b9d2c8f04e1f9a7d5b3c1e8f6a42";
