//! The switch to a VM's own user, in a process of one thread: as root, for good.

#![allow(clippy::print_stdout, reason = "it is its own test harness")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;

use nix::unistd::{Gid, Group, setgroups};
use vmd::identity::{Identity, become_vm};
use volant_spec::unit::FIRST_UID;

const VM: u32 = FIRST_UID + 234;

fn main() {
    if !fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
        println!("skipped: a_vm_gets_a_user_of_its_own_and_no_capability (needs root)");
        return;
    }
    let kvm = Group::from_name("kvm").unwrap().map(|kvm| kvm.gid);
    let mut groups = vec![Gid::from_raw(61_001), Gid::from_raw(61_002)];
    groups.extend(kvm);
    setgroups(&groups).unwrap();
    assert_eq!(become_vm(VM).unwrap(), Identity::Switched);
    assert_eq!(field("Uid"), format!("{VM} {VM} {VM} {VM}"));
    assert_eq!(field("Gid"), format!("{VM} {VM} {VM} {VM}"));
    let kept = kvm.map_or_else(String::new, |kvm| kvm.to_string());
    assert_eq!(field("Groups"), kept);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    // There is no way back, and a second time there is nothing to switch.
    assert_eq!(become_vm(VM + 1).unwrap(), Identity::Kept);
    assert_eq!(field("Uid"), format!("{VM} {VM} {VM} {VM}"));
    println!("a_vm_gets_a_user_of_its_own_and_no_capability ... ok");
}

fn field(name: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
