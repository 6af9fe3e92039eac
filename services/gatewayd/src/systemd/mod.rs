//! Units by systemd's D-Bus API: started, stopped, looked at. A change is waited for until its job ended.

mod jobs;
pub mod proxies;
mod unit;
mod usage;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use zbus::{Connection, OwnedObjectPath, proxy::CacheProperties};

pub use unit::{ActiveState, Exit, UnitState};
pub use usage::Usage;

use jobs::Jobs;
use proxies::{ManagerProxy, ServiceProxy, UnitProxy};

/// What a call on the bus may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// What a job may take; units have shorter timeouts of their own.
const JOB_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Calls on the bus that wait for their replies at once. The system bus refuses a connection that has more than 128 of
/// them.
const CALLS: u32 = 100;
/// The most of them that one look at a unit makes at once.
const LOOK: u32 = 5;
/// The new job takes the place of one that contradicts it.
const MODE: &str = "replace";

/// systemd, over one connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Systemd {
    bus: Connection,
    manager: ManagerProxy<'static>,
    jobs: Jobs,
    calls: Arc<Semaphore>,
}

/// A change of a unit that systemd makes a job of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Start,
    Stop,
    Restart,
    Reload,
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobResult {
    Done,
    /// Another job took its place.
    Canceled,
    /// In systemd's words.
    Failed(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("cannot subscribe to systemd's signals")]
    Subscribe(#[source] zbus::Error),
    #[error(
        "systemd does not let this service {act} {unit}: is polkit running, and is Volant's rule \
         (50-volant.rules in /usr/share/polkit-1/rules.d) installed?"
    )]
    NotAllowed { act: &'static str, unit: String },
    /// systemd understood, and will not.
    #[error("systemd refuses to {act} {unit}: {message}")]
    Refused {
        act: &'static str,
        unit: String,
        message: String,
    },
    #[error("there is no unit {unit}")]
    NoUnit { unit: String },
    #[error("cannot {act} {unit}")]
    Call {
        act: &'static str,
        unit: String,
        source: zbus::Error,
    },
    #[error("lost systemd while it was to {act} {unit}")]
    Lost { act: &'static str, unit: String },
    #[error(
        "systemd did not {act} {unit} within {} minutes", JOB_TIMEOUT.as_secs() / 60
    )]
    Slow { act: &'static str, unit: String },
    #[error("{unit} is in the state '{state}', which this build does not know")]
    State { unit: String, state: String },
}

/// The system bus, with a timeout for every call.
///
/// # Errors
/// There is no bus.
pub async fn system_bus() -> zbus::Result<Connection> {
    zbus::connection::Builder::system()
        .method_timeout(CALL_TIMEOUT)
        .build()
        .await
}

impl Systemd {
    /// The systemd at the other end of the bus. Hears of the ends of jobs from now on.
    ///
    /// # Errors
    /// systemd does not answer.
    pub async fn new(bus: &Connection) -> Result<Self, SystemdError> {
        let subscribe = async {
            let manager = ManagerProxy::new(bus).await?;
            let ends = manager.receive_job_removed().await?;
            manager.subscribe().await?;
            Ok((manager, ends))
        };
        let (manager, mut ends) = subscribe.await.map_err(SystemdError::Subscribe)?;
        let jobs = Jobs::default();
        // One reader that never waits for anything: a signal that is not taken would hold up every reply behind it.
        tokio::spawn({
            let jobs = jobs.clone();
            async move {
                while let Some(end) = ends.next().await {
                    match end.args() {
                        Ok(end) => jobs.ended(end.job.as_str(), &end.result),
                        Err(error) => tracing::warn!("cannot read a JobRemoved signal: {error}"),
                    }
                }
                jobs.close();
            }
        });
        Ok(Self {
            bus: bus.clone(),
            manager,
            jobs,
            calls: Arc::new(Semaphore::new(CALLS as usize)),
        })
    }

    /// The bus that systemd is on, for one call: it waits until there is room for it.
    pub async fn bus(&self) -> (&Connection, SemaphorePermit<'_>) {
        (&self.bus, self.room(1).await)
    }

