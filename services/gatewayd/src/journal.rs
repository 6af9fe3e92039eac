//! A VM's part of the journal, read by `journalctl`: it knows the files, their rotation and their compression.
//!
//! The child is killed with its reader. What waits for a slow reader waits in the pipe, and so in journalctl.

use std::{path::PathBuf, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};
use volant_spec::{Name, unit};

mod entry;

pub use entry::{Entry, Source};

/// The longest entry that is read, in bytes, as journalctl writes it; a longer one is skipped and told of.
const MAX_ENTRY: usize = 1024 * 1024;
/// What an entry's line is told with.
const FIELDS: &str = "MESSAGE,PRIORITY,VOLANT_STREAM,_SYSTEMD_UNIT,UNIT,SYSLOG_IDENTIFIER";

/// Where the journal's reader is.
#[derive(Clone, Debug)]
pub struct Journal(PathBuf);

/// Which entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub follow: bool,
    /// As journalctl takes it.
    pub since: Option<String>,
    pub until: Option<String>,
    /// The newest so many.
    pub tail: Option<u64>,
    pub sources: Vec<Source>,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot run {program}")]
    Run {
        program: String,
        source: std::io::Error,
    },
    #[error("cannot read from {program}")]
    Read {
        program: String,
        source: std::io::Error,
    },
    #[error("{program} failed: {words}")]
    Failed { program: String, words: String },
}

/// Entries of the journal, one by one.
#[derive(Debug)]
pub struct Entries {
    program: String,
    // Killed when this is dropped.
    child: Child,
    out: BufReader<ChildStdout>,
    sources: Vec<Source>,
    /// What was read of a line.
    line: Vec<u8>,
    /// It is longer than what is kept.
    too_long: bool,
}

impl Journal {
    /// The journal that this `journalctl` reads.
    #[must_use]
    pub fn by(journalctl: PathBuf) -> Self {
        Self(journalctl)
    }

    /// Begins to read a VM's entries.
    ///
    /// # Errors
    /// The reader cannot be run.
    pub fn read(&self, name: &Name, wanted: &Wanted) -> Result<Entries, JournalError> {
        let program = self.0.display().to_string();
        let mut command = Command::new(&self.0);
        command
            .args(arguments(name, wanted))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let run = |source| JournalError::Run {
            program: program.clone(),
            source,
        };
        let mut child = command.spawn().map_err(run)?;
        let out = child.stdout.take().expect("it is piped");
        Ok(Entries {
            program,
            child,
            out: BufReader::new(out),
            sources: wanted.sources.clone(),
            line: Vec::new(),
            too_long: false,
        })
    }
}

/// Every text of the client stands behind its own `--option=`: none can be taken for another option.
fn arguments(name: &Name, wanted: &Wanted) -> Vec<String> {
    let mut arguments = vec![
        "--quiet".to_owned(),
        "--no-pager".to_owned(),
        "--utc".to_owned(),
        "--output=json".to_owned(),
        "--all".to_owned(),
        format!("--output-fields={FIELDS}"),
    ];
    if wanted.follow {
        arguments.push("--follow".to_owned());
        // Without it, journalctl follows what /proc calls this boot alone: no older one, and in a container, whose boot id is not
        // in the /proc of this service's sandbox, nothing.
        arguments.push("--merge".to_owned());
    }
    // With --follow journalctl shows ten lines where nothing is said.
    match wanted.tail {
        Some(tail) => arguments.push(format!("--lines={tail}")),
        None => arguments.push("--lines=all".to_owned()),
    }
    if let Some(since) = &wanted.since {
        arguments.push(format!("--since={since}"));
    }
    if let Some(until) = &wanted.until {
        arguments.push(format!("--until={until}"));
    }
    // What the unit's processes say, and what systemd says of it. The journal narrows by the source: so `tail` counts what is
    // wanted.
    let unit = unit::vm(name);
    let own = || format!("_SYSTEMD_UNIT={unit}");
    for (at, source) in wanted.sources.iter().enumerate() {
        if at > 0 {
            arguments.push("+".to_owned());
        }
        arguments.extend(match source {
            Source::Unit => [format!("UNIT={unit}"), "_PID=1".to_owned()],
            // Its own entries, and what a VMM wrote into the same stream.
            Source::Vmd => [own(), "SYSLOG_IDENTIFIER=vmd".to_owned()],
            Source::Stdout | Source::Stderr | Source::Agent | Source::Console => {
                [own(), format!("VOLANT_STREAM={}", source.as_str())]
            }
        });
    }
    arguments
}

impl Entries {
    /// The next entry; `None` at the end. Nothing is lost when this is dropped before it is there.
    ///
    /// # Errors
    /// The reader failed.
    pub async fn next(&mut self) -> Result<Option<Entry>, JournalError> {
        loop {
            let Some(line) = self.line().await? else {
                return self.ended().await.map(|()| None);
            };
            let entry = match line {
                Line::Whole(line) => entry::parse(&line),
                Line::TooLong => Some(entry::too_long()),
            };
            if let Some(entry) = entry
                && self.sources.contains(&entry.source)
            {
                return Ok(Some(entry));
            }
        }
    }

    async fn line(&mut self) -> Result<Option<Line>, JournalError> {
        loop {
            let read = |source| JournalError::Read {
                program: self.program.clone(),
                source,
            };
            let bytes = self.out.fill_buf().await.map_err(read)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + part.len() > MAX_ENTRY {
                self.too_long = true;
                self.line.clear();
            }
            if !self.too_long {
                self.line.extend_from_slice(part);
            }
            let taken = part.len() + usize::from(end.is_some());
            self.out.consume(taken);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return Ok(Some(match std::mem::take(&mut self.too_long) {
                    true => Line::TooLong,
                    false => Line::Whole(line),
                }));
            }
        }
    }

    /// How the reader ended.
    async fn ended(&mut self) -> Result<(), JournalError> {
        let mut words = String::new();
        if let Some(errors) = self.child.stderr.take() {
            let mut bytes = Vec::new();
            // Why it failed is worth a few lines, and no failure of its own.
            let _ = errors.take(4096).read_to_end(&mut bytes).await;
            words = String::from_utf8_lossy(&bytes).trim().to_owned();
        }
        match self.child.wait().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(JournalError::Failed {
                program: self.program.clone(),
                words: if words.is_empty() {
                    status.to_string()
                } else {
                    words
                },
            }),
            Err(source) => Err(JournalError::Read {
                program: self.program.clone(),
                source,
            }),
        }
    }
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_a_client_stands_behind_its_option() {
        let wanted = Wanted {
            follow: true,
            since: Some("@1".to_owned()),
            until: None,
            tail: Some(3),
            sources: vec![Source::Stdout, Source::Unit],
        };
        let arguments = arguments(&"web".parse().unwrap(), &wanted);
        let rest = &arguments[6..];
        assert_eq!(
            rest,
            [
                "--follow",
                "--merge",
                "--lines=3",
                "--since=@1",
                "_SYSTEMD_UNIT=volant-vm@web.service",
                "VOLANT_STREAM=stdout",
                "+",
                "UNIT=volant-vm@web.service",
                "_PID=1"
            ]
        );
    }
}
