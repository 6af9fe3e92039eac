//! What the guest is in its network.

use std::{fmt, net::IpAddr, str::FromStr};

use volant_proto::agent::v1;

use super::{ConfigError, parse, parse_all};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    pub mac: Mac,
    pub addresses: Vec<Address>,
    pub gateways: Vec<IpAddr>,
    pub dns: Vec<IpAddr>,
}

impl TryFrom<v1::NetworkConfig> for NetworkConfig {
    type Error = ConfigError;

    fn try_from(config: v1::NetworkConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            mac: parse("hardware address", &config.mac)?,
            addresses: parse_all("address with a prefix length", &config.addresses)?,
            gateways: parse_all("gateway", &config.gateways)?,
            dns: parse_all("name server", &config.dns)?,
        })
    }
}

/// A link's hardware address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(())?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        parts.next().is_none().then_some(Self(octets)).ok_or(())
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An address and how much of it names the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ip, prefix) = text.split_once('/').ok_or(())?;
        let ip: IpAddr = ip.parse().map_err(|_| ())?;
        let prefix = prefix.parse().map_err(|_| ())?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { ip, prefix }).ok_or(())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}
