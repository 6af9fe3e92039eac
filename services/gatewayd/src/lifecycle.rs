//! VMs made, started, stopped and deleted: which steps, in which order, and what happens when one fails.
//!
//! ```text
//! create   registryd CreateVm ─▶ (enable) ─▶ start        a start that fails: deleted again
//! delete   registryd DeleteVm (a tombstone) ─▶ stop ─▶ (disable, forget) ─▶ ipamd ReleaseLease ─▶ registryd PurgeVm
//! ```
//! A deletion that is cut off anywhere is finished at the next start: its tombstone is still there.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tracing::Instrument;
use volant_proto::{
    ipam::v1::Lease,
    registry::v1::{CreateVmRequest, Vm as Defined},
};
use volant_spec::{Name, unit};

use crate::{
    Gateway, Kind, Problem,
    deletion::cut_off,
    live,
    systemd::{ActiveState, Change, JobResult, SystemdError, UnitState},
    view,
};

/// How many VMs are looked at at once for a list.
const AT_ONCE: usize = 32;
/// The units of all VMs.
pub(crate) const EVERY_VM: &str = "volant-vm@*.service";
/// What ipamd may take to tell the leases; VMs are shown without them then.
const LEASES: Duration = Duration::from_secs(3);
/// How often a unit is stopped that somebody else starts again.
const STOPS: usize = 3;
/// What something else that took a unit in hand may take to start it; units have shorter timeouts of their own.
const SETTLING: Duration = Duration::from_secs(15 * 60);
/// Between the looks at such a unit.
const LOOKS: Duration = Duration::from_millis(250);
/// Between the tries to finish a deletion that was cut off.
const RETRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(30),
];

/// What a VM is to be.
#[derive(Clone, Debug)]
pub struct NewVm {
    pub name: Name,
    pub request: CreateVmRequest,
    pub start: bool,
    pub enable: bool,
}

/// Whether a VM starts at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtBoot {
    Start,
    Leave,
}

/// What a start came to that did not fail.
enum Launch {
    Ready,
    /// Something else stopped the VM, or has it in hand: no reason to take it back.
    Overruled(Problem),
}

impl Gateway {
    /// All VMs, by name.
    ///
    /// # Errors
    /// registryd or systemd does not answer. ipamd may be away: then stopped VMs have no address.
    pub async fn vms(&self) -> Result<Vec<view::Vm>, Problem> {
        let (defined, leases, loaded) = tokio::join!(
            self.registry().vms(),
            self.leases(),
            self.systemd().loaded(EVERY_VM)
        );
        let loaded = loaded?;
        let (leases, loaded) = (&leases, &loaded);
        let views = defined?.into_iter().map(|vm| async move {
            let (name, unit_name) = named(&vm)?;
            let unit = match loaded.get(&unit_name) {
                Some(path) => self.systemd().loaded_unit(&unit_name, path.clone()).await,
                None => Ok(UnitState::unloaded()),
            };
            let lease = leases.get(&vm.name);
            self.view(vm, &name, unit_name, unit, lease).await
        });
        let views: Vec<_> = stream::iter(views).buffered(AT_ONCE).collect().await;
        views.into_iter().collect()
    }

    /// One VM.
    ///
    /// # Errors
    /// There is none of that name; registryd or systemd does not answer.
    pub async fn vm(&self, name: &Name) -> Result<view::Vm, Problem> {
        let (defined, leases) = tokio::join!(self.registry().vm(name), self.leases());
        let (defined, unit_name) = (defined?, unit::vm(name));
        let unit = self.systemd().unit(&unit_name).await;
        let lease = leases.get(name.as_str());
        self.view(defined, name, unit_name, unit, lease).await
    }

    /// All leases that are known in time.
    async fn leases(&self) -> HashMap<String, Lease> {
        match tokio::time::timeout(LEASES, self.ipam().leases()).await {
            Ok(Ok(leases)) => return leases,
            Ok(Err(problem)) => tracing::warn!("VMs are shown without their leases: {problem}"),
            Err(_) => tracing::warn!("VMs are shown without their leases: ipamd is silent"),
        }
        HashMap::new()
    }

