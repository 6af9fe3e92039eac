//! What changes of units mean. Pure.

use std::collections::HashMap;

use crate::systemd::ActiveState;

/// The states of VMs' units, by the last change that was told.
#[derive(Debug, Default)]
pub struct Units(HashMap<String, ActiveState>);

impl Units {
    /// How a unit is, without having changed.
    pub fn is(&mut self, vm: &str, state: ActiveState) {
        self.put(vm, state);
    }

    /// A unit is so now; gives the event that this is, if it is one.
    pub fn becomes(&mut self, vm: &str, state: ActiveState) -> Option<&'static str> {
        let before = self.put(vm, state);
        if before == state {
            return None;
        }
        match state {
            ActiveState::Active => match before {
                // A new supervisor took over; that tells of itself.
                ActiveState::Reloading | ActiveState::Refreshing => None,
                _ => Some("started"),
            },
            ActiveState::Inactive => Some("stopped"),
            ActiveState::Failed => Some("failed"),
            ActiveState::Activating
            | ActiveState::Deactivating
            | ActiveState::Reloading
            | ActiveState::Refreshing
            | ActiveState::Maintenance => None,
        }
    }

    /// Keeps the state, and gives the one before. One that is down is not kept: what is kept is bounded by what runs.
    fn put(&mut self, vm: &str, state: ActiveState) -> ActiveState {
        let before = if state == ActiveState::Inactive {
            self.0.remove(vm)
        } else {
            self.0.insert(vm.to_owned(), state)
        };
        before.unwrap_or(ActiveState::Inactive)
    }
}

/// The VM of a unit at this path on the bus: `.../unit/volant_2dvm_40NAME_2eservice`.
pub fn vm_of_path(path: &str) -> Option<String> {
    let label = path.strip_prefix("/org/freedesktop/systemd1/unit/")?;
    let unit = unescape(label)?;
    let name = unit.strip_prefix("volant-vm@")?.strip_suffix(".service")?;
    // What is no name is no VM.
    name.parse::<volant_spec::Name>().ok()?;
    Some(name.to_owned())
}

/// `_` and two hex digits are a byte.
fn unescape(label: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'_' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = tail.get(2..)?;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_a_reload_is_none() {
        use ActiveState as A;
        let mut units = Units::default();
        units.is("db", A::Active);
        let changes = [
            ("web", A::Activating, None),
            ("web", A::Active, Some("started")),
            ("web", A::Active, None),
            ("web", A::Reloading, None),
            ("web", A::Active, None),
            ("web", A::Deactivating, None),
            ("web", A::Inactive, Some("stopped")),
            ("web", A::Inactive, None),
            ("db", A::Active, None),
            ("db", A::Failed, Some("failed")),
            ("db", A::Activating, None),
            ("db", A::Active, Some("started")),
            ("db", A::Inactive, Some("stopped")),
        ];
        for (at, (vm, state, expected)) in changes.into_iter().enumerate() {
            assert_eq!(units.becomes(vm, state), expected, "change {at}");
        }
        assert!(units.0.is_empty());
    }

    #[test]
    fn a_path_tells_the_vm() {
        let path = |label: &str| format!("/org/freedesktop/systemd1/unit/{label}");
        let cases = [
            ("volant_2dvm_40web_2d1_2eservice", Some("web-1")),
            ("volant_2dvm_2ddisable_40web_2eservice", None),
            ("volant_2dvm_40_2e_2e_2eservice", None),
            ("ssh_2eservice", None),
            ("volant_2dvm_40web_2", None),
            ("_zz", None),
        ];
        for (label, expected) in cases {
            assert_eq!(vm_of_path(&path(label)).as_deref(), expected, "{label}");
        }
        assert_eq!(vm_of_path("/elsewhere"), None);
    }
}
