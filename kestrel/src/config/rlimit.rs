//! A limit that the kernel puts on each process of the workload.

use nix::sys::resource::Resource;
use volant_proto::agent::v1;

use super::{ConfigError, invalid};

/// As OCI names them, without `RLIMIT_`.
const RESOURCES: &[(&str, Resource)] = &[
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: Resource,
    /// At most `hard`. `u64::MAX` is no limit, for the kernel as for the host.
    pub soft: u64,
    pub hard: u64,
}

impl TryFrom<v1::Rlimit> for Rlimit {
    type Error = ConfigError;

    fn try_from(limit: v1::Rlimit) -> Result<Self, ConfigError> {
        let Some((_, resource)) = RESOURCES.iter().find(|(name, _)| *name == limit.name) else {
            return Err(invalid("resource limit", limit.name));
        };
        if limit.soft > limit.hard {
            let text = format!("{}={}:{}", limit.name, limit.soft, limit.hard);
            return Err(invalid(
                "resource limit: the soft one is above the hard one",
                text,
            ));
        }
        Ok(Self {
            resource: *resource,
            soft: limit.soft,
            hard: limit.hard,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_a_name_that_is_known_and_a_soft_one_below_the_hard_one() {
        let limit = |name: &str, soft, hard| {
            let name = name.to_owned();
            Rlimit::try_from(v1::Rlimit { name, soft, hard }).map_err(|error| error.to_string())
        };
        let nofile = limit("nofile", 10, u64::MAX).unwrap();
        assert_eq!(nofile.resource, Resource::RLIMIT_NOFILE);
        assert_eq!((nofile.soft, nofile.hard), (10, u64::MAX));
        for name in ["NOFILE", "RLIMIT_NOFILE", ""] {
            assert_eq!(
                limit(name, 1, 1),
                Err(format!("'{name}' is no resource limit"))
            );
        }
        assert!(
            limit("core", 2, 1)
                .unwrap_err()
                .starts_with("'core=2:1' is no resource limit")
        );
    }
}
