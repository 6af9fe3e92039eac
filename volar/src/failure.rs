//! What went wrong, what to do about it, and the exit code.

use std::{error::Error, io, path::PathBuf};

use serde::Deserialize;
use tokio_tungstenite::tungstenite;
use volant_spec::{Digest, manifest::ManifestError};

use crate::output::visible;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot reach Volant at {host}")]
    Unreachable { host: String, source: io::Error },
    #[error("cannot reach Volant at {host}: {}", visible(said))]
    Ssh { host: String, said: String },
    #[error("the connection to Volant broke")]
    Broken(#[source] reqwest::Error),
    #[error("the connection to Volant broke")]
    Cut(#[source] Box<tungstenite::Error>),
    #[error("Volant closed the connection before it said how it ended")]
    Unfinished,
    #[error("Volant answered what this volar does not understand: {0}")]
    Answer(String),
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Somebody else writes to the console.
    #[error(transparent)]
    ConsoleTaken(Problem),
    /// In the middle of something in a guest.
    #[error("{}", visible(.0))]
    Session(String),
    #[error(transparent)]
    Unpack(#[from] crate::vms::UnpackError),
    #[error(transparent)]
    Pack(#[from] crate::vms::PackError),
    #[error("{act}")]
    Io { act: String, source: io::Error },
    #[error("cannot read {}", path.display())]
    ReadManifest { path: PathBuf, source: io::Error },
    #[error("{} has {size} bytes; a manifest has at most {}", path.display(), volant_spec::manifest::MAX_BYTES)]
    ManifestTooLarge { path: PathBuf, size: u64 },
    #[error("cannot use {}", path.display())]
    Manifest {
        path: PathBuf,
        source: ManifestError,
    },
    #[error("{artifact}: the URL '{}' is not http://, https://, file:///PATH or a path", url.escape_debug())]
    ArtifactUrl { artifact: String, url: String },
    #[error("{artifact}: cannot read {}", path.display())]
    Artifact {
        artifact: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{artifact}: {} has {actual} bytes; the manifest says {expected}", path.display())]
    ArtifactSize {
        artifact: String,
        path: PathBuf,
        expected: u64,
        actual: u64,
    },
    #[error("{artifact}: {} is {actual}; the manifest says {expected}", path.display())]
    ArtifactDigest {
        artifact: String,
        path: PathBuf,
        expected: Digest,
        actual: Digest,
    },
    #[error("cannot read the signature {}", path.display())]
    Signature { path: PathBuf, source: io::Error },
    /// What was typed means nothing.
    #[error("{0}")]
    Usage(String),
    #[error("{wrong} of {checked} parts are not as they should be")]
    Unsound { wrong: usize, checked: usize },
    #[error("{count} {} against it: no VM can have these devices", if *count == 1 { "thing speaks" } else { "things speak" })]
    NotLendable { count: usize },
    #[error(transparent)]
    Trust(#[from] crate::trust::TrustError),
    #[error("volar setup changes this host, and needs root")]
    NotRoot,
    #[error("this host is not ready: {0}")]
    NotReady(String),
    #[error(transparent)]
    Config(#[from] crate::setup::config::ConfigFileError),
    #[error("{command} failed: {said}")]
    Command { command: String, said: String },
}

/// What the API says when it refuses (RFC 9457).
#[derive(Debug, Deserialize, thiserror::Error)]
#[error("{}", visible(if detail.is_empty() { title } else { detail }))]
pub struct Problem {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub title: String,
    pub status: u16,
    #[serde(default)]
    pub detail: String,
}

impl Problem {
    /// The plugin is let in, but an artifact of it was not uploaded.
    #[must_use]
    pub fn is_missing_artifact(&self) -> bool {
        self.slug() == "missing-artifact"
    }

    /// The last part of the problem's type.
    #[must_use]
    pub fn slug(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }
}

impl Failure {
    /// An error of the HTTP client: the socket cannot be connected to, or the talk broke off.
    pub fn of_http(error: reqwest::Error, host: String) -> Self {
        let found = io_error(&error).filter(|_| error.is_connect());
        match found.map(|io| {
            io.raw_os_error()
                .map_or_else(|| io.kind().into(), io::Error::from_raw_os_error)
        }) {
            Some(source) => Self::Unreachable { host, source },
            None => Self::Broken(error),
        }
    }

    /// As `volar --help` has them.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Unreachable { .. }
            | Self::Ssh { .. }
            | Self::Broken(_)
            | Self::Cut(_)
            | Self::Unfinished => 5,
            Self::Usage(_) => 2,
            Self::ConsoleTaken(_) => 4,
            Self::Trust(error) => error.code(),
            Self::Problem(problem) => match (problem.slug(), problem.status) {
                ("invalid-name" | "invalid-request", _) => 2,
                ("unknown-plugin", _) | (_, 404) => 3,
                ("wait-timed-out", _) => 6,
                ("wait-impossible", _) => 1,
                (_, 409 | 412) => 4,
                _ => 1,
            },
            _ => 1,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Some(
                    "become a member of group volant: sudo usermod -aG volant $USER, then log in again",
                ),
                _ => Some("is Volant installed and set up? sudo volar setup"),
            },
            Self::ConsoleTaken(_) => {
                Some("--steal takes the keyboard, and --read-only looks on without it")
            }
            Self::Ssh { .. } => Some(
                "volar is in the way of ssh's questions: ssh HOST volar version must work without any",
            ),
            Self::Broken(_) | Self::Cut(_) | Self::Unfinished => {
                Some("see: journalctl -u volant-gatewayd")
            }
            Self::Problem(problem) => match problem.slug() {
                "unknown-plugin" | "no-such-plugin" => {
                    Some("volar plugins list shows what is installed")
                }
                "no-such-device" => Some("volar devices list shows what this host has"),
                "not-in-index" => Some(
                    "volar plugins search shows what the indexes have; they are in /etc/volant/volant.toml: \
                     [plugins] indexes",
                ),
                // Only registryd's words tell a replay from the rest.
                "untrusted-plugin" if problem.detail.contains("downgrade") => {
                    Some("--allow-downgrade installs it all the same")
                }
                "untrusted-plugin" => Some(
                    "volar plugins trust list shows whom this host trusts; as root, \
                     volar plugins trust add KEY|FILE trusts one more",
                ),
                "unusable-plugin" => {
                    Some("volar plugins list shows which are enabled; volar plugins enable NAME")
                }
                "misconfigured" => {
                    Some("correct /etc/volant/volant.toml; it is read anew each time")
                }
                "several-versions" => {
                    Some("name one as NAME@VERSION, or remove all of them with --all")
                }
                "not-running" => Some("start it: volar vms start NAME"),
                "guest-away" => Some("volar vms get NAME tells how it is; volar vms logs NAME why"),
                "no-such-version" => Some("volar vms config history NAME shows those there are"),
                "no-such-vm" => Some("volar vms list shows all VMs"),
                "vm-exists" => {
                    Some("choose another name, or delete that VM first: volar vms delete NAME")
                }
                "version-conflict" => {
                    Some("somebody else changed it: volar vms config get NAME shows the newest")
                }
                "plugin-in-use" => Some("delete its VMs first: volar vms list shows them"),
                "being-deleted" => Some("wait a moment, and try again"),
                "no-space" => Some(
                    "volar plugins gc removes what no plugin needs; else make room below /var/lib/volant",
                ),
                "internal" => Some("see: journalctl -u 'volant-*'"),
                _ => None,
            },
            Self::ReadManifest { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("the path is relative to the current folder; fledge build makes a manifest")
            }
            Self::Artifact { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("an artifact's path is relative to the folder of its manifest")
            }
            Self::ArtifactDigest { .. } | Self::ArtifactSize { .. } => Some(
                "the file is another one than the manifest was made for; build the plugin again",
            ),
            Self::Unsound { .. } => {
                Some("install the plugin again from where it came: what is damaged is fetched anew")
            }
            Self::Trust(error) => error.hint(),
            Self::NotRoot => {
                Some("sudo volar setup, or volar setup --dry-run to see what it would do")
            }
            Self::NotReady(_) => {
                Some("do what is said above, and run volar setup again; nothing was changed")
            }
            _ => None,
        }
    }

    /// Says it on stderr: the error with its causes on one line, and what to do.
    pub fn tell(&self) {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            line.push_str(": ");
            line.push_str(&visible(&error.to_string()));
            source = error.source();
        }
        eprintln!("error: {}", line.trim_end());
        if let Some(hint) = self.hint() {
            eprintln!("hint: {hint}");
        }
    }
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_use_the_socket_is_told_which_group_may() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::Unreachable {
            host: "/s".to_owned(),
            source,
        };
        assert_eq!(failure.code(), 5);
        assert!(failure.hint().unwrap().contains("usermod -aG volant"));
    }

    #[test]
    fn where_there_is_no_room_the_collection_of_garbage_is_named() {
        let kind = "https://volantvm.com/problems/no-space".to_owned();
        let failure = Failure::from(Problem {
            kind,
            status: 507,
            title: String::new(),
            detail: String::new(),
        });
        assert!(failure.hint().unwrap().contains("volar plugins gc"));
    }

    #[test]
    fn each_problem_has_its_exit_code() {
        let cases = [
            ("invalid-name", 400, 2),
            ("invalid-request", 400, 2),
            ("unknown-plugin", 400, 3),
            ("no-such-vm", 404, 3),
            ("vm-exists", 409, 4),
            ("several-versions", 409, 4),
            ("unusable-plugin", 409, 4),
            ("not-in-index", 404, 3),
            ("untrusted-plugin", 403, 1),
            ("start-failed", 502, 1),
            ("wait-timed-out", 504, 6),
            ("wait-impossible", 409, 1),
            ("version-conflict", 412, 4),
            ("no-space", 507, 1),
            ("of-the-future", 418, 1),
        ];
        for (slug, status, expected) in cases {
            let kind = format!("https://volantvm.com/problems/{slug}");
            let problem = Problem {
                kind,
                status,
                title: String::new(),
                detail: String::new(),
            };
            assert_eq!(Failure::from(problem).code(), expected, "{slug}");
        }
    }
}
