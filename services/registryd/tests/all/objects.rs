//! Plugins as objects on the bus, and the signals about them.

use std::{collections::HashMap, os::unix::net::UnixStream, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use registryd::{
    Registry,
    dbus::{self, Callers, CallersError},
};
use volant_dbus::registry::{ManagerProxy, PATH, PluginProxy, plugin_path};
use volant_service::CallerError;
use volant_spec::Name;
use zbus::{
    Connection, Guid, connection::Builder, fdo::ObjectManagerProxy, message::Header,
    proxy::CacheProperties,
};

use crate::common::{bytes, configure, digest, manifest, new_vm, registry, temp_dir, unsigned};

struct Nobody;

#[async_trait]
impl Callers for Nobody {
    async fn vm_of(&self, _: &Connection, _: &Header<'_>) -> Result<Name, CallersError> {
        Err(CallerError::NoVm { pid: 1 }.into())
    }

    async fn user_of(&self, _: &Connection, _: &Header<'_>) -> Result<u32, CallersError> {
        Err(CallersError::NoUser)
    }
}

async fn connect(registry: Registry) -> (dbus::Face, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let service = Builder::unix_stream(ours).server(Guid::generate()).p2p();
    let client = Builder::unix_stream(theirs).p2p().build();
    let (face, client) = tokio::join!(dbus::serve(service, registry, Nobody), client);
    (face.unwrap(), client.unwrap())
}

async fn upload(registry: &Registry) {
    let mut sink = registry.receive().await.unwrap();
    sink.push(b"initramfs").await.unwrap();
    sink.finish(digest(b"initramfs")).await.unwrap();
}

async fn install(registry: &Registry, version: &str) {
    upload(registry).await;
    let mut given = manifest("caddy", "x", b"initramfs");
    given["version"] = version.into();
    registry.install(unsigned(&given), |_| {}).await.unwrap();
}

async fn plugin<'a>(client: &Connection, version: &str) -> PluginProxy<'a> {
    PluginProxy::builder(client)
        .path(plugin_path("caddy", version))
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .unwrap()
}

async fn manager(client: &Connection) -> ManagerProxy<'static> {
    ManagerProxy::builder(client)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .unwrap()
}

async fn soon<T>(next: impl Future<Output = Option<T>>) -> T {
    let next = tokio::time::timeout(Duration::from_secs(10), next).await;
    next.expect("a signal comes").expect("the connection lives")
}

async fn object_manager(client: &Connection) -> ObjectManagerProxy<'static> {
    // Peers have no names.
    ObjectManagerProxy::builder(client)
        .destination("com.volantvm.Registry1")
        .path(PATH)
        .build()
        .await
        .unwrap()
}

#[tokio::test]
async fn what_is_installed_is_an_object_from_the_start() {
    let dir = temp_dir();
    let registry = registry(&dir);
    install(&registry, "1.0").await;
    let (_face, client) = connect(registry).await;
    let objects = object_manager(&client)
        .await
        .get_managed_objects()
        .await
        .unwrap();
    let path = plugin_path("caddy", "1.0");
    let found = objects
        .iter()
        .find(|(at, _)| at.as_str() == path)
        .unwrap()
        .1;
    let properties = &found["com.volantvm.Registry1.Plugin"];
    assert_eq!(properties.len(), 9, "{properties:?}");
    let caddy = plugin(&client, "1.0").await;
    assert_eq!(caddy.name().await.unwrap(), "caddy");
    assert_eq!(caddy.version().await.unwrap(), "1.0");
    assert_eq!(caddy.size_bytes().await.unwrap(), 9);
    assert_eq!(caddy.signed_by().await.unwrap(), Default::default());
    let text = caddy.manifest().await.unwrap();
    assert_eq!(
        caddy.manifest_digest().await.unwrap(),
        digest(text.as_bytes()).to_string()
    );
    assert_eq!(caddy.verify().await.unwrap().len(), 2);
}

