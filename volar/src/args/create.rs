//! `volar vms create`: what can be typed, and what of it is the VM's configuration.

use std::{path::PathBuf, time::Duration};

use clap::ArgGroup;
use volant_spec::{
    Name, PluginRef,
    config::Vmm,
    resources::{MAX_CPU_CORES, MAX_MEMORY_MB, MIN_MEMORY_MB},
};

use super::{
    running::variable,
    vms::{duration, secret},
};

const CREATE: &str = "\
  volar vms create web --plugin nginx --cpu 2 --memory 512 --disk 2G --volume data:/var/lib/data:10G
  volar vms create api --plugin api --secret token=./token --secret-env API_TOKEN=token --restart on-failure \\
      --health-http /healthz --health-interval 5s -- /bin/api --verbose";

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE, group = ArgGroup::new("health").multiple(false))]
pub struct Create {
    /// a-z, 0-9 and '-', up to 63 characters
    pub name: Name,
    /// What the VM runs: an installed plugin, the newest version that is enabled unless one is given
    #[arg(long, value_name = "NAME[@VERSION]")]
    pub plugin: PluginRef,
    /// CPUs [default: the plugin's, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CPU_CORES)))]
    pub cpu: Option<u32>,
    /// Memory in MiB [default: the plugin's, or 256]
    #[arg(
        long, value_name = "MB",
        value_parser = clap::value_parser!(u32).range(i64::from(MIN_MEMORY_MB)..=i64::from(MAX_MEMORY_MB))
    )]
    pub memory: Option<u32>,
    /// The virtual machine monitor: auto, cloud-hypervisor or qemu [default: the configured one, or auto]
    #[arg(long, value_name = "VMM")]
    pub vmm: Option<Vmm>,
    /// Keeps the definition alone
    #[arg(long)]
    pub no_start: bool,
    /// Starts it when the host boots, too
    #[arg(long)]
    pub enable: bool,
    #[command(flatten)]
    pub workload: Workload,
    #[command(flatten)]
    pub machine: Machine,
    #[command(flatten)]
    pub health: Health,
    /// What runs in place of the plugin's program
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Workload")]
pub struct Workload {
    /// Sets a variable of the workload; KEY alone takes its value from here
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Gives the workload a secret, as /run/secrets/NAME; - reads standard input
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    pub secret: Vec<(String, PathBuf)>,
    /// Gives the workload a secret in a variable, too
    #[arg(long, value_name = "VAR=NAME", value_parser = secret_variable)]
    pub secret_env: Vec<(String, String)>,
    /// When the workload is started again: never, on-failure or always
    #[arg(long, value_name = "WHEN", value_parser = ["never", "on-failure", "always"])]
    pub restart: Option<String>,
    /// Who runs it: USER or USER:GROUP
    #[arg(short, long)]
    pub user: Option<String>,
    /// Where it runs: an absolute path
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// A limit of its processes, soft and hard: nofile=1024:4096, core=unlimited
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = rlimit)]
    pub rlimit: Vec<Limit>,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct Machine {
    /// The configuration, JSON or TOML; - reads standard input. What is typed beside it is set over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keeps what the guest writes to its root, on a disk of this size: 512M, 2G
    #[arg(long, value_name = "SIZE", value_parser = size_mb)]
    pub disk: Option<u32>,
    /// A disk that keeps its files, or a folder of the host that the guest can read
    #[arg(long, value_name = "NAME:/TARGET:SIZE|/HOST/DIR:/TARGET[:ro]", value_parser = volume)]
    pub volume: Vec<Given>,
    /// The program that becomes PID 1 in the guest: /sbin/init
    #[arg(long, value_name = "PATH")]
    pub init: Option<String>,
    /// cloud-init's user-data
    #[arg(long, value_name = "FILE")]
    pub cloud_init: Option<PathBuf>,
    /// The most of the host's CPUs that it takes: 50%, 250%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub cpu_quota: Option<u32>,
    /// A PCI device of the host: 0000:01:00.0
    #[arg(long, value_name = "ADDRESS")]
    pub device: Vec<String>,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Health check")]
pub struct Health {
    /// Healthy while this shell command ends with 0
    #[arg(long, value_name = "COMMAND", group = "health")]
    pub health_cmd: Option<String>,
    /// Healthy while this answers with 200 to 399: a URL, or a path on port 80
    #[arg(long, value_name = "URL|PATH", group = "health")]
    pub health_http: Option<String>,
    /// Healthy while this port accepts a connection
    #[arg(long, value_name = "PORT", group = "health", value_parser = clap::value_parser!(u16).range(1..))]
    pub health_tcp: Option<u16>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "health")]
    pub health_interval: Option<Duration>,
    /// Time that one check may take [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "health")]
    pub health_timeout: Option<Duration>,
    /// So many failures in a row make it unhealthy [default: 3]
    #[arg(long, value_name = "N", requires = "health")]
    pub health_retries: Option<u32>,
    /// Time after the start in which a failure does not count [default: 0s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "health")]
    pub health_start_period: Option<Duration>,
}

