//! A hostile guest: what it sends over vsock and writes to its log is bounded, and said.

use anyhow::{Context, Result, ensure};
use volant_testhost::HOSTILE_VARIABLE;
use volant_tests::{BOOT, Site, eventually};

#[test]
fn garbage_floods_half_open_connections_and_endless_logs_are_bounded_and_said() -> Result<()> {
    let site = Site::new()?;
    let program = std::env::var_os(HOSTILE_VARIABLE).context("run this by `cargo xtask test`")?;
    std::fs::copy(program, site.host.path().join("root/hostile"))?;
    site.create("neighbour", "hello")?;
    let script = "hostile garbage 5; hostile half-open 5; hostile flood 5; hostile log 10; \
                  mkdir /www; echo survived > /www/index.html; exec httpd -f -p 80 -h /www";
    site.plugin(
        "evil",
        script,
        "[[file_mappings]]\nsource = \"/root/hostile\"\ndest = \"/bin/hostile\"\nmode = 0o755",
    )?;
    site.create("evil", "evil")?;
    let url = format!("http://{}/", site.address("evil")?);
    let pid = site
        .host
        .sh("systemctl show volant-vm@evil --property MainPID --value")?;
    let pid = pid.trim();
    let mut most = 0;
    eventually("the attacks are over", 3 * BOOT, || {
        let text = site.host.sh(&format!(
            "awk '/^Pss:/ {{ print $2 }}' /proc/{pid}/smaps_rollup"
        ))?;
        most = most.max(text.trim().parse::<u64>().context("no PSS")?);
        let fds = site
            .host
            .sh(&format!("ls /proc/{pid}/fd | wc -l"))?
            .trim()
            .parse::<u32>()?;
        ensure!(fds < 80, "vmd holds {fds} descriptors");
        let output = site
            .host
            .try_sh(&format!("curl --silent --fail --max-time 2 {url}"))?;
        Ok(output.status.success().then_some(()))
    })
    .with_context(|| {
        site.journal("evil")
            .map(|text| text.chars().take(4000).collect::<String>())
            .unwrap_or_default()
    })?;
    ensure!(most < 24 * 1024, "vmd grew to {most} KiB");
    let still = site
        .host
        .sh("systemctl show volant-vm@evil --property MainPID --value")?;
    ensure!(still.trim() == pid, "vmd was not restarted");
    let own = site.host.sh(
        "journalctl --no-pager --unit volant-vm@evil --output json | \
         jq --raw-output 'select(.VOLANT_STREAM == null) | .MESSAGE'",
    )?;
    ensure!(
        own.contains("guest sent garbage on vsock"),
        "vmd tells of the garbage:
{own}"
    );
    ensure!(
        own.contains("lines of the guest: it writes faster than it may"),
        "vmd tells of the lines that it dropped:
{own}"
    );
    let journal = site.journal("evil")?;
    let bytes = journal.len();
    ensure!(
        bytes < 40_000_000,
        "the journal took {bytes} bytes of one guest"
    );
    ensure!(
        site.page(&format!("http://{}/", site.address("neighbour")?))?
            .trim()
            == "neighbour"
    );
    site.host.sh("volar vms delete evil")?;
    Ok(())
}
