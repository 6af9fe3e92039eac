//! What a configuration may say. Each error names the field, and what may stand there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
};

use super::{Limits, Rlimit, Secret, SecretName, SecretNameError, VmConfig, Volume};
use crate::{
    manifest::{DevicesError, MAX_STOP_GRACE_MS, STOP_SIGNALS, is_user},
    resources::{MAX_CPU_CORES, MAX_MEMORY_MB, MIN_MEMORY_MB},
};

/// The smallest disk: less is no ext4 with a journal.
pub const MIN_DISK_MB: u32 = 16;
/// The largest disk: 16 TiB, the largest file of an ext4.
pub const MAX_DISK_MB: u32 = 16 * 1024 * 1024;
/// The most file systems that a VM has besides its root.
pub const MAX_MOUNTS: usize = 16;
pub const MAX_CPU_QUOTA_PERCENT: u32 = 100_000;
pub const MAX_WEIGHT: u32 = 10_000;
/// The names of resource limits, as OCI images have them but for their `RLIMIT_` and in small letters.
pub const RLIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "sigpending",
    "stack",
];

const MAX_WORDS: usize = 1024;
const MAX_ENV: usize = 1024;
const MAX_SECRETS: usize = 32;
const MAX_PATH: usize = 1024;
/// Names of disks that are not volumes.
const RESERVED: [&str; 2] = ["root", "cidata"];
/// Nothing is mounted at or below these: the kernel's, and the agent's.
const TAKEN: [&str; 4] = ["/proc", "/sys", "/dev", "/run/secrets"];

/// Why a configuration is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmConfigError {
    #[error("cpu_cores: {0} CPUs are not possible; give 1 to {MAX_CPU_CORES}")]
    CpuCores(u32),
    #[error("memory_mb: {0} MiB are not possible; give {MIN_MEMORY_MB} to {MAX_MEMORY_MB}")]
    Memory(u32),
    #[error("limits.cpu_quota_percent {0} is not 1 to {MAX_CPU_QUOTA_PERCENT} (100 is one CPU)")]
    CpuQuota(u32),
    #[error("limits.{0} {1} is not 1 to {MAX_WEIGHT} (100 is usual)")]
    Weight(&'static str, u32),
    #[error("entrypoint names no program; give the program and its arguments, or leave it out")]
    Entrypoint,
    #[error("{0} has more than {1} entries")]
    TooMany(&'static str, usize),
    #[error("{0} has a text with a NUL character")]
    Nul(&'static str),
    #[error("env has the key '{}'; a key has 1 to 256 characters and no '='", .0.escape_debug())]
    EnvKey(String),
    #[error("user '{}' is not USER or USER:GROUP", .0.escape_debug())]
    User(String),
    #[error("{field} '{}' is not an absolute path without '..' of at most {MAX_PATH} characters", .path.escape_debug())]
    Path { field: String, path: String },
    #[error("stop_signal '{}' is not one of {}", .0.escape_debug(), STOP_SIGNALS.join(", "))]
    StopSignal(String),
    #[error("stop_grace_ms {0} is more than {MAX_STOP_GRACE_MS}")]
    StopGrace(u32),
    #[error("rlimits has '{}', which is not one of {}", .0.escape_debug(), RLIMITS.join(", "))]
    Rlimit(String),
    #[error("rlimits.{0}: the soft limit is above the hard one; a limit that is absent is none")]
    RlimitOrder(String),
    #[error("{field} {size} is not possible; give {MIN_DISK_MB} to {MAX_DISK_MB}")]
    Size { field: String, size: u32 },
    #[error("volumes.{0}: the name is taken by a disk that Volant makes; choose another")]
    Reserved(String),
    #[error("two volumes have the name '{0}'")]
    VolumeName(String),
    #[error("two volumes have the target '{}'", .0.escape_debug())]
    VolumeTarget(String),
    #[error(
        "{field} '{}': nothing can be mounted there; choose a directory that is not / and not in {}",
        .path.escape_debug(),
        TAKEN.join(", ")
    )]
    Target { field: String, path: String },
    #[error(
        "volumes.{0} needs size_mb (a disk) or host_path (a directory of the host), one of the two"
    )]
    VolumeKind(String),
    #[error(transparent)]
    SecretName(#[from] SecretNameError),
    #[error("two secrets have the name '{0}'")]
    SecretTwice(SecretName),
    #[error(
        "secrets.{name}.env '{}' is no name of a variable: letters, digits and '_', not beginning with a digit",
        .env.escape_debug()
    )]
    SecretEnv { name: SecretName, env: String },
    #[error("the variable '{0}' is set twice, by 'secrets' and by 'secrets' or 'env'")]
    EnvTwice(String),
    #[error(transparent)]
    Devices(#[from] DevicesError),
}

