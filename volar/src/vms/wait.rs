//! `volar vms wait`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use volant_spec::Name;

use crate::{args::Wait, client::Client, failure::Failure};

/// No request waits for longer; then it is asked anew.
const AT_ONCE: Duration = Duration::from_secs(60);

/// Waits for one VM; gives what it is then.
pub async fn wait(name: &Name, wait: &Wait, client: &Client) -> Result<Value, Failure> {
    let until = wait.until.word();
    let deadline = wait.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let part = left.unwrap_or(AT_ONCE).min(AT_ONCE);
        // A part of a second is one.
        let seconds = part.as_secs() + u64::from(part.subsec_nanos() > 0);
        match client.wait(name, until, seconds).await {
            Err(Failure::Problem(problem))
                if problem.slug() == "wait-timed-out"
                    && deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            done => return done,
        }
    }
}
