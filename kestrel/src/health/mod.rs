//! Whether the workload is well: asked again and again from its start until the answer is no for good.

mod course;
mod http;
mod probe;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use self::course::{Course, Verdict};
use crate::{config::HealthConfig, reap::Reaper, workload::Program};

/// What one start's check has found. There are two at most: it became healthy, and then it is not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which of the workload's starts it is of.
    pub start: u32,
    /// Or why it is not healthy, for people.
    pub healthy: Result<(), String>,
}

/// Asks from now, which is the workload's start, and tells what changes. Ends when it is unhealthy, or nobody listens.
pub async fn watch(
    config: HealthConfig,
    program: Arc<Program>,
    reaper: Arc<Reaper>,
    start: u32,
    findings: mpsc::Sender<Finding>,
) {
    let begun = Instant::now();
    let mut course = Course::new(&config);
    loop {
        sleep(course.pause()).await;
        let probing = probe::ask(&config.probe, &program, &reaper);
        let answer = timeout(config.timeout, probing)
            .await
            .unwrap_or_else(|_| Err(late(config.timeout)));
        let verdict = course.on(answer.is_ok(), begun.elapsed());
        let healthy = match (verdict, answer) {
            (None, _) => continue,
            (Some(Verdict::Unhealthy), Err(why)) => Err(why),
            (Some(_), _) => Ok(()),
        };
        let is_last = healthy.is_err();
        if findings.send(Finding { start, healthy }).await.is_err() || is_last {
            return;
        }
    }
}

fn late(within: Duration) -> String {
    format!("no answer within {} ms", within.as_millis())
}
