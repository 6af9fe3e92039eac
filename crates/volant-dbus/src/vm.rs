//! `com.volantvm.Vm1`: one VM, served by its supervisor while its unit is active.

/// The path of the one object of a supervisor.
pub const PATH: &str = "/com/volantvm/Vm1";
/// What every supervisor's name begins with; a policy lets the supervisors' user own names below it.
pub const NAME_PREFIX: &str = "com.volantvm.vm";

/// The bus name of a VM's supervisor: `com.volantvm.vm.NAME`. As a part of a bus name cannot begin with a
/// digit, such a VM's name gets a `_` before it (no VM's name has one).
#[must_use]
pub fn bus_name(vm: &str) -> String {
    let guard = if vm.starts_with(|c: char| c.is_ascii_digit()) {
        "_"
    } else {
        ""
    };
    format!("{NAME_PREFIX}.{guard}{vm}")
}

#[zbus::proxy(interface = "com.volantvm.Vm1", default_path = "/com/volantvm/Vm1")]
pub trait Vm {
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn uuid(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn plugin(&self) -> zbus::Result<String>;

    /// `starting`, `booting`, `running`, `stopping`, `ended`.
    #[zbus(property)]
    fn phase(&self) -> zbus::Result<String>;

    /// The line that `systemctl status` shows.
    #[zbus(property)]
    fn status(&self) -> zbus::Result<String>;

    /// Without prefix length; empty until the VM is attached.
    #[zbus(property)]
    fn address(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn mac(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn cid(&self) -> zbus::Result<u32>;

    /// `cloud-hypervisor` or `qemu`.
    #[zbus(property)]
    fn vmm(&self) -> zbus::Result<String>;

    /// Why this VMM, and with what acceleration.
    #[zbus(property)]
    fn vmm_reason(&self) -> zbus::Result<String>;

    /// 0 while there is none.
    #[zbus(property)]
    fn vmm_pid(&self) -> zbus::Result<u32>;

    /// The workload's process in the guest; 0 while there is none.
    #[zbus(property)]
    fn workload_pid(&self) -> zbus::Result<u32>;

    #[zbus(property)]
    fn agent_version(&self) -> zbus::Result<String>;

    /// Milliseconds since the epoch when the VM became ready; 0 before.
    #[zbus(property)]
    fn ready_since_unix_ms(&self) -> zbus::Result<u64>;

    /// From the agent's last heartbeat, in KiB.
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_total_kib(&self) -> zbus::Result<u64>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_available_kib(&self) -> zbus::Result<u64>;

    /// What the agent itself holds of the guest's memory.
    #[zbus(property(emits_changed_signal = "false"))]
    fn agent_resident_kib(&self) -> zbus::Result<u64>;
}
