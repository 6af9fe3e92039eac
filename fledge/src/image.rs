//! What an image says of how it is run, in a manifest's terms. Nothing here reads or builds anything.

use std::time::Duration;

use volant_oci::{Healthcheck, ImageConfig};
use volant_spec::manifest::{
    HealthCheck, MAX_STOP_GRACE_MS, Network, Port, Probe, STOP_SIGNALS, Transport, Workload,
    WorkloadError,
    health::{DEFAULT_INTERVAL_MS, DEFAULT_RETRIES, DEFAULT_TIMEOUT_MS, MAX_TIME_MS},
};

use crate::recipe;

/// What a plugin takes over from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub workload: Workload,
    pub network: Option<Network>,
    /// What could not be taken over, for people.
    pub warnings: Vec<String>,
}

/// Why an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(
        "the image names no program to run; write it in fledge.toml: [workload] entrypoint = [\"/path\"]"
    )]
    NoProgram,
    #[error("the workload of image and fledge.toml together is not valid")]
    Workload(#[from] WorkloadError),
}

/// The image's settings, under those of the recipe. The image's command is for a guest without an init of its own.
pub fn run(config: &ImageConfig, keys: &recipe::Workload, has_init: bool) -> Result<Run, RunError> {
    let mut warnings = Vec::new();
    let mut workload = if has_init && keys.entrypoint.is_none() {
        Workload::none()
    } else {
        Workload::new(command_line(config, keys).ok_or(RunError::NoProgram)?)?
    };
    // As the kernel does with an environment: of two alike, the last counts; what has no '=' is none.
    workload.env = config
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    workload.user = given(&config.user);
    workload.workdir = given(&config.working_dir).map(absolute);
    workload.volumes = config.volumes.iter().cloned().map(absolute).collect();
    workload.stop_signal = config.stop_signal.as_deref().and_then(|text| {
        let signal = stop_signal(text);
        if signal.is_none() {
            warnings.push(format!(
                "the image's stop signal '{}' cannot be sent to a workload; SIGTERM is used",
                text.escape_debug()
            ));
        }
        signal
    });
    workload.stop_grace_ms = config.stop_timeout.map(|time| {
        if millis(time) > MAX_STOP_GRACE_MS {
            warnings.push(format!(
                "the image's stop timeout of {} s is cut to {} s",
                time.as_secs(),
                MAX_STOP_GRACE_MS / 1000
            ));
        }
        millis(time).min(MAX_STOP_GRACE_MS)
    });
    if let Some(given) = config.healthcheck.as_ref().filter(|given| is_wanted(given)) {
        workload.health_check = health_check(given);
        if workload.health_check.is_none() {
            warnings.push("the image's health check runs no program, and is left out".to_owned());
        }
    }
    let workload = keys.over(&workload)?;

    let (ports, other): (Vec<_>, Vec<_>) = config
        .exposed_ports
        .iter()
        .map(port)
        .partition(Result::is_ok);
    warnings.extend(other.into_iter().filter_map(Result::err));
    let ports: Vec<Port> = ports.into_iter().filter_map(Result::ok).collect();
    let network = (!ports.is_empty()).then(|| Network {
        ports,
        ..Network::default()
    });
    Ok(Run {
        workload,
        network,
        warnings,
    })
}

/// The program and its arguments. As in a Dockerfile, a new entrypoint drops the image's command.
fn command_line(config: &ImageConfig, keys: &recipe::Workload) -> Option<Vec<String>> {
    let (mut words, command) = match &keys.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), &[][..]),
        None => (config.entrypoint.clone(), &config.cmd[..]),
    };
    words.extend_from_slice(keys.args.as_deref().unwrap_or(command));
    words
        .first()
        .is_some_and(|program| !program.is_empty())
        .then_some(words)
}

fn absolute(path: String) -> String {
    if path.starts_with('/') {
        path
    } else {
        format!("/{path}")
    }
}

