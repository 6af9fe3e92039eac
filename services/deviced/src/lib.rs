//! PCI devices of the host: shown and checked for anybody who may ask, lent to VMs by root.
//!
//! [`check`] decides whether a VM may have devices, from facts that [`sysfs`] reads; [`lend`] binds them to `vfio-pci` and gives
//! them back to the driver that they had. What is lent to whom is written down in [`ledger`] before anything is touched, so
//! that it can be given back after a crash. No virtual machine monitor is known here.

pub mod check;
pub mod dbus;
pub mod ledger;
pub mod lend;
pub mod sysfs;
