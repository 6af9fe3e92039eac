//! Whatever is done in whatever order, and cut off wherever: what something refers to is there, and what nothing refers to can
//! be collected.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::SystemTime,
};

use proptest::prelude::*;
use registryd::{Collect, Store, UNUSED_FOR};
use volant_spec::{Digest, PluginRef};

use crate::common::{blob_files, digest, files, keep, manifest, new_vm, open, put, temp_dir};

#[derive(Clone, Debug)]
enum Op {
    /// Plugin, version, artifact.
    Install(u8, u8, u8),
    Upload(u8),
    Remove(u8, u8),
    Create(u8, u8, u8),
    Destroy(u8),
    Collect(bool),
    /// The process is killed, and leaves an upload, an orphan, or a row without its file's last rename.
    Crash(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..3_u8;
    prop_oneof![
        4 => (n.clone(), n.clone(), n.clone()).prop_map(|(p, v, a)| Op::Install(p, v, a)),
        1 => n.clone().prop_map(Op::Upload),
        3 => (n.clone(), n.clone()).prop_map(|(p, v)| Op::Remove(p, v)),
        3 => (n.clone(), n.clone(), n.clone()).prop_map(|(m, p, v)| Op::Create(m, p, v)),
        2 => n.clone().prop_map(Op::Destroy),
        2 => any::<bool>().prop_map(Op::Collect),
        2 => n.prop_map(Op::Crash),
    ]
}

/// The model: which artifact each version and each VM refers to.
#[derive(Default)]
struct Model {
    plugins: BTreeMap<(u8, u8), u8>,
    vms: BTreeMap<u8, ((u8, u8), u8)>,
}

impl Model {
    fn referred(&self) -> BTreeSet<String> {
        let artifacts = self
            .plugins
            .values()
            .chain(self.vms.values().map(|(_, artifact)| artifact));
        artifacts.map(|artifact| of(*artifact).hex()).collect()
    }
}

fn of(artifact: u8) -> Digest {
    digest(&[artifact; 20])
}

fn plugin(name: u8, version: u8) -> PluginRef {
    format!("p{name}@{version}").parse().unwrap()
}

fn apply(store: &Store, model: &mut Model, op: &Op) {
    let now = jiff::Timestamp::now();
    match *op {
        Op::Install(p, v, artifact) => {
            keep(store, &[artifact; 20]);
            let mut given = manifest(&format!("p{p}"), "x", &[artifact; 20]);
            given["version"] = v.to_string().into();
            put(store, &given).unwrap();
            model.plugins.insert((p, v), artifact);
        }
        Op::Upload(artifact) => drop(keep(store, &[artifact; 20])),
        Op::Remove(p, v) => {
            let used = model.vms.values().any(|(of, _)| *of == (p, v));
            let removed = store.remove_plugin(&plugin(p, v), false);
            let there = model.plugins.contains_key(&(p, v));
            assert_eq!(removed.is_ok(), there && !used, "{removed:?}");
            if removed.is_ok() {
                model.plugins.remove(&(p, v));
            }
        }
        Op::Create(vm, p, v) => {
            let created =
                store.create_vm(&new_vm(&format!("v{vm}"), &plugin(p, v).to_string()), now);
            let artifact = model.plugins.get(&(p, v)).copied();
            assert_eq!(
                created.is_ok(),
                artifact.is_some() && !model.vms.contains_key(&vm)
            );
            if let (Ok(_), Some(artifact)) = (created, artifact) {
                model.vms.insert(vm, ((p, v), artifact));
            }
        }
        Op::Destroy(vm) => {
            let name = format!("v{vm}").parse().unwrap();
            if model.vms.remove(&vm).is_some() {
                store.delete_vm(&name).unwrap();
                store.purge_vm(&name).unwrap();
            }
        }
        Op::Collect(all) => {
            let what = if all { Collect::All } else { Collect::Stale };
            store.collect(what, SystemTime::now() + UNUSED_FOR).unwrap();
        }
        Op::Crash(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_referred_to_is_ever_removed(ops in prop::collection::vec(op(), 0..40)) {
        let dir = temp_dir();
        let mut store = open(&dir);
        let mut model = Model::default();
        for op in &ops {
            apply(&store, &mut model, op);
            if let Op::Crash(artifact) = op {
                std::mem::forget(crate::common::receive(&store, b"half"));
                std::mem::forget(store.resume(&digest(b"a download")).map(|mut one| one.write(b"a d")));
                drop(store);
                // Renamed into its place, and cut off before its row; or removed from the rows, and cut off before the file.
                let orphan = dir.path().join("blobs/sha256").join(of(10 + artifact).hex());
                fs::write(orphan, [10 + artifact; 20]).unwrap();
                store = open(&dir);
            }
            let there: BTreeSet<_> = blob_files(&dir).into_iter().collect();
            prop_assert!(there.is_superset(&model.referred()), "{op:?}");
            for vm in model.vms.keys() {
                let opened = store.open_vm(&format!("v{vm}").parse().unwrap());
                prop_assert!(opened.is_ok(), "{opened:?}");
            }
            prop_assert_eq!(store.plugins(None).unwrap().len(), model.plugins.len());
        }
        // And in the end all that nothing refers to goes.
        store.collect(Collect::Stale, SystemTime::now() + 48 * UNUSED_FOR).unwrap();
        let left: BTreeSet<_> = blob_files(&dir).into_iter().collect();
        prop_assert_eq!(left, model.referred());
        let remains = files(&dir, "partial").len();
        prop_assert_eq!(remains, 0);
    }
}
