//! The packages themselves.

use anyhow::{Result, ensure};
use volant_tests::Site;

#[test]
fn a_purged_package_leaves_no_link_rule_file_or_unit() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    let left = "ip -o link show | cut -d: -f2 | sort; nft list tables; iptables -S FORWARD; \
                find /etc/volant /var/lib/volant /run/volant /etc/systemd/system -name '*volant*' 2>/dev/null; \
                systemctl list-units --all --plain --no-legend 'volant*'; pgrep -l '^(vmd|ipamd|registryd|gatewayd|qemu)' || true";
    host.sh("iptables -P FORWARD DROP")?;
    site.create("web", "hello")?;
    host.sh("systemctl enable volant-vm@web")?;
    ensure!(
        host.sh(left)?.contains("vbr0"),
        "there is something to remove"
    );
    host.sh("dpkg --purge volant")?;
    let after = host.sh(left)?;
    ensure!(
        after.trim() == "lo\ntable ip filter\n-P FORWARD DROP",
        "this is left:\n{after}"
    );
    Ok(())
}
