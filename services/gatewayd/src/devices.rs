//! PCI devices of the host: shown, and asked about before a VM gets some. deviced looks and checks; nothing is lent here.

use serde::Serialize;
use volant_dbus::devices::{DeviceInfo, ManagerProxy};
use volant_spec::{Manifest, Name, PluginRef, VmConfig, manifest::Devices};
use zbus::proxy::CacheProperties;

use crate::{Gateway, Kind, Problem, config::or_empty, lifecycle::NewVm};

/// What deviced's own errors begin with.
const ERRORS: &str = "com.volantvm.Devices1.Error.";

/// A PCI device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    pub address: String,
    /// `VENDOR:DEVICE` in hex.
    pub kind: String,
    /// Class, subclass and programming interface in hex.
    pub class: String,
    pub driver: Option<String>,
    pub iommu_group: Option<i64>,
    /// All devices of its group, with itself.
    pub group_devices: Vec<String>,
    pub numa_node: Option<i64>,
    /// The VM that it is lent to.
    pub vm: Option<String>,
}

impl From<DeviceInfo> for Device {
    fn from(info: DeviceInfo) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        let number = |number: i64| Some(number).filter(|number| *number >= 0);
        Self {
            address: info.address,
            kind: info.kind,
            class: info.class,
            driver: text(info.driver),
            iommu_group: number(info.iommu_group),
            group_devices: info.group_devices,
            numa_node: number(info.numa_node),
            vm: text(info.vm),
        }
    }
}

impl Gateway {
    /// All PCI devices of the host, by address.
    ///
    /// # Errors
    /// deviced does not answer, or cannot read the host.
    pub async fn devices(&self) -> Result<Vec<Device>, Problem> {
        let found = self
            .ask_deviced(async |deviced| deviced.list_devices().await)
            .await?;
        Ok(found.into_iter().map(Device::from).collect())
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none of that address, or it is none.
    pub async fn device(&self, address: &str) -> Result<Device, Problem> {
        let found = self.ask_deviced(async |deviced| deviced.get_device(address).await);
        found.await.map(Device::from)
    }

    /// All that speaks against lending these devices to `vm`, which is empty for a VM that is not there yet.
    ///
    /// # Errors
    /// deviced does not answer, or a pattern of the allowlist is none.
    pub async fn validate_devices(
        &self,
        vm: &str,
        devices: &Devices,
    ) -> Result<Vec<String>, Problem> {
        let validate = async |deviced: ManagerProxy<'_>| {
            deviced.validate(vm, &devices.pci, &devices.allowlist).await
        };
        self.ask_deviced(validate).await
    }

    /// Refuses what a VM that is not there yet is to have of the host's devices, when the host could not give it.
    pub(crate) async fn check_new_devices(&self, new: &NewVm) -> Result<(), Problem> {
        let config = VmConfig::parse(or_empty(&new.request.config));
        match (new.request.plugin.parse(), config) {
            (Ok(plugin), Ok(config)) => self.check_devices(&new.name, "", &plugin, &config).await,
            // Whoever makes the VM says what is wrong with it.
            _ => Ok(()),
        }
    }

    /// As [`Gateway::check_new_devices`], for another configuration of a VM. Devices that it was to have before are not asked
    /// about: other changes are free, whatever became of them.
    pub(crate) async fn check_changed_devices(
        &self,
        name: &Name,
        config: &VmConfig,
    ) -> Result<(), Problem> {
        let vm = self.registry().vm(name).await?;
        let before = VmConfig::parse(or_empty(&vm.config));
        if before.is_ok_and(|before| before.devices == config.devices) {
            return Ok(());
        }
        match format!("{}@{}", vm.plugin, vm.plugin_version).parse() {
            Ok(plugin) => {
                self.check_devices(name, name.as_str(), &plugin, config)
                    .await
            }
            Err(_) => Ok(()),
        }
    }

    async fn check_devices(
        &self,
        name: &Name,
        lent_to: &str,
        plugin: &PluginRef,
        config: &VmConfig,
    ) -> Result<(), Problem> {
        let plugin = match self.registry().plugin(plugin).await {
            Ok(plugin) => plugin,
            // Whoever makes the VM says so in its own words.
            Err(problem) if problem.kind == Kind::NoSuchPlugin => return Ok(()),
            Err(problem) => return Err(problem),
        };
        let devices = Manifest::parse_installed(&plugin.manifest)
            .ok()
            .and_then(|manifest| Some(config.over(&manifest).ok()?.devices));
        let Some(devices) = devices.filter(|devices| !devices.pci.is_empty()) else {
            return Ok(());
        };
        let problems = self.validate_devices(lent_to, &devices).await?;
        if problems.is_empty() {
            return Ok(());
        }
        let detail = format!(
            "VM {name} cannot have the devices {}: {}",
            devices.pci.join(", "),
            problems.join("; ")
        );
        Err(Problem::new(Kind::UnusableConfig, detail))
    }

    async fn ask_deviced<T>(
        &self,
        call: impl AsyncFnOnce(ManagerProxy<'_>) -> zbus::Result<T>,
    ) -> Result<T, Problem> {
        let (bus, _room) = self.systemd().bus().await;
        let asked = async {
            // It has no properties to keep.
            let deviced = ManagerProxy::builder(bus)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            call(deviced).await
        };
        asked.await.map_err(|error| problem(&error))
    }
}

fn problem(error: &zbus::Error) -> Problem {
    if let zbus::Error::MethodError(name, text, _) = error
        && let Some(own) = name.strip_prefix(ERRORS)
    {
        let kind = match own {
            "NoSuchDevice" => Kind::NoSuchDevice,
            "InvalidArgument" => Kind::InvalidRequest,
            _ => Kind::Internal,
        };
        let text = text.clone().unwrap_or_else(|| own.to_owned());
        return Problem::new(kind, text);
    }
    let detail = format!("deviced, which knows this host's devices, does not answer: {error}");
    Problem::new(Kind::Unavailable, detail)
}
