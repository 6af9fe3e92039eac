//! `volar vms logs` and `events`: what was said, line by line.

use serde::Deserialize;
use serde_json::Value;

use crate::{
    args::{Events, Logs, Tail},
    client::{Client, Event, LogQuery},
    failure::Failure,
    output::Output,
};

#[derive(Debug, Deserialize)]
struct Line {
    time: String,
    message: String,
}

pub async fn logs(logs: Logs, client: &Client, output: &Output) -> Result<(), Failure> {
    let source = if logs.console {
        Some("console".to_owned())
    } else {
        (!logs.source.is_empty()).then(|| logs.source.join(","))
    };
    let query = LogQuery {
        follow: logs.follow,
        since: logs.since,
        until: logs.until,
        tail: match logs.tail {
            Tail::All => None,
            Tail::Last(count) => Some(count),
        },
        source,
    };
    let mut lines = client.logs(&logs.name, &query).await?;
    while let Some(line) = lines.line().await? {
        let line = line.trim_ascii();
        // A heartbeat.
        if line.is_empty() {
            continue;
        }
        let line: Value = serde_json::from_slice(line).map_err(|error| not_understood(&error))?;
        if let Some(problem) = line.get("problem") {
            let problem = crate::failure::Problem::deserialize(problem)
                .map_err(|error| not_understood(&error))?;
            return Err(problem.into());
        }
        let goes_on = if output.is_json() {
            output.json_line(&line)?
        } else {
            let Line { time, message } =
                Line::deserialize(&line).map_err(|error| not_understood(&error))?;
            output.line(&if logs.timestamps {
                format!("{time} {message}")
            } else {
                message
            })?
        };
        if !goes_on {
            return Ok(());
        }
    }
    Ok(())
}

pub async fn events(events: &Events, client: &Client, output: &Output) -> Result<(), Failure> {
    let mut lines = client.events(events.name.as_ref()).await?;
    let mut data = String::new();
    while let Some(line) = lines.line().await? {
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\r', '\n']);
        if let Some(more) = line.strip_prefix("data:") {
            data.push_str(more.strip_prefix(' ').unwrap_or(more));
            data.push('\n');
            if data.len() > MAX_EVENT {
                return Err(Failure::Answer("an event without an end".to_owned()));
            }
        }
        // An empty line ends an event; one without data is a heartbeat.
        if !line.is_empty() || data.is_empty() {
            continue;
        }
        let event: Value = serde_json::from_str(&data).map_err(|error| not_understood(&error))?;
        data.clear();
        let goes_on = if output.is_json() {
            output.json_line(&event)?
        } else {
            let event = Event::deserialize(&event).map_err(|error| not_understood(&error))?;
            output.line(&shown(&event))?
        };
        if !goes_on {
            return Ok(());
        }
    }
    // It goes on until Ctrl-C.
    Err(Failure::Unfinished)
}

/// No event is longer.
const MAX_EVENT: usize = 1024 * 1024;

fn shown(event: &Event) -> String {
    let mut line = format!("{} {} {}", event.time, event.vm, event.event);
    let details = event.details.as_object();
    for (key, value) in details
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null())
    {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        line.push_str(&format!(" {key}={value}"));
    }
    line
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::Answer(error.to_string())
}
