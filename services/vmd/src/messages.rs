//! What vmd says with a `MESSAGE_ID=`; `units/volant.catalog` explains each, with what to do. How a VM ended has ids of its own:
//! [`crate::ended`].

/// The VM was not started.
pub const NOT_STARTED: &str = "413caa32fe9b42f2aeeb9e146d3a98c7";
pub const READY: &str = "4502b5fd10684472975d36e7b4299890";
pub const STOPPING: &str = "e948c2b4ba704fdda783729142c0067e";
pub const REBOOTING: &str = "c13358a027fb4affaef0928c9a3358ec";
pub const PAUSED: &str = "372143a7a81d440db217fe3f3562ee14";
pub const RESUMED: &str = "e2eb70855e3e46a295d90bd09429c773";
pub const RESIZED: &str = "6af1eb20fd9544c18886dc761a0ce8a3";
pub const UNHEALTHY: &str = "e723e8eba1cd4369b05e367e8c2eafe9";
pub const HEALTHY: &str = "0f349c4d9bc34da5a08c325ba1051969";
pub const WORKLOAD_RESTARTING: &str = "96042dd8d29b451786e3e911be5c6cfa";
/// Another vmd took over (`systemctl reload`).
pub const RELOADED: &str = "b1b19ed14a06480a87c424d8474fd7da";
/// A process of the guest that is not its agent said hello.
pub const NOT_THE_AGENT: &str = "b9181140eb864e93b916c1aa24e2d718";
