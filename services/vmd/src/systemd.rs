//! systemd, as the supervisor of one of its units sees it: what it set for this unit, and what it is asked to hold it to.

use std::{fs, path::Path, time::Duration};

use tokio::{sync::watch, time::timeout};
use volant_spec::{Name, Resources, unit};
use zbus::{Connection, OwnedObjectPath, Variant, proxy::CacheProperties};

use crate::{
    definition::Share,
    hypervisor::detect::Accel,
    life::STOP_TIMEOUT,
    limits::{UnitFacts, is_own, overhead_mb, properties},
    live::Live,
};

/// A systemd that does not answer is not waited for: a VM starts without what it would tell.
const DEADLINE: Duration = Duration::from_secs(2);
/// For what nothing waits for.
const LONG_DEADLINE: Duration = Duration::from_secs(20);
/// The longest text of a drop-in that is read.
const MAX_TEXT: u64 = 256 * 1024;

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(crate) trait Manager {
    /// Asks for signals: systemd sends them to nobody who did not.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Queues a job and gives its path.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;

    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Variant<'_>)],
    ) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn fragment_path(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn drop_in_paths(&self) -> zbus::Result<Vec<String>>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1"
)]
pub(crate) trait Service {
    #[zbus(property(emits_changed_signal = "false"), name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn status_text(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "false"), name = "TimeoutStopUSec")]
    fn timeout_stop_usec(&self) -> zbus::Result<u64>;
}

/// What systemd has for the unit of VM `name`; `None` where this process is not in that unit, or systemd does not tell.
pub async fn look(bus: &Connection, name: &Name) -> Option<UnitFacts> {
    let own = volant_service::vm_of_pid(std::process::id());
    if own.is_ok_and(|own| own == *name) {
        match timeout(DEADLINE, ask(bus, name)).await {
            Ok(Ok(facts)) => return Some(facts),
            Ok(Err(error)) => tracing::warn!("systemd does not tell of this unit: {error}"),
            Err(_) => tracing::warn!("systemd does not answer"),
        }
    }
    None
}

async fn ask(bus: &Connection, name: &Name) -> zbus::Result<UnitFacts> {
    let manager = ManagerProxy::new(bus).await?;
    let path = manager.get_unit(&unit::vm(name)).await?;
    let service = service_at(bus, path.clone()).await?;
    let unit = UnitProxy::builder(bus)
        .path(path)
        .cache_properties(CacheProperties::No);
    let unit = unit.build().await?;
    let stop_timeout = service.timeout_stop_usec().await?;
    let (own, others) = unit
        .drop_in_paths()
        .await?
        .into_iter()
        .partition::<Vec<_>, _>(|path| is_own(path));
    let files = [unit.fragment_path().await?].into_iter().chain(others);
    Ok(UnitFacts {
        // The greatest number is "infinity".
        stop_timeout: (stop_timeout < u64::MAX).then(|| Duration::from_micros(stop_timeout)),
        texts: files.map(|path| text(Path::new(&path))).collect(),
        own,
    })
}

/// What systemd knows of a unit that is loaded.
pub(crate) async fn service<'a>(bus: &'a Connection, unit: &str) -> zbus::Result<ServiceProxy<'a>> {
    let path = ManagerProxy::new(bus).await?.get_unit(unit).await?;
    service_at(bus, path).await
}

async fn service_at(bus: &Connection, path: OwnedObjectPath) -> zbus::Result<ServiceProxy<'_>> {
    // Asked once: their changes are none of ours.
    let service = ServiceProxy::builder(bus)
        .path(path)
        .cache_properties(CacheProperties::No);
    service.build().await
}

/// A file that cannot be read says nothing; that is told, as what it sets may not be respected.
fn text(path: &Path) -> String {
    let read = fs::metadata(path).and_then(|metadata| {
        if metadata.len() > MAX_TEXT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        fs::read_to_string(path)
    });
    read.unwrap_or_else(|error| {
        tracing::warn!("cannot read {}: {error}", path.display());
        String::new()
    })
}

/// How long a stop of the unit may take; `None`: as long as it likes.
#[must_use]
pub fn stop_timeout(facts: Option<&UnitFacts>) -> Option<Duration> {
    facts.map_or(Some(STOP_TIMEOUT), |facts| facts.stop_timeout)
}

/// What a VM's unit is held to.
#[derive(Debug)]
pub struct Limits {
    pub facts: UnitFacts,
    pub share: Share,
    pub vmm: &'static str,
    pub accel: Accel,
}

/// Has systemd hold the unit of VM `name` to its limits, and again whenever the guest's memory changes. Does nothing else, and
/// ends with the publisher of `live`.
pub async fn hold(bus: Connection, name: Name, limits: Limits, mut live: watch::Receiver<Live>) {
    let unit = unit::vm(&name);
    let mut held = None;
    loop {
        let now = {
            let live = live.borrow_and_update();
            (live.cpu_cores, live.memory_mb)
        };
        if held != Some(now)
            && let Ok(resources) = Resources::new(now.0, now.1)
        {
            set(&bus, &unit, &limits, resources).await;
            held = Some(now);
        }
        if live.changed().await.is_err() {
            return;
        }
    }
}

async fn set(bus: &Connection, unit: &str, limits: &Limits, resources: Resources) {
    let overhead = overhead_mb(limits.vmm, limits.accel, resources);
    let told = properties(&limits.facts, resources.memory_mb, overhead, limits.share);
    if told.is_empty() {
        return;
    }
    let properties: Vec<_> = told
        .iter()
        .map(|(name, value)| (*name, Variant::from(*value)))
        .collect();
    let ask = async {
        let manager = ManagerProxy::new(bus).await?;
        manager.set_unit_properties(unit, true, &properties).await
    };
    match timeout(LONG_DEADLINE, ask).await {
        Ok(Ok(())) => tracing::debug!("systemd holds {unit} to {told:?}"),
        Ok(Err(error)) => tracing::warn!("systemd does not hold {unit} to its limits: {error}"),
        Err(_) => tracing::warn!("systemd does not answer: {unit} is without its limits"),
    }
}
