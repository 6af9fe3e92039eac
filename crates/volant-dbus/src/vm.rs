//! `com.volantvm.Vm1`: one VM, served by its supervisor while its unit is active.

use std::collections::HashMap;

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

    /// The guest's CPUs stand still.
    #[zbus(property)]
    fn paused(&self) -> zbus::Result<bool>;

    /// Of the configuration that this run has.
    #[zbus(property(emits_changed_signal = "const"))]
    fn config_version(&self) -> zbus::Result<u64>;

    /// What the guest has now; a resize changes it.
    #[zbus(property)]
    fn cpu_cores(&self) -> zbus::Result<u32>;

    /// In MiB.
    #[zbus(property)]
    fn memory_mb(&self) -> zbus::Result<u32>;

    /// How often the guest was rebooted in this run of the unit.
    #[zbus(property)]
    fn reboots(&self) -> zbus::Result<u32>;

    /// How often the agent started the workload again in this boot.
    #[zbus(property)]
    fn workload_restarts(&self) -> zbus::Result<u32>;

    /// Empty without a health check; `starting`, `healthy` or `unhealthy`.
    #[zbus(property)]
    fn health(&self) -> zbus::Result<String>;

    /// How it ended, once the phase is `ended`: `workload-exited`, `guest-powered-off`, `kernel-panicked`, ...; else empty.
    #[zbus(property)]
    fn ended(&self) -> zbus::Result<String>;

    /// The workload's exit code, once it ended by itself; -1 before.
    #[zbus(property)]
    fn exit_code(&self) -> zbus::Result<i32>;

    /// Changes when another vmd takes over (`systemctl reload`): counts from 1.
    #[zbus(property)]
    fn generation(&self) -> zbus::Result<u32>;

    /// Stops the guest's CPUs. Idempotent.
    fn pause(&self) -> zbus::Result<()>;

    /// Lets them go on, and sets the guest's clock. Idempotent.
    fn resume(&self) -> zbus::Result<()>;

    /// Something happened: `booted`, `ready`, `unhealthy`, `healthy`, `workload-restarting`, `rebooting`, `paused`, `resumed`,
    /// `resized`, `stopping`, `ended`, `reloaded`; when (milliseconds since the epoch); and details by name.
    #[zbus(signal)]
    fn happened(
        &self,
        what: &str,
        time_unix_ms: u64,
        details: HashMap<&str, zbus::Variant<'_>>,
    ) -> zbus::Result<()>;

    /// What the agent itself holds of the guest's memory.
    #[zbus(property(emits_changed_signal = "false"))]
    fn agent_resident_kib(&self) -> zbus::Result<u64>;
}
