//! Addresses and packets: between VMs, out of the host, and beside other people's rules.

use anyhow::{Context, Result, ensure};
use volant_tests::Site;

/// A server beyond the host: in a network namespace of its own, that knows no way back to the VMs' subnet.
const BEYOND: &str = "ip netns add beyond && ip link add up0 type veth peer name eth0 netns beyond && \
    ip address add 203.0.113.1/24 dev up0 && ip link set up0 up && \
    ip -n beyond address add 203.0.113.2/24 dev eth0 && ip -n beyond link set eth0 up && \
    mkdir -p /srv/beyond && echo 'from beyond' > /srv/beyond/index.html && \
    systemd-run --quiet --unit beyond ip netns exec beyond busybox httpd -f -p 203.0.113.2:80 -h /srv/beyond";

#[test]
fn vms_reach_each_other_and_the_world() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh(BEYOND)?;
    site.create("a", "hello")?;
    site.create("b", "hello")?;
    let (a, b) = (site.address("a")?, site.address("b")?);
    ensure!(
        (a.as_str(), b.as_str()) == ("192.168.127.2", "192.168.127.3"),
        "lowest free first: {a}, {b}"
    );
    ensure!(
        site.page(&format!("http://{a}/"))?.trim() == "a"
            && site.page(&format!("http://{b}/"))?.trim() == "b"
    );
    site.expect_page(&format!("http://{a}/cgi-bin/fetch?{b}"), "b")
        .context("a fetches b's page")?;
    site.expect_page(&format!("http://{b}/cgi-bin/fetch?{a}"), "a")
        .context("b fetches a's page")?;
    let through = format!("http://{a}/cgi-bin/fetch?203.0.113.2");
    site.expect_page(&through, "from beyond")
        .context("a VM reaches a server beyond the host")?;
    Ok(())
}

#[test]
fn a_forward_policy_of_drop_and_foreign_rules_do_not_break_it() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh(BEYOND)?;
    host.sh(
        "nft add table inet mine && nft add chain inet mine guard '{ type filter hook input priority 0; }' && \
         nft add rule inet mine guard tcp dport 12345 drop comment '\"mine\"'",
    )?;
    let mine = host.sh("nft list table inet mine")?;
    // As Docker sets it up, before there is a VM.
    host.sh(
        "iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER && iptables -P FORWARD DROP",
    )?;
    site.create("a", "hello")?;
    let through = format!("http://{}/cgi-bin/fetch?203.0.113.2", site.address("a")?);
    site.expect_page(&through, "from beyond")?;
    host.sh("iptables -S FORWARD")
        .map(|rules| assert!(rules.starts_with("-P FORWARD DROP"), "{rules}"))?;

    // As Docker does when it is restarted: its chains are made anew, while the VM runs and nothing calls ipamd.
    host.sh("iptables -F && iptables -X && iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER")?;
    site.expect_page(&through, "from beyond")
        .context("the way is open again by itself")?;
    // Somebody flushes everything.
    host.sh("nft flush ruleset")?;
    site.expect_page(&through, "from beyond")
        .context("also after a flush")?;

    host.sh(&format!("nft -f - <<'END'\n{mine}\nEND"))?;
    host.sh("volar vms restart a")?;
    ensure!(
        host.sh("nft list table inet mine")? == mine,
        "foreign tables are as they were"
    );
    Ok(())
}

#[test]
fn a_deleted_bridge_comes_back() -> Result<()> {
    let site = Site::new()?;
    site.create("a", "hello")?;
    let url = format!("http://{}/", site.address("a")?);
    site.page(&url)?;
    site.host.sh("ip link delete vbr0")?;
    site.page(&url)?;
    Ok(())
}

#[test]
fn a_full_or_changed_subnet_is_a_clear_answer() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh("sed -i 's|^#* *subnet = .*|subnet = \"10.9.0.0/30\"|' /etc/volant/volant.toml && grep -q '^subnet' /etc/volant/volant.toml && systemctl stop volant-ipamd.service")?;
    site.create("only", "hello")?;
    ensure!(site.address("only")? == "10.9.0.2");
    let full = site.refused("volar vms create second --plugin hello --memory 128")?;
    ensure!(full.contains("10.9.0.0/30"), "{full}");
    ensure!(
        !host.sh("volar vms list")?.contains("second"),
        "nothing is left of it"
    );

    host.sh("volar vms stop only && sed -i 's|^subnet = .*|subnet = \"10.8.0.0/24\"|' /etc/volant/volant.toml && systemctl stop volant-ipamd.service")?;
    let changed = site.refused("volar vms start only")?;
    ensure!(
        changed.contains("10.9.0.2") && changed.contains("10.8.0.0/24"),
        "{changed}"
    );
    host.sh("volar vms delete only")?;
    site.create("fresh", "hello")?;
    ensure!(site.address("fresh")? == "10.8.0.2");
    site.page("http://10.8.0.2/")?;
    Ok(())
}