impl VmConfig {
    /// Checks values that were put together by hand; one that was read is valid already.
    ///
    /// # Errors
    /// The first field that is not valid.
    pub fn check(&self) -> Result<(), VmConfigError> {
        if let Some(cores) = outside(self.cpu_cores, 1, MAX_CPU_CORES) {
            return Err(VmConfigError::CpuCores(cores));
        }
        if let Some(memory) = outside(self.memory_mb, MIN_MEMORY_MB, MAX_MEMORY_MB) {
            return Err(VmConfigError::Memory(memory));
        }
        check_limits(&self.limits)?;
        self.check_program()?;
        check_rlimits(&self.rlimits)?;
        if let Some(init) = &self.init {
            check_init(init)?;
        }
        if let Some(disk) = self.root_disk {
            check_size("root_disk.size_mb", disk.size_mb)?;
        }
        check_volumes(&self.volumes)?;
        self.check_secrets()?;
        if let Some(devices) = &self.devices {
            devices.check()?;
        }
        Ok(())
    }

    fn check_program(&self) -> Result<(), VmConfigError> {
        if let Some(words) = &self.entrypoint {
            if words.first().is_none_or(String::is_empty) {
                return Err(VmConfigError::Entrypoint);
            }
            at_most("entrypoint", words.len(), MAX_WORDS)?;
            if words.iter().any(|word| word.contains('\0')) {
                return Err(VmConfigError::Nul("entrypoint"));
            }
        }
        at_most("env", self.env.len(), MAX_ENV)?;
        for (key, value) in &self.env {
            if !(1..=256).contains(&key.len()) || key.contains('=') {
                return Err(VmConfigError::EnvKey(shortened(key)));
            }
            if key.contains('\0') || value.contains('\0') {
                return Err(VmConfigError::Nul("env"));
            }
        }
        if let Some(user) = self.user.as_ref().filter(|user| !is_user(user)) {
            return Err(VmConfigError::User(shortened(user)));
        }
        if let Some(dir) = &self.workdir {
            check_path("workdir", dir)?;
        }
        let signal = self.stop_signal.as_ref();
        if let Some(signal) = signal.filter(|signal| !STOP_SIGNALS.contains(&signal.as_str())) {
            return Err(VmConfigError::StopSignal(shortened(signal)));
        }
        match self.stop_grace_ms {
            Some(grace) if grace > MAX_STOP_GRACE_MS => Err(VmConfigError::StopGrace(grace)),
            _ => Ok(()),
        }
    }

    fn check_secrets(&self) -> Result<(), VmConfigError> {
        at_most("secrets", self.secrets.len(), MAX_SECRETS)?;
        let mut names = BTreeSet::new();
        let mut variables: BTreeSet<&str> = self.env.keys().map(String::as_str).collect();
        for Secret { name, env } in &self.secrets {
            let name: SecretName = name.parse()?;
            if let Some(env) = env {
                if !is_variable(env) {
                    let env = shortened(env);
                    return Err(VmConfigError::SecretEnv { name, env });
                }
                if !variables.insert(env) {
                    return Err(VmConfigError::EnvTwice(env.clone()));
                }
            }
            if !names.insert(name.clone()) {
                return Err(VmConfigError::SecretTwice(name));
            }
        }
        Ok(())
    }
}

