//! `com.volantvm.Vm1`: the VM on the bus, live.

use tokio::sync::watch;
use volant_dbus::vm::PATH;
use zbus::{Connection, interface};

use crate::live::Live;

/// The VM's object: what the supervisor published last.
#[derive(Debug)]
pub struct Vm(watch::Receiver<Live>);

impl Vm {
    #[must_use]
    pub fn new(live: watch::Receiver<Live>) -> Self {
        Self(live)
    }
}

#[interface(name = "com.volantvm.Vm1")]
impl Vm {
    #[zbus(property(emits_changed_signal = "const"))]
    async fn name(&self) -> String {
        self.0.borrow().name.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn uuid(&self) -> String {
        self.0.borrow().uuid.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn plugin(&self) -> String {
        self.0.borrow().plugin.clone()
    }

    /// `starting`, `booting`, `running`, `stopping`, `ended`.
    #[zbus(property)]
    async fn phase(&self) -> String {
        self.0.borrow().phase.to_owned()
    }

    /// The line that `systemctl status` shows.
    #[zbus(property)]
    async fn status(&self) -> String {
        self.0.borrow().status.clone()
    }

    /// Without prefix length; empty until the VM is attached.
    #[zbus(property)]
    async fn address(&self) -> String {
        self.0.borrow().address.clone()
    }

    #[zbus(property)]
    async fn mac(&self) -> String {
        self.0.borrow().mac.clone()
    }

    #[zbus(property)]
    async fn cid(&self) -> u32 {
        self.0.borrow().cid
    }

    /// `cloud-hypervisor` or `qemu`.
    #[zbus(property)]
    async fn vmm(&self) -> String {
        self.0.borrow().vmm.clone()
    }

    /// Why this VMM, and with what acceleration.
    #[zbus(property)]
    async fn vmm_reason(&self) -> String {
        self.0.borrow().vmm_reason.clone()
    }

    /// 0 while there is none.
    #[zbus(property)]
    async fn vmm_pid(&self) -> u32 {
        self.0.borrow().vmm_pid
    }

    /// The workload's process in the guest; 0 while there is none.
    #[zbus(property)]
    async fn workload_pid(&self) -> u32 {
        self.0.borrow().workload_pid
    }

    #[zbus(property)]
    async fn agent_version(&self) -> String {
        self.0.borrow().agent_version.clone()
    }

    /// Milliseconds since the epoch when the VM became ready; 0 before.
    #[zbus(property)]
    async fn ready_since_unix_ms(&self) -> u64 {
        self.0.borrow().ready_since_unix_ms
    }

    /// From the agent's last heartbeat, in KiB.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_total_kib(&self) -> u64 {
        self.0.borrow().heartbeat.memory_total_kib
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_available_kib(&self) -> u64 {
        self.0.borrow().heartbeat.memory_available_kib
    }

    /// What the agent itself holds of the guest's memory.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn agent_resident_kib(&self) -> u64 {
        self.0.borrow().heartbeat.agent_resident_kib
    }
}

/// Emits `PropertiesChanged` for what changes in `live`, until its publisher is gone.
///
/// # Errors
/// The object is not served on this connection, or the connection is broken.
pub async fn announce(bus: Connection, mut live: watch::Receiver<Live>) -> zbus::Result<()> {
    let object = bus.object_server().interface::<_, Vm>(PATH).await?;
    let emitter = object.signal_emitter();
    let mut told = live.borrow_and_update().clone();
    while live.changed().await.is_ok() {
        let now = live.borrow_and_update().clone();
        let vm = object.get().await;
        macro_rules! announce {
            ($($field:ident: $emit:ident,)*) => {
                $(if now.$field != told.$field { vm.$emit(emitter).await?; })*
            };
        }
        announce! {
            phase: phase_changed,
            status: status_changed,
            address: address_changed,
            mac: mac_changed,
            cid: cid_changed,
            vmm: vmm_changed,
            vmm_reason: vmm_reason_changed,
            vmm_pid: vmm_pid_changed,
            workload_pid: workload_pid_changed,
            agent_version: agent_version_changed,
            ready_since_unix_ms: ready_since_unix_ms_changed,
        }
        drop(vm);
        told = now;
    }
    Ok(())
}
