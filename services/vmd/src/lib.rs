//! The supervisor of one VM: it starts the VMM, listens to the guest's agent, tells systemd, journal and bus how the VM
//! is, and ends it gracefully.
//!
//! [`life`] decides; [`supervise`] carries out. [`hypervisor`], [`agent`] and [`logs`] need neither systemd nor a bus:
//! a benchmark starts the same VMM with them, bare.

pub mod agent;
pub mod bucket;
pub mod console;
pub mod dbus;
pub mod definition;
pub mod devices;
pub mod disks;
pub mod ended;
pub mod grpc;
pub mod handle;
pub mod happening;
pub mod hypervisor;
pub mod identity;
pub mod journal;
pub mod life;
pub mod limits;
pub mod live;
pub mod logs;
pub mod machine;
pub mod memory;
pub mod messages;
pub mod prepare;
pub mod reload;
pub mod secrets;
pub mod session;
pub mod sockets;
pub mod supervise;
pub mod systemd;
pub mod text;
pub mod unit;
