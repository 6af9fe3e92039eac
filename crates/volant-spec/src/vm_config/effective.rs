//! What a VM is: its own configuration over its plugin's manifest.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Limits, MAX_MOUNTS, Rlimit, RootDisk, Secret, VmConfig, Volume};
use crate::{
    Manifest, Name, Resources,
    config::Vmm,
    manifest::{
        CloudInit, DEFAULT_STOP_GRACE_MS, Devices, HealthCheck, NetworkMode, Restart, Workload,
    },
};

/// A VM with every value decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub resources: Resources,
    pub vmm: Vmm,
    pub limits: Limits,
    /// Empty only where there is an `init`.
    pub entrypoint: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Root when absent.
    pub user: Option<String>,
    pub workdir: String,
    pub stop_signal: String,
    pub stop_grace_ms: u32,
    pub restart: Restart,
    pub health_check: Option<HealthCheck>,
    pub rlimits: BTreeMap<String, Rlimit>,
    /// The agent stays PID 1 when absent.
    pub init: Option<String>,
    pub root_disk: Option<RootDisk>,
    pub volumes: Vec<Volume>,
    /// The plugin's own, which are read-only.
    pub images: Vec<Image>,
    /// Directories that the plugin declares as holding data.
    pub data_dirs: Vec<String>,
    pub cloud_init: Option<CloudInit>,
    pub secrets: Vec<Secret>,
    pub devices: Devices,
    pub network: NetworkMode,
}

/// A disk image of a plugin that is mounted in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub name: Name,
    /// Absolute.
    pub target: PathBuf,
}

/// Why a configuration does not go with a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigConflict {
    #[error(
        "root_disk: the plugin has no 'rootfs'; its root is in memory. Keep data on a volume instead"
    )]
    RootInMemory,
    #[error("volumes.{0}: the plugin has a disk of that name; choose another")]
    Name(Name),
    #[error("volumes.{name}.target '{}': the plugin's disk '{disk}' is mounted there", .target.display())]
    Target {
        name: Name,
        target: PathBuf,
        disk: Name,
    },
    #[error(
        "volumes: {0} of them and of the plugin's disks are too many; a VM can have {MAX_MOUNTS}"
    )]
    TooManyMounts(usize),
}

impl VmConfig {
    /// This configuration over a plugin's: what it does not say is the plugin's, else the default. Variables and resource
    /// limits are set beyond the plugin's; a document of cloud-init replaces the plugin's of its kind; `devices` replaces
    /// the plugin's addresses, and its allowlist if there is one.
    ///
    /// # Errors
    /// It is for another plugin: the field is named.
    pub fn over(&self, plugin: &Manifest) -> Result<Effective, ConfigConflict> {
        let workload = &plugin.workload;
        let effective = Effective {
            resources: self.resources_over(plugin.resources.unwrap_or_default()),
            vmm: self.vmm.unwrap_or_default(),
            limits: self.limits.over(plugin.limits),
            entrypoint: self
                .entrypoint
                .clone()
                .unwrap_or_else(|| workload.entrypoint.clone()),
            env: self.env_over(workload),
            user: self.user.clone().or_else(|| workload.user.clone()),
            workdir: first(&self.workdir, &workload.workdir, "/"),
            stop_signal: first(&self.stop_signal, &workload.stop_signal, "SIGTERM"),
            stop_grace_ms: self.stop_grace_over(workload),
            restart: self.restart.or(workload.restart).unwrap_or_default(),
            health_check: self
                .health_check
                .clone()
                .or_else(|| workload.health_check.clone()),
            rlimits: extended(&workload.rlimits, &self.rlimits),
            init: self.init.clone().or_else(|| plugin.init.clone()),
            root_disk: self.root_disk.or(plugin.root_disk),
            volumes: self.volumes.clone(),
            images: images(plugin),
            data_dirs: workload.volumes.clone(),
            cloud_init: cloud_init(self.cloud_init.as_ref(), plugin.cloud_init.as_ref()),
            secrets: self.secrets.clone(),
            devices: devices(self.devices.as_ref(), plugin.devices.as_ref()),
            network: self
                .network
                .or_else(|| plugin.network.as_ref().map(|network| network.mode))
                .unwrap_or_default(),
        };
        effective.check(plugin)?;
        Ok(effective)
    }

    fn resources_over(&self, below: Resources) -> Resources {
        Resources {
            cpu_cores: self.cpu_cores.unwrap_or(below.cpu_cores),
            memory_mb: self.memory_mb.unwrap_or(below.memory_mb),
        }
    }

