//! An entry of the journal as `journalctl --output=json` writes it, and who said it. Pure.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The workload.
    Stdout,
    Stderr,
    /// kestrel.
    Agent,
    /// The guest's serial console.
    Console,
    Vmd,
    /// systemd, of the unit.
    Unit,
}

impl Source {
    pub const ALL: [Self; 6] = [
        Self::Stdout,
        Self::Stderr,
        Self::Agent,
        Self::Console,
        Self::Vmd,
        Self::Unit,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Agent => "agent",
            Self::Console => "console",
            Self::Vmd => "vmd",
            Self::Unit => "unit",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }
}

/// Something that was said of a VM, or by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// RFC 3339, with microseconds.
    pub time: String,
    pub source: Source,
    pub message: String,
    /// As syslog counts: 0 is the worst, 7 for debugging.
    pub priority: u8,
    /// Where it is in the journal.
    pub cursor: String,
}

/// `None` for what is no entry.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Entry> {
    let fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let time = text(&fields, "__REALTIME_TIMESTAMP")?.parse().ok()?;
    let time = Timestamp::from_microsecond(time).ok()?;
    let priority = text(&fields, "PRIORITY").and_then(|text| text.parse().ok());
    Some(Entry {
        time: format!("{time:.6}"),
        source: source(&fields),
        message: text(&fields, "MESSAGE").unwrap_or_default(),
        priority: priority.filter(|priority| *priority <= 7).unwrap_or(6),
        cursor: text(&fields, "__CURSOR").unwrap_or_default(),
    })
}

/// What is told in place of an entry that is too long to be read.
#[must_use]
pub fn too_long() -> Entry {
    Entry {
        time: format!("{:.6}", Timestamp::now()),
        source: Source::Vmd,
        message: "an entry is left out here: it is too long".to_owned(),
        priority: 4,
        cursor: String::new(),
    }
}

fn source(fields: &Map<String, Value>) -> Source {
    let stream = text(fields, "VOLANT_STREAM");
    if let Some(source) = stream.as_deref().and_then(Source::parse) {
        return source;
    }
    let says = text(fields, "_SYSTEMD_UNIT").unwrap_or_default();
    match says.starts_with("volant-vm@") {
        true => Source::Vmd,
        false => Source::Unit,
    }
}

/// A field's text. What is no UTF-8 is a list of bytes there; a field that is there several times is a list of texts.
fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    match fields.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => match items.first()? {
            Value::String(text) => Some(text.clone()),
            _ => {
                let byte = |item: &Value| item.as_u64().and_then(|byte| u8::try_from(byte).ok());
                let bytes: Vec<u8> = items.iter().filter_map(byte).collect();
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_with_who_said_it() {
        let line = br#"{"__REALTIME_TIMESTAMP":"1700000000123456","__CURSOR":"s=1","MESSAGE":"hi",
            "PRIORITY":"3","VOLANT_STREAM":"stderr","_SYSTEMD_UNIT":"volant-vm@web.service"}"#;
        let entry = parse(line).unwrap();
        assert_eq!(entry.time, "2023-11-14T22:13:20.123456Z");
        assert_eq!((entry.source, entry.priority), (Source::Stderr, 3));
        assert_eq!(
            (entry.message.as_str(), entry.cursor.as_str()),
            ("hi", "s=1")
        );
    }

    #[test]
    fn who_has_no_stream_is_told_by_the_unit() {
        let said = |unit: &str| {
            let line = format!(r#"{{"__REALTIME_TIMESTAMP":"1","_SYSTEMD_UNIT":"{unit}"}}"#);
            parse(line.as_bytes()).unwrap().source
        };
        assert_eq!(said("volant-vm@web.service"), Source::Vmd);
        assert_eq!(said("init.scope"), Source::Unit);
    }

    #[test]
    fn bytes_and_rubbish_do_no_harm() {
        let line = br#"{"__REALTIME_TIMESTAMP":"1000000","MESSAGE":[104,105,255,999,"x"]}"#;
        assert_eq!(parse(line).unwrap().message, "hi\u{fffd}");
        let line = br#"{"__REALTIME_TIMESTAMP":"1000000","MESSAGE":["a","b"],"PRIORITY":"99"}"#;
        let entry = parse(line).unwrap();
        assert_eq!((entry.message.as_str(), entry.priority), ("a", 6));
        for line in [
            "",
            "{}",
            "[]",
            r#"{"__REALTIME_TIMESTAMP":"-"}"#,
            r#"{"__REALTIME_TIMESTAMP":"9223372036854775807"}"#,
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }
}
