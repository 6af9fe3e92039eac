//! `com.volantvm.Vm1`: the VM on the bus, live.

use std::collections::HashMap;

use tokio::sync::{mpsc, watch};
use volant_dbus::vm::PATH;
use zbus::{Connection, Variant, interface, object_server::SignalEmitter};

use crate::{
    handle::{Handle, HandleError},
    happening::{Detail, Happening},
    live::Live,
};

/// The VM's object: what the supervisor published last, and the way to it.
#[derive(Debug)]
pub struct Vm {
    live: watch::Receiver<Live>,
    handle: Handle,
}

impl Vm {
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self {
            live: handle.live(),
            handle,
        }
    }
}

/// Why a wish was not carried out.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Vm1.Error")]
pub enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The VM boots or stops.
    NotNow(String),
    InvalidArgument(String),
    /// The VMM cannot.
    NotSupported(String),
    /// The VMM was asked, and did not do it.
    Failed(String),
}

impl From<HandleError> for Error {
    fn from(error: HandleError) -> Self {
        let text = error.to_string();
        match error {
            HandleError::Denied(_) | HandleError::Gone => Self::NotNow(text),
            HandleError::Invalid(_) => Self::InvalidArgument(text),
            HandleError::Unsupported(_) => Self::NotSupported(text),
            HandleError::Failed(_) => Self::Failed(text),
        }
    }
}