#[tokio::test]
async fn changes_are_heard_of_whoever_makes_them() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let (_face, client) = connect(registry.clone()).await;
    let objects = object_manager(&client).await;
    let mut added = objects.receive_interfaces_added().await.unwrap();
    let mut removed = objects.receive_interfaces_removed().await.unwrap();
    install(&registry, "1.0").await;
    let signal = soon(added.next()).await;
    let path = plugin_path("caddy", "1.0");
    assert_eq!(signal.args().unwrap().object_path().as_str(), path);

    let caddy = PluginProxy::builder(&client)
        .path(path.clone())
        .build()
        .await
        .unwrap();
    let mut enabled = caddy.receive_enabled_changed().await;
    // The value of now comes first.
    assert!(soon(enabled.next()).await.get().await.unwrap());
    registry
        .enable_plugin("caddy".parse().unwrap(), false)
        .await
        .unwrap();
    assert!(!soon(enabled.next()).await.get().await.unwrap());
    caddy.enable().await.unwrap();
    assert!(soon(enabled.next()).await.get().await.unwrap());

    caddy.remove().await.unwrap();
    let signal = soon(removed.next()).await;
    assert_eq!(signal.args().unwrap().object_path().as_str(), path);
}

#[tokio::test]
async fn operators_do_on_the_bus_what_others_do_by_grpc() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let (_face, client) = connect(registry.clone()).await;
    let manager = manager(&client).await;
    upload(&registry).await;
    let options = |text: Vec<u8>| {
        HashMap::from([(
            "manifest".to_owned(),
            zbus::Variant::from(text).try_into().unwrap(),
        )])
    };
    let given = manifest("caddy", "x", b"initramfs");
    let path = manager
        .install_plugin("", options(bytes(&given)))
        .await
        .unwrap();
    assert_eq!(path.as_str(), plugin_path("caddy", "1.0"));
    assert_eq!(plugin(&client, "1.0").await.version().await.unwrap(), "1.0");
    assert_eq!(manager.plugins().await.unwrap(), ["caddy"]);
    assert_eq!(manager.verify_plugins("").await.unwrap().len(), 2);
    assert_eq!(manager.collect_garbage().await.unwrap(), (0, 0));
    assert_eq!(manager.search_plugins("").await.unwrap(), []);
    assert_eq!(manager.signature_policy().await.unwrap(), "off");
    assert_eq!(manager.trusted_keys().await.unwrap(), []);
    manager
        .set_plugin_enabled("caddy@1.0", false)
        .await
        .unwrap();
    assert!(!plugin(&client, "1.0").await.enabled().await.unwrap());
    manager.set_plugin_enabled("caddy", true).await.unwrap();

    let refused = |error: zbus::Error| match error {
        zbus::Error::MethodError(name, _, _) => name
            .strip_prefix("com.volantvm.Registry1.Error.")
            .unwrap()
            .to_owned(),
        error => panic!("{error:?}"),
    };
    registry.create_vm(new_vm("web", "caddy")).await.unwrap();
    assert_eq!(
        refused(manager.remove_plugin("caddy").await.unwrap_err()),
        "InUse"
    );
    install(&registry, "2.0").await;
    assert_eq!(
        refused(manager.remove_plugin("caddy").await.unwrap_err()),
        "SeveralVersions"
    );
    assert_eq!(
        refused(manager.remove_plugin("nginx").await.unwrap_err()),
        "NoSuchPlugin"
    );
    assert_eq!(
        refused(manager.remove_plugin("a b").await.unwrap_err()),
        "Invalid"
    );
    let wrong = HashMap::from([(
        "colour".to_owned(),
        zbus::Variant::from("red").try_into().unwrap(),
    )]);
    assert_eq!(
        refused(manager.install_plugin("caddy", wrong).await.unwrap_err()),
        "Invalid"
    );
    let file = manager
        .install_plugin("file:///etc/passwd", HashMap::new())
        .await;
    assert_eq!(refused(file.unwrap_err()), "Invalid");
    let nowhere = manager.install_plugin("nginx", HashMap::new()).await;
    assert_eq!(refused(nowhere.unwrap_err()), "NotPossible");
    configure(&dir, "");
    let untrusted = manager.install_plugin("", options(bytes(&given))).await;
    assert_eq!(refused(untrusted.unwrap_err()), "NotTrusted");
    manager.remove_plugin("caddy@2.0").await.unwrap();
    assert_eq!(registry.plugins(None).await.unwrap().len(), 1);
}
