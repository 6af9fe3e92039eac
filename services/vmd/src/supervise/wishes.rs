//! What somebody wishes of the VM, carried out and answered.

use volant_spec::Resources;

use super::Supervisor;
use crate::{
    handle::{Ask, HandleError, Wish},
    happening::Happening,
    hypervisor::{Control, ControlError, ResizeError},
    life::{Denied, Effect, Event, Request, Step},
};

impl Supervisor {
    pub(super) async fn answer(&mut self, ask: Ask) {
        let answer = match ask.wish {
            Wish::Pause => self.wish(Request::Pause).await,
            Wish::Resume => self.wish(Request::Resume).await,
            Wish::Resize {
                cpu_cores,
                memory_mb,
            } => self.resize(cpu_cores, memory_mb).await,
        };
        // Whoever asked may be gone.
        let _ = ask.answer.send(answer);
    }

    async fn wish(&mut self, request: Request) -> Result<(), HandleError> {
        let (_, effects) = self.life.clone().request(request).map_err(denied)?;
        for effect in effects {
            match effect {
                Effect::Pause => {
                    self.control()?
                        .pause()
                        .await
                        .map_err(|error| failed(&error))?;
                    self.observe(Event::Paused).await;
                }
                Effect::Resume => {
                    self.control()?
                        .resume()
                        .await
                        .map_err(|error| failed(&error))?;
                    self.commands.set_clock();
                    self.observe(Event::Resumed).await;
                }
                // A wish that has others is the life's to carry out.
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets a paused guest go on that is to be stopped. What fails here is left to the ladder's next rungs.
    pub(super) async fn resume_for_stop(&mut self) {
        if let Some(machine) = &mut self.machine {
            if let Err(error) = machine.control.resume().await {
                tracing::warn!("{error}");
            }
            self.commands.set_clock();
        }
    }

    async fn resize(
        &mut self,
        cpu_cores: Option<u32>,
        memory_mb: Option<u32>,
    ) -> Result<(), HandleError> {
        let from = self.vm.spec.resources;
        let to = Resources::new(
            cpu_cores.unwrap_or(from.cpu_cores),
            memory_mb.unwrap_or(from.memory_mb),
        )
        .map_err(|error| HandleError::Invalid(error.to_string()))?;
        match self.life.step() {
            Step::Running => {}
            Step::Paused => return Err(denied(Denied::Paused)),
            Step::Starting | Step::Booting { .. } => return Err(denied(Denied::Boots)),
            Step::Stopping(_) => return Err(denied(Denied::Stops)),
            Step::Ended(_) => return Err(HandleError::Gone),
        }
        if to == from {
            return Ok(());
        }
        let resized = self.control()?.resize(from, to).await;
        resized.map_err(|error| match error {
            ResizeError::Unsupported(why) => HandleError::Unsupported(why),
            ResizeError::Control(error) => failed(&error),
        })?;
        // A reboot starts it with these.
        self.vm.spec.resources = to;
        self.vm.live.send_modify(|live| {
            live.cpu_cores = to.cpu_cores;
            live.memory_mb = to.memory_mb;
        });
        self.tell(Happening::resized(to.cpu_cores, to.memory_mb))
            .await;
        Ok(())
    }

    fn control(&mut self) -> Result<&mut dyn Control, HandleError> {
        let machine = self.machine.as_mut().ok_or(HandleError::Gone)?;
        Ok(machine.control.as_mut())
    }
}

fn denied(denied: Denied) -> HandleError {
    match denied {
        Denied::Ended => HandleError::Gone,
        _ => HandleError::Denied(denied.to_string()),
    }
}

fn failed(error: &ControlError) -> HandleError {
    HandleError::Failed(error.to_string())
}
