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

use crate::common::{config, configure, digest, manifest, new_vm, registry, temp_dir, unsigned};

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

    /// What is no VM is root.
    async fn user_of(&self, _: &Connection, _: &Header<'_>) -> Result<u32, CallersError> {
        Ok(self.0.map_or(0, |_| FIRST_UID))
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
async fn a_supervisor_is_told_all_that_follows_from_configuration_and_plugin() {
    let dir = temp_dir();
    let registry = registry(&dir);
    for content in [&b"root"[..], b"models"] {
        let mut sink = registry.receive().await.unwrap();
        sink.push(content).await.unwrap();
        sink.finish(digest(content)).await.unwrap();
    }
    let mut plugin = manifest("debian", "x", b"");
    plugin.as_object_mut().unwrap().remove("initramfs");
    plugin["rootfs"] =
        serde_json::json!({"url": "r", "checksum": digest(b"root"), "format": "erofs"});
    plugin["disks"] = serde_json::json!([{
        "name": "models", "url": "m", "checksum": digest(b"models"), "readonly": true, "target": "/data/models",
    }]);
    plugin["init"] = "/sbin/init".into();
    plugin["limits"] = serde_json::json!({"cpu_quota_percent": 150});
    plugin["workload"]["health_check"] =
        serde_json::json!({"type": "tcp", "port": 80, "retries": 2});
    registry.install(unsigned(&plugin), |_| {}).await.unwrap();
    let allowed = "[vm]\nshare_paths = ['/srv']\n[plugins]\nsignatures = 'off'";
    configure(&dir, allowed);
    let mut new = new_vm("web", "debian");
    new.config = config(serde_json::json!({
        "restart": "on-failure", "rlimits": {"nofile": {"soft": 5, "hard": 9}, "core": {"soft": 0}},
        "root_disk": {"size_mb": 16}, "cloud_init": {"user_data": {"content": "#cloud-config"}},
        "volumes": [
            {"name": "web", "target": "/srv", "host_path": "/srv/web"},
            {"name": "data", "target": "/data", "size_mb": 16},
        ],
        "secrets": [{"name": "key", "env": "KEY"}, {"name": "other"}], "network": "vsock",
        "devices": {"pci": ["0000:01:00.0"], "allowlist": ["10de:*"]},
        "limits": {"cpu_weight": 50, "io_weight": 60},
    }));
    registry.create_vm(new).await.unwrap();
    let (_service, proxy) = connect(registry, From(Some("web"))).await;
    let (vm, files) = proxy.open_vm().await.unwrap();
    let mut names: Vec<_> = files.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "disk.cidata",
            "disk.data",
            "disk.root",
            "disks.models",
            "rootfs"
        ]
    );
    assert_eq!((vm.config_version, vm.restart.as_str()), (1, "on-failure"));
    assert_eq!(
        (vm.init.as_str(), vm.rootfs_format.as_str()),
        ("/sbin/init", "erofs")
    );
    assert!(vm.is_persistent && vm.has_seed);
    assert_eq!(
        vm.rlimits,
        [
            ("core".to_owned(), 0, u64::MAX),
            ("nofile".to_owned(), 5, 9)
        ]
    );
    let check = &vm.health_check[0];
    assert_eq!(
        (check.kind.as_str(), check.port, check.retries),
        ("tcp", 80, 2)
    );
    // The outer one first.
    let mounts: Vec<_> = vm
        .mounts
        .iter()
        .map(|m| {
            (
                m.name.as_str(),
                m.kind.as_str(),
                m.target.as_str(),
                m.is_read_only,
            )
        })
        .collect();
    assert_eq!(
        mounts,
        [
            ("data", "disk", "/data", false),
            ("models", "image", "/data/models", true),
            ("web", "share", "/srv", true),
        ]
    );
    assert_eq!(vm.mounts[2].host_path, "/srv/web");
    let secret = |name: &str, env: &str| (name.to_owned(), env.to_owned());
    assert_eq!(vm.secrets, [secret("key", "KEY"), secret("other", "")]);
    assert_eq!(vm.network_mode, "vsock");
    assert_eq!((vm.pci.len(), vm.pci_allowlist.len()), (1, 1));
    assert_eq!(
        (vm.cpu_quota_percent, vm.cpu_weight, vm.io_weight),
        (150, 50, 60)
    );
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
    let mut new = new_vm("disk", "caddy");
    new.config = config(serde_json::json!({
        "volumes": [{"name": "data", "target": "/data", "size_mb": 16}],
    }));
    registry.create_vm(new).await.unwrap();
    fs::write(dir.path().join("disks"), "no folder").unwrap();
    assert_eq!(
        refused(From(Some("disk"))).await,
        format!("{prefix}.NoDisk")
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
async fn root_alone_is_told_whose_devices_to_lend() {
    let dir = temp_dir();
    let registry = registry(&dir);
    fill(&registry).await;
    let mut new = new_vm("gpu", "caddy");
    new.config = config(serde_json::json!({
        "devices": {"pci": ["0000:01:00.0"], "allowlist": ["10de:*"]},
    }));
    registry.create_vm(new).await.unwrap();
    let prefix = "com.volantvm.Registry1.Error";
    {
        let (_service, proxy) = connect(registry.clone(), From(Some("gpu"))).await;
        let refused = proxy.vm_devices("gpu").await.unwrap_err();
        assert_eq!(error_name(&refused), format!("{prefix}.NotRoot"));
    }
    let (_service, proxy) = connect(registry.clone(), From(None)).await;
    let told = proxy.vm_devices("gpu").await.unwrap();
    let list = |text: &str| vec![text.to_owned()];
    assert_eq!(told, (FIRST_UID + 3, list("0000:01:00.0"), list("10de:*")));
    assert_eq!(
        proxy.vm_devices("web").await.unwrap(),
        (FIRST_UID + 2, vec![], vec![])
    );
    registry.delete_vm("db".parse().unwrap()).await.unwrap();
    for (name, expected) in [
        ("db", "BeingDeleted"),
        ("nobody", "NoSuchVm"),
        ("../x", "Invalid"),
    ] {
        let refused = proxy.vm_devices(name).await.unwrap_err();
        assert_eq!(error_name(&refused), format!("{prefix}.{expected}"));
    }
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
