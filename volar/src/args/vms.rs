//! `volar vms`: what can be typed.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Subcommand, ValueEnum};
use volant_spec::{
    Name,
    resources::{MAX_CPU_CORES, MAX_MEMORY_MB, MIN_MEMORY_MB},
};

use super::{Console, Copy, Create, Events, Exec, Forward, Logs, Shell, Stats, Top};

#[derive(Debug, Subcommand)]
pub enum Vms {
    /// Creates a VM, and starts it
    Create(Box<Create>),
    /// Lists all VMs
    #[command(visible_alias = "ls")]
    List,
    /// Shows all that is known of VMs
    Get(Names),
    /// Starts VMs, and waits until each is ready
    Start(Names),
    /// Stops VMs; each keeps its address
    Stop(Names),
    /// Stops VMs and starts them again
    Restart(Names),
    /// Stops VMs for good: their addresses are free again
    #[command(visible_alias = "rm")]
    Delete(Names),
    /// Lets VMs start when the host boots
    Enable(Names),
    /// Lets VMs start no more when the host boots
    Disable(Names),
    /// Runs a program in a VM, and ends as it does
    Exec(Exec),
    /// Opens a login shell in a VM
    Shell(Shell),
    /// Copies files into a VM, and out of one
    Cp(Copy),
    /// Shows what a VM's workload and its host said of it
    Logs(Logs),
    /// Attaches to a VM's serial console
    Console(Console),
    /// Makes TCP ports of a VM reachable here; needs no network in it
    Forward(Forward),
    /// Shows what VMs use, again and again, with the processes in them
    Top(Top),
    /// Shows what VMs use: of the host, and inside
    Stats(Stats),
    /// Waits until VMs are ready, healthy or stopped
    Wait(Wait),
    /// Shows what happens to VMs, as it happens
    Events(Events),
    /// Halts VMs where they are; their memory stays
    Pause(Names),
    /// Lets paused VMs go on
    Resume(Names),
    /// Has VMs go on under the installed version of Volant; the guests notice nothing
    Reload(Names),
    /// Changes a VM's CPUs and memory; at once where the VMM can
    Scale(Scale),
    /// Shows and changes how a VM is configured
    #[command(subcommand, arg_required_else_help = true)]
    Config(Config),
    /// Sets and removes a VM's secrets
    #[command(subcommand, arg_required_else_help = true, visible_alias = "secrets")]
    Secret(Secrets),
}

#[derive(Clone, Debug, clap::Args)]
pub struct Names {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<Name>,
}

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// The workload was started, and its health check passed if there is one
    Ready,
    /// The unit has ended
    Stopped,
    /// The health check passes
    Healthy,
}

impl Until {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Stopped => "stopped",
            Self::Healthy => "healthy",
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Wait {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<Name>,
    /// What to wait for
    #[arg(long = "for", value_name = "STATE", default_value = "ready")]
    pub until: Until,
    /// How long: 90, 90s, 5m, 1h [default: without end]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("wanted").required(true).multiple(true))]
pub struct Scale {
    pub name: Name,
    /// CPUs
    #[arg(
        long, value_name = "N", group = "wanted",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CPU_CORES))
    )]
    pub cpu: Option<u32>,
    /// Memory in MiB
    #[arg(
        long, value_name = "MB", group = "wanted",
        value_parser = clap::value_parser!(u32).range(i64::from(MIN_MEMORY_MB)..=i64::from(MAX_MEMORY_MB))
    )]
    pub memory: Option<u32>,
    /// Restarts the VM if it cannot be changed as it runs
    #[arg(long)]
    pub restart: bool,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Shows a VM's configuration; what is not in it is the plugin's to say
    Get {
        name: Name,
        /// An older version [default: the newest]
        #[arg(long, value_name = "N")]
        version: Option<u64>,
        /// With what the plugin says where the configuration says nothing
        #[arg(long)]
        effective: bool,
    },
    /// Changes a VM's configuration; it holds from the next start
    Set(Set),
    /// Opens a VM's configuration in $VISUAL or $EDITOR
    Edit { name: Name },
    /// Lists the versions of a VM's configuration
    History { name: Name },
    /// Makes an older version the newest again
    Rollback {
        name: Name,
        /// The version to go back to
        version: u64,
    },
}

const KEYS: &str = "\
A key is a path with dots, and KEY= takes a value away:
  volar vms config set web env.LEVEL=debug limits.cpu_quota_percent=50 root_disk.size_mb=2048
  volar vms config set web 'entrypoint=[\"/bin/server\", \"--verbose\"]' user=";

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(false), after_help = KEYS)]
pub struct Set {
    pub name: Name,
    /// A value to set, or KEY= to take it away
    #[arg(value_name = "KEY=VALUE", group = "change")]
    pub values: Vec<String>,
    /// The whole configuration: a file in JSON or TOML, or - for standard input
    #[arg(long, value_name = "FILE", group = "change")]
    pub file: Option<PathBuf>,
    /// Only if this is the newest version still
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// Keeps a secret for a VM; its workload finds it as /run/secrets/SECRET from the next start
    Set {
        name: Name,
        #[arg(value_parser = secret)]
        secret: String,
        /// What the secret is, byte for byte; - for standard input
        #[arg(long, value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
    /// Removes a secret
    #[command(visible_alias = "rm")]
    Remove {
        name: Name,
        #[arg(value_parser = secret)]
        secret: String,
    },
    /// Lists the names of a VM's secrets
    #[command(visible_alias = "ls")]
    List { name: Name },
}

/// The name of a secret: that of a file.
pub fn secret(text: &str) -> Result<String, String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(is_valid) {
        return Err(
            "a secret's name has 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', and does not begin with '.'"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// A time: seconds, or a number with ms, s, m, h or d.
pub fn duration(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let number: u64 = number
        .parse()
        .map_err(|_| "it is no time such as 90, 90s, 5m or 1h".to_owned())?;
    let millis = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let millis = millis.and_then(|unit: u64| number.checked_mul(unit));
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| "it is no time such as 90, 90s, 5m or 1h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [
            ("90", 90_000),
            ("5m", 300_000),
            ("250ms", 250),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "m",
            "5x",
            "-5m",
            "99999999999999999999",
            "18446744073709551615d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_is_named_like_a_file() {
        assert!(secret("db-password.txt").is_ok());
        for text in ["", ".a", "a/b", "a b", &"a".repeat(65)] {
            assert!(secret(text).is_err(), "{text}");
        }
    }
}
