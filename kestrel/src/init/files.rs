//! What is written for the init and for the agent beside it, all of it below `/run`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::Path,
};

use super::{AGENT, ANSWER, FOLDER, InitError};
use crate::config::NetworkConfig;

const UNIT: &str = "run/systemd/system/kestrel.service";
const WANTED: &str = "run/systemd/system/sysinit.target.wants/kestrel.service";
const NETWORK: &str = "run/systemd/network/00-volant.network";

/// It is there from the beginning of the boot to its end: no target that is reached or left stops it, only the kernel's end
/// does, or systemd's when it ends all processes. Programs that people run by it outlive its restart.
const SERVICE: &str = "\
[Unit]
Description=Volant's agent
Documentation=https://github.com/volantvm/volant
DefaultDependencies=no
RefuseManualStop=yes
IgnoreOnIsolate=yes
StartLimitIntervalSec=0

[Service]
ExecStart=/run/kestrel/kestrel --service
Restart=always
RestartSec=200ms
KillMode=process
OOMScoreAdjust=-1000
OOMPolicy=continue
LimitNOFILE=65536
TasksMax=infinity
";

/// The agent itself, and what it was told.
pub fn write_agent(root: &Path, answer: &[u8]) -> Result<(), InitError> {
    let folder = root.join(FOLDER);
    make_folders(&root.join("run"), 0o755)?;
    make_folders(&folder, 0o700)?;
    write(&root.join(ANSWER), 0o600, |file| file.write_all(answer))?;
    write(&root.join(AGENT), 0o700, |file| {
        io::copy(&mut File::open("/proc/self/exe")?, file).map(drop)
    })
}

/// What systemd starts the agent by, and how its network daemon leaves the link as it is.
pub fn write_units(root: &Path, network: Option<&NetworkConfig>) -> Result<(), InitError> {
    let unit = root.join(UNIT);
    write_text(&unit, SERVICE)?;
    let wanted = root.join(WANTED);
    if let Some(parent) = wanted.parent() {
        make_folders(parent, 0o755)?;
    }
    symlink("../kestrel.service", &wanted).map_err(|source| InitError::Write {
        path: wanted,
        source,
    })?;
    match network {
        Some(network) => write_text(&root.join(NETWORK), &network_file(network)),
        None => Ok(()),
    }
}

/// The same addresses and routes that the link has already, for a network daemon that would take others away.
fn network_file(network: &NetworkConfig) -> String {
    let mut text = format!(
        "[Match]\nMACAddress={}\n\n[Network]\nKeepConfiguration=yes\n",
        network.mac
    );
    let lines = [
        (
            "Address",
            network
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
        ),
        (
            "Gateway",
            network.gateways.iter().map(ToString::to_string).collect(),
        ),
        ("DNS", network.dns.iter().map(ToString::to_string).collect()),
    ];
    for (key, values) in lines {
        for value in values {
            text.push_str(&format!("{key}={value}\n"));
        }
    }
    text
}

fn write_text(path: &Path, text: &str) -> Result<(), InitError> {
    if let Some(parent) = path.parent() {
        make_folders(parent, 0o755)?;
    }
    write(path, 0o644, |file| file.write_all(text.as_bytes()))
}

fn make_folders(path: &Path, mode: u32) -> Result<(), InitError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| InitError::Write {
            path: path.to_owned(),
            source,
        })
}

/// A new file: the tmpfs has none by these names.
fn write(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), InitError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    options
        .open(path)
        .and_then(|mut file| fill(&mut file))
        .map_err(|source| InitError::Write {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_daemon_is_told_what_the_link_has() {
        let network = NetworkConfig {
            mac: "52:54:00:0a:0b:0c".parse().unwrap(),
            addresses: vec![
                "10.0.0.2/24".parse().unwrap(),
                "fd00::2/64".parse().unwrap(),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            dns: vec!["10.0.0.1".parse().unwrap()],
        };
        assert_eq!(
            network_file(&network),
            "[Match]\nMACAddress=52:54:00:0a:0b:0c\n\n[Network]\nKeepConfiguration=yes\n\
             Address=10.0.0.2/24\nAddress=fd00::2/64\nGateway=10.0.0.1\nDNS=10.0.0.1\n"
        );
    }
}
