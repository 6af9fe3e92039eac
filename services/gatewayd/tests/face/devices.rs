//! Devices of the host: shown, validated, and refused before anything is touched.

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};
use volant_dbus::devices::{DeviceInfo, PATH};
use zbus::interface;

use crate::Setup;

const GPU: &str = "0000:01:00.0";

/// A deviced whose host has one device, that no VM may have but with the allowlist `10de:*`.
struct FakeDeviced;

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Devices1.Error")]
enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    NoSuchDevice(String),
    InvalidArgument(String),
}

#[interface(name = "com.volantvm.Devices1.Manager")]
impl FakeDeviced {
    fn list_devices(&self) -> Vec<DeviceInfo> {
        vec![gpu()]
    }

    fn get_device(&self, address: &str) -> Result<DeviceInfo, Error> {
        match address {
            GPU => Ok(gpu()),
            _ if address.contains(':') => Err(Error::NoSuchDevice("there is none".to_owned())),
            _ => Err(Error::InvalidArgument("it is no address".to_owned())),
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "as zbus gives them")]
    fn validate(&self, vm: &str, addresses: Vec<&str>, allowlist: Vec<&str>) -> Vec<String> {
        match allowlist[..] {
            ["10de:*"] => Vec::new(),
            _ => vec![
                "this host has no IOMMU in use".to_owned(),
                format!("'{vm}' may not have {}", addresses.join(" ")),
            ],
        }
    }
}

fn gpu() -> DeviceInfo {
    DeviceInfo {
        address: GPU.to_owned(),
        kind: "10de:2204".to_owned(),
        class: "030000".to_owned(),
        driver: String::new(),
        iommu_group: 0,
        group_devices: vec![GPU.to_owned()],
        numa_node: -1,
        vm: "db".to_owned(),
    }
}

async fn setup() -> Setup {
    let setup = Setup::new().await;
    let server = setup._bus.object_server();
    server.at(PATH, FakeDeviced).await.unwrap();
    let manifest = |devices: Value| {
        json!({
            "schema_version": "1", "name": "caddy", "version": "1.0",
            "initramfs": {"url": "i", "checksum": format!("sha256:{}", "0".repeat(64))},
            "workload": {"entrypoint": ["/bin/caddy"]},
            "devices": devices,
        })
        .to_string()
    };
    {
        let mut state = setup.world.lock();
        state.plugin("caddy", &manifest(json!({})));
        state.plugin("gpu", &manifest(json!({"pci": [GPU]})));
    }
    setup
}

#[tokio::test]
async fn devices_are_shown_and_what_is_not_known_is_null() {
    let setup = setup().await;
    let expected = json!({
        "address": GPU, "kind": "10de:2204", "class": "030000", "driver": null, "iommu_group": 0,
        "group_devices": [GPU], "numa_node": null, "vm": "db",
    });
    let list = setup.get("/api/v1/devices").await;
    assert_eq!(list.json(), json!([expected]));
    let one = setup.get(&format!("/api/v1/devices/{GPU}")).await;
    assert_eq!(one.json(), expected);
    for (path, status, kind) in [
        ("0000:09:00.0", 404, "no-such-device"),
        ("gpu", 400, "invalid-request"),
    ] {
        let answer = setup.get(&format!("/api/v1/devices/{path}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().0.as_str()),
            (status, kind)
        );
    }
}

#[tokio::test]
async fn a_wish_is_validated_and_changes_nothing() {
    let setup = setup().await;
    let path = "/api/v1/devices/validate";
    let wish = json!({"pci": [GPU], "vm": "web"}).to_string();
    let answer = setup.post(path, &wish).await.json();
    assert_eq!(
        answer["problems"],
        json!([
            "this host has no IOMMU in use",
            format!("'web' may not have {GPU}")
        ])
    );
    let wish = json!({"pci": [GPU], "allowlist": ["10de:*"]}).to_string();
    let answer = setup.post(path, &wish).await.json();
    assert_eq!(answer, json!({"problems": []}));
    let wrong = setup.post(path, r#"{"pci":[],"usb":[]}"#).await;
    assert_eq!(wrong.status.as_u16(), 400);
    assert_eq!(setup.world.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn no_vm_is_made_that_the_host_cannot_give_its_devices() {
    let setup = setup().await;
    let own = json!({"name": "web", "plugin": "caddy", "config": {"devices": {"pci": [GPU]}}});
    let plugins = json!({"name": "web", "plugin": "gpu"});
    for body in [own, plugins] {
        let refused = setup.post("/api/v1/vms", &body.to_string()).await;
        let (kind, detail) = refused.problem();
        assert_eq!(
            (refused.status.as_u16(), kind.as_str()),
            (409, "unusable-config")
        );
        for part in [
            "VM web cannot have the devices 0000:01:00.0",
            "no IOMMU",
            "'' may not have",
        ] {
            assert!(detail.contains(part), "{part}: {detail}");
        }
    }
    assert_eq!(setup.world.calls(), Vec::<String>::new());
    assert_eq!(setup.systemd.calls(), Vec::<String>::new());
    // The same with the allowlist that this host takes; and a VM without devices is asked nothing.
    for (plugin, config) in [
        (
            "gpu",
            json!({"devices": {"pci": [GPU], "allowlist": ["10de:*"]}}),
        ),
        ("gpu", json!({"devices": {}})),
        ("caddy", json!({})),
    ] {
        let name = format!("vm-{}", setup.world.calls().len());
        let body = json!({"name": name, "plugin": plugin, "config": config, "start": false});
        let made = setup.post("/api/v1/vms", &body.to_string()).await;
        assert_eq!(made.status.as_u16(), 201, "{body}");
    }
}

#[tokio::test]
async fn no_configuration_is_set_that_the_host_cannot_give_its_devices() {
    let setup = setup().await;
    setup.world.lock().vm("web", false);
    let path = "/api/v1/vms/web/config";
    let before = setup.get(path).await.json();
    let put = |config: Value| setup.send(Method::PUT, path, Body::from(config.to_string()));
    let refused = put(json!({"devices": {"pci": [GPU]}})).await;
    let (kind, detail) = refused.problem();
    assert_eq!(
        (refused.status.as_u16(), kind.as_str()),
        (409, "unusable-config")
    );
    assert!(detail.contains("'web' may not have"), "{detail}");
    assert_eq!(setup.get(path).await.json(), before);
    // What it was to have before is not asked about: other changes are free.
    let has = json!({"devices": {"pci": [GPU]}});
    setup
        .world
        .lock()
        .config("web", has.to_string().as_bytes(), "earlier");
    let same = put(json!({"devices": {"pci": [GPU]}, "user": "www"})).await;
    assert_eq!(same.status.as_u16(), 200);
    let less = put(json!({"user": "www"})).await;
    assert_eq!(less.status.as_u16(), 200);
    let back = setup
        .post(&format!("{path}/rollback"), r#"{"version":2}"#)
        .await;
    assert_eq!(back.status.as_u16(), 409);
}

#[tokio::test]
async fn a_deviced_that_is_away_is_told() {
    let setup = Setup::new().await;
    let answer = setup.get("/api/v1/devices").await;
    let (kind, detail) = answer.problem();
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (503, "unavailable")
    );
    assert!(detail.contains("deviced"), "{detail}");
}