    /// Room for so many calls, until the answer is dropped.
    async fn room(&self, calls: u32) -> SemaphorePermit<'_> {
        let room = self.calls.acquire_many(calls).await;
        room.expect("nobody closes the semaphore")
    }

    /// Starts, stops, restarts or reloads a unit, and waits until that is done. Idempotent: what is so already is done at once.
    ///
    /// # Errors
    /// systemd refuses or is gone.
    pub async fn carry_out(&self, change: Change, unit: &str) -> Result<JobResult, SystemdError> {
        let act = change.verb();
        let call = self.jobs.call();
        let room = self.room(1).await;
        let job = match change {
            Change::Start => self.manager.start_unit(unit, MODE).await,
            Change::Stop => self.manager.stop_unit(unit, MODE).await,
            Change::Restart => self.manager.restart_unit(unit, MODE).await,
            Change::Reload => self.manager.reload_unit(unit, MODE).await,
        };
        let job = job.map_err(|error| refused(act, unit, error))?;
        drop(room);
        let end = call.wait(job.as_str());
        let unit = || unit.to_owned();
        match tokio::time::timeout(JOB_TIMEOUT, end).await {
            Ok(Ok(result)) => Ok(match result.as_str() {
                "done" => JobResult::Done,
                "canceled" => JobResult::Canceled,
                _ => JobResult::Failed(result),
            }),
            Ok(Err(_)) => Err(SystemdError::Lost { act, unit: unit() }),
            Err(_) => Err(SystemdError::Slow { act, unit: unit() }),
        }
    }

    /// Makes systemd forget that the unit failed. One that did not fail, or that is not loaded, is fine.
    ///
    /// # Errors
    /// systemd refuses or is gone.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), SystemdError> {
        let _room = self.room(1).await;
        let reset = self.manager.reset_failed_unit(unit).await;
        match reset.map_err(|error| refused("reset the failure of", unit, error)) {
            Err(SystemdError::NoUnit { .. }) => Ok(()),
            other => other,
        }
    }

    /// What is known of a unit. One that nobody started is inactive.
    ///
    /// # Errors
    /// systemd is gone, or says what this build does not understand.
    pub async fn unit(&self, unit: &str) -> Result<UnitState, SystemdError> {
        let room = self.room(1).await;
        let path = self.manager.load_unit(unit).await;
        drop(room);
        let path = path.map_err(|error| refused("look at", unit, error))?;
        self.loaded_unit(unit, path).await
    }

    /// The paths of the units that fit the pattern, by name, but only of those that are loaded. A unit is loaded that
    /// runs, failed, or is wanted by a loaded one, as by the target that it is enabled for; to load the others only to
    /// hear that they are inactive takes systemd milliseconds each.
    ///
    /// # Errors
    /// systemd is gone.
    pub async fn loaded(
        &self,
        pattern: &str,
    ) -> Result<HashMap<String, OwnedObjectPath>, SystemdError> {
        let _room = self.room(1).await;
        let listed = self.manager.list_units_by_patterns(&[], &[pattern]).await;
        let listed = listed.map_err(|error| refused("list", pattern, error))?;
        Ok(listed
            .into_iter()
            .map(|unit| (unit.name, unit.path))
            .collect())
    }

    /// The states of the loaded units that fit the pattern; one that this build does not know is left out.
    ///
    /// # Errors
    /// systemd is gone.
    pub async fn states(&self, pattern: &str) -> Result<Vec<(String, ActiveState)>, SystemdError> {
        let _room = self.room(1).await;
        let listed = self.manager.list_units_by_patterns(&[], &[pattern]).await;
        let listed = listed.map_err(|error| refused("list", pattern, error))?;
        let states = listed.into_iter().filter_map(|unit| {
            let state = ActiveState::parse(&unit.active_state)?;
            Some((unit.name, state))
        });
        Ok(states.collect())
    }

    /// What is known of a unit at this path.
    ///
    /// # Errors
    /// systemd is gone, or says what this build does not understand.
    pub async fn loaded_unit(
        &self,
        unit: &str,
        path: OwnedObjectPath,
    ) -> Result<UnitState, SystemdError> {
        let looked = self.look_at(path).await;
        let (state, known) = looked.map_err(|error| refused("look at", unit, error))?;
        known.ok_or_else(|| SystemdError::State {
            unit: unit.to_owned(),
            state,
        })
    }

    /// Only what is needed, one by one: systemd has hundreds of properties, some of which it reads from files when asked
    /// for all.
    async fn look_at(&self, path: OwnedObjectPath) -> zbus::Result<(String, Option<UnitState>)> {
        let _room = self.room(LOOK).await;
        let general = UnitProxy::builder(&self.bus)
            .path(path.clone())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let (active, sub, file) = futures_util::try_join!(
            general.active_state(),
            general.sub_state(),
            general.unit_file_state()
        )?;
        let Some(parsed) = ActiveState::parse(&active) else {
            return Ok((active, None));
        };
        let mut state = UnitState {
            active: parsed,
            sub,
            enabled: matches!(file.as_str(), "enabled" | "enabled-runtime"),
            ..UnitState::unloaded()
        };
        // Also of one that is down: how its last run ended.
        let service = ServiceProxy::builder(&self.bus)
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let (result, restarts, status_text, code, status) = futures_util::try_join!(
            service.result(),
            service.n_restarts(),
            service.status_text(),
            service.exec_main_code(),
            service.exec_main_status()
        )?;
        state.result = result;
        state.restarts = restarts;
        state.status_text = status_text;
        state.exit = Exit { code, status };
        Ok((active, Some(state)))
    }
}

fn refused(act: &'static str, unit: &str, error: zbus::Error) -> SystemdError {
    let unit = unit.to_owned();
    match error {
        zbus::Error::MethodError(name, message, _) => {
            let message = message.unwrap_or_else(|| name.to_string());
            match name.as_str() {
                "org.freedesktop.systemd1.NoSuchUnit" => SystemdError::NoUnit { unit },
                "org.freedesktop.DBus.Error.AccessDenied"
                | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
                    SystemdError::NotAllowed { act, unit }
                }
                _ => SystemdError::Refused { act, unit, message },
            }
        }
        zbus::Error::FDO(error) => match *error {
            zbus::fdo::Error::AccessDenied(_)
            | zbus::fdo::Error::InteractiveAuthorizationRequired(_) => {
                SystemdError::NotAllowed { act, unit }
            }
            other => SystemdError::Call {
                act,
                unit,
                source: zbus::Error::FDO(Box::new(other)),
            },
        },
        source => SystemdError::Call { act, unit, source },
    }
}
