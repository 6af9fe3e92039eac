//! The files by which programs learn of their host name and name servers.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{
    config::{Address, Config},
    files::{ReadError, read_bounded},
};

/// The most of the image's `hosts` that is kept.
const LONGEST_HOSTS: u64 = 256 * 1024;

/// Why programs may not know the names that they should.
#[derive(Debug, thiserror::Error)]
pub enum EtcError {
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}, which stays as it is", .path.display())]
    Read { path: PathBuf, source: ReadError },
}

/// Writes the files below `etc` that `config` asks for. Goes on after a failure and returns all of them.
#[must_use]
pub fn write(etc: &Path, config: &Config) -> Vec<EtcError> {
    let network = config.network.as_ref();
    let addresses = network.map_or(&[][..], |network| &network.addresses);
    let mut files = vec![("hostname", format!("{}\n", config.hostname))];
    let mut failed = Vec::new();
    let path = etc.join("hosts");
    match read_bounded(&path, LONGEST_HOSTS) {
        Ok(known) => {
            let known = String::from_utf8_lossy(known.as_deref().unwrap_or_default()).into_owned();
            files.push(("hosts", hosts(&known, &config.hostname, addresses)));
        }
        Err(source) => failed.push(EtcError::Read { path, source }),
    }
    if let Some(network) = network.filter(|network| !network.dns.is_empty()) {
        files.push(("resolv.conf", resolv_conf(&network.dns)));
    }
    for (name, text) in files {
        let path = etc.join(name);
        if let Err(source) = replace(&path, &text) {
            failed.push(EtcError::Write { path, source });
        }
    }
    failed
}

/// Puts a new file in the place of `path`: if that is a symlink, it may point nowhere, or at what is not ours.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = path.with_extension("kestrel-new");
    // What the image has by that name may be a link, or a pipe that nobody reads.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

/// The lines of `known` that do not speak of `hostname`, with those that do.
fn hosts(known: &str, hostname: &str, addresses: &[Address]) -> String {
    let names = |line: &str| -> Vec<String> {
        let entry = line.split('#').next().unwrap_or_default();
        entry
            .split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect()
    };
    let speaks_of = |line: &str, name: &str| names(line).iter().any(|known| known == name);
    let mut text = String::new();
    if !known.lines().any(|line| speaks_of(line, "localhost")) {
        text.push_str("127.0.0.1 localhost\n::1 localhost\n");
    }
    for line in known
        .lines()
        .filter(|line| hostname == "localhost" || !speaks_of(line, hostname))
    {
        text.push_str(line);
        text.push('\n');
    }
    for address in addresses {
        text.push_str(&format!("{} {hostname}\n", address.ip));
    }
    if addresses.is_empty() && hostname != "localhost" {
        text.push_str(&format!("127.0.1.1 {hostname}\n"));
    }
    text
}

fn resolv_conf(dns: &[IpAddr]) -> String {
    dns.iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use volant_proto::agent::v1;

    use super::*;

    fn config(dns: &[&str]) -> Config {
        let wire = v1::RunConfig {
            hostname: "web".into(),
            network: Some(v1::NetworkConfig {
                mac: "52:54:00:00:00:01".into(),
                addresses: vec!["10.0.0.2/24".into()],
                gateways: vec![],
                dns: dns.iter().map(ToString::to_string).collect(),
            }),
            workload: Some(v1::Workload {
                entrypoint: vec!["/x".into()],
                ..Default::default()
            }),
            heartbeat_interval_ms: 0,
            root: None,
            ..v1::RunConfig::default()
        };
        wire.try_into().unwrap()
    }

    #[test]
    fn the_guest_knows_itself_and_what_its_image_knew() {
        let address = |text: &str| text.parse::<Address>().unwrap();
        let own = "127.0.0.1 localhost\n::1 localhost\n10.0.0.2 web\n";
        for (known, addresses, expected) in [
            ("", vec![address("10.0.0.2/24")], own),
            // Written at an earlier start, with another address.
            (
                "127.0.0.1 localhost\n::1 localhost\n10.0.0.9 web\n",
                vec![address("10.0.0.2/24")],
                own,
            ),
            (
                "127.0.0.1 localhost # web\n10.1.1.1 db",
                vec![],
                "127.0.0.1 localhost # web\n10.1.1.1 db\n127.0.1.1 web\n",
            ),
        ] {
            assert_eq!(hosts(known, "web", &addresses), expected);
        }
        assert_eq!(
            hosts("", "localhost", &[]),
            "127.0.0.1 localhost\n::1 localhost\n"
        );
    }

    #[test]
    fn a_dangling_symlink_is_replaced_and_its_target_is_not_made() {
        let etc = tempfile::tempdir().unwrap();
        let target = etc.path().join("elsewhere");
        symlink(&target, etc.path().join("resolv.conf")).unwrap();
        assert!(write(etc.path(), &config(&["10.0.0.1", "fd00::1"])).is_empty());
        let written = fs::read_to_string(etc.path().join("resolv.conf")).unwrap();
        assert_eq!(written, "nameserver 10.0.0.1\nnameserver fd00::1\n");
        assert!(!target.exists());
        assert_eq!(fs::read_dir(etc.path()).unwrap().count(), 3);
    }

    #[test]
    fn an_image_that_puts_pipes_and_links_in_the_way_holds_nobody_up() {
        let etc = tempfile::tempdir().unwrap();
        let path = |name: &str| etc.path().join(name);
        let outside = tempfile::NamedTempFile::new().unwrap();
        mkfifo(&path("hosts"), Mode::S_IRWXU).unwrap();
        mkfifo(&path("resolv.kestrel-new"), Mode::S_IRWXU).unwrap();
        symlink(outside.path(), path("hostname.kestrel-new")).unwrap();
        let failed = write(etc.path(), &config(&["10.0.0.1"]));
        assert_eq!(failed.len(), 1);
        assert!(
            failed[0]
                .to_string()
                .ends_with("/hosts, which stays as it is")
        );
        assert_eq!(fs::metadata(outside.path()).unwrap().len(), 0);
        assert_eq!(fs::read_to_string(path("hostname")).unwrap(), "web\n");
        assert!(path("resolv.conf").is_file());
    }

    #[test]
    fn without_name_servers_the_image_keeps_its_own() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
        assert!(write(etc.path(), &config(&[])).is_empty());
        assert_eq!(
            fs::read_to_string(etc.path().join("resolv.conf")).unwrap(),
            "nameserver 9.9.9.9\n"
        );
        assert_eq!(
            fs::read_to_string(etc.path().join("hostname")).unwrap(),
            "web\n"
        );
    }

    #[test]
    fn a_file_that_cannot_be_written_does_not_keep_the_others_from_it() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("hostname")).unwrap();
        let failed = write(etc.path(), &config(&["10.0.0.1"]));
        assert_eq!(failed.len(), 1);
        assert!(
            failed[0].to_string().ends_with("/hostname"),
            "{}",
            failed[0]
        );
        assert!(etc.path().join("resolv.conf").exists());
    }
}
