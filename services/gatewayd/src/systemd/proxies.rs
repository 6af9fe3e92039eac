//! systemd's own D-Bus interfaces, as far as this service needs them.

use serde::Deserialize;
use zbus::{OwnedObjectPath, zvariant::Type};

/// A loaded unit, as `ListUnitsByPatterns` tells it.
#[derive(Debug, Deserialize, Type)]
pub struct Listed {
    pub name: String,
    pub description: String,
    pub load_state: String,
    pub active_state: String,
    pub sub_state: String,
    pub followed: String,
    pub path: OwnedObjectPath,
    pub job: u32,
    pub job_type: String,
    pub job_path: OwnedObjectPath,
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Manager {
    /// Asks for signals: systemd sends them to nobody who did not.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Queues a job and gives its path.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Fails for a unit that is not active.
    fn reload_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    /// The unit's path; reads its file if need be.
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// The loaded units of any of these states (all, if none is given) whose names fit one of the patterns.
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<Listed>>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
pub trait Unit {
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn sub_state(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn unit_file_state(&self) -> zbus::Result<String>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1"
)]
pub trait Service {
    /// `success`, or how the last run failed.
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;

    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> zbus::Result<u32>;

    #[zbus(property)]
    fn status_text(&self) -> zbus::Result<String>;

    /// A `CLD_` constant: 1 exited, 2 killed, 3 dumped; 0 while it runs.
    #[zbus(property)]
    fn exec_main_code(&self) -> zbus::Result<i32>;

    /// The exit code or the signal.
    #[zbus(property)]
    fn exec_main_status(&self) -> zbus::Result<i32>;

    /// Of the unit's control group, as the numbers below; all of them are `u64::MAX` where systemd does not know.
    #[zbus(property)]
    fn memory_current(&self) -> zbus::Result<u64>;

    #[zbus(property)]
    fn memory_max(&self) -> zbus::Result<u64>;

    #[zbus(property, name = "CPUUsageNSec")]
    fn cpu_usage_nsec(&self) -> zbus::Result<u64>;

    #[zbus(property)]
    fn tasks_current(&self) -> zbus::Result<u64>;

    #[zbus(property, name = "IOReadBytes")]
    fn io_read_bytes(&self) -> zbus::Result<u64>;

    #[zbus(property, name = "IOWriteBytes")]
    fn io_write_bytes(&self) -> zbus::Result<u64>;
}