#[interface(name = "com.volantvm.Vm1")]
impl Vm {
    #[zbus(property(emits_changed_signal = "const"))]
    async fn name(&self) -> String {
        self.live.borrow().name.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn uuid(&self) -> String {
        self.live.borrow().uuid.clone()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn plugin(&self) -> String {
        self.live.borrow().plugin.clone()
    }

    /// `starting`, `booting`, `running`, `stopping`, `ended`.
    #[zbus(property)]
    async fn phase(&self) -> String {
        self.live.borrow().phase.to_owned()
    }

    /// The line that `systemctl status` shows.
    #[zbus(property)]
    async fn status(&self) -> String {
        self.live.borrow().status.clone()
    }

    /// Without prefix length; empty until the VM is attached.
    #[zbus(property)]
    async fn address(&self) -> String {
        self.live.borrow().address.clone()
    }

    #[zbus(property)]
    async fn mac(&self) -> String {
        self.live.borrow().mac.clone()
    }

    #[zbus(property)]
    async fn cid(&self) -> u32 {
        self.live.borrow().cid
    }

    /// `cloud-hypervisor` or `qemu`.
    #[zbus(property)]
    async fn vmm(&self) -> String {
        self.live.borrow().vmm.clone()
    }

    /// Why this VMM, and with what acceleration.
    #[zbus(property)]
    async fn vmm_reason(&self) -> String {
        self.live.borrow().vmm_reason.clone()
    }

    /// 0 while there is none.
    #[zbus(property)]
    async fn vmm_pid(&self) -> u32 {
        self.live.borrow().vmm_pid
    }

    /// The workload's process in the guest; 0 while there is none.
    #[zbus(property)]
    async fn workload_pid(&self) -> u32 {
        self.live.borrow().workload_pid
    }

    #[zbus(property)]
    async fn agent_version(&self) -> String {
        self.live.borrow().agent_version.clone()
    }

    /// Milliseconds since the epoch when the VM became ready; 0 before.
    #[zbus(property)]
    async fn ready_since_unix_ms(&self) -> u64 {
        self.live.borrow().ready_since_unix_ms
    }

    /// From the agent's last heartbeat, in KiB.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_total_kib(&self) -> u64 {
        self.live.borrow().heartbeat.memory_total_kib
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn memory_available_kib(&self) -> u64 {
        self.live.borrow().heartbeat.memory_available_kib
    }

    /// What the agent itself holds of the guest's memory.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn agent_resident_kib(&self) -> u64 {
        self.live.borrow().heartbeat.agent_resident_kib
    }

    /// The guest's CPUs stand still.
    #[zbus(property)]
    async fn paused(&self) -> bool {
        self.live.borrow().paused
    }

    /// Of the configuration that this run has.
    #[zbus(property(emits_changed_signal = "const"))]
    async fn config_version(&self) -> u64 {
        self.live.borrow().config_version
    }

    /// What the guest has now; a resize changes it.
    #[zbus(property)]
    async fn cpu_cores(&self) -> u32 {
        self.live.borrow().cpu_cores
    }

    /// In MiB.
    #[zbus(property)]
    async fn memory_mb(&self) -> u32 {
        self.live.borrow().memory_mb
    }

    /// How often the guest was rebooted in this run of the unit.
    #[zbus(property)]
    async fn reboots(&self) -> u32 {
        self.live.borrow().reboots
    }

    /// How often the agent started the workload again in this boot.
    #[zbus(property)]
    async fn workload_restarts(&self) -> u32 {
        self.live.borrow().workload_restarts
    }

    /// Empty without a health check; `starting`, `healthy` or `unhealthy`.
    #[zbus(property)]
    async fn health(&self) -> String {
        self.live.borrow().health.to_owned()
    }

    /// How it ended, once the phase is `ended`; else empty.
    #[zbus(property)]
    async fn ended(&self) -> String {
        self.live.borrow().ended.to_owned()
    }

    /// The workload's exit code, once it ended by itself; -1 before.
    #[zbus(property)]
    async fn exit_code(&self) -> i32 {
        self.live.borrow().exit_code.map_or(-1, i32::from)
    }

    /// Changes when another vmd takes over: counts from 1.
    #[zbus(property)]
    async fn generation(&self) -> u32 {
        self.live.borrow().generation
    }

    /// Stops the guest's CPUs. Idempotent.
    async fn pause(&self) -> Result<(), Error> {
        Ok(self.handle.pause().await?)
    }

    /// Lets them go on, and sets the guest's clock. Idempotent.
    async fn resume(&self) -> Result<(), Error> {
        Ok(self.handle.resume().await?)
    }

    /// Something happened.
    #[zbus(signal)]
    async fn happened(
        emitter: &SignalEmitter<'_>,
        what: &str,
        time_unix_ms: u64,
        details: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
}

/// Emits `PropertiesChanged` for what changes in `live`, and `Happened` for what happens, until their publisher is gone.
///
/// # Errors
/// The object is not served on this connection, or the connection is broken.
pub fn announce(
    bus: Connection,
    mut live: watch::Receiver<Live>,
    happenings: mpsc::Receiver<Happening>,
) -> impl Future<Output = zbus::Result<()>> + Send {
    // What is so when this is called is what the bus knows.
    let told = live.borrow_and_update().clone();
    tell_all(bus, told, live, happenings)
}

async fn tell_all(
    bus: Connection,
    mut told: Live,
    mut live: watch::Receiver<Live>,
    mut happenings: mpsc::Receiver<Happening>,
) -> zbus::Result<()> {
    let object = bus.object_server().interface::<_, Vm>(PATH).await?;
    let emitter = object.signal_emitter();
    loop {
        // What changed is told before what it means, so that whoever hears the one can read the other.
        tokio::select! {
            biased;
            changed = live.changed() => {
                let now = live.borrow_and_update().clone();
                changes(&*object.get().await, emitter, &told, &now).await?;
                told = now;
                if changed.is_err() {
                    break;
                }
            }
            Some(happening) = happenings.recv() => tell(emitter, &happening).await?,
        }
    }
    while let Ok(happening) = happenings.try_recv() {
        tell(emitter, &happening).await?;
    }
    Ok(())
}

async fn tell(emitter: &SignalEmitter<'_>, happening: &Happening) -> zbus::Result<()> {
    let details = happening.details.iter().map(|(name, detail)| {
        let detail = match detail {
            Detail::Text(text) => Variant::from(text.as_str()),
            Detail::Number(number) => Variant::from(*number),
        };
        (*name, detail)
    });
    Vm::happened(
        emitter,
        happening.what,
        happening.time_unix_ms,
        details.collect(),
    )
    .await
}

async fn changes(
    vm: &Vm,
    emitter: &SignalEmitter<'_>,
    told: &Live,
    now: &Live,
) -> zbus::Result<()> {
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
        paused: paused_changed,
        cpu_cores: cpu_cores_changed,
        memory_mb: memory_mb_changed,
        reboots: reboots_changed,
        workload_restarts: workload_restarts_changed,
        health: health_changed,
        ended: ended_changed,
        exit_code: exit_code_changed,
        generation: generation_changed,
    }
    Ok(())
}
