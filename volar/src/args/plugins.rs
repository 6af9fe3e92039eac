//! `volar plugins`: what can be typed.

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand};
use volant_spec::{Name, PluginRef, config::TRUST_DIR};
use volant_trust::Pattern;

const AMBIGUOUS: &str = "\
What is given is a URL or an oci:// reference if it begins so, a file if it has a '/' in it or ends in .json, else the
name of a plugin. --manifest caddy is always a file; --name caddy is always a plugin of an index.

The signature of a file FILE is FILE.minisig if that is there.";

#[derive(Debug, Subcommand)]
pub enum Plugins {
    /// Installs a plugin; artifacts that are local files are uploaded
    #[command(after_help = AMBIGUOUS)]
    Install(Install),
    /// Lists the installed plugins
    #[command(visible_alias = "ls")]
    List,
    /// Shows a plugin's manifest
    Show(Show),
    /// Lets plugins make VMs again
    Enable {
        #[arg(required = true, value_name = "NAME[@VERSION]")]
        plugins: Vec<PluginRef>,
    },
    /// Lets plugins make no new VMs; those there are go on
    Disable {
        #[arg(required = true, value_name = "NAME[@VERSION]")]
        plugins: Vec<PluginRef>,
    },
    /// Removes plugins that no VM uses
    #[command(visible_alias = "rm")]
    Remove(Remove),
    /// Reads what is installed again, and tells whether it is as it was signed
    Verify {
        /// One plugin, or one version of it [default: all]
        #[arg(value_name = "NAME[@VERSION]")]
        plugin: Option<PluginRef>,
    },
    /// Removes artifacts that nothing refers to, and what is left of broken downloads
    Gc,
    /// Looks for plugins in the configured indexes
    Search {
        /// A part of a name or of a description [default: all]
        text: Option<String>,
    },
    /// Says whose signatures this host trusts
    #[command(subcommand, arg_required_else_help = true)]
    Trust(Trust),
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("from").required(true).multiple(false))]
pub struct Install {
    /// A manifest's file or URL, a plugin in a registry, or a plugin's name in an index
    #[arg(value_name = "FILE|URL|oci://…|NAME[@VERSION]", group = "from")]
    pub source: Option<String>,
    /// The manifest: a file, or a URL that Volant fetches
    #[arg(long, value_name = "FILE|URL", group = "from")]
    pub manifest: Option<String>,
    /// A plugin of an index
    #[arg(long, value_name = "NAME[@VERSION]", group = "from")]
    pub name: Option<PluginRef>,
    /// The signature of a manifest that is a file [default: FILE.minisig]
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    /// Takes an older version, or an older signature of the same one, than was installed before
    #[arg(long)]
    pub allow_downgrade: bool,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    #[arg(value_name = "NAME[@VERSION]")]
    pub plugin: PluginRef,
    /// The manifest byte for byte, as its signature covers it
    #[arg(long)]
    pub manifest: bool,
}

#[derive(Debug, clap::Args)]
pub struct Remove {
    #[arg(required = true, value_name = "NAME[@VERSION]")]
    pub plugins: Vec<PluginRef>,
    /// All versions of each NAME
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Subcommand)]
pub enum Trust {
    /// Shows the policy on signatures, and the keys that are trusted
    #[command(visible_alias = "ls")]
    List,
    /// Trusts a key from now on; run by root on the host itself
    Add(AddKey),
    /// Trusts keys no more; plugins that they signed stay installed
    #[command(visible_alias = "rm")]
    Remove(RemoveKeys),
}

#[derive(Debug, clap::Args)]
pub struct AddKey {
    /// A minisign public key (RWQ…), or the file that has one
    #[arg(value_name = "KEY|FILE")]
    pub key: String,
    /// What the key is called here [default: the file's name, or the key's id]
    #[arg(long)]
    pub name: Option<Name>,
    /// The plugins that it may sign: names, * for any characters [default: all]
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub plugins: Vec<Pattern>,
    /// A line about it
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    #[command(flatten)]
    pub folder: TrustFolder,
}

#[derive(Debug, clap::Args)]
pub struct RemoveKeys {
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub folder: TrustFolder,
}

#[derive(Debug, clap::Args)]
pub struct TrustFolder {
    /// The folder of the trusted keys, for a host whose root file system is mounted here
    #[arg(long, value_name = "DIR", default_value = TRUST_DIR)]
    pub trust_dir: PathBuf,
}
