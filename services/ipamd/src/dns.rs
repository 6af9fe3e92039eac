//! The name servers that a guest can use: those of the host, but for those that only the host reaches.

use std::{fs, io, net::IpAddr, path::Path};

/// Where the host's servers are told. With systemd-resolved, /etc/resolv.conf names its stub on loopback; the first
/// file names what is behind it.
const FILES: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];

/// The servers for guests: those configured, else the host's. Empty when the host has none that a guest could reach.
#[must_use]
pub fn for_guests(configured: &[IpAddr]) -> Vec<IpAddr> {
    if configured.is_empty() {
        of_host(FILES.map(Path::new))
    } else {
        configured.to_vec()
    }
}

fn of_host<'a>(files: impl IntoIterator<Item = &'a Path>) -> Vec<IpAddr> {
    for file in files {
        match fs::read_to_string(file) {
            Ok(text) => {
                let servers = reachable(&text);
                if !servers.is_empty() {
                    return servers;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!("cannot read name servers from {}: {error}", file.display());
            }
        }
    }
    Vec::new()
}

/// The `nameserver` lines of a resolv.conf whose address means the same in a guest as on the host. With IPv4 alone
/// on the bridge, only IPv4 servers do.
fn reachable(resolv_conf: &str) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else {
            continue;
        };
        if let Ok(IpAddr::V4(address)) = address.parse()
            && !address.is_loopback()
            && !address.is_unspecified()
            && !servers.contains(&IpAddr::V4(address))
        {
            servers.push(IpAddr::V4(address));
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_unspecified_and_nonsense_are_left_out() {
        let cases: [(&str, &[&str]); 8] = [
            ("", &[]),
            ("nameserver 10.0.0.1\n", &["10.0.0.1"]),
            ("nameserver 127.0.0.53\noptions edns0", &[]),
            (
                "nameserver\t9.9.9.9 # quad\nnameserver 127.0.0.1\n",
                &["9.9.9.9"],
            ),
            ("#nameserver 10.0.0.1\n; nameserver 10.0.0.2\nsearch a", &[]),
            ("nameserver ::1\nnameserver fe80::1%eth0\nnameserver x", &[]),
            ("nameserver 0.0.0.0\nnameserver", &[]),
            (
                "nameserver 10.0.0.2\nnameserver 10.0.0.1\nnameserver 10.0.0.2",
                &["10.0.0.2", "10.0.0.1"],
            ),
        ];
        for (text, expected) in cases {
            let found: Vec<_> = reachable(text).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn the_first_file_with_a_server_for_guests_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (absent, stub, full) = (
            dir.path().join("a"),
            dir.path().join("b"),
            dir.path().join("c"),
        );
        fs::write(&stub, "nameserver 127.0.0.53").unwrap();
        fs::write(&full, "nameserver 10.0.0.1").unwrap();
        assert_eq!(
            of_host([absent.as_path(), &full, &stub]),
            [IpAddr::from([10, 0, 0, 1])]
        );
        assert_eq!(
            of_host([stub.as_path(), &full]),
            [IpAddr::from([10, 0, 0, 1])]
        );
        assert!(of_host([absent.as_path(), &stub]).is_empty());
    }

    #[test]
    fn what_is_configured_counts_alone() {
        let configured = [IpAddr::from([1, 1, 1, 1])];
        assert_eq!(for_guests(&configured), configured);
    }
}
