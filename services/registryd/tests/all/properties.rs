//! Any order of creating and deleting, against the plainest model there is.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use registryd::VmError;

use crate::common::{install, new_vm, open, temp_dir};

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    Delete(u8),
    Purge(u8),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let vm = 0..4_u8;
    prop_oneof![
        3 => vm.clone().prop_map(Op::Create),
        2 => vm.clone().prop_map(Op::Delete),
        2 => vm.prop_map(Op::Purge),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_two_vms_ever_share_a_name_or_a_user_id(ops in prop::collection::vec(op(), 0..30)) {
        let dir = temp_dir();
        let mut store = open(&dir);
        install(&store, "caddy", b"x");
        // Name to whether it is being deleted.
        let mut model: BTreeMap<String, bool> = BTreeMap::new();
        let mut uids = BTreeSet::new();
        for op in ops {
            match op {
                Op::Create(n) => {
                    let name = format!("vm{n}");
                    let made = store.create_vm(&new_vm(&name, "caddy"), jiff::Timestamp::now());
                    match model.get(&name) {
                        Some(true) => prop_assert!(matches!(made, Err(VmError::TakenByDeleting(_)))),
                        Some(false) => prop_assert!(matches!(made, Err(VmError::Taken(_)))),
                        None => {
                            let uid = registryd::uid(made.unwrap().seq).unwrap();
                            prop_assert!(uids.insert(uid), "{uid} was given before");
                            model.insert(name, false);
                        }
                    }
                }
                Op::Delete(n) => {
                    let name = format!("vm{n}");
                    let deleted = store.delete_vm(&name.parse().unwrap());
                    match model.get_mut(&name) {
                        Some(deleting) => {
                            prop_assert!(deleted.unwrap().deleting);
                            *deleting = true;
                        }
                        None => prop_assert!(matches!(deleted, Err(VmError::NotFound(_)))),
                    }
                }
                Op::Purge(n) => {
                    let name = format!("vm{n}");
                    let purged = store.purge_vm(&name.parse().unwrap());
                    match model.get(&name) {
                        Some(false) => prop_assert!(matches!(purged, Err(VmError::NotMarked(_)))),
                        Some(true) | None => {
                            purged.unwrap();
                            model.remove(&name);
                        }
                    }
                }
                Op::Reopen => {
                    drop(store);
                    store = open(&dir);
                }
            }
            let vms = store.vms().unwrap();
            let found: BTreeMap<_, _> = vms.into_iter().map(|vm| (vm.name, vm.deleting)).collect();
            prop_assert_eq!(&found, &model);
        }
    }
}