/// A resource limit; without a number there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub name: String,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    Disk {
        name: Name,
        target: String,
        size_mb: u32,
        read_only: bool,
    },
    Folder {
        host_path: String,
        target: String,
    },
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("it is not NAME=FILE")?;
    if file.is_empty() {
        return Err("there is no file after '='".to_owned());
    }
    Ok((secret(name)?, file.into()))
}

fn secret_variable(text: &str) -> Result<(String, String), String> {
    let (variable, name) = text.split_once('=').ok_or("it is not VAR=NAME")?;
    if variable.is_empty() {
        return Err("there is no variable before '='".to_owned());
    }
    Ok((variable.to_owned(), secret(name)?))
}

/// A size in MiB; a number alone is MiB too.
fn size_mb(text: &str) -> Result<u32, String> {
    const FORM: &str = "it is no size such as 512M, 2G or 1T";
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let factor = match unit.to_ascii_lowercase().trim_end_matches("ib") {
        "" | "m" | "mb" => 1,
        "g" | "gb" => 1024,
        "t" | "tb" => 1024 * 1024,
        _ => return Err(FORM.to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| FORM)?;
    match number.checked_mul(factor) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(FORM.to_owned()),
    }
}

fn volume(text: &str) -> Result<Given, String> {
    const FORM: &str = "it is neither NAME:/TARGET:SIZE nor /HOST/DIR:/TARGET:ro";
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(FORM.to_owned());
    };
    let rest: Vec<&str> = parts.collect();
    if !target.starts_with('/') {
        return Err(format!(
            "the target '{}' is no absolute path",
            target.escape_debug()
        ));
    }
    let target = target.to_owned();
    if source.starts_with('/') {
        return match rest.as_slice() {
            [] | ["ro"] => Ok(Given::Folder {
                host_path: source.to_owned(),
                target,
            }),
            ["rw"] => Err("a guest cannot write to a folder of the host".to_owned()),
            _ => Err(FORM.to_owned()),
        };
    }
    let (size, read_only) = match rest.as_slice() {
        [size] => (*size, false),
        [size, "ro"] => (*size, true),
        _ => return Err(FORM.to_owned()),
    };
    Ok(Given::Disk {
        name: source
            .parse()
            .map_err(|error| format!("the name: {error}"))?,
        target,
        size_mb: size_mb(size)?,
        read_only,
    })
}

fn rlimit(text: &str) -> Result<Limit, String> {
    const FORM: &str = "it is not NAME=SOFT[:HARD], each a number or 'unlimited'";
    let (name, values) = text.split_once('=').ok_or(FORM)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "unlimited" | "-1" => Ok(None),
        text => text.parse().map(Some).map_err(|_| FORM.to_owned()),
    };
    Ok(Limit {
        name: name.to_owned(),
        soft: number(soft)?,
        hard: number(hard)?,
    })
}

fn percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(percent @ 1..=100_000) => Ok(percent),
        _ => Err("it is not 1% to 100000%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mebibytes() {
        for (text, expected) in [("512M", 512), ("2G", 2048), ("1TiB", 1_048_576), ("64", 64)] {
            assert_eq!(size_mb(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "G", "1k", "-1", "5000000T"] {
            assert!(size_mb(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_volume_is_a_disk_or_a_folder_of_the_host() {
        let disk = Given::Disk {
            name: "data".parse().unwrap(),
            target: "/data".to_owned(),
            size_mb: 1024,
            read_only: false,
        };
        assert_eq!(volume("data:/data:1G"), Ok(disk));
        for text in ["/srv:/srv", "/srv:/srv:ro"] {
            assert!(matches!(volume(text), Ok(Given::Folder { .. })), "{text}");
        }
        for (text, expected) in [
            ("data:/data", "neither"),
            ("data:data:1G", "no absolute path"),
            ("/srv:/srv:rw", "cannot write"),
            ("DATA:/data:1G", "the name"),
            ("data", "neither"),
        ] {
            let error = volume(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_numbers_or_none() {
        let limit = |soft, hard| Limit {
            name: "nofile".to_owned(),
            soft,
            hard,
        };
        assert_eq!(
            rlimit("nofile=1024:4096"),
            Ok(limit(Some(1024), Some(4096)))
        );
        assert_eq!(rlimit("nofile=1024"), Ok(limit(Some(1024), Some(1024))));
        assert_eq!(rlimit("nofile=5:unlimited"), Ok(limit(Some(5), None)));
        assert!(rlimit("nofile").is_err() && rlimit("nofile=x").is_err());
        assert_eq!((percent("50%"), percent("250")), (Ok(50), Ok(250)));
        assert!(percent("0%").is_err());
    }
}
