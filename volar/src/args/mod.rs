//! What can be typed. Names and numbers are checked here, before anything is asked.

mod create;
mod devices;
mod plugins;
mod running;
mod vms;

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use volant_spec::config::{LinkName, Subnet};

pub use crate::host::Host;
pub use create::{Create, Given, Health, Machine, Workload};
pub use devices::{Devices, Validate};
pub use plugins::{AddKey, Install, Plugins, Remove, RemoveKeys, Show, Trust, TrustFolder};
pub use running::{
    Console, Copy, Escape, Events, Exec, Forward, Logs, Shell, Spec, Stats, Tail, Top,
};
pub use vms::{Config, Names, Scale, Secrets, Set, Until, Vms, Wait};

/// Where the API of this host is.
pub const LOCAL_SOCKET: &str = "/run/volant/api.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; or refused by the policy on signatures, or not as it was signed
  2  wrong usage, or a value that cannot be
  3  there is no such VM, plugin or key
  4  in conflict: it exists already, is in use, or is being deleted
  5  Volant cannot be reached
  6  what was waited for did not come in time
volar vms exec and shell end as the program in the guest does: with its exit code, or 128 + N when signal N ended it;
126 if it cannot be run, 127 if it is not there, 125 if volar or Volant failed.";

/// Runs microVMs that are systemd units.
#[derive(Debug, Parser)]
#[command(name = "volar", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Args {
    /// Where Volant's API is: unix://PATH, or ssh://[USER@]HOST[:PORT]
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
    /// Shows the PCI devices of the host, and tells which VMs could have
    #[command(subcommand, arg_required_else_help = true)]
    Devices(Devices),
    /// Tells the version of this program
    Version,
    /// Connects standard input and output with the API; what -H ssh:// runs on the other machine
    #[command(hide = true)]
    DialStdio,
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
}