    async fn view(
        &self,
        defined: Defined,
        name: &Name,
        unit_name: String,
        unit: Result<UnitState, SystemdError>,
        lease: Option<&Lease>,
    ) -> Result<view::Vm, Problem> {
        let unit = unit?;
        let live = match unit.active.is_down() {
            true => None,
            false => live::ask(self.systemd(), name).await,
        };
        let running = live.as_ref().and_then(|live| live.config_version);
        let differs = match running {
            Some(version) if version != defined.config_version => {
                self.differs(name, version, &defined.config).await
            }
            _ => false,
        };
        Ok(view::vm(defined, unit_name, &unit, live, lease, differs))
    }

    /// Defines a VM and starts it. Goes on when the caller does not wait. No trace is left of a VM that does not start,
    /// but one that something else stopped meanwhile stays.
    ///
    /// # Errors
    /// The definition is refused, or the start fails: with the reason.
    pub async fn create(&self, new: NewVm) -> Result<view::Vm, Problem> {
        let this = self.clone();
        self.see_through(async move {
            this.check_new_devices(&new).await?;
            let defined = this.registry().create_vm(&new.request).await?;
            let name = new.name;
            this.events().tell(name.as_str(), "created");
            let began = async {
                if new.enable {
                    this.change_boot(&name, AtBoot::Start).await?;
                }
                if new.start {
                    return this.launch(&name, Change::Start).await;
                }
                Ok(Launch::Ready)
            };
            match began.await {
                Ok(Launch::Ready) => this.vm(&name).await,
                Ok(Launch::Overruled(problem)) => Err(problem),
                Err(problem) => Err(this.take_back(&name, &defined, problem).await),
            }
        })
        .await
    }

    /// Removes a VM whose creation failed, and gives the problem to tell.
    async fn take_back(&self, name: &Name, defined: &Defined, problem: Problem) -> Problem {
        let removed = match self.registry().vm(name).await {
            // Somebody else deleted it, and perhaps made another one: that is not ours.
            Ok(vm) if vm.uuid != defined.uuid => Ok(()),
            Err(gone) if gone.kind == Kind::NoSuchVm => Ok(()),
            Ok(_) => self.delete(name).await,
            Err(other) => Err(other),
        };
        match removed {
            Ok(()) => problem,
            Err(left) if left.kind == Kind::NoSuchVm => problem,
            Err(left) => {
                let detail = format!(
                    "{}; it could not be removed again: {}; delete it",
                    problem.detail, left.detail
                );
                Problem { detail, ..problem }
            }
        }
    }

    /// Starts, stops or restarts a VM and waits until it is so. Idempotent; goes on when the caller does not wait.
    ///
    /// # Errors
    /// There is no such VM, it is being deleted, or it does not start.
    pub async fn change(&self, name: Name, change: Change) -> Result<view::Vm, Problem> {
        let this = self.clone();
        self.see_through(async move {
            this.present(&name).await?;
            match change {
                Change::Start | Change::Restart => match this.launch(&name, change).await? {
                    Launch::Ready => {}
                    Launch::Overruled(problem) => return Err(problem),
                },
                Change::Stop => this.halt(&name).await?,
                Change::Reload => this.reload(&name).await?,
            }
            this.vm(&name).await
        })
        .await
    }

    /// Makes a VM start at boot, or not. Idempotent; goes on when the caller does not wait.
    ///
    /// # Errors
    /// There is no such VM, it is being deleted, or systemd refuses.
    pub async fn at_boot(&self, name: Name, at_boot: AtBoot) -> Result<view::Vm, Problem> {
        let this = self.clone();
        self.see_through(async move {
            this.present(&name).await?;
            this.change_boot(&name, at_boot).await?;
            this.vm(&name).await
        })
        .await
    }

    /// Deletes a VM. Two calls at once are one deletion; it goes on when the caller does not wait.
    ///
    /// # Errors
    /// There is no such VM; or a step fails: then it stays marked, and the deletion can be asked for again.
    pub async fn delete(&self, name: &Name) -> Result<(), Problem> {
        let begin = || {
            let (this, busy, name) = (self.clone(), self.busy(), name.clone());
            async move {
                let _busy = busy;
                this.carry_out_deletion(&name).await
            }
        };
        let deletion = self.0.deletions.join(name, begin);
        deletion.await
    }

