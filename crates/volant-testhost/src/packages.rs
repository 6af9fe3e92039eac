//! Hosts with Volant installed.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{Host, Options};

/// The `.deb` files of one build.
#[derive(Clone, Debug)]
pub struct Packages(PathBuf);

/// The environment variable by which `cargo xtask` tells where the packages are.
pub const PACKAGES_VARIABLE: &str = "VOLANT_PACKAGES";
/// The environment variable by which `cargo xtask` tells where the example plugin is, ready for `fledge build`.
pub const EXAMPLE_VARIABLE: &str = "VOLANT_EXAMPLE";
/// The environment variable by which `cargo xtask` tells where the hostile guest program is.
pub const HOSTILE_VARIABLE: &str = "VOLANT_HOSTILE";
/// The environment variable by which `cargo xtask` tells where the hostile agent is.
pub const HOSTILE_AGENT_VARIABLE: &str = "VOLANT_HOSTILE_AGENT";
/// The environment variable by which `cargo xtask` tells where the guest program is that benchmarks of sessions compare with.
pub const ECHO_VARIABLE: &str = "VOLANT_ECHO";
/// The environment variable by which `cargo xtask` tells where the program that starts bare VMMs is.
pub const BARE_VARIABLE: &str = "VOLANT_BARE_VMM";

impl Packages {
    /// The packages in a folder.
    ///
    /// # Errors
    /// There are none.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let packages = Self(folder.to_owned());
        ensure!(
            !packages.files()?.is_empty(),
            "no .deb in {}; run `cargo xtask package`",
            folder.display()
        );
        Ok(packages)
    }

    /// The packages that `cargo xtask test` built.
    ///
    /// # Errors
    /// The test was started by hand, without packages.
    pub fn from_env() -> Result<Self> {
        let folder = env::var_os(PACKAGES_VARIABLE).with_context(|| {
            format!("{PACKAGES_VARIABLE} is not set: run this by `cargo xtask test`, which builds the packages first")
        })?;
        Self::in_folder(Path::new(&folder))
    }

    /// Boots a host, installs the packages and runs `volar setup` in it.
    ///
    /// # Errors
    /// A step failed; the error has what it printed.
    pub fn host(&self) -> Result<Host> {
        let host = self.bare_host()?;
        host.sh("volar setup")?;
        Ok(host)
    }

    /// Boots a host and installs the packages.
    ///
    /// # Errors
    /// A step failed; the error has what it printed.
    pub fn bare_host(&self) -> Result<Host> {
        let host = Host::start(&Options::default())?;
        self.install(&host)?;
        Ok(host)
    }

    /// Installs the packages in a running host.
    ///
    /// # Errors
    /// dpkg failed; the error has what it printed.
    pub fn install(&self, host: &Host) -> Result<()> {
        let inbox = host.path().join("var/tmp");
        let mut names = Vec::new();
        for file in self.files()? {
            let name = file.file_name().context("a package has no name")?;
            fs::copy(&file, inbox.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
            names.push(format!("/var/tmp/{}", name.to_string_lossy()));
        }
        let list = names.join(" ");
        host.sh(&format!(
            "dpkg --install --force-unsafe-io {list} 2>&1 && rm {list}"
        ))?;
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        Self::files_in(&self.0)
    }

    /// The `.deb` files in a folder, by name.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        files.sort();
        Ok(files)
    }
}
