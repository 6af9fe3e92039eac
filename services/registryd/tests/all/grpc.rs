//! The gRPC face, by the generated client over a socket.

use std::time::Duration;

use registryd::grpc;
use tempfile::TempDir;
use tokio::{net::UnixListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use volant_proto::registry::v1::{
    self as wire, install_plugin_request::Source, install_plugin_response::Event,
    registry_service_client::RegistryServiceClient, upload_blob_request::Part,
};

use crate::{
    common::{blob_files, bytes, configure, digest, files, manifest, registry, temp_dir},
    web::{Page, Web},
};

type Client = RegistryServiceClient<Channel>;

pub struct Daemon {
    pub dir: TempDir,
    pub client: Client,
    end: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Daemon {
    pub async fn start() -> Self {
        let dir = temp_dir();
        let path = dir.path().join("grpc.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (end, ended) = oneshot::channel();
        let serving = tokio::spawn(grpc::serve(listener, registry(&dir), async {
            let _ = ended.await;
        }));
        let channel = Endpoint::try_from(format!("unix://{}", path.display())).unwrap();
        let client = Client::new(channel.connect().await.unwrap());
        Self {
            dir,
            client,
            end,
            serving,
        }
    }

    pub async fn upload(&mut self, parts: Vec<Part>) -> Result<u64, Status> {
        let parts = parts
            .into_iter()
            .map(|part| wire::UploadBlobRequest { part: Some(part) });
        let answer = self.client.upload_blob(tokio_stream::iter(parts)).await?;
        Ok(answer.into_inner().size)
    }

    pub async fn install(&mut self, source: Source) -> Result<wire::Plugin, Status> {
        let request = wire::InstallPluginRequest {
            source: Some(source),
            ..Default::default()
        };
        let mut events = self.client.install_plugin(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if let Some(Event::Plugin(plugin)) = event.event {
                return Ok(plugin);
            }
        }
        panic!("the stream ended without a plugin");
    }

    async fn installed(&mut self, name: &str) {
        let content = b"initramfs".to_vec();
        self.upload(whole(&content)).await.unwrap();
        self.install(Source::Manifest(bytes(&manifest(name, "x", &content))))
            .await
            .unwrap();
    }

    pub async fn create(&mut self, name: &str, plugin: &str) -> Result<wire::Vm, Status> {
        let request = wire::CreateVmRequest {
            name: name.to_owned(),
            plugin: plugin.to_owned(),
            ..Default::default()
        };
        let answer = self.client.create_vm(request).await?;
        Ok(answer.into_inner().vm.unwrap())
    }
}

fn header(content: &[u8]) -> Part {
    let digest = digest(content).to_string();
    Part::Header(wire::BlobHeader { digest })
}

pub fn whole(content: &[u8]) -> Vec<Part> {
    let chunks = content
        .chunks(100_000)
        .map(|chunk| Part::Chunk(chunk.to_vec()));
    std::iter::once(header(content)).chain(chunks).collect()
}

fn named(name: &str) -> wire::GetVmRequest {
    wire::GetVmRequest {
        name: name.to_owned(),
    }
}

#[tokio::test]
async fn a_vm_lives_from_upload_to_purge() {
    let mut daemon = Daemon::start().await;
    let content = vec![9; 700_000];
    assert_eq!(daemon.upload(whole(&content)).await.unwrap(), 700_000);
    let digest = digest(&content).to_string();
    let request = wire::GetBlobRequest { digest };
    let answer = daemon.client.get_blob(request).await.unwrap();
    assert_eq!(answer.into_inner().size, 700_000);

    let given = bytes(&manifest("caddy", "x", &content));
    let plugin = daemon
        .install(Source::Manifest(given.clone()))
        .await
        .unwrap();
    assert_eq!(
        (plugin.manifest, plugin.size_bytes),
        (given, content.len() as u64)
    );

    let vm = daemon.create("web", "caddy").await.unwrap();
    assert_eq!(
        (vm.vmm.as_str(), vm.cpu_cores, vm.deleting),
        ("auto", 1, false)
    );
    let got = daemon.client.get_vm(named("web")).await.unwrap();
    assert_eq!(got.into_inner().vm.unwrap(), vm);

    let remove = wire::RemovePluginRequest {
        name: "caddy".to_owned(),
        ..Default::default()
    };
    let error = daemon.client.remove_plugin(remove.clone()).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("'web'"), "{error}");

    let purge = wire::PurgeVmRequest {
        name: "web".to_owned(),
    };
    let error = daemon.client.purge_vm(purge.clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let delete = wire::DeleteVmRequest {
        name: "web".to_owned(),
    };
    daemon.client.delete_vm(delete).await.unwrap();
    let vms = daemon.client.list_vms(wire::ListVmsRequest {}).await;
    assert!(vms.unwrap().into_inner().vms[0].deleting);
    for _ in 0..2 {
        daemon.client.purge_vm(purge.clone()).await.unwrap();
    }
    let error = daemon.client.get_vm(named("web")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    daemon.client.remove_plugin(remove).await.unwrap();
    assert_eq!(blob_files(&daemon.dir), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_there_needs_no_second_upload() {
    let mut daemon = Daemon::start().await;
    let content = vec![1; 500_000];
    daemon.upload(whole(&content)).await.unwrap();
    assert_eq!(
        daemon.upload(vec![header(&content)]).await.unwrap(),
        500_000
    );
    assert_eq!(daemon.upload(whole(&content)).await.unwrap(), 500_000);
}

#[tokio::test]
async fn an_upload_that_is_wrong_is_refused_and_leaves_nothing() {
    let mut daemon = Daemon::start().await;
    let chunk = |bytes: &[u8]| Part::Chunk(bytes.to_vec());
    let no_digest = Part::Header(wire::BlobHeader {
        digest: "../../etc/passwd".to_owned(),
    });
    let cases = [
        (vec![], "begins with a header"),
        (vec![chunk(b"x")], "begins with a header"),
        (vec![no_digest], "no digest"),
        (vec![header(b"x"), header(b"x")], "one header"),
        (vec![header(b"x"), chunk(b"y")], "have the checksum"),
        (vec![header(b"xy"), chunk(b"x")], "have the checksum"),
        (whole(&vec![0; 1024 * 1024 + 1]), "more than 1048576 bytes"),
    ];
    for (parts, expected) in cases {
        let error = daemon.upload(parts).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(expected), "{expected}: {error}");
    }
    let left = files(&daemon.dir, "incoming").len() + blob_files(&daemon.dir).len();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn an_upload_that_stalls_is_given_up() {
    let mut daemon = Daemon::start().await;
    let first = wire::UploadBlobRequest {
        part: Some(header(b"never sent")),
    };
    let parts = futures_util::StreamExt::chain(
        tokio_stream::iter([first]),
        tokio_stream::pending::<wire::UploadBlobRequest>(),
    );
    let answer = tokio::time::timeout(Duration::from_secs(20), daemon.client.upload_blob(parts));
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
}

#[tokio::test]
async fn an_install_tells_its_progress_first() {
    let mut daemon = Daemon::start().await;
    let content = vec![3; 400_000];
    let web = Web::serve([("/i", Page::Body(content.clone()))]).await;
    let request = wire::InstallPluginRequest {
        source: Some(Source::Manifest(bytes(&manifest(
            "caddy",
            &web.url("/i"),
            &content,
        )))),
        ..Default::default()
    };
    let mut events = daemon
        .client
        .install_plugin(request)
        .await
        .unwrap()
        .into_inner();
    let mut seen = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        seen.push(event.event.unwrap());
    }
    let Some(Event::Plugin(plugin)) = seen.pop() else {
        panic!("{seen:?}");
    };
    assert_eq!(plugin.name, "caddy");
    let Some(Event::Progress(last)) = seen.pop() else {
        panic!("no progress");
    };
    assert_eq!((last.done_bytes, last.total_bytes), (400_000, 400_000));
}

#[tokio::test]
async fn a_bad_manifest_is_refused_with_its_mistake() {
    let mut daemon = Daemon::start().await;
    let mut unknown = manifest("caddy", "x", b"x");
    unknown["colour"] = "red".into();
    let cases = [
        (
            vec![b' '; 1024 * 1024 + 1],
            Code::InvalidArgument,
            "at most 1048576",
        ),
        (
            bytes(&unknown),
            Code::InvalidArgument,
            "unknown field `colour`",
        ),
        (
            bytes(&manifest("caddy", "x", b"absent")),
            Code::FailedPrecondition,
            "upload it first",
        ),
    ];
    for (given, code, expected) in cases {
        let error = daemon.install(Source::Manifest(given)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    let url = Source::ManifestUrl("file:///etc/passwd".to_owned());
    let error = daemon.install(url).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    // More than a message may have: the connection lives on.
    let error = daemon
        .install(Source::Manifest(vec![b' '; 8 * 1024 * 1024]))
        .await
        .unwrap_err();
    assert!(error.message().contains("too large"), "{error}");
    daemon.installed("caddy").await;
}

#[tokio::test]
async fn a_vm_that_cannot_be_is_refused_with_the_remedy() {
    let mut daemon = Daemon::start().await;
    daemon.installed("caddy").await;
    daemon.create("web", "caddy").await.unwrap();
    let long = "a".repeat(64);
    let cases = [
        ("web", "caddy", Code::AlreadyExists, "'web' is taken"),
        ("db", "nginx", Code::NotFound, "`volar plugins list`"),
        ("a/b", "caddy", Code::InvalidArgument, "has '/' in it"),
        ("..", "caddy", Code::InvalidArgument, "has '.' in it"),
        (&long, "caddy", Code::InvalidArgument, "64 characters"),
        (
            "db",
            "../x",
            Code::InvalidArgument,
            "no plugin can be named so",
        ),
    ];
    for (name, plugin, code, expected) in cases {
        let error = daemon.create(name, plugin).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    let request = |cpu: Option<u32>, memory: Option<u32>, vmm: &str| wire::CreateVmRequest {
        name: "db".to_owned(),
        plugin: "caddy".to_owned(),
        cpu_cores: cpu,
        memory_mb: memory,
        vmm: vmm.to_owned(),
        ..wire::CreateVmRequest::default()
    };
    let cases = [
        (request(Some(0), None, ""), "cpu_cores: 0"),
        (request(None, Some(0), ""), "memory_mb: 0 MiB"),
        (request(None, Some(u32::MAX), ""), "64 to 4194304"),
        (request(None, None, "xen"), "not one of auto"),
    ];
    for (request, expected) in cases {
        let error = daemon.client.create_vm(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    let vms = daemon.client.list_vms(wire::ListVmsRequest {}).await;
    assert_eq!(vms.unwrap().into_inner().vms.len(), 1);
}

#[tokio::test]
async fn a_vm_is_created_with_a_configuration_and_secrets_and_changed() {
    let mut daemon = Daemon::start().await;
    daemon.installed("caddy").await;
    let request = wire::CreateVmRequest {
        name: "web".to_owned(),
        plugin: "caddy".to_owned(),
        memory_mb: Some(512),
        config:
            br#"{"cpu_cores": 2, "memory_mb": 128, "secrets": [{"name": "key", "env": "KEY"}]}"#
                .to_vec(),
        secrets: vec![secret("key", b"s3cret")],
        ..wire::CreateVmRequest::default()
    };
    let created = daemon.client.create_vm(request).await.unwrap();
    let vm = created.into_inner().vm.unwrap();
    assert_eq!((vm.cpu_cores, vm.memory_mb), (2, 512));
    assert_eq!(
        (vm.config_version, &vm.secrets[..]),
        (1, &["key".to_owned()][..])
    );
    let own: serde_json::Value = serde_json::from_slice(&vm.config).unwrap();
    assert_eq!(own["memory_mb"], 512);
    assert!(!String::from_utf8_lossy(&vm.config).contains("s3cret"));

    let set = |config: &str, expected_version, reason: &str| wire::SetVmConfigRequest {
        name: "web".to_owned(),
        config: config.into(),
        expected_version,
        reason: reason.to_owned(),
    };
    let answer = daemon
        .client
        .set_vm_config(set(r#"{"env":{"B":"c"}}"#, 1, ""))
        .await;
    let second = answer.unwrap().into_inner().config.unwrap();
    assert_eq!((second.version, second.reason.as_str()), (2, "set"));
    let get = |version| wire::GetVmConfigRequest {
        name: "web".to_owned(),
        version,
    };
    let got = daemon.client.get_vm_config(get(0)).await.unwrap();
    let got = got.into_inner();
    assert_eq!(got.config, Some(second));
    let effective: serde_json::Value = serde_json::from_slice(&got.effective).unwrap();
    assert_eq!(effective["entrypoint"][0], "/bin/app");
    assert_eq!(effective["env"], serde_json::json!({"A": "b", "B": "c"}));
    let list = wire::ListVmConfigsRequest {
        name: "web".to_owned(),
    };
    let listed = daemon.client.list_vm_configs(list).await.unwrap();
    let versions: Vec<_> = listed
        .into_inner()
        .configs
        .iter()
        .map(|c| c.version)
        .collect();
    assert_eq!(versions, [2, 1]);

    let long = "x".repeat(257);
    let cases = [
        (set("{}", 1, ""), Code::Aborted, "newest version is 2"),
        (
            set("{\"a\":1}", 0, ""),
            Code::InvalidArgument,
            "unknown field `a`",
        ),
        (set("[", 0, ""), Code::InvalidArgument, "not valid"),
        (
            set("{\"memory_mb\":1}", 0, ""),
            Code::InvalidArgument,
            "memory_mb: 1 MiB",
        ),
        (set("{}", 0, "a\nb"), Code::InvalidArgument, "one line"),
        (set("{}", 0, &long), Code::InvalidArgument, "at most 256"),
    ];
    for (request, code, expected) in cases {
        let error = daemon.client.set_vm_config(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    let missing = daemon.client.get_vm_config(get(9)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
}

#[tokio::test]
async fn a_directory_that_the_host_does_not_share_is_refused_at_once() {
    let mut daemon = Daemon::start().await;
    daemon.installed("caddy").await;
    daemon.create("web", "caddy").await.unwrap();
    let config =
        br#"{"volumes": [{"name": "www", "target": "/www", "host_path": "/srv/www"}]}"#.to_vec();
    let create = wire::CreateVmRequest {
        name: "db".to_owned(),
        plugin: "caddy".to_owned(),
        config: config.clone(),
        ..wire::CreateVmRequest::default()
    };
    let set = wire::SetVmConfigRequest {
        name: "web".to_owned(),
        config,
        ..wire::SetVmConfigRequest::default()
    };
    let refused = [
        daemon.client.create_vm(create.clone()).await.unwrap_err(),
        daemon.client.set_vm_config(set.clone()).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("vm.share_paths"), "{error}");
    }
    let allowed = "[vm]\nshare_paths = ['/srv']\n[plugins]\nsignatures = 'off'";
    configure(&daemon.dir, allowed);
    daemon.client.create_vm(create).await.unwrap();
    daemon.client.set_vm_config(set).await.unwrap();
}

#[tokio::test]
async fn secrets_are_kept_replaced_and_forgotten() {
    let mut daemon = Daemon::start().await;
    daemon.installed("caddy").await;
    daemon.create("web", "caddy").await.unwrap();
    let put = |name: &str, value: &[u8]| wire::PutVmSecretRequest {
        name: "web".to_owned(),
        secret: Some(secret(name, value)),
    };
    daemon.client.put_vm_secret(put("key", b"1")).await.unwrap();
    daemon.client.put_vm_secret(put("key", b"2")).await.unwrap();
    let kept = daemon.dir.path().join("credentials/web/key");
    assert_eq!(std::fs::read(&kept).unwrap(), b"2");
    for (request, expected) in [
        (put("../key", b"1"), "'../key'"),
        (put("", b"1"), "1 to 64"),
        (put("key", &[0; 128 * 1024 + 1]), "at most 131072"),
    ] {
        let error = daemon.client.put_vm_secret(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(expected), "{error}");
    }
    let remove = || wire::RemoveVmSecretRequest {
        name: "web".to_owned(),
        secret: "key".to_owned(),
    };
    daemon.client.remove_vm_secret(remove()).await.unwrap();
    daemon.client.remove_vm_secret(remove()).await.unwrap();
    assert!(!kept.exists());
    let vm = daemon.client.get_vm(named("web")).await.unwrap();
    assert!(vm.into_inner().vm.unwrap().secrets.is_empty());
}

fn secret(name: &str, value: &[u8]) -> wire::SecretValue {
    wire::SecretValue {
        name: name.to_owned(),
        value: value.to_vec(),
    }
}

#[tokio::test]
async fn the_service_ends_when_told_though_a_client_stays_connected() {
    let mut daemon = Daemon::start().await;
    daemon.installed("caddy").await;
    daemon.end.send(()).unwrap();
    let served = tokio::time::timeout(Duration::from_secs(5), daemon.serving);
    served.await.unwrap().unwrap().unwrap();
}
