//! The journal's native protocol: one datagram an entry, fields as the caller gives them.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use tokio::net::UnixDatagram;

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// How long an entry waits for a journal that does not read; then it is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// A way to write entries.
#[derive(Debug)]
pub struct Journal(Target);

enum Target {
    Socket(UnixDatagram),
    /// Run by hand: what people read goes to standard error, the other fields nowhere.
    Stderr,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket(_) => "Socket",
            Self::Stderr => "Stderr",
        })
    }
}

impl Journal {
    /// The journal when systemd connected this process to it (`JOURNAL_STREAM`), else standard error.
    ///
    /// # Errors
    /// The journal's socket cannot be reached.
    pub fn open() -> io::Result<Self> {
        match std::env::var_os("JOURNAL_STREAM") {
            Some(_) => Self::connect(Path::new(SOCKET)),
            None => Ok(Self(Target::Stderr)),
        }
    }

    /// The journal that listens on `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self(Target::Socket(socket)))
    }

    /// Writes one entry and tells whether it was taken. Waits a second at most for a journal that is behind.
    pub async fn write(&self, fields: &[(&str, &str)]) -> bool {
        match &self.0 {
            Target::Socket(socket) => {
                let entry = encode(fields);
                let sent = tokio::time::timeout(PATIENCE, socket.send(&entry)).await;
                matches!(sent, Ok(Ok(_)))
            }
            Target::Stderr => {
                let value = |wanted| fields.iter().find(|(name, _)| *name == wanted);
                let text = |wanted| value(wanted).map_or("", |(_, value)| value);
                let line = format!("{}: {}\n", text("SYSLOG_IDENTIFIER"), text("MESSAGE"));
                io::stderr().write_all(line.as_bytes()).is_ok()
            }
        }
    }
}

/// An entry as journald reads it: `NAME=value`, or with an explicit length where the value has a newline.
fn encode(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(256);
    for (name, value) in fields {
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
            entry.push(b'\n');
            entry.extend_from_slice(&length.to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_a_newline_cannot_begin_a_field() {
        assert_eq!(
            encode(&[("A", "1"), ("B", "x\nPRIORITY=0")]),
            b"A=1\nB\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\n"
        );
    }

    #[tokio::test]
    async fn a_journal_that_does_not_read_costs_a_second_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        let begun = std::time::Instant::now();
        while journal.write(&[("MESSAGE", "x")]).await {}
        assert!(begun.elapsed() < Duration::from_secs(10), "{begun:?}");
    }
}
