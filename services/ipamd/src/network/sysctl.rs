//! The kernel's settings that packets need: files below /proc/sys/net, which `CAP_NET_ADMIN` may write.

use std::{fs, io};

use super::NetworkError;

/// Lets the host forward IPv4 packets. The kernel asks the link that a packet came in by, and answers come in by
/// whatever link leads outside; so the switch for all links it is.
pub(super) fn forward_ipv4() -> Result<(), NetworkError> {
    if set("/proc/sys/net/ipv4/ip_forward", "1")? {
        tracing::info!("IPv4 forwarding is on now (net.ipv4.ip_forward=1)");
    }
    Ok(())
}

/// Keeps IPv6 off a link of ours: guests have IPv4 alone, and none may talk the host into a route by an advertisement.
/// Nothing is to be done on a kernel without IPv6.
pub(super) fn without_ipv6(link: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
    match set(&path, "1") {
        Err(NetworkError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Writes a setting unless it has the value; true if it was written.
fn set(path: &str, value: &str) -> Result<bool, NetworkError> {
    let failed = |source| NetworkError::Setting {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    };
    if fs::read_to_string(path).map_err(failed)?.trim() == value {
        return Ok(false);
    }
    fs::write(path, value).map_err(failed)?;
    Ok(true)
}
