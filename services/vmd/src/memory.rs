//! Whether the host's kernel killed something of this unit for want of memory.

use std::{fs, path::PathBuf};

/// Counts the kills in this process's control group. `None` where the kernel does not tell.
#[derive(Debug)]
pub struct OomKills(Option<PathBuf>);

impl OomKills {
    #[must_use]
    pub fn of_this_unit() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self(events_file(&groups))
    }

    /// Kills until now.
    #[must_use]
    pub fn count(&self) -> u64 {
        let events = self
            .0
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        events.as_deref().map_or(0, parse)
    }
}

/// The file that counts, by the text of `/proc/self/cgroup`: with cgroup v1, memory has a hierarchy of its own.
fn events_file(groups: &str) -> Option<PathBuf> {
    let find = |wanted: &dyn Fn(&str, &str) -> bool| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(id, controllers).then(|| path.trim_start_matches('/'))
        })
    };
    let v1 = find(&|_, controllers| controllers.split(',').any(|one| one == "memory"));
    if let Some(path) = v1 {
        let root = PathBuf::from("/sys/fs/cgroup/memory");
        return Some(root.join(path).join("memory.oom_control"));
    }
    let path = find(&|id, controllers| id == "0" && controllers.is_empty())?;
    Some(
        PathBuf::from("/sys/fs/cgroup")
            .join(path)
            .join("memory.events"),
    )
}

fn parse(events: &str) -> u64 {
    let kills = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    kills
        .and_then(|kills| kills.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_control_groups_are_known() {
        let cases = [
            (
                "0::/volant.slice/volant-vm@web.service\n",
                Some("/sys/fs/cgroup/volant.slice/volant-vm@web.service/memory.events"),
            ),
            (
                "4:cpu,memory:/x\n1:name=systemd:/y\n0::/\n",
                Some("/sys/fs/cgroup/memory/x/memory.oom_control"),
            ),
            ("", None),
        ];
        for (groups, expected) in cases {
            assert_eq!(events_file(groups), expected.map(PathBuf::from), "{groups}");
        }
    }

    #[test]
    fn kills_are_counted() {
        assert_eq!(parse("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(parse("junk"), 0);
    }
}
