//! What the guest's agent told, in a supervisor's hands.

use tokio::time::Instant;

use super::Supervisor;
use crate::{
    agent::{Fact, Restarting},
    happening::Happening,
    life::Step,
};

impl Supervisor {
    pub(super) async fn take(&mut self, fact: Fact) {
        match &fact {
            Fact::Hello {
                version, uptime_ms, ..
            } => {
                tracing::info!(
                    "kestrel {version} said hello {uptime_ms} ms after the guest's start"
                );
                self.vm
                    .live
                    .send_modify(|live| live.agent_version.clone_from(version));
            }
            Fact::WorkloadStarted { pid } => {
                self.vm.live.send_modify(|live| live.workload_pid = *pid);
            }
            Fact::Ready => self.vm.live.send_modify(|live| live.set_health(true)),
            Fact::Health { healthy, detail } => self.health(*healthy, detail).await,
            Fact::WorkloadRestarting(restarting) => self.restarting(restarting).await,
            Fact::Heartbeat(heartbeat) => {
                self.vm.live.send_modify(|live| live.heartbeat = *heartbeat);
                if *self.life.step() == Step::Running {
                    self.deadline = Instant::now() + self.life.patience().unwrap_or_default();
                    volant_service::alive();
                }
            }
            Fact::WorkloadExited(_) | Fact::Fatal(_) | Fact::GoingDown(_) => {}
        }
        if let Some(event) = fact.event() {
            self.observe(event).await;
        }
    }

    async fn restarting(&mut self, restarting: &Restarting) {
        let is_new = self.vm.live.send_if_modified(|live| {
            let is_new = restarting.restarts > live.workload_restarts;
            if is_new {
                live.workload_restarts = restarting.restarts;
                live.workload_pid = 0;
            }
            is_new
        });
        if is_new {
            self.show();
            self.tell(Happening::restarting(restarting)).await;
        }
    }

    /// Tells a change of the workload's health once. Before it is ready, it is on its way there: that is no news.
    async fn health(&mut self, healthy: bool, detail: &str) {
        let before = self.vm.live.borrow().health;
        if before.is_empty() {
            return;
        }
        if before == "starting" {
            return;
        }
        self.vm.live.send_modify(|live| live.set_health(healthy));
        if self.vm.live.borrow().health != before {
            self.tell(Happening::health(healthy, detail)).await;
        }
    }
}