fn check_volumes(volumes: &[Volume]) -> Result<(), VmConfigError> {
    at_most("volumes", volumes.len(), MAX_MOUNTS)?;
    let (mut names, mut targets) = (BTreeSet::new(), BTreeSet::new());
    for volume in volumes {
        let name = volume.name.as_str();
        if RESERVED.contains(&name) {
            return Err(VmConfigError::Reserved(name.to_owned()));
        }
        if !names.insert(name) {
            return Err(VmConfigError::VolumeName(name.to_owned()));
        }
        check_target(&format!("volumes.{name}.target"), &volume.target)?;
        if !targets.insert(volume.target.as_path()) {
            let target = volume.target.to_string_lossy().into_owned();
            return Err(VmConfigError::VolumeTarget(target));
        }
        match (volume.size_mb, &volume.host_path) {
            (Some(size), None) => check_size(&format!("volumes.{name}.size_mb"), size)?,
            (None, Some(path)) => check_path(&format!("volumes.{name}.host_path"), path)?,
            _ => return Err(VmConfigError::VolumeKind(name.to_owned())),
        }
    }
    Ok(())
}

/// # Errors
/// The first limit that is out of range.
pub fn check_limits(limits: &Limits) -> Result<(), VmConfigError> {
    if let Some(percent) = outside(limits.cpu_quota_percent, 1, MAX_CPU_QUOTA_PERCENT) {
        return Err(VmConfigError::CpuQuota(percent));
    }
    let weights = [
        ("cpu_weight", limits.cpu_weight),
        ("io_weight", limits.io_weight),
    ];
    for (field, weight) in weights {
        if let Some(weight) = outside(weight, 1, MAX_WEIGHT) {
            return Err(VmConfigError::Weight(field, weight));
        }
    }
    Ok(())
}

/// # Errors
/// The first name that is none of [`RLIMITS`], or limits in the wrong order.
pub fn check_rlimits(rlimits: &BTreeMap<String, Rlimit>) -> Result<(), VmConfigError> {
    for (name, limit) in rlimits {
        if !RLIMITS.contains(&name.as_str()) {
            return Err(VmConfigError::Rlimit(shortened(name)));
        }
        let or_none = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        if or_none(limit.soft) > or_none(limit.hard) {
            return Err(VmConfigError::RlimitOrder(name.clone()));
        }
    }
    Ok(())
}

/// The size of a disk, in MiB.
///
/// # Errors
/// It is out of range; `field` is named.
pub fn check_size(field: &str, size: u32) -> Result<(), VmConfigError> {
    match outside(Some(size), MIN_DISK_MB, MAX_DISK_MB) {
        None => Ok(()),
        Some(size) => Err(VmConfigError::Size {
            field: field.to_owned(),
            size,
        }),
    }
}

/// A place in the guest where something can be mounted.
pub(crate) fn check_target(field: &str, target: &Path) -> Result<(), VmConfigError> {
    check_path(field, target)?;
    let is_taken = TAKEN.iter().any(|taken| target.starts_with(taken));
    if is_taken || target == Path::new("/") || target == Path::new("/run") {
        return Err(VmConfigError::Target {
            field: field.to_owned(),
            path: target.to_string_lossy().into_owned(),
        });
    }
    Ok(())
}

/// A program in the guest that can be PID 1.
///
/// # Errors
/// It is no absolute path of a file.
pub fn check_init(init: &str) -> Result<(), VmConfigError> {
    check_path("init", init)?;
    if init.ends_with('/') {
        return Err(VmConfigError::Path {
            field: "init".to_owned(),
            path: init.to_owned(),
        });
    }
    Ok(())
}

fn check_path(field: &str, path: impl AsRef<Path>) -> Result<(), VmConfigError> {
    let path = path.as_ref();
    let text = path.to_str();
    let is_fine = text.is_some_and(|text| {
        text.starts_with('/') && text.len() <= MAX_PATH && !text.contains('\0')
    }) && !path.components().any(|part| part == Component::ParentDir);
    if is_fine {
        Ok(())
    } else {
        Err(VmConfigError::Path {
            field: field.to_owned(),
            path: shortened(&path.to_string_lossy()),
        })
    }
}

fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), VmConfigError> {
    if count > most {
        return Err(VmConfigError::TooMany(field, most));
    }
    Ok(())
}

fn outside(value: Option<u32>, min: u32, max: u32) -> Option<u32> {
    value.filter(|value| !(min..=max).contains(value))
}

fn is_variable(text: &str) -> bool {
    text.len() <= 256
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// So much of a text as an error needs to show.
fn shortened(text: &str) -> String {
    text.chars().take(256).collect()
}
