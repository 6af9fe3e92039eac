//! The rule against replay: an older plugin with its true old signature is not what a newer one is replaced by.

use volant_spec::{Digest, manifest::Version};

/// A signed manifest of some name: the newest that was ever accepted, or one that comes now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub version: Version,
    /// When it was signed, in seconds since 1970, if the signer said so.
    pub timestamp: Option<u64>,
    /// Of the manifest's bytes.
    pub manifest: Digest,
}

/// Why a manifest may be a replay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Replay {
    #[error(
        "version {offered} is older than {newest}, which was accepted before: someone may be replaying it"
    )]
    OlderVersion { offered: Version, newest: Version },
    #[error(
        "another manifest of the same version {version} was accepted before, and this one was not signed \
         after it: someone may be replaying it"
    )]
    OlderSignature { version: Version },
}

/// Whether `offered` may follow `newest`, both of one name and with true signatures.
///
/// What was accepted before may come again; a newer version may always come; another manifest of the same
/// version may come if its signature has a time that is not before that of the accepted one.
///
/// # Errors
/// It may be a replay. Whoever means it (a wanted downgrade) does not ask.
pub fn replay(newest: Option<&Accepted>, offered: &Accepted) -> Result<(), Replay> {
    let Some(newest) = newest else {
        return Ok(());
    };
    if offered.version < newest.version {
        return Err(Replay::OlderVersion {
            offered: offered.version.clone(),
            newest: newest.version.clone(),
        });
    }
    let is_later = offered.timestamp.is_some() && offered.timestamp >= newest.timestamp;
    if offered.version > newest.version || offered.manifest == newest.manifest || is_later {
        return Ok(());
    }
    Err(Replay::OlderSignature {
        version: offered.version.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(version: &str, timestamp: Option<u64>, manifest: u8) -> Accepted {
        Accepted {
            version: version.parse().unwrap(),
            timestamp,
            manifest: Digest::from_bytes([manifest; 32]),
        }
    }

    #[test]
    fn what_is_not_older_may_come() {
        let newest = accepted("1.10", Some(100), 1);
        for offered in [
            newest.clone(),
            accepted("1.10", None, 1),
            accepted("1.10", Some(99), 1),
            accepted("1.10", Some(100), 2),
            accepted("1.10", Some(101), 2),
            accepted("1.11", Some(99), 2),
            accepted("2.0", None, 2),
        ] {
            assert_eq!(replay(Some(&newest), &offered), Ok(()), "{offered:?}");
            assert_eq!(replay(None, &offered), Ok(()));
        }
        let untimed = accepted("1.10", None, 1);
        assert_eq!(
            replay(Some(&untimed), &accepted("1.10", Some(1), 2)),
            Ok(())
        );
    }

    #[test]
    fn what_is_older_may_not() {
        let newest = accepted("1.10", Some(100), 1);
        for offered in [accepted("1.9", Some(101), 2), accepted("1.10-rc1", None, 1)] {
            let replay = replay(Some(&newest), &offered);
            assert!(
                matches!(replay, Err(Replay::OlderVersion { .. })),
                "{offered:?}"
            );
        }
        for (newest, offered) in [
            (newest.clone(), accepted("1.10", Some(99), 2)),
            (newest, accepted("1.10", None, 2)),
            (accepted("1.10", None, 1), accepted("1.10", None, 2)),
        ] {
            let replay = replay(Some(&newest), &offered);
            assert!(
                matches!(replay, Err(Replay::OlderSignature { .. })),
                "{offered:?}"
            );
        }
    }
}
