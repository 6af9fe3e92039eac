//! What the machine must have, and how it gets it.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

use crate::{cache, say};

/// Debian packages that a throw-away host needs: what Volant depends on, and what tests look with.
const HOST: &[&str] = &[
    "bsdutils",
    "buildah",
    "busybox-static",
    "curl",
    "dbus",
    "docker-registry",
    "dosfstools",
    "e2fsprogs",
    "erofs-utils",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "minisign",
    "mmdebstrap",
    "mtools",
    "nftables",
    "polkitd",
    "procps",
    "python3-minimal",
    "qemu-system-x86",
    "skopeo",
    "squashfs-tools",
    "squashfs-tools-ng",
    "systemd",
    "systemd-container",
    "umoci",
    "util-linux",
];
/// Debian packages that build the guest kernel and the programs.
const BUILD: &[&str] = &[
    "bc",
    "bison",
    "ca-certificates",
    "cpio",
    "e2fsck-static",
    "flex",
    "g++",
    "gcc",
    "libc6-dev",
    "libcap-ng-dev",
    "libelf-dev",
    "libseccomp-dev",
    "libssl-dev",
    "linux-source-6.1",
    "lz4",
    "make",
    "pkg-config",
    "rsync",
    "xz-utils",
    "zstd",
    "binutils",
    "perl-base",
];

/// Installs what is missing. Does nothing, quickly, when all is there.
///
/// # Errors
/// Not Debian, not root while something is missing, or apt-get failed.
pub fn install() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "Volant is built and tested on x86-64 Linux"
    );
    if missing()?.is_empty() {
        return Ok(());
    }
    let _lock = cache::lock(&cache::folder("apt")?)?;
    // Another xtask may have installed them meanwhile.
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        geteuid().is_root(),
        "these packages are missing, and only root can install them: {}",
        missing.join(" ")
    );
    say::step(format!(
        "Installing {} Debian packages: {}",
        missing.len(),
        missing.join(" ")
    ));
    refresh()?;
    let mut command = apt();
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing);
    say::run(&mut command)
}

/// Has apt read the archive's lists of packages.
///
/// # Errors
/// apt-get failed; the error has what it printed.
pub fn refresh() -> Result<()> {
    say::quietly(apt().arg("update")).map(|_| ())
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Fails unless this is root: hosts, mounts and namespaces need it.
///
/// # Errors
/// This is another user.
pub fn need_root(what: &str) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "{what} needs root: it mounts file systems and makes namespaces"
    );
    Ok(())
}

fn missing() -> Result<Vec<&'static str>> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let is_debian = release.lines().any(|line| {
        let value = line
            .strip_prefix("ID=")
            .or_else(|| line.strip_prefix("ID_LIKE="));
        value.is_some_and(|value| value.trim_matches('"').split(' ').any(|id| id == "debian"))
    });
    if !is_debian {
        bail!(
            "this is not Debian: xtask installs what it needs with apt-get, and is tested on Debian 12"
        );
    }
    let wanted = HOST.iter().chain(BUILD).copied();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .args(wanted.clone())
        .output()
        .context("cannot run dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    Ok(wanted
        .filter(|package| !installed.contains(package))
        .collect())
}
