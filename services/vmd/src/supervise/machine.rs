//! The VMM in a supervisor's hands: launched, driven, ended.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Launching, Supervisor, handover::copy};
use crate::{
    console,
    hypervisor::{Control, LaunchError, Machine, VmmExit},
    life::Event,
};

/// How long the console may take to its end once the VMM is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
const PRESS: Duration = Duration::from_secs(1);

/// A VMM whose console is read elsewhere.
pub(super) struct Running {
    pub(super) pid: u32,
    pub(super) control: Box<dyn Control>,
    /// For who takes over.
    pub(super) console: OwnedFd,
}

impl Supervisor {
    pub(super) async fn launched(&mut self, result: Result<Machine, LaunchError>) {
        self.launching = None;
        let event = match result {
            Ok(machine) => {
                let pid = machine.pid;
                match self.adopt(machine) {
                    Ok(()) => {
                        self.vm.live.send_modify(|live| live.vmm_pid = pid);
                        tracing::info!("the VMM runs as process {pid}");
                        Event::Launched
                    }
                    Err(error) => Event::NotLaunched {
                        missing: false,
                        cause: format!("cannot keep the console open: {error}"),
                    },
                }
            }
            Err(error) => Event::NotLaunched {
                missing: matches!(error, LaunchError::NotInstalled { .. }),
                cause: volant_service::chain(&error),
            },
        };
        self.observe(event).await;
    }

    pub(super) fn adopt(&mut self, machine: Machine) -> io::Result<()> {
        let Machine {
            pid,
            console,
            control,
        } = machine;
        let kept = copy(&console)?;
        let reader = console::serve(
            console,
            self.vm.console.clone(),
            self.vm.logs.clone(),
            self.tell_panic.clone(),
        );
        self.console = Some(tokio::spawn(reader));
        self.machine = Some(Running {
            pid,
            control,
            console: kept,
        });
        Ok(())
    }

    pub(super) async fn vmm_ended(&mut self, exit: VmmExit) {
        self.machine = None;
        self.last_words().await;
        while let Ok(fact) = self.facts.try_recv() {
            self.take(fact).await;
        }
        if let Ok(line) = self.panics.try_recv() {
            self.observe(Event::Panic(line)).await;
        }
        let killed = matches!(exit, VmmExit::Killed { signal: 9, .. });
        let out_of_memory = killed && self.oom.count() > self.oom_before;
        self.vm.live.send_modify(|live| {
            live.vmm_pid = 0;
            live.workload_pid = 0;
        });
        self.observe(Event::VmmEnded {
            exit,
            out_of_memory,
        })
        .await;
    }

    /// Lets the console's reader come to its end: the last line may be the cause of it all.
    pub(super) async fn last_words(&mut self) {
        if let Some(mut console) = self.console.take()
            && timeout(LAST_WORDS, &mut console).await.is_err()
        {
            console.abort();
        }
    }

    pub(super) fn launch(&mut self) {
        self.oom_before = self.oom.count();
        self.commands.expect_boot();
        if self.life.rebooted() > 0 {
            self.vm.console.mark("the guest was rebooted");
        }
        match self.vm.spec.try_clone() {
            Ok(spec) => {
                let hypervisor = Arc::clone(&self.vm.hypervisor);
                self.launching = Some(Box::pin(async move { hypervisor.launch(spec).await }));
            }
            Err(error) => self.pending.push_back(Event::NotLaunched {
                missing: false,
                cause: format!("cannot keep the VM's files open: {error}"),
            }),
        }
    }

    pub(super) async fn press_power_button(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        match timeout(PRESS, machine.control.press_power_button()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(_) => tracing::warn!("the VMM did not press the power button in time"),
        }
    }

    pub(super) async fn kill(&mut self) {
        if self.launching.take().is_some() {
            let program = self.vm.hypervisor.name();
            self.pending.push_back(Event::VmmEnded {
                exit: VmmExit::Killed { program, signal: 9 },
                out_of_memory: false,
            });
        }
        if let Some(machine) = &mut self.machine
            && timeout(self.vm.times.kill, machine.control.kill())
                .await
                .is_err()
        {
            tracing::error!("process {} does not die", machine.pid);
        }
    }
}

/// Never resolves while nothing is launched.
pub(super) async fn poll_launch(launching: &mut Option<Launching>) -> Result<Machine, LaunchError> {
    match launching {
        Some(launch) => launch.await,
        None => std::future::pending().await,
    }
}

/// Never resolves while there is no VMM.
pub(super) async fn wait(machine: &mut Option<Running>) -> VmmExit {
    match machine {
        Some(machine) => machine.control.wait().await,
        None => std::future::pending().await,
    }
}