    async fn carry_out_deletion(&self, name: &Name) -> Result<(), Problem> {
        self.registry().delete_vm(name).await?;
        self.halt(name).await?;
        let unit = unit::vm(name);
        self.systemd().reset_failed(&unit).await?;
        if self.systemd().unit(&unit).await?.enabled {
            self.change_boot(name, AtBoot::Leave).await?;
        }
        self.forget(name).await;
        self.ipam().release(name).await?;
        self.registry().purge_vm(name).await?;
        self.events().tell(name.as_str(), "deleted");
        tracing::info!("VM {name} is deleted");
        Ok(())
    }

    /// Finishes, in the background, the deletions that were cut off.
    pub fn finish_deletions(&self) {
        let (this, busy) = (self.clone(), self.busy());
        tokio::spawn(async move {
            let _busy = busy;
            let mut waits = RETRIES.into_iter();
            while let Err(problem) = this.finish_all().await {
                let Some(wait) = waits.next() else {
                    tracing::error!("deletions are left for the next start: {problem}");
                    return;
                };
                tracing::warn!("a deletion is not finished, and will be tried again: {problem}");
                tokio::time::sleep(wait).await;
            }
        });
    }

    /// Finishes every deletion, also after one that fails; the last failure is told.
    async fn finish_all(&self) -> Result<(), Problem> {
        let mut finished = Ok(());
        for vm in self.registry().vms().await? {
            if !vm.deleting {
                continue;
            }
            let Ok(name) = vm.name.parse() else { continue };
            tracing::info!("finishing the deletion of VM {name}");
            match self.delete(&name).await {
                Err(problem) if problem.kind != Kind::NoSuchVm => finished = Err(problem),
                _ => {}
            }
        }
        finished
    }

    /// The VM, unless it is being deleted.
    pub(crate) async fn present(&self, name: &Name) -> Result<Defined, Problem> {
        let defined = self.registry().vm(name).await?;
        if defined.deleting {
            let detail = format!("VM {name} is being deleted");
            return Err(Problem::new(Kind::BeingDeleted, detail));
        }
        Ok(defined)
    }

    /// Starts or restarts the unit, and waits until the guest is ready.
    async fn launch(&self, name: &Name, change: Change) -> Result<Launch, Problem> {
        let (systemd, unit) = (self.systemd(), unit::vm(name));
        // Who asks by name is not held to how often it failed or was started before: systemd counts both.
        systemd.reset_failed(&unit).await?;
        let mut overruled = false;
        let why = match systemd.carry_out(change, &unit).await {
            Ok(JobResult::Done) => return Ok(Launch::Ready),
            Ok(JobResult::Canceled) => match self.settled(&unit).await {
                Ok(left) if left.active == ActiveState::Active => return Ok(Launch::Ready),
                Ok(left) if left.active == ActiveState::Failed => left.failure(),
                Ok(left) => {
                    overruled = true;
                    let what = match left.active.is_down() {
                        true => "stopped it",
                        false => "has it in hand, and it is not ready yet",
                    };
                    format!("something else {what}; it stays defined")
                }
                Err(error) => return Ok(Launch::Overruled(error.into())),
            },
            Ok(JobResult::Failed(result)) if result == "dependency" => {
                "a unit that it depends on did not start".to_owned()
            }
            Ok(JobResult::Failed(_)) => systemd.unit(&unit).await?.failure(),
            Err(SystemdError::Refused { message, .. }) => message,
            Err(error) => return Err(error.into()),
        };
        match self.present(name).await {
            Err(problem) if problem.kind == Kind::NoSuchVm => {
                // It was deleted meanwhile: its unit is to leave no trace.
                systemd.reset_failed(&unit).await?;
                Err(problem)
            }
            Err(problem) if problem.kind == Kind::BeingDeleted => Err(problem),
            _ => {
                let detail =
                    format!("VM {name} did not start: {why}; see: journalctl -u volant-vm@{name}");
                let problem = Problem::new(Kind::StartFailed, detail);
                match overruled {
                    true => Ok(Launch::Overruled(problem)),
                    false => Err(problem),
                }
            }
        }
    }

