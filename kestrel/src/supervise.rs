//! From the start of the workload to the wish to end the machine. [`crate::life`] decides, this does.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use nix::{errno::Errno, sys::signal::Signal, unistd::Pid};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};
use volant_proto::agent::v1::{self, report_request::Report, send_logs_request::Stream};

use crate::{
    cause::chain,
    console,
    guest::GuestError,
    health::{self, Finding},
    kernel::Kernel,
    life::{Ask, Effect, Event, Life, Reason},
    logs::{self, Logs},
    oom::OomWatch,
    reap::{Exit, Reaper},
    reports::Reports,
    session::Facts,
    workload::{Program, Workload},
};

/// How long what was killed may take to be gone.
pub const GONE_WITHIN: Duration = Duration::from_secs(2);
/// A check has two findings at most, and the one of an earlier start may still be there.
const FINDINGS: usize = 4;
/// What stands for an exit that was lost.
const UNKNOWN_EXIT: Exit = Exit {
    code: 255,
    signal: 0,
};

/// What a supervisor works with.
#[derive(Debug)]
pub struct Tools<'a, K> {
    pub kernel: &'a K,
    pub reaper: &'a Arc<Reaper>,
    pub logs: &'a Arc<Logs>,
    pub reports: &'a Reports,
    pub facts: &'a Facts,
}

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    pub reason: Reason,
    /// How the workload ended; `None`: it did not, or never ran.
    pub exit: Option<v1::WorkloadExited>,
}

/// A start of the workload.
#[derive(Debug)]
struct Run {
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
    oom: OomWatch,
    check: Option<AbortHandle>,
}

#[derive(Debug)]
struct Supervisor<'a, K> {
    tools: Tools<'a, K>,
    program: Arc<Program>,
    /// The readers of the workload's pipes.
    readers: &'a mut JoinSet<()>,
    life: Life,
    begun: Instant,
    run: Option<Run>,
    starts: u32,
    last: Option<v1::WorkloadExited>,
    /// The group of the start that has ended.
    left: Option<Pid>,
    deadline: Option<Instant>,
    findings: mpsc::Sender<Finding>,
    is_ready: bool,
    told_health: Option<bool>,
    /// What has happened by what was done.
    events: VecDeque<Event>,
}

/// Starts the workload, and again as its policy says, until the machine is to end.
///
/// # Errors
/// The workload could not be started at all.
pub async fn supervise<K: Kernel>(
    tools: Tools<'_, K>,
    program: Arc<Program>,
    readers: &mut JoinSet<()>,
    asked: &mut mpsc::Receiver<Ask>,
) -> Result<Outcome, GuestError> {
    let (findings, mut found) = mpsc::channel(FINDINGS);
    let mut supervisor = Supervisor {
        life: Life::new(program.config().restart),
        tools,
        program,
        readers,
        begun: Instant::now(),
        run: None,
        starts: 0,
        last: None,
        left: None,
        deadline: None,
        findings,
        is_ready: false,
        told_health: None,
        events: VecDeque::new(),
    };
    supervisor.launch()?;
    loop {
        let event = match supervisor.events.pop_front() {
            Some(event) => event,
            None => supervisor.event(asked, &mut found).await,
        };
        if let Some(reason) = supervisor.on(event) {
            let exit = supervisor.last.take();
            return Ok(Outcome { reason, exit });
        }
    }
}

