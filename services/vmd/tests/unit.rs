//! The program itself, on a bus of the test's own: what it asks, in which order, and what it says when it cannot start.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod support;

use std::{fs, path::PathBuf, time::Duration};

use support::{
    bus::Bus,
    services::{FakeIpam, FakeRegistry, definition},
};
use volant_dbus::{
    ipam,
    registry::{self, VmDefinition},
};
use zbus::Connection;

const LONG: Duration = Duration::from_secs(20);

async fn serve(bus: &Bus, registry: FakeRegistry) -> Connection {
    let host = bus.connect().await;
    let objects = host.object_server();
    objects.at(registry::PATH, registry).await.unwrap();
    objects.at(ipam::PATH, FakeIpam).await.unwrap();
    host.request_name(registry::NAME).await.unwrap();
    host.request_name(ipam::NAME).await.unwrap();
    host
}

fn config(bus: &Bus, text: &str) -> PathBuf {
    let path = bus.folder.path().join("volant.toml");
    fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn a_kernel_that_is_none_is_refused_for_good_and_nothing_is_left() {
    let Some(bus) = Bus::start().await else {
        return;
    };
    let registry = FakeRegistry {
        answer: Ok(VmDefinition {
            kernel: "own".to_owned(),
            ..definition()
        }),
        artifacts: vec![("initramfs", "cpio"), ("kernel", "not a kernel")],
    };
    let _host = serve(&bus, registry).await;
    let vmd = bus.vmd(&config(&bus, ""));
    vmd.says("STATUS=starting", LONG).await;
    vmd.says("of the plugin is no kernel", LONG).await;
    let run_dir = vmd.run_dir.clone();
    let (status, log) = vmd.end();
    assert_eq!(status.code(), Some(78), "{log}");
    assert_eq!(fs::read_dir(run_dir).unwrap().count(), 0);
}

#[tokio::test]
async fn the_package_that_has_a_missing_kernel_or_initramfs_is_named() {
    // The head of a bzImage: 0xaa55 at 0x1fe, and the magic after it.
    let mut image = vec![0; 0x400];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    for (kernel, what) in [("gone", "kernel"), ("there", "boot initramfs")] {
        let Some(bus) = Bus::start().await else {
            return;
        };
        let registry = FakeRegistry {
            answer: Ok(VmDefinition {
                rootfs_format: "squashfs".to_owned(),
                ..definition()
            }),
            artifacts: vec![("rootfs", "image")],
        };
        let _host = serve(&bus, registry).await;
        let folder = bus.folder.path().display().to_string();
        fs::write(bus.folder.path().join("there"), &image).unwrap();
        let text = format!("[vm]\nkernel = '{folder}/{kernel}'\ninitramfs = '{folder}/gone'");
        let vmd = bus.vmd(&config(&bus, &text));
        let expected = format!(
            "cannot open the {what} {folder}/gone, which the package volant-kernel has: No such file"
        );
        vmd.says(&expected, LONG).await;
        let (status, log) = vmd.end();
        assert_eq!(status.code(), Some(78), "{log}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_worth_another_try() {
    let Some(bus) = Bus::start().await else {
        return;
    };
    let vmd = bus.vmd(&config(&bus, ""));
    vmd.says("cannot ask the registry for VM 'web'", LONG).await;
    let (status, log) = vmd.end();
    assert_eq!(status.code(), Some(75), "{log}");
}

#[tokio::test]
async fn a_configuration_that_is_wrong_is_told_with_its_mistake() {
    let Some(bus) = Bus::start().await else {
        return;
    };
    let vmd = bus.vmd(&config(&bus, "[vm]\nvmm = 'xen'"));
    vmd.says("unknown variant `xen`", LONG).await;
    let (status, log) = vmd.end();
    assert_eq!(status.code(), Some(78), "{log}");
}