    /// A unit that something else took in hand, once it runs or is down; or as it is after a long time.
    async fn settled(&self, unit: &str) -> Result<UnitState, SystemdError> {
        let begun = Instant::now();
        loop {
            let state = self.systemd().unit(unit).await?;
            let is_settled = state.active == ActiveState::Active || state.active.is_down();
            if is_settled || begun.elapsed() >= SETTLING {
                return Ok(state);
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    /// Has a new supervisor take the VM over; it runs on.
    async fn reload(&self, name: &Name) -> Result<(), Problem> {
        let (systemd, unit) = (self.systemd(), unit::vm(name));
        if systemd.unit(&unit).await?.active != ActiveState::Active {
            let detail = format!("VM {name} does not run: there is nothing to reload");
            return Err(Problem::new(Kind::NotRunning, detail));
        }
        match systemd.carry_out(Change::Reload, &unit).await? {
            JobResult::Done => Ok(()),
            JobResult::Canceled => Err(Problem::new(
                Kind::Unavailable,
                format!("something else took VM {name} in hand while it was reloaded"),
            )),
            JobResult::Failed(result) => Err(Problem::internal(format!(
                "the supervisor of VM {name} was not replaced ({result}); see: journalctl -u {unit}"
            ))),
        }
    }

    /// Stops the unit, and waits until it is down.
    async fn halt(&self, name: &Name) -> Result<(), Problem> {
        let (systemd, unit) = (self.systemd(), unit::vm(name));
        for _ in 0..STOPS {
            match systemd.carry_out(Change::Stop, &unit).await {
                Ok(JobResult::Done | JobResult::Canceled | JobResult::Failed(_)) => {}
                // Not even its file is there: nothing of it can run.
                Err(SystemdError::NoUnit { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if systemd.unit(&unit).await?.active.is_down() {
                return Ok(());
            }
        }
        Err(Problem::new(
            Kind::Unavailable,
            format!(
                "VM {name} was stopped {STOPS} times, and something started it again each time"
            ),
        ))
    }

    /// Removes what the VM's supervisor set of its unit, if it set anything. What stays is set again by the next VM of that
    /// name: no reason not to delete this one.
    async fn forget(&self, name: &Name) {
        let drop_ins = self.0.unit_control.join(format!("{}.d", unit::vm(name)));
        if !drop_ins.exists() {
            return;
        }
        let unit = format!("volant-vm-forget@{name}.service");
        match self.systemd().carry_out(Change::Start, &unit).await {
            Ok(JobResult::Done) => {}
            Ok(JobResult::Canceled | JobResult::Failed(_)) => {
                tracing::warn!("what was set of VM {name} is left; see: journalctl -u {unit}");
            }
            Err(error) => tracing::warn!("what was set of VM {name} is left: {error}"),
        }
    }

    /// By a unit of root's that can do nothing else: this service may not change unit files.
    async fn change_boot(&self, name: &Name, at_boot: AtBoot) -> Result<(), Problem> {
        let verb = match at_boot {
            AtBoot::Start => "enable",
            AtBoot::Leave => "disable",
        };
        let (systemd, unit) = (self.systemd(), format!("volant-vm-{verb}@{name}.service"));
        match systemd.carry_out(Change::Start, &unit).await? {
            JobResult::Done => Ok(()),
            JobResult::Canceled | JobResult::Failed(_) => {
                systemd.reset_failed(&unit).await?;
                Err(Problem::internal(format!(
                    "cannot {verb} VM {name} at boot; see: journalctl -u {unit}"
                )))
            }
        }
    }

    /// Carries work out to its end, from now on, also when the one who asked goes away.
    pub(crate) fn see_through<T, W>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, Problem>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let busy = self.busy();
        let work = async move {
            let _busy = busy;
            work.await
        };
        let task = tokio::spawn(work.in_current_span());
        async move { task.await.unwrap_or_else(|error| Err(cut_off(&error))) }
    }
}

/// A VM's name and its unit's.
fn named(defined: &Defined) -> Result<(Name, String), Problem> {
    let name: Name = defined.name.parse().map_err(|error| {
        let detail = format!("registryd has a VM with a name that is none: {error}");
        Problem::internal(detail)
    })?;
    let unit = unit::vm(&name);
    Ok((name, unit))
}

impl From<SystemdError> for Problem {
    fn from(error: SystemdError) -> Self {
        let kind = match &error {
            SystemdError::Lost { .. } | SystemdError::Slow { .. } | SystemdError::Call { .. } => {
                Kind::Unavailable
            }
            SystemdError::Subscribe(_)
            | SystemdError::NotAllowed { .. }
            | SystemdError::Refused { .. }
            | SystemdError::NoUnit { .. }
            | SystemdError::State { .. } => Kind::Internal,
        };
        // One level: errors of the bus repeat their sources.
        let detail = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Problem::new(kind, detail)
    }
}
