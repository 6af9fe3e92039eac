//! The names of Volant's systemd units, which VM a process belongs to, and the user ids of VMs.

use crate::Name;

/// The first of the user ids that VMs get.
///
/// From here to [`LAST_UID`] is unused in systemd's plan of user ids (`systemd.io/UIDS-GIDS`): above the ids for
/// containers (up to 0x6FFFFFFF), below the range for foreign images (from 0x7FFE0000).
pub const FIRST_UID: u32 = 1_879_100_000;
/// The last of the user ids that VMs get.
pub const LAST_UID: u32 = 0x7FFD_FFFF;

/// The unit that is the VM: `volant-vm@NAME.service`.
#[must_use]
pub fn vm(name: &Name) -> String {
    format!("volant-vm@{name}.service")
}

/// The unit that lends a VM the host's devices: `volant-vm-devices@NAME.service`.
#[must_use]
pub fn devices(vm: &Name) -> String {
    format!("volant-vm-devices@{vm}.service")
}

/// The unit that tells systemd-machined of a VM: `volant-machine@NAME.service`.
#[must_use]
pub fn machine(vm: &Name) -> String {
    format!("volant-machine@{vm}.service")
}

/// The VM whose unit this is; `None` for any other unit.
#[must_use]
pub fn vm_of(unit: &str) -> Option<Name> {
    unit.strip_prefix("volant-vm@")?
        .strip_suffix(".service")?
        .parse()
        .ok()
}

/// The VM that a process is part of, from the text of its `/proc/PID/cgroup`; `None` when it is part of none.
///
/// The path is read from systemd's own hierarchy: `0::` with cgroup v2, `name=systemd` with v1. Only the
/// first unit below the slices counts, so that a process cannot claim another VM by a cgroup below its own.
#[must_use]
pub fn vm_of_cgroup(text: &str) -> Option<Name> {
    let path = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let found = match wanted {
                "v1" => controllers == "name=systemd",
                _ => id == "0" && controllers.is_empty(),
            };
            found.then_some(path)
        })
    };
    let path = path("v1").or_else(|| path("v2"))?;
    let unit = path
        .split('/')
        .filter(|part| !part.is_empty())
        .find(|part| !part.ends_with(".slice"))?;
    vm_of(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_its_vm() {
        assert_eq!(
            vm_of(&vm(&"web-1".parse().unwrap())).unwrap().as_str(),
            "web-1"
        );
        for unit in [
            "volant-vm@.service",
            "volant-vm@..service",
            "volant-ipamd.service",
            "volant-vm@a.socket",
            "volant-vm-devices@a.service",
        ] {
            assert_eq!(vm_of(unit), None, "{unit}");
        }
    }

    #[test]
    fn a_cgroup_names_its_vm() {
        let cases = [
            (
                "0::/volant.slice/volant-vm.slice/volant-vm@web.service\n",
                Some("web"),
            ),
            ("0::/volant.slice/volant-vm@web.service/vmm\n", Some("web")),
            (
                "9:memory:/x\n1:name=systemd:/volant.slice/volant-vm@db.service\n0::/\n",
                Some("db"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/volant-vm@web.service\n",
                None,
            ),
            (
                "0::/system.slice/evil.service/volant-vm@web.service\n",
                None,
            ),
            ("0::/\n", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(
                vm_of_cgroup(text).as_ref().map(Name::as_str),
                expected,
                "{text}"
            );
        }
    }
}
