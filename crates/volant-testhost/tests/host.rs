//! The throw-away host itself. Needs root and systemd-nspawn: `cargo xtask test` sees to both.

use volant_testhost::{Host, Options};

#[test]
fn a_host_boots_reboots_and_leaves_nothing_behind() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a throw-away host needs root");
        return;
    }
    let mut host = Host::start(&Options::default()).unwrap();
    assert_eq!(host.sh("cat /proc/1/comm").unwrap().trim(), "systemd");
    assert_eq!(
        host.sh("ls /sys/class/net").unwrap().trim(),
        "lo",
        "its network is its own"
    );
    host.sh("touch /etc/kept /run/lost").unwrap();
    let boot = host.sh("cat /proc/sys/kernel/random/boot_id; systemctl show --property UserspaceTimestampMonotonic").unwrap();
    host.reboot().unwrap();
    let after = host.sh("cat /proc/sys/kernel/random/boot_id; systemctl show --property UserspaceTimestampMonotonic").unwrap();
    assert_ne!(boot, after);
    host.sh("test -e /etc/kept && ! test -e /run/lost").unwrap();
    assert!(
        !std::path::Path::new("/etc/kept").exists(),
        "the machine is not touched"
    );
    let base = host.path().parent().unwrap().to_owned();
    drop(host);
    assert!(!base.exists());
}