    /// A secret's variable has the secret, whatever the plugin says.
    fn env_over(&self, below: &Workload) -> BTreeMap<String, String> {
        let mut env = extended(&below.env, &self.env);
        for secret in &self.secrets {
            if let Some(variable) = &secret.env {
                env.remove(variable);
            }
        }
        env
    }

    fn stop_grace_over(&self, below: &Workload) -> u32 {
        self.stop_grace_ms
            .or(below.stop_grace_ms)
            .unwrap_or(DEFAULT_STOP_GRACE_MS)
    }
}

impl Effective {
    /// As a configuration that says everything: over the same plugin, or one that says nothing, it makes the same VM.
    #[must_use]
    pub fn to_config(&self) -> VmConfig {
        VmConfig {
            cpu_cores: Some(self.resources.cpu_cores),
            memory_mb: Some(self.resources.memory_mb),
            vmm: Some(self.vmm),
            limits: self.limits,
            entrypoint: Some(self.entrypoint.clone()).filter(|words| !words.is_empty()),
            env: self.env.clone(),
            user: self.user.clone(),
            workdir: Some(self.workdir.clone()),
            stop_signal: Some(self.stop_signal.clone()),
            stop_grace_ms: Some(self.stop_grace_ms),
            restart: Some(self.restart),
            health_check: self.health_check.clone(),
            rlimits: self.rlimits.clone(),
            init: self.init.clone(),
            root_disk: self.root_disk,
            volumes: self.volumes.clone(),
            cloud_init: self.cloud_init.clone(),
            secrets: self.secrets.clone(),
            devices: Some(self.devices.clone()),
            network: Some(self.network),
        }
    }

    fn check(&self, plugin: &Manifest) -> Result<(), ConfigConflict> {
        if self.root_disk.is_some() && plugin.rootfs.is_none() {
            return Err(ConfigConflict::RootInMemory);
        }
        for Volume { name, target, .. } in &self.volumes {
            if plugin.disks.iter().any(|disk| disk.name == *name) {
                return Err(ConfigConflict::Name(name.clone()));
            }
            if let Some(image) = self.images.iter().find(|image| image.target == *target) {
                return Err(ConfigConflict::Target {
                    name: name.clone(),
                    target: target.clone(),
                    disk: image.name.clone(),
                });
            }
        }
        match self.volumes.len() + self.images.len() {
            count if count > MAX_MOUNTS => Err(ConfigConflict::TooManyMounts(count)),
            _ => Ok(()),
        }
    }
}

impl Limits {
    fn over(self, below: Self) -> Self {
        Self {
            cpu_quota_percent: self.cpu_quota_percent.or(below.cpu_quota_percent),
            cpu_weight: self.cpu_weight.or(below.cpu_weight),
            io_weight: self.io_weight.or(below.io_weight),
        }
    }
}

fn first(own: &Option<String>, plugins: &Option<String>, default: &str) -> String {
    own.as_ref()
        .or(plugins.as_ref())
        .map_or_else(|| default.to_owned(), Clone::clone)
}

fn extended<T: Clone>(
    below: &BTreeMap<String, T>,
    above: &BTreeMap<String, T>,
) -> BTreeMap<String, T> {
    let mut all = below.clone();
    all.extend(
        above
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    all
}

/// A disk that is not read-only, or is mounted nowhere, makes no VM: `Manifest::unsupported` names it.
fn images(plugin: &Manifest) -> Vec<Image> {
    let disks = plugin.disks.iter().filter(|disk| disk.readonly);
    let mounted = disks.filter_map(|disk| {
        Some(Image {
            name: disk.name.clone(),
            target: Path::new(disk.target.as_ref()?).to_owned(),
        })
    });
    mounted.collect()
}

fn cloud_init(own: Option<&CloudInit>, plugins: Option<&CloudInit>) -> Option<CloudInit> {
    let (own, plugins) = match (own, plugins) {
        (Some(own), Some(plugins)) => (own.clone(), plugins.clone()),
        (one, other) => return one.or(other).cloned(),
    };
    Some(CloudInit {
        datasource: own.datasource.or(plugins.datasource),
        seed_mode: own.seed_mode.or(plugins.seed_mode),
        user_data: own.user_data.or(plugins.user_data),
        meta_data: own.meta_data.or(plugins.meta_data),
        network_config: own.network_config.or(plugins.network_config),
        vendor_data: own.vendor_data.or(plugins.vendor_data),
    })
}

fn devices(own: Option<&Devices>, plugins: Option<&Devices>) -> Devices {
    let plugins = plugins.cloned().unwrap_or_default();
    match own.cloned() {
        None => plugins,
        Some(own) if own.allowlist.is_empty() => Devices {
            allowlist: plugins.allowlist,
            ..own
        },
        Some(own) => own,
    }
}