/// A name with or without `SIG`, or a number.
fn stop_signal(text: &str) -> Option<String> {
    // The numbers are those of x86-64, of the signals that a workload can name.
    let name = match text.parse() {
        Ok(1) => "SIGHUP".to_owned(),
        Ok(2) => "SIGINT".to_owned(),
        Ok(3) => "SIGQUIT".to_owned(),
        Ok(9) => "SIGKILL".to_owned(),
        Ok(10) => "SIGUSR1".to_owned(),
        Ok(12) => "SIGUSR2".to_owned(),
        Ok(15) => "SIGTERM".to_owned(),
        Ok(28) => "SIGWINCH".to_owned(),
        Ok(_) => return None,
        Err(_) => {
            let name = text.to_ascii_uppercase();
            if name.starts_with("SIG") {
                name
            } else {
                format!("SIG{name}")
            }
        }
    };
    STOP_SIGNALS.contains(&name.as_str()).then_some(name)
}

fn is_wanted(given: &Healthcheck) -> bool {
    given
        .test
        .first()
        .is_some_and(|kind| !kind.is_empty() && kind != "NONE")
}

fn health_check(given: &Healthcheck) -> Option<HealthCheck> {
    let (kind, words) = given.test.split_first()?;
    let is_usable = words.first().is_some_and(|word| !word.is_empty())
        && !words.iter().any(|word| word.contains('\0'));
    let command = match kind.as_str() {
        "CMD" if is_usable => words.to_vec(),
        "CMD-SHELL" if is_usable => vec!["/bin/sh".to_owned(), "-c".to_owned(), words.join(" ")],
        _ => return None,
    };
    let time = |time: Option<Duration>, default| {
        time.map_or(default, |time| millis(time).clamp(1, MAX_TIME_MS))
    };
    Some(HealthCheck {
        probe: Probe::Exec { command },
        interval_ms: time(given.interval, DEFAULT_INTERVAL_MS),
        timeout_ms: time(given.timeout, DEFAULT_TIMEOUT_MS),
        retries: given
            .retries
            .map_or(DEFAULT_RETRIES, |retries| retries.clamp(1, 1000)),
        start_period_ms: given
            .start_period
            .map_or(0, |time| millis(time).min(MAX_TIME_MS)),
    })
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn port(given: &volant_oci::Port) -> Result<Port, String> {
    let protocol = match given.protocol.as_str() {
        "tcp" => Ok(Transport::Tcp),
        "udp" => Ok(Transport::Udp),
        other => Err(format!(
            "the image's port {}/{other} is left out: only tcp and udp are known",
            given.number
        )),
    }?;
    match given.number.try_into() {
        Ok(port) => Ok(Port {
            port,
            protocol,
            host_port: None,
        }),
        Err(_) => Err("the image's port 0 is left out".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: ["PATH=/bin", "A=1", "A=b=c", "none"]
                .map(str::to_owned)
                .into(),
            user: "www-data".to_owned(),
            working_dir: "srv".to_owned(),
            stop_signal: Some("QUIT".to_owned()),
            stop_timeout: Some(Duration::from_secs(7)),
            volumes: vec!["/data".to_owned()],
            exposed_ports: vec![
                volant_oci::Port {
                    number: 80,
                    protocol: "tcp".to_owned(),
                },
                volant_oci::Port {
                    number: 9,
                    protocol: "sctp".to_owned(),
                },
            ],
            healthcheck: Some(Healthcheck {
                test: vec!["CMD-SHELL".to_owned(), "curl -f localhost".to_owned()],
                interval: Some(Duration::from_secs(5)),
                ..Healthcheck::default()
            }),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn what_the_image_says_is_taken_over() {
        let run = run(&config(), &recipe::Workload::default(), false).unwrap();
        let workload = run.workload;
        assert_eq!(workload.entrypoint, ["/entry", "serve"]);
        assert_eq!(workload.env["A"], "b=c");
        assert_eq!(workload.env.len(), 2);
        assert_eq!(workload.user.as_deref(), Some("www-data"));
        assert_eq!(workload.workdir.as_deref(), Some("/srv"));
        assert_eq!(workload.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(workload.stop_grace_ms, Some(7000));
        assert_eq!(workload.volumes, ["/data"]);
        let check = workload.health_check.unwrap();
        let command = ["/bin/sh", "-c", "curl -f localhost"]
            .map(str::to_owned)
            .into();
        assert_eq!(check.probe, Probe::Exec { command });
        assert_eq!(
            (check.interval_ms, check.timeout_ms, check.retries),
            (5000, 30_000, 3)
        );
        assert_eq!(run.network.unwrap().ports.len(), 1);
        assert!(run.warnings[0].contains("9/sctp"), "{:?}", run.warnings);
    }

    #[test]
    fn the_recipe_goes_over_the_image_as_a_dockerfile_would() {
        let words = |words: &[&str]| {
            Some(
                words
                    .iter()
                    .map(|&word| word.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let cases = [
            (None, None, &["/entry", "serve"][..]),
            (words(&["/mine"]), None, &["/mine"]),
            (None, words(&["-v"]), &["/entry", "-v"]),
            (words(&["/mine"]), words(&["-v"]), &["/mine", "-v"]),
        ];
        for (entrypoint, args, expected) in cases {
            let keys = recipe::Workload {
                entrypoint,
                args,
                env: [("A".to_owned(), "2".to_owned())].into(),
                user: Some("0".to_owned()),
                ..recipe::Workload::default()
            };
            let workload = run(&config(), &keys, false).unwrap().workload;
            assert_eq!(workload.entrypoint, expected);
            assert_eq!(
                (workload.env["A"].as_str(), workload.env["PATH"].as_str()),
                ("2", "/bin")
            );
            assert_eq!(workload.user.as_deref(), Some("0"));
        }
    }

    #[test]
    fn a_guest_with_an_init_of_its_own_runs_not_the_images_command() {
        let keys = recipe::Workload::default();
        let workload = run(&config(), &keys, true).unwrap().workload;
        assert!(workload.entrypoint.is_empty());
        assert_eq!(workload.env["PATH"], "/bin");
        let keys = recipe::Workload {
            entrypoint: Some(vec!["/mine".to_owned()]),
            ..keys
        };
        let workload = run(&config(), &keys, true).unwrap().workload;
        assert_eq!(workload.entrypoint, ["/mine"]);
    }

    #[test]
    fn an_image_without_a_program_needs_one_from_the_recipe() {
        let config = ImageConfig {
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            ..config()
        };
        let error = run(&config, &recipe::Workload::default(), false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("names no program"), "{error}");
    }

    #[test]
    fn a_health_check_that_runs_nothing_is_left_out_and_told() {
        let cases: [(&[&str], usize); 6] = [
            (&["CMD", ""], 1),
            (&["CMD", "a\0b"], 1),
            (&["CMD-SHELL"], 1),
            (&["ODD", "x"], 1),
            (&["NONE"], 0),
            (&[], 0),
        ];
        for (test, warned) in cases {
            let test = test.iter().map(|&word| word.to_owned()).collect();
            let config = ImageConfig {
                healthcheck: Some(Healthcheck {
                    test,
                    ..Healthcheck::default()
                }),
                exposed_ports: Vec::new(),
                ..config()
            };
            let run = run(&config, &recipe::Workload::default(), false).unwrap();
            assert_eq!(run.workload.health_check, None);
            assert_eq!(run.warnings.len(), warned, "{:?}", run.warnings);
        }
    }

    #[test]
    fn a_signal_is_known_by_name_or_number() {
        let cases = [
            ("SIGQUIT", Some("SIGQUIT")),
            ("int", Some("SIGINT")),
            ("28", Some("SIGWINCH")),
            ("SIGRTMIN+3", None),
            ("19", None),
        ];
        for (text, expected) in cases {
            assert_eq!(stop_signal(text).as_deref(), expected, "{text}");
        }
    }
}