impl<K: Kernel> Supervisor<'_, K> {
    /// Waits for what happens next.
    async fn event(
        &mut self,
        asked: &mut mpsc::Receiver<Ask>,
        found: &mut mpsc::Receiver<Finding>,
    ) -> Event {
        loop {
            let deadline = self.deadline;
            let exit = async {
                match &mut self.run {
                    Some(run) => (&mut run.exit).await.unwrap_or(UNKNOWN_EXIT),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = exit => return self.exited(exit),
                Some(ask) = asked.recv() => return Event::Asked(ask),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.deadline = None;
                    return Event::TimeOver;
                }
                Some(finding) = found.recv() => {
                    let is_now = finding.start == self.starts && self.run.is_some();
                    if is_now && let Some(event) = self.found(finding.healthy) {
                        return event;
                    }
                }
            }
        }
    }

    /// Has `life` decide, and does it. Gives the reason when the machine is to end.
    fn on(&mut self, event: Event) -> Option<Reason> {
        match self.life.on(event, self.begun.elapsed()) {
            Effect::Nothing => {}
            Effect::Stop { grace } => self.stop(grace),
            Effect::Hurry { grace } => {
                let soon = Instant::now() + grace;
                self.deadline = Some(self.deadline.map_or(soon, |deadline| deadline.min(soon)));
            }
            Effect::Kill => {
                self.tools
                    .logs
                    .say("the workload's grace is over: killing it");
                self.signal_run(Signal::SIGKILL);
                self.deadline = Some(Instant::now() + GONE_WITHIN);
            }
            Effect::Wait {
                delay,
                restarts,
                unhealthy,
            } => self.wait(delay, restarts, unhealthy),
            Effect::Launch => {
                if let Err(error) = self.launch() {
                    let cause = chain(&error);
                    console::say(&cause);
                    self.tools.reports.tell(Report::Fatal(v1::Fatal { cause }));
                    self.events.push_back(Event::Failed);
                }
            }
            Effect::EndMachine(reason) => {
                self.forget_check();
                return Some(reason);
            }
        }
        None
    }

    /// Starts the workload, and its check.
    fn launch(&mut self) -> Result<(), GuestError> {
        // Those whose pipes have ended.
        while self.readers.try_join_next().is_some() {}
        let oom = OomWatch::start();
        let Workload {
            pid,
            exit,
            stdout,
            stderr,
        } = self
            .program
            .start(self.tools.reaper)
            .map_err(GuestError::Workload)?;
        for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            let logs = Arc::clone(self.tools.logs);
            self.readers
                .spawn(async move { logs::read(pipe, stream, &logs).await });
        }
        self.starts = self.starts.wrapping_add(1);
        self.last = None;
        let started = v1::WorkloadStarted { pid: number(pid) };
        self.tools.reports.tell(Report::WorkloadStarted(started));
        let check = match &self.program.config().health {
            Some(config) => {
                self.tools.facts.set_starting();
                let watch = health::watch(
                    config.clone(),
                    Arc::clone(&self.program),
                    Arc::clone(self.tools.reaper),
                    self.starts,
                    self.findings.clone(),
                );
                Some(tokio::spawn(watch).abort_handle())
            }
            None => {
                self.ready();
                None
            }
        };
        self.run = Some(Run {
            pid,
            exit,
            oom,
            check,
        });
        self.events.push_back(Event::Started);
        Ok(())
    }

    fn ready(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.tools.reports.tell(Report::Ready(v1::Ready {}));
        }
    }

    /// Tells what the check found, where that is news.
    fn found(&mut self, healthy: Result<(), String>) -> Option<Event> {
        let is_healthy = healthy.is_ok();
        let detail = healthy.err().unwrap_or_default();
        self.tools.facts.set_healthy(is_healthy);
        if self.told_health.replace(is_healthy) != Some(is_healthy) {
            let changed = v1::HealthChanged {
                healthy: is_healthy,
                detail: detail.clone(),
            };
            self.tools.reports.tell(Report::HealthChanged(changed));
        }
        if is_healthy {
            self.ready();
            return None;
        }
        self.tools
            .logs
            .say(&format!("the workload is not healthy: {detail}"));
        Some(Event::Unhealthy)
    }

    fn exited(&mut self, exit: Exit) -> Event {
        self.forget_check();
        self.deadline = None;
        if let Some(mut run) = self.run.take() {
            let out_of_memory = run.oom.ended(number(run.pid), exit);
            self.left = Some(run.pid);
            self.last = Some(v1::WorkloadExited {
                code: exit.code,
                signal: exit.signal,
                out_of_memory,
            });
        }
        Event::Exited {
            success: exit.code == 0,
        }
    }

    fn wait(&mut self, delay: Duration, restarts: u32, unhealthy: bool) {
        // What it left of its group must not meet the next start. Without a restart it ends with the machine.
        if let Some(group) = self.left.take() {
            self.signal(group, Signal::SIGKILL);
        }
        let exit = self.last.unwrap_or_default();
        self.tools.logs.say(&format!(
            "the workload ended with {}{}: starting it again in {} ms",
            exit.code,
            if exit.out_of_memory {
                ", as the guest's memory was short"
            } else {
                ""
            },
            delay.as_millis()
        ));
        self.tools.facts.set_restarts(restarts);
        let restarting = v1::WorkloadRestarting {
            exit: Some(exit),
            restarts,
            delay_ms: delay.as_millis().try_into().unwrap_or(u32::MAX),
            unhealthy,
        };
        self.tools
            .reports
            .tell(Report::WorkloadRestarting(restarting));
        self.deadline = Some(Instant::now() + delay);
    }

    fn stop(&mut self, grace: Option<Duration>) {
        self.forget_check();
        let config = self.program.config();
        let (signal, grace) = (config.stop_signal, grace.unwrap_or(config.stop_grace));
        self.tools.logs.say(&format!(
            "stopping the workload with {signal}, {} ms of grace",
            grace.as_millis()
        ));
        self.signal_run(signal);
        self.deadline = Some(Instant::now() + grace);
    }

    fn signal_run(&self, signal: Signal) {
        if let Some(run) = &self.run {
            self.signal(run.pid, signal);
        }
    }

    fn signal(&self, group: Pid, signal: Signal) {
        // ESRCH: all of the group has ended, and its exit is told or on its way.
        match self.tools.kernel.signal_group(group, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => self
                .tools
                .logs
                .say(&format!("cannot send {signal} to the workload: {errno}")),
        }
    }

    /// A workload that ends answers no more.
    fn forget_check(&mut self) {
        if let Some(check) = self.run.as_mut().and_then(|run| run.check.take()) {
            check.abort();
        }
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw().try_into().unwrap_or(0)
}
