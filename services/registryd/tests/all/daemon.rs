//! The program itself, on a bus of its own: `dbus-daemon` must be installed (Debian's package `dbus-daemon`).

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use volant_dbus::registry::{ManagerProxy, NAME};
use volant_proto::registry::v1::{
    self as wire, install_plugin_request::Source, registry_service_client::RegistryServiceClient,
    upload_blob_request::Part,
};
use zbus::{Connection, connection::Builder, fdo::DBusProxy};

use crate::common::{blob_files, bytes, configure, digest, files, manifest, temp_dir};

type Client = RegistryServiceClient<Channel>;

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Host {
    dir: TempDir,
    bus: String,
    bus_daemon: Process,
}

impl Host {
    fn start() -> Self {
        let dir = temp_dir();
        configure(&dir, "[plugins]\nsignatures = 'off'");
        let address = format!("unix:path={}", dir.path().join("bus").display());
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .arg(format!("--address={address}"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self {
            dir,
            bus: line.trim().to_owned(),
            bus_daemon: Process(daemon),
        }
    }

    async fn registryd(&self, idle_sec: u64) -> (Process, Client) {
        let socket = self.dir.path().join("grpc.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_registryd"))
            .arg("--state-dir")
            .arg(self.dir.path())
            .arg("--socket")
            .arg(&socket)
            .args(["--idle-sec", &idle_sec.to_string()])
            .arg("--config")
            .arg(self.dir.path().join("volant.toml"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus)
            .spawn()
            .unwrap();
        let process = Process(child);
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        let channel = eventually(async || endpoint.connect().await.ok()).await;
        // It takes the name last.
        let bus = DBusProxy::new(&self.connect().await).await.unwrap();
        eventually(async || {
            let owned = bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap();
            owned.then_some(())
        })
        .await;
        (process, Client::new(channel))
    }

    async fn connect(&self) -> Connection {
        let address: zbus::Address = self.bus.parse().unwrap();
        Builder::address(address).build().await.unwrap()
    }
}

pub async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not come about in time");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn ended(process: &mut Process) -> ExitStatus {
    eventually(async || process.0.try_wait().unwrap()).await
}

fn upload_of(content: &[u8]) -> Vec<wire::UploadBlobRequest> {
    let digest = digest(content).to_string();
    [
        Part::Header(wire::BlobHeader { digest }),
        Part::Chunk(content.to_vec()),
    ]
    .map(|part| wire::UploadBlobRequest { part: Some(part) })
    .into()
}

#[tokio::test]
async fn a_killed_daemon_loses_nothing_that_it_answered() {
    let host = Host::start();
    let (mut first, mut client) = host.registryd(0).await;
    let content = b"initramfs";
    let parts = tokio_stream::iter(upload_of(content));
    client.upload_blob(parts).await.unwrap();
    let given = bytes(&manifest("caddy", "x", content));
    let request = wire::InstallPluginRequest {
        source: Some(Source::Manifest(given)),
        ..Default::default()
    };
    let mut events = client.install_plugin(request).await.unwrap().into_inner();
    while events.message().await.unwrap().is_some() {}
    let request = wire::CreateVmRequest {
        name: "web".to_owned(),
        plugin: "caddy".to_owned(),
        ..Default::default()
    };
    let created = client.create_vm(request).await.unwrap().into_inner();
    // And one that is under way.
    let half = upload_of(&vec![5; 1_000_000]);
    let half = futures_util::StreamExt::chain(tokio_stream::iter(half), tokio_stream::pending());
    let cut = tokio::spawn(async move { client.upload_blob(half).await });
    eventually(async || (!files(&host.dir, "incoming").is_empty()).then_some(())).await;
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    cut.await.unwrap().unwrap_err();
    assert_eq!(files(&host.dir, "incoming").len(), 1);

    let (_second, mut client) = host.registryd(0).await;
    assert_eq!(files(&host.dir, "incoming").len(), 0);
    assert_eq!(blob_files(&host.dir), [digest(content).hex()]);
    let request = wire::GetVmRequest {
        name: "web".to_owned(),
    };
    let found = client.get_vm(request).await.unwrap().into_inner();
    assert_eq!(found.vm, created.vm);
}

#[tokio::test]
async fn an_idle_daemon_ends_well_though_clients_stay_connected() {
    let host = Host::start();
    let (mut process, _client) = host.registryd(1).await;
    assert!(ended(&mut process).await.success());
    let bus = DBusProxy::new(&host.connect().await).await.unwrap();
    let owned = bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap();
    assert!(!owned);
}

#[tokio::test]
async fn a_daemon_whose_bus_is_gone_ends_with_a_failure() {
    let mut host = Host::start();
    let (mut process, _client) = host.registryd(0).await;
    host.bus_daemon.0.kill().unwrap();
    assert_eq!(ended(&mut process).await.code(), Some(1));
}

#[tokio::test]
async fn a_caller_that_is_in_no_vms_unit_gets_nothing() {
    let host = Host::start();
    let (_process, _client) = host.registryd(0).await;
    let proxy = ManagerProxy::new(&host.connect().await).await.unwrap();
    let zbus::Error::MethodError(name, text, _) = proxy.open_vm().await.unwrap_err() else {
        panic!("another error");
    };
    assert_eq!(name.as_str(), "com.volantvm.Registry1.Error.NotAVm");
    let text = text.unwrap();
    assert!(text.contains("is not part of a VM's unit"), "{text}");
}

/// An upload whose parts are sent when the test wants.
fn slow_upload(
    mut client: Client,
) -> (
    mpsc::Sender<wire::UploadBlobRequest>,
    JoinHandle<Result<u64, tonic::Status>>,
) {
    let (send, parts) = mpsc::channel(8);
    let upload = async move {
        let answer = client.upload_blob(ReceiverStream::new(parts)).await?;
        Ok(answer.into_inner().size)
    };
    (send, tokio::spawn(upload))
}

#[tokio::test]
async fn a_daemon_with_an_upload_under_way_is_not_idle() {
    let host = Host::start();
    let (mut process, client) = host.registryd(1).await;
    let (send, upload) = slow_upload(client);
    let content = [6; 1000];
    let [header, _] = &upload_of(&content)[..] else {
        unreachable!()
    };
    send.send(header.clone()).await.unwrap();
    // Longer in all than the daemon is idle for, without any other call.
    for piece in content.chunks(50) {
        sleep(Duration::from_millis(100)).await;
        let part = Some(Part::Chunk(piece.to_vec()));
        send.send(wire::UploadBlobRequest { part }).await.unwrap();
    }
    let bus = DBusProxy::new(&host.connect().await).await.unwrap();
    let owned = bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap();
    assert!(owned, "it began to end");
    drop(send);
    assert_eq!(upload.await.unwrap().unwrap(), 1000);
    assert!(ended(&mut process).await.success());
}

#[tokio::test]
async fn a_daemon_told_to_end_gives_its_name_back_and_finishes_what_it_began() {
    let host = Host::start();
    let (mut process, client) = host.registryd(0).await;
    let (send, upload) = slow_upload(client);
    let mut parts = upload_of(b"initramfs");
    let last = parts.pop().unwrap();
    send.send(parts.pop().unwrap()).await.unwrap();
    eventually(async || (!files(&host.dir, "incoming").is_empty()).then_some(())).await;

    let pid = Pid::from_raw(process.0.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let bus = DBusProxy::new(&host.connect().await).await.unwrap();
    eventually(async || {
        let owned = bus.name_has_owner(NAME.try_into().unwrap()).await.unwrap();
        (!owned).then_some(())
    })
    .await;
    assert!(process.0.try_wait().unwrap().is_none());
    send.send(last).await.unwrap();
    drop(send);
    assert_eq!(upload.await.unwrap().unwrap(), 9);
    assert!(ended(&mut process).await.success());
}
