//! The host's links, read from the kernel.

use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::Handle;
use volant_spec::Name;

use super::NetworkError;

/// The alias (`ip link`) of a bridge that is ours, and the first word of a tap's.
pub(super) const ALIAS: &str = "volant";

/// The alias of a VM's tap.
#[must_use]
pub fn tap_alias(vm: &Name) -> String {
    format!("{ALIAS} {vm}")
}

/// What of a link matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: Option<InfoKind>,
    pub alias: Option<String>,
    pub mac: Vec<u8>,
    pub controller: Option<u32>,
    /// Which frames for bridges themselves a bridge's port forwards as any others: a bit for each last digit.
    pub forwards: u16,
    pub up: bool,
}

impl Link {
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.kind == Some(InfoKind::Bridge)
    }

    /// A bridge that carries our mark: it may be changed and removed.
    #[must_use]
    pub fn is_our_bridge(&self) -> bool {
        self.is_bridge() && self.alias.as_deref() == Some(ALIAS)
    }

    /// The tap of that VM, opened by us.
    #[must_use]
    pub fn is_tap_of(&self, vm: &Name) -> bool {
        self.kind == Some(InfoKind::Tun) && self.alias.as_deref() == Some(&tap_alias(vm))
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind),
                            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                                link.forwards = forwards(&port);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

fn forwards(port: &[InfoBridgePort]) -> u16 {
    let mask = port.iter().find_map(|attribute| match attribute {
        InfoBridgePort::GroupFwdMask(mask) => Some(*mask),
        _ => None,
    });
    mask.unwrap_or_default()
}

/// All links of this network namespace.
///
/// # Errors
/// The kernel does not answer.
pub async fn all(handle: &Handle) -> Result<Vec<Link>, NetworkError> {
    handle
        .link()
        .get()
        .execute()
        .map_ok(Link::from)
        .try_collect()
        .await
        .map_err(|error| NetworkError::netlink("list the network links", error))
}
