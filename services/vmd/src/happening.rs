//! What happened to a VM, for those who follow it: the journal, and the bus.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    agent::Restarting,
    ended::Ended,
    life::News,
    messages::{
        HEALTHY, PAUSED, READY, REBOOTING, RELOADED, RESIZED, RESUMED, STOPPING, UNHEALTHY,
        WORKLOAD_RESTARTING,
    },
};

/// A detail of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    Text(String),
    Number(u64),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Its name on the bus, and in `VOLANT_EVENT=`.
    pub what: &'static str,
    pub time_unix_ms: u64,
    pub details: Vec<(&'static str, Detail)>,
    /// For the journal; what is there in other words already has none.
    pub message_id: Option<&'static str>,
    /// Of the journal's entry.
    pub priority: &'static str,
    /// For people.
    pub text: String,
}

/// As usual.
const INFO: &str = "6";
const WARNING: &str = "4";

impl Happening {
    fn new(what: &'static str, message_id: Option<&'static str>, text: String) -> Self {
        Self {
            what,
            time_unix_ms: now_unix_ms(),
            details: Vec::new(),
            message_id,
            priority: INFO,
            text,
        }
    }

    fn with(mut self, name: &'static str, detail: Detail) -> Self {
        self.details.push((name, detail));
        self
    }

    /// A turn of the VM's life; `status` is the line that people see now.
    #[must_use]
    pub fn news(news: News, status: &str) -> Self {
        let message_id = match news {
            News::Ready => Some(READY),
            News::Stopping => Some(STOPPING),
            News::Rebooting => Some(REBOOTING),
            News::Paused => Some(PAUSED),
            News::Resumed => Some(RESUMED),
            // A hello and an end have their own entries.
            News::Booted | News::Ended => None,
        };
        Self::new(news.name(), message_id, status.to_owned())
            .with("status", Detail::Text(status.to_owned()))
    }

    #[must_use]
    pub fn ended(ended: &Ended) -> Self {
        let text = ended.to_string();
        let told = Self::new(News::Ended.name(), None, text.clone())
            .with("ended", Detail::Text(ended.name().to_owned()))
            .with("exit_code", Detail::Number(ended.exit_code().into()))
            .with("status", Detail::Text(text));
        match ended {
            Ended::Stopped(rung) => told.with("rung", Detail::Text(rung.name().to_owned())),
            _ => told,
        }
    }

    #[must_use]
    pub fn health(healthy: bool, detail: &str) -> Self {
        if healthy {
            let text = "the workload is healthy again".to_owned();
            return Self::new("healthy", Some(HEALTHY), text);
        }
        let text = format!("the workload is not healthy: {detail}");
        Self {
            priority: WARNING,
            ..Self::new("unhealthy", Some(UNHEALTHY), text)
        }
        .with("detail", Detail::Text(detail.to_owned()))
    }

    #[must_use]
    pub fn restarting(restarting: &Restarting) -> Self {
        let Restarting {
            exit,
            restarts,
            delay,
            unhealthy,
        } = restarting;
        let why = if *unhealthy {
            "as it was not healthy: it "
        } else {
            "as it "
        };
        let text = format!(
            "the workload is started again in {:.1} s (start {restarts} after the first), {why}{exit}",
            delay.as_secs_f64()
        );
        Self {
            priority: WARNING,
            ..Self::new("workload-restarting", Some(WORKLOAD_RESTARTING), text)
        }
        .with("restarts", Detail::Number((*restarts).into()))
        .with("exit_code", Detail::Number(exit.code.into()))
        .with("signal", Detail::Number(exit.signal.into()))
    }

    /// Another supervisor took over, the `generation`th of this run.
    #[must_use]
    pub fn reloaded(generation: u32) -> Self {
        let text = format!("a new vmd took over (the {generation}. of this run)");
        Self::new("reloaded", Some(RELOADED), text)
            .with("generation", Detail::Number(generation.into()))
    }

    #[must_use]
    pub fn resized(cpu_cores: u32, memory_mb: u32) -> Self {
        let text = format!("the guest has {cpu_cores} CPUs and {memory_mb} MiB now");
        Self::new("resized", Some(RESIZED), text)
            .with("cpu_cores", Detail::Number(cpu_cores.into()))
            .with("memory_mb", Detail::Number(memory_mb.into()))
    }
}

/// The host's clock, in milliseconds since the epoch.
#[must_use]
pub fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
