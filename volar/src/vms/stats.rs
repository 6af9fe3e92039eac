//! `volar vms stats` and `top`: what VMs use, as the host and as the guests see it, side by side.

use std::{collections::HashMap, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use volant_spec::Name;

use super::{all, unless_one};
use crate::{
    Failures,
    args::{Stats, Top},
    client::Client,
    failure::Failure,
    output::{Output, Shown, bytes},
    view,
};

/// Between the two looks of a table that is shown once: there is no share of a CPU at a moment.
const MOMENT: Duration = Duration::from_secs(1);
/// Of a command line that is shown.
const COMMAND: usize = 60;
/// Processes of one VM, unless a number is given.
const PROCESSES: u32 = 10;

const COLUMNS: [&str; 9] = [
    "NAME",
    "HOST CPU",
    "HOST MEMORY",
    "GUEST CPU",
    "GUEST MEMORY",
    "LOAD",
    "NET IN/OUT",
    "DISK IN/OUT",
    "PROCESSES",
];

#[derive(Debug, Deserialize)]
struct Sample {
    name: String,
    host: Host,
    guest: Option<Guest>,
}

#[derive(Debug, Deserialize)]
struct Host {
    memory_bytes: Option<u64>,
    memory_max_bytes: Option<u64>,
    cpu_ns: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Guest {
    load_centi: u32,
    cpus: u32,
    cpu_busy_ms: u64,
    cpu_total_ms: u64,
    memory_total_kib: u64,
    memory_available_kib: u64,
    receive_bytes: u64,
    transmit_bytes: u64,
    disk_read_bytes: u64,
    disk_written_bytes: u64,
    process_count: u32,
    processes: Vec<Process>,
}

#[derive(Debug, Deserialize)]
struct Process {
    pid: u32,
    user: String,
    resident_kib: u64,
    cpu_ms: u64,
    command: String,
}

/// What is looked at, and how often.
struct Looking {
    names: Vec<Name>,
    processes: u32,
    interval: Duration,
    again: bool,
}

/// What was seen, and when.
struct Look {
    at: Instant,
    samples: HashMap<String, Sample>,
    answers: Vec<Value>,
}

pub async fn stats(stats: Stats, client: &Client, output: &Output) -> Result<(), Failures> {
    let looking = Looking {
        names: stats.names,
        processes: 0,
        interval: Duration::from_secs(stats.interval),
        again: !stats.no_stream,
    };
    looking.run(client, output).await
}

/// Again and again at a terminal, else once.
pub async fn top(top: Top, client: &Client, output: &Output) -> Result<(), Failures> {
    let default = if top.names.len() == 1 { PROCESSES } else { 0 };
    let mut names = top.names;
    let processes = top.processes.unwrap_or(default);
    if names.is_empty() && processes > 0 {
        // The list of all has none.
        names = running(client).await?;
    }
    let looking = Looking {
        names,
        processes,
        interval: Duration::from_secs(top.interval),
        again: output.is_screen(),
    };
    looking.run(client, output).await
}

async fn running(client: &Client) -> Result<Vec<Name>, Failure> {
    let samples: Vec<Sample> = view::read(client.all_stats().await?)?;
    let parse = |sample: &Sample| match sample.name.parse() {
        Ok(name) => Ok(name),
        Err(error) => Err(Failure::Answer(format!("{error}"))),
    };
    samples.iter().map(parse).collect()
}

impl Looking {
    async fn run(&self, client: &Client, output: &Output) -> Result<(), Failures> {
        let mut before = None;
        if !self.again && !output.is_json() {
            before = Some(self.look(client).await?);
            tokio::time::sleep(MOMENT).await;
        }
        loop {
            let look = self.look(client).await?;
            if output.is_json() {
                if !self.again {
                    return Ok(unless_one(&look.answers, &self.names, output)?);
                }
                for answer in &look.answers {
                    if !output.json_line(answer)? {
                        return Ok(());
                    }
                }
            } else if !self.show(&look, before.as_ref(), output)? {
                return Ok(());
            }
            if !self.again {
                return Ok(());
            }
            before = Some(look);
            tokio::time::sleep(self.interval).await;
        }
    }

    async fn look(&self, client: &Client) -> Result<Look, Failures> {
        let at = Instant::now();
        let answers = if self.names.is_empty() {
            view::read(client.all_stats().await?)?
        } else {
            let ask = async |name: &Name| client.stats(name, self.processes).await;
            let mut answers = Vec::new();
            for answer in all(&self.names, ask).await {
                answers.push(answer?);
            }
            answers
        };
        let mut samples = HashMap::new();
        for answer in &answers {
            let sample =
                Sample::deserialize(answer).map_err(|error| Failure::Answer(error.to_string()))?;
            samples.insert(sample.name.clone(), sample);
        }
        Ok(Look {
            at,
            samples,
            answers,
        })
    }

    /// Gives whether somebody still reads.
    fn show(&self, look: &Look, before: Option<&Look>, output: &Output) -> Result<bool, Failure> {
        let mut samples: Vec<&Sample> = look.samples.values().collect();
        samples.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if self.again && !output.clear()? {
            return Ok(false);
        }
        if samples.is_empty() {
            output.text("no VM runs")?;
            return Ok(true);
        }
        let elapsed = before.map(|before| look.at.duration_since(before.at));
        let rows = samples
            .iter()
            .map(|sample| {
                let before = before.and_then(|before| before.samples.get(&sample.name));
                row(sample, before.zip(elapsed))
            })
            .collect();
        output.table(COLUMNS, rows)?;
        if self.processes > 0 {
            for sample in samples {
                processes(sample, output)?;
            }
        }
        Ok(true)
    }
}

fn row(sample: &Sample, before: Option<(&Sample, Duration)>) -> [Shown; 9] {
    let dash = || Shown::from("-");
    let host_cpu = before.and_then(|(before, elapsed)| {
        let used = sample.host.cpu_ns?.checked_sub(before.host.cpu_ns?)?;
        Some(used as f64 / elapsed.as_nanos().max(1) as f64)
    });
    let host_memory = sample
        .host
        .memory_bytes
        .map(|used| match sample.host.memory_max_bytes {
            Some(most) => format!("{} / {}", bytes(used), bytes(most)),
            None => bytes(used),
        });
    let guest_cpu = before.and_then(|(before, _)| {
        let (now, before) = (sample.guest.as_ref()?, before.guest.as_ref()?);
        let busy = now.cpu_busy_ms.checked_sub(before.cpu_busy_ms)?;
        let total = now.cpu_total_ms.checked_sub(before.cpu_total_ms)?;
        (total > 0).then(|| busy as f64 / total as f64 * f64::from(now.cpus.max(1)))
    });
    let share = |share: Option<f64>| {
        share.map_or_else(dash, |share| format!("{:.1}%", share * 100.0).into())
    };
    let guest = |shown: fn(&Guest) -> String| {
        sample
            .guest
            .as_ref()
            .map_or_else(dash, |guest| shown(guest).into())
    };
    [
        sample.name.as_str().into(),
        share(host_cpu),
        host_memory.map_or_else(dash, Shown::from),
        share(guest_cpu),
        guest(|guest| {
            let used = guest
                .memory_total_kib
                .saturating_sub(guest.memory_available_kib);
            let [used, total] =
                [used, guest.memory_total_kib].map(|kib| bytes(kib.saturating_mul(1024)));
            format!("{used} / {total}")
        }),
        guest(|guest| format!("{:.2}", f64::from(guest.load_centi) / 100.0)),
        guest(|guest| {
            format!(
                "{} / {}",
                bytes(guest.receive_bytes),
                bytes(guest.transmit_bytes)
            )
        }),
        guest(|guest| {
            format!(
                "{} / {}",
                bytes(guest.disk_read_bytes),
                bytes(guest.disk_written_bytes)
            )
        }),
        guest(|guest| guest.process_count.to_string()),
    ]
}

fn processes(sample: &Sample, output: &Output) -> Result<(), Failure> {
    let Some(guest) = sample
        .guest
        .as_ref()
        .filter(|guest| !guest.processes.is_empty())
    else {
        return Ok(());
    };
    output.text(&format!("\nin VM {}", sample.name))?;
    let row = |process: &Process| -> [Shown; 5] {
        [
            process.pid.to_string().into(),
            process.user.as_str().into(),
            bytes(process.resident_kib.saturating_mul(1024)).into(),
            format!("{:.1}s", process.cpu_ms as f64 / 1000.0).into(),
            process
                .command
                .chars()
                .take(COMMAND)
                .collect::<String>()
                .into(),
        ]
    };
    output.table(
        ["PID", "USER", "MEMORY", "CPU TIME", "COMMAND"],
        guest.processes.iter().map(row).collect(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(cpu_ns: u64, busy: u64, total: u64) -> Sample {
        view::read(json!({
            "name": "web", "phase": "running", "time": "", "guest": {"cpus": 2, "cpu_busy_ms": busy, "cpu_total_ms": total,
                "memory_total_kib": 1000, "memory_available_kib": 250, "load_centi": 150},
            "host": {"memory_bytes": 1000, "memory_max_bytes": null, "cpu_ns": cpu_ns, "tasks": 1},
        }))
        .unwrap()
    }

    #[test]
    fn a_share_of_a_cpu_is_between_two_looks() {
        let (before, now) = (
            sample(1_000_000_000, 100, 1000),
            sample(2_000_000_000, 600, 5000),
        );
        let shown = row(&now, Some((&before, Duration::from_secs(2)))).map(|shown| shown.text);
        assert_eq!(
            shown[..6],
            [
                "web",
                "50.0%",
                "1.0 kB",
                "25.0%",
                "768.0 kB / 1.0 MB",
                "1.50"
            ]
        );
        // A guest that started anew counts from zero.
        let shown = row(&before, Some((&now, Duration::from_secs(2)))).map(|shown| shown.text);
        assert_eq!((shown[1].as_str(), shown[3].as_str()), ("-", "-"));
    }
}
