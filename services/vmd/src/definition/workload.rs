//! The workload's part of a definition: from the registry's words to the agent's. Pure.

use std::time::Duration;

use volant_dbus::registry::{self, VmDefinition};
use volant_proto::agent::v1::{
    Command, HealthCheck, Restart, Rlimit, Workload, health_check::Probe,
};

/// From the agent's hello to a workload that has no health check.
const READY: Duration = Duration::from_secs(30);
/// Beyond the probes' own time.
const SLACK: Duration = Duration::from_secs(10);

/// What the agent is to run. Takes it out of `wire`.
pub(super) fn workload(wire: &mut VmDefinition) -> Result<Workload, String> {
    let entrypoint = std::mem::take(&mut wire.entrypoint);
    if wire.init.is_empty() && entrypoint.first().is_none_or(String::is_empty) {
        return Err("the workload has no program".to_owned());
    }
    let health_check = match std::mem::take(&mut wire.health_check).as_slice() {
        [] => None,
        [one] => Some(health_check(one)?),
        many => return Err(format!("there are {} health checks", many.len())),
    };
    let rlimits = std::mem::take(&mut wire.rlimits);
    Ok(Workload {
        entrypoint,
        env: std::mem::take(&mut wire.env),
        workdir: std::mem::take(&mut wire.workdir),
        stop_signal: std::mem::take(&mut wire.stop_signal),
        stop_grace_ms: wire.stop_grace_ms,
        volumes: std::mem::take(&mut wire.volumes),
        user: std::mem::take(&mut wire.user),
        restart: restart(&wire.restart)?.into(),
        health_check,
        rlimits: rlimits
            .into_iter()
            .map(|(name, soft, hard)| Rlimit { name, soft, hard })
            .collect(),
    })
}

/// How long the agent may take from its hello to its word that the workload is ready.
pub(super) fn ready_within(check: Option<&HealthCheck>) -> Duration {
    let Some(check) = check else { return READY };
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let probe = millis(check.interval_ms).saturating_add(millis(check.timeout_ms));
    millis(check.start_period_ms)
        .saturating_add(probe.saturating_mul(check.retries.max(1)))
        .saturating_add(SLACK)
}

fn restart(word: &str) -> Result<Restart, String> {
    match word {
        // A registry that does not know of it.
        "" | "never" => Ok(Restart::Never),
        "on-failure" => Ok(Restart::OnFailure),
        "always" => Ok(Restart::Always),
        other => Err(format!(
            "restart '{}' is not one of never, on-failure, always",
            other.escape_debug()
        )),
    }
}

fn health_check(wire: &registry::HealthCheck) -> Result<HealthCheck, String> {
    let probe = match wire.kind.as_str() {
        "http" => Probe::HttpUrl(wire.url.clone()),
        "tcp" => Probe::TcpPort(wire.port.into()),
        "exec" => Probe::Exec(Command {
            arguments: wire.command.clone(),
        }),
        other => {
            return Err(format!(
                "health check '{}' is not one of http, tcp, exec",
                other.escape_debug()
            ));
        }
    };
    Ok(HealthCheck {
        interval_ms: wire.interval_ms,
        timeout_ms: wire.timeout_ms,
        retries: wire.retries,
        start_period_ms: wire.start_period_ms,
        probe: Some(probe),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str) -> registry::HealthCheck {
        registry::HealthCheck {
            kind: kind.to_owned(),
            url: "http://127.0.0.1/".to_owned(),
            port: 80,
            command: vec!["/bin/true".to_owned()],
            interval_ms: 10_000,
            timeout_ms: 5_000,
            retries: 3,
            start_period_ms: 20_000,
        }
    }

    fn wire() -> VmDefinition {
        VmDefinition {
            entrypoint: vec!["/bin/web".to_owned()],
            restart: "on-failure".to_owned(),
            health_check: vec![check("tcp")],
            rlimits: vec![("nofile".to_owned(), 1, u64::MAX)],
            ..VmDefinition::default()
        }
    }

    #[test]
    fn restarts_probes_and_limits_reach_the_agent() {
        let told = workload(&mut wire()).unwrap();
        assert_eq!(told.restart(), Restart::OnFailure);
        assert_eq!(told.rlimits[0].hard, u64::MAX);
        let told = told.health_check.unwrap();
        assert_eq!(told.probe, Some(Probe::TcpPort(80)));
        assert_eq!(ready_within(Some(&told)), Duration::from_secs(75));
        assert_eq!(ready_within(None), READY);
        assert!(matches!(
            health_check(&check("http")).unwrap().probe,
            Some(Probe::HttpUrl(url)) if url == "http://127.0.0.1/"
        ));
        assert!(matches!(
            health_check(&check("exec")).unwrap().probe,
            Some(Probe::Exec(Command { arguments })) if arguments == ["/bin/true"]
        ));
    }

    #[test]
    fn words_that_are_not_known_are_refused() {
        type Spoil = fn(&mut VmDefinition);
        let cases: [(Spoil, &str); 4] = [
            (|wire| wire.entrypoint.clear(), "no program"),
            (|wire| wire.restart = "maybe".to_owned(), "restart 'maybe'"),
            (
                |wire| wire.health_check = vec![check("icmp")],
                "health check 'icmp'",
            ),
            (
                |wire| wire.health_check.push(check("tcp")),
                "2 health checks",
            ),
        ];
        for (spoil, expected) in cases {
            let mut wire = wire();
            spoil(&mut wire);
            let problem = workload(&mut wire).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
        let mut init = wire();
        init.entrypoint.clear();
        init.init = "/sbin/init".to_owned();
        workload(&mut init).unwrap();
    }
}
