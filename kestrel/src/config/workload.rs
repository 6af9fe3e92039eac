//! The program that the VM is for: what it is, and how it is held.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use volant_proto::agent::v1;

use super::{ConfigError, HealthConfig, Rlimit, invalid, is_variable, parse};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadConfig {
    pub program: String,
    pub arguments: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: PathBuf,
    /// Directories that hold data, absolute.
    pub volumes: Vec<PathBuf>,
    /// `USER[:GROUP]`, names or numbers; empty: root.
    pub user: String,
    pub stop_signal: Signal,
    pub stop_grace: Duration,
    pub restart: Restart,
    /// Absent: it is healthy while it runs.
    pub health: Option<HealthConfig>,
    pub rlimits: Vec<Rlimit>,
}

/// Whether the workload is started again when it ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Never,
    OnFailure,
    Always,
}

impl TryFrom<v1::Workload> for WorkloadConfig {
    type Error = ConfigError;

    fn try_from(workload: v1::Workload) -> Result<Self, ConfigError> {
        let mut words = workload.entrypoint.into_iter();
        let program = words
            .next()
            .filter(|program| !program.is_empty())
            .ok_or(ConfigError::Missing("entrypoint"))?;
        if let Some(key) = workload.env.keys().find(|key| !is_variable(key)) {
            return Err(invalid("name of an environment variable", key));
        }
        let workdir = match workload.workdir.as_str() {
            "" => "/",
            dir if dir.starts_with('/') => dir,
            dir => return Err(invalid("absolute working directory", dir)),
        };
        if let Some(dir) = workload.volumes.iter().find(|dir| !dir.starts_with('/')) {
            return Err(invalid("absolute directory of a volume", dir));
        }
        if workload.user.contains('\0') {
            return Err(invalid("user", workload.user));
        }
        let stop_signal = match workload.stop_signal.as_str() {
            "" => Signal::SIGTERM,
            name => parse("signal", name)?,
        };
        let restart = match v1::Restart::try_from(workload.restart) {
            // A host that knows of no restarts.
            Ok(v1::Restart::Unspecified | v1::Restart::Never) => Restart::Never,
            Ok(v1::Restart::OnFailure) => Restart::OnFailure,
            Ok(v1::Restart::Always) => Restart::Always,
            Err(_) => return Err(invalid("restart policy", workload.restart.to_string())),
        };
        Ok(Self {
            program,
            arguments: words.collect(),
            workdir: workdir.into(),
            volumes: workload.volumes.into_iter().map(PathBuf::from).collect(),
            user: workload.user,
            env: workload.env.into_iter().collect(),
            stop_signal,
            stop_grace: Duration::from_millis(workload.stop_grace_ms.into()),
            restart,
            health: workload
                .health_check
                .map(HealthConfig::try_from)
                .transpose()?,
            rlimits: workload
                .rlimits
                .into_iter()
                .map(Rlimit::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}
