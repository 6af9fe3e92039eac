//! `GET /api/v1/vms/{name}/logs`: a VM's part of the journal, line by line.

use std::time::Duration;

use axum::{extract::State, response::Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::Uri;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    extract::{Named, query},
    lines::{self, line},
};
use crate::{
    Gateway, Problem, Session,
    journal::{Entries, JournalError, Source, Wanted},
    problem,
};

/// After so long without an entry a follower gets an empty line: who is gone is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    follow: bool,
    since: Option<String>,
    until: Option<String>,
    tail: Option<u64>,
    source: Option<String>,
}

impl Asked {
    fn wanted(self, now: Timestamp) -> Result<Wanted, Problem> {
        let time = |text: Option<String>| text.map(|text| time(&text, now)).transpose();
        Ok(Wanted {
            follow: self.follow,
            since: time(self.since)?,
            until: time(self.until)?,
            tail: self.tail,
            sources: sources(self.source.as_deref())?,
        })
    }
}

fn sources(text: Option<&str>) -> Result<Vec<Source>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        let all = Source::ALL.into_iter();
        return Ok(all.filter(|source| *source != Source::Console).collect());
    };
    let mut sources = Vec::new();
    for word in text.split(',') {
        let Some(source) = Source::parse(word) else {
            let all = Source::ALL.map(Source::as_str).join(", ");
            let detail = format!("there is no source '{word}': the sources are {all}");
            return Err(Problem::invalid(detail));
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    Ok(sources)
}

/// A time as every journalctl takes it. An RFC 3339 one, or so long ago: `-10m`, `-1h30m`.
fn time(text: &str, now: Timestamp) -> Result<String, Problem> {
    let moment = match text.strip_prefix('-') {
        Some(ago) => ago_of(ago).and_then(|ago| now.checked_sub(ago).ok()),
        None => text.parse().ok(),
    };
    let moment = moment.ok_or_else(|| {
        Problem::invalid(format!(
            "'{text}' is no time: write it as 2026-11-24T10:00:00Z, or as -10m"
        ))
    })?;
    let micros = moment.as_microsecond().max(0);
    Ok(format!("@{}.{:06}", micros / 1_000_000, micros % 1_000_000))
}

fn ago_of(text: &str) -> Option<SignedDuration> {
    let mut seconds: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest.get(..digits)?.parse().ok()?;
        let unit = match rest.as_bytes().get(digits)? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return None,
        };
        seconds = number.checked_mul(unit)?.checked_add(seconds)?;
        rest = rest.get(digits + 1..)?;
    }
    (!text.is_empty()).then(|| SignedDuration::from_secs(seconds))
}

#[derive(Serialize)]
struct Failure<'a> {
    problem: problem::Body<'a>,
}

/// Where the lines come from, until they end.
struct Reading {
    entries: Option<Entries>,
    gateway: Gateway,
    follow: bool,
    _place: Session,
}

pub async fn logs(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
) -> Result<Response, Problem> {
    let wanted = query::<Asked>(&uri)?.wanted(Timestamp::now())?;
    gateway.registry().vm(&name).await?;
    let place = gateway.session()?;
    let entries = gateway.journal().read(&name, &wanted)?;
    let reading = Reading {
        entries: Some(entries),
        gateway,
        follow: wanted.follow,
        _place: place,
    };
    Ok(lines::answer(told(reading)))
}

fn told(reading: Reading) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(reading, async |mut reading| {
        let entries = reading.entries.as_mut()?;
        let next = tokio::select! {
            next = tokio::time::timeout(HEARTBEAT, entries.next()) => next,
            () = reading.gateway.ending().cancelled(), if reading.follow => return None,
        };
        let bytes = match next {
            Ok(Ok(Some(entry))) => line(&entry),
            Ok(Ok(None)) => return None,
            Ok(Err(error)) => {
                reading.entries = None;
                let problem = Problem::from(error);
                tracing::warn!("logs are cut off: {problem}");
                line(&Failure {
                    problem: problem.body(),
                })
            }
            Err(_) if reading.follow => Bytes::from_static(b"\n"),
            // A large journal takes long to look through.
            Err(_) => Bytes::new(),
        };
        Some((bytes, reading))
    })
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        let detail = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Problem::internal(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_as_every_journalctl_takes_them() {
        let now: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
        let cases = [
            ("2026-11-24T10:00:00.5Z", Some("@1795514400.500000")),
            ("2026-11-24T11:00:00+01:00", Some("@1795514400.000000")),
            ("-10m", Some("@1795513800.000000")),
            ("-1h30m", Some("@1795509000.000000")),
            ("-", None),
            ("-10", None),
            ("-10y", None),
            ("-99999999999999999999s", None),
            ("yesterday", None),
            ("--output=cat", None),
            ("-ä", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text, now).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn sources_are_named_or_all_but_the_console() {
        assert_eq!(sources(None).unwrap().len(), 5);
        let named = sources(Some("console,stdout,console")).unwrap();
        assert_eq!(named, [Source::Console, Source::Stdout]);
        assert!(sources(Some("stdin")).is_err());
    }
}
