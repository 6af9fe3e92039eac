//! What can be typed. Names and numbers are checked here, before anything is asked.

mod plugins;

use std::{path::PathBuf, str::FromStr};

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use volant_spec::{
    Name, PluginRef,
    config::{LinkName, Subnet, Vmm},
    resources::{MAX_CPU_CORES, MAX_MEMORY_MB, MIN_MEMORY_MB},
};

pub use plugins::{AddKey, Install, Plugins, Remove, RemoveKeys, Show, Trust, TrustFolder};

/// Where the API of this host is.
pub const LOCAL_SOCKET: &str = "/run/volant/api.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; or refused by the policy on signatures, or not as it was signed
  2  wrong usage, or a value that cannot be
  3  there is no such VM, plugin or key
  4  in conflict: it exists already, is in use, or is being deleted
  5  Volant cannot be reached";

/// Runs microVMs that are systemd units.
#[derive(Debug, Parser)]
#[command(name = "volar", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Args {
    /// Where Volant's API is
    #[arg(
        short = 'H',
        long,
        global = true,
        value_name = "URL",
        env = "VOLANT_HOST",
        default_value = "unix:///run/volant/api.sock"
    )]
    pub host: Host,
    /// How results are shown
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: Format,
    /// Names alone in lists, and nothing where all went well
    #[arg(short, long, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs: as the API gives it
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prepares this host: checks it, writes the configuration, starts Volant's sockets
    Setup(Setup),
    /// Installs, shows, verifies and removes plugins, and says whom to trust
    #[command(subcommand, arg_required_else_help = true)]
    Plugins(Plugins),
    /// Creates, runs and deletes VMs
    #[command(subcommand, arg_required_else_help = true)]
    Vms(Vms),
    /// Tells the version of this program
    Version,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Setup {
    /// Says what would be done, and changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The bridge of the VMs, made by Volant [default: the configured one, or vbr0]
    #[arg(long, value_name = "LINK", value_parser = link_name)]
    pub bridge: Option<LinkName>,
    /// The network of the VMs; the host has its first address [default: the configured one, or 192.168.127.0/24]
    #[arg(long, value_name = "CIDR", value_parser = subnet)]
    pub subnet: Option<Subnet>,
}

#[derive(Debug, Subcommand)]
pub enum Vms {
    /// Creates a VM, and starts it
    Create(Create),
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
}

#[derive(Clone, Debug, clap::Args)]
pub struct Names {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<Name>,
}

#[derive(Debug, clap::Args)]
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
}

/// Where the API is: a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub socket: PathBuf,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Err(
                "this version of Volant is reached over its Unix socket alone; \
                        write unix:///run/volant/api.sock"
                    .to_owned(),
            );
        }
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self {
                socket: path.into(),
            }),
            _ => Err("it is not unix:// and an absolute path".to_owned()),
        }
    }
}

fn link_name(text: &str) -> Result<LinkName, String> {
    LinkName::try_from(text.to_owned())
}

fn subnet(text: &str) -> Result<Subnet, String> {
    let net: Ipv4Net = text
        .parse()
        .map_err(|_| "it is no IPv4 network such as 192.168.127.0/24")?;
    Subnet::try_from(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_host_is_a_unix_socket() {
        assert_eq!(
            "unix:///a/b".parse(),
            Ok(Host {
                socket: "/a/b".into()
            })
        );
        for (text, expected) in [
            ("https://a", "Unix socket alone"),
            ("http://a", "Unix socket alone"),
            ("unix://a", "absolute path"),
            ("/run/x", "absolute path"),
            ("", "absolute path"),
        ] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
