//! The D-Bus face, by the shared proxy, peer to peer.

use std::{
    fs::{self, File},
    io::Read,
    os::{fd::AsRawFd, unix::net::UnixStream},
};

use async_trait::async_trait;
use registryd::{
    FIRST_UID, Registry,
    dbus::{self, Callers, CallersError},
};
use volant_dbus::registry::ManagerProxy;
use volant_service::CallerError;
use volant_spec::Name;
use zbus::{Connection, Guid, connection::Builder, message::Header};

use crate::common::{digest, manifest, new_vm, registry, temp_dir, unsigned};

/// Every call comes from this VM, or from none.
struct From(Option<&'static str>);

#[async_trait]
impl Callers for From {
    async fn vm_of(&self, _: &Connection, _: &Header<'_>) -> Result<Name, CallersError> {
        match self.0 {
            Some(name) => Ok(name.parse().unwrap()),
            None => Err(CallerError::NoVm { pid: 1 }.into()),
        }
    }
}

async fn connect(registry: Registry, from: From) -> (dbus::Face, ManagerProxy<'static>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guid = Guid::generate();
    let service = Builder::unix_stream(ours).server(guid).p2p();
    let client = Builder::unix_stream(theirs).p2p().build();
    let (service, client) = tokio::join!(dbus::serve(service, registry, from), client);
    let proxy = ManagerProxy::builder(&client.unwrap())
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap();
    (service.unwrap(), proxy)
}

async fn fill(registry: &Registry) {
    let mut sink = registry.receive().await.unwrap();
    sink.push(b"initramfs").await.unwrap();
    sink.finish(digest(b"initramfs")).await.unwrap();
    let given = unsigned(&manifest("caddy", "x", b"initramfs"));
    registry.install(given, |_| {}).await.unwrap();
    for vm in ["db", "web"] {
        registry.create_vm(new_vm(vm, "caddy")).await.unwrap();
    }
}

fn error_name(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, _, _) => name.to_string(),
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_supervisor_gets_its_own_vm_with_open_artifacts() {
    let dir = temp_dir();
    let registry = registry(&dir);
    fill(&registry).await;
    let (_service, proxy) = connect(registry, From(Some("web"))).await;
    let (vm, artifacts) = proxy.open_vm().await.unwrap();
    assert_eq!((vm.name.as_str(), vm.uid), ("web", FIRST_UID + 2));
    assert_eq!(vm.entrypoint, ["/bin/app", "run"]);
    assert_eq!(vm.env.get("A").unwrap(), "b");
    assert_eq!(
        (
            vm.workdir.as_str(),
            vm.stop_signal.as_str(),
            vm.stop_grace_ms
        ),
        ("/", "SIGTERM", 10_000)
    );
    assert_eq!(artifacts.len(), 1);
    let fd = artifacts["initramfs"].as_raw_fd();
    // As a VMM does it, which is given a path.
    let mut content = String::new();
    let mut file = File::open(format!("/proc/self/fd/{fd}")).unwrap();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "initramfs");
}

#[tokio::test]
async fn what_cannot_be_opened_is_told_by_a_name() {
    let dir = temp_dir();
    let registry = registry(&dir);
    fill(&registry).await;
    let blob = dir.path().join("blobs/sha256");
    let blob = blob.join(digest(b"initramfs").hex());
    registry.delete_vm("db".parse().unwrap()).await.unwrap();

    let refused = async |from: From| {
        let (_service, proxy) = connect(registry.clone(), from).await;
        error_name(&proxy.open_vm().await.unwrap_err())
    };
    let prefix = "com.volantvm.Registry1.Error";
    assert_eq!(refused(From(None)).await, format!("{prefix}.NotAVm"));
    assert_eq!(
        refused(From(Some("other"))).await,
        format!("{prefix}.NoSuchVm")
    );
    assert_eq!(
        refused(From(Some("db"))).await,
        format!("{prefix}.BeingDeleted")
    );
    fs::remove_file(&blob).unwrap();
    assert_eq!(
        refused(From(Some("web"))).await,
        format!("{prefix}.ArtifactMissing")
    );
    fs::write(&blob, "init").unwrap();
    assert_eq!(
        refused(From(Some("web"))).await,
        format!("{prefix}.ArtifactDamaged")
    );
}

#[tokio::test]
async fn the_properties_are_live() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let (_service, proxy) = connect(registry.clone(), From(None)).await;
    assert_eq!(proxy.plugins().await.unwrap(), Vec::<String>::new());
    fill(&registry).await;
    assert_eq!(proxy.plugins().await.unwrap(), ["caddy"]);
    assert_eq!(proxy.vms().await.unwrap(), ["db", "web"]);
}
