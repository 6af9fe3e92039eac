//! `volar devices`: what can be typed.

use clap::Subcommand;
use volant_spec::Name;

#[derive(Debug, Subcommand)]
pub enum Devices {
    /// Lists the PCI devices of the host, and which VM has which
    #[command(visible_alias = "ls")]
    List,
    /// Shows all that is known of devices
    Get {
        /// As lspci -D writes it: 0000:01:00.0
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<String>,
    },
    /// Tells whether a VM could have devices, and what speaks against it; changes nothing
    Validate(Validate),
}

#[derive(Debug, clap::Args)]
pub struct Validate {
    /// All that the VM would have
    #[arg(required = true, value_name = "ADDRESS")]
    pub addresses: Vec<String>,
    /// What they may be, as in a plugin's allowlist: 10de:1eb8, or 10de:* for any device of a vendor [default: anything]
    #[arg(long, value_name = "VENDOR:DEVICE")]
    pub allow: Vec<String>,
    /// The VM that would have them [default: one that is not there yet]
    #[arg(long, value_name = "NAME")]
    pub vm: Option<Name>,
}
