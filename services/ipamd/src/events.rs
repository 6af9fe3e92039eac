//! What others do to the host's links and firewall: systemd hands us netlink sockets on which the kernel tells it
//! (`ListenNetlink=`), and starts us for it.
//!
//! What is told is not read: whatever happened, what should be there is compared with what is, and only what is missing is
//! said again. So our own changes are told once, found right, and that is the end.

use std::{io, os::fd::OwnedFd, time::Duration};

use futures_util::future::select_all;
use tokio::time::sleep;
use volant_service::Events;

use crate::{Ipam, chain};

/// The `FileDescriptorName=` of the sockets.
pub const NAMES: [&str; 2] = ["nft-events", "link-events"];

/// A restart of Docker is a hundred changes in a second: look once when it is over.
const SETTLE: Duration = Duration::from_millis(200);

/// Mends the network whenever something happened. Never ends while there are sockets; without any it ends at once.
///
/// # Errors
/// A socket cannot be read.
pub async fn watch(sockets: Vec<OwnedFd>, ipam: Ipam) -> io::Result<()> {
    let sockets: Vec<_> = sockets
        .into_iter()
        .map(Events::new)
        .collect::<io::Result<_>>()?;
    while !sockets.is_empty() {
        select_all(sockets.iter().map(|socket| Box::pin(socket.happened())))
            .await
            .0?;
        sleep(SETTLE).await;
        for socket in &sockets {
            socket.drain()?;
        }
        if let Err(error) = ipam.mend().await {
            tracing::error!("cannot mend the network for VMs: {}", chain(&error));
        }
    }
    Ok(())
}
