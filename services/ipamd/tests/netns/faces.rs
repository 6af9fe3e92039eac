//! The faces: D-Bus from peer to peer, gRPC on a socket, and the program as a whole.

use std::{
    fs,
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use crate::host::{Host, ipam, link, sh};
use async_trait::async_trait;
use ipamd::{
    Ipam,
    dbus::{self, Callers},
    grpc,
};
use tokio::net::{UnixListener, UnixStream};
use tonic::{Code, transport::Endpoint};
use volant_dbus::ipam::{ManagerProxy, NAME};
use volant_proto::ipam::v1::{
    GetNetworkRequest, ListLeasesRequest, ReleaseLeaseRequest,
    ipam_service_client::IpamServiceClient,
};
use volant_spec::Name;
use zbus::{Connection, connection::Builder, fdo::DBusProxy, message::Header};

/// Every caller is this VM, or none.
struct Always(Option<&'static str>);

#[async_trait]
impl Callers for Always {
    async fn vm(&self, _: &Connection, _: &Header<'_>) -> Result<Name, String> {
        self.0
            .map(|name| name.parse().unwrap())
            .ok_or_else(|| "process 7 is not part of a VM's unit".to_owned())
    }
}

async fn peers(ipam: Ipam, caller: Option<&'static str>) -> (Connection, Connection) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let server = Builder::unix_stream(ours)
        .server(zbus::Guid::generate())
        .p2p();
    let server = dbus::object(server, ipam, Box::new(Always(caller)));
    let client = Builder::unix_stream(theirs).p2p();
    tokio::try_join!(server.build(), client.build()).unwrap()
}

#[test]
fn netns_attach_over_dbus_hands_over_an_open_tap() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "[network]\ndns = ['9.9.9.9']");
        let (_server, client) = peers(ipam, Some("web")).await;
        let manager = ManagerProxy::new(&client).await.unwrap();
        let (attachment, tap) = manager.attach().await.unwrap();
        assert_eq!(attachment.addresses, ["192.168.127.2/24"]);
        assert_eq!(attachment.gateways, ["192.168.127.1"]);
        assert_eq!(attachment.dns, ["9.9.9.9"]);
        assert_eq!(attachment.mac, "02:76:c0:a8:7f:02");
        assert_eq!(attachment.cid, 3);
        assert_eq!(link(&attachment.tap)["master"], "vbr0");
        assert!(tap.as_fd().try_clone_to_owned().is_ok());
        assert_eq!(manager.lease_count().await.unwrap(), 1);
        assert_eq!(manager.subnet().await.unwrap(), "192.168.127.0/24");
        assert_eq!(manager.list_leases().await.unwrap()[0].0, "web");
        // The service keeps no copy: the tap is gone with ours.
        drop(tap);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !link(&attachment.tap).is_null() {
            assert!(Instant::now() < deadline, "the tap leaks");
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn netns_errors_over_dbus_have_names() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let cases = [
            (None, "", "NotAVm"),
            (Some("web"), "", ""),
            (
                Some("db"),
                "[network]\nsubnet = '192.168.127.0/30'",
                "NoFreeAddress",
            ),
            (
                Some("web"),
                "[network]\nsubnet = '10.0.0.0/30'",
                "LeaseOutsideSubnet",
            ),
        ];
        for (caller, config, expected) in cases {
            let (_server, client) = peers(ipam(state.path(), config), caller).await;
            let result = ManagerProxy::new(&client).await.unwrap().attach().await;
            match result {
                Err(zbus::Error::MethodError(name, text, _)) => {
                    assert_eq!(
                        name.as_str(),
                        format!("com.volantvm.Ipam1.Error.{expected}")
                    );
                    assert!(text.is_some_and(|text| !text.is_empty()));
                }
                other => assert!(
                    expected.is_empty() && other.is_ok(),
                    "{expected}: {other:?}"
                ),
            }
        }
        sh("ip link del vbr0; ip link add vbr0 type veth peer name x");
        let (_server, client) = peers(ipam(state.path(), ""), Some("web")).await;
        let error = ManagerProxy::new(&client)
            .await
            .unwrap()
            .attach()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no bridge"), "{error}");
    });
}

#[test]
fn netns_grpc_lists_and_releases() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        drop(ipam.attach(&"web".parse().unwrap()).await.unwrap());
        let path = state.path().join("ipamd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(grpc::serve(listener, ipam, async {
            let _ = stopped.await;
        }));
        let mut client = client(&path).await;
        let network = client
            .get_network(GetNetworkRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!((network.capacity, network.leased), (253, 1));
        let leases = client
            .list_leases(ListLeasesRequest {})
            .await
            .unwrap()
            .into_inner()
            .leases;
        assert_eq!(leases[0].vm, "web");
        let release = |vm: &str| ReleaseLeaseRequest { vm: vm.to_owned() };
        for expected in [true, false] {
            let answer = client.release_lease(release("web")).await.unwrap();
            assert_eq!(answer.into_inner().released, expected);
        }
        let error = client.release_lease(release("../web")).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        drop(stop);
        server.await.unwrap().unwrap();
    });
}

async fn client(path: &Path) -> IpamServiceClient<tonic::transport::Channel> {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            UnixStream::connect(path)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://ipamd")
        .connect_with_connector(connect)
        .await;
    IpamServiceClient::new(channel.unwrap())
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A system bus of one's own.
fn bus(dir: &Path) -> Option<(Killed, String)> {
    let address = format!("unix:path={}", dir.join("bus").display());
    let config = dir.join("bus.conf");
    let text = format!(
        "<busconfig><listen>{address}</listen><policy context='default'><allow user='*'/><allow own='*'/>\
         <allow send_destination='*'/><allow receive_sender='*'/></policy></busconfig>"
    );
    fs::write(&config, text).unwrap();
    let child = Command::new("dbus-daemon")
        .arg("--nofork")
        .arg(format!("--config-file={}", config.display()))
        .spawn();
    let Ok(child) = child else {
        eprintln!("SKIPPED: there is no dbus-daemon");
        return None;
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !dir.join("bus").exists() {
        assert!(Instant::now() < deadline, "no bus");
        std::thread::yield_now();
    }
    Some((Killed(child), address))
}

fn program(dir: &Path, bus: &str, idle_sec: &str) -> Killed {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipamd"));
    command
        .args(["--idle-sec", idle_sec, "--config", "/nonexistent"])
        .arg("--state-dir")
        .arg(dir)
        .arg("--socket")
        .arg(dir.join("ipamd.sock"))
        .env("DBUS_SYSTEM_BUS_ADDRESS", bus)
        .env_remove("JOURNAL_STREAM");
    Killed(command.spawn().unwrap())
}

async fn ended(child: &mut Killed) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not leave");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn netns_the_program_ends_with_a_failure_when_the_bus_is_gone() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let dir = tempfile::tempdir().unwrap();
        let Some((bus, address)) = bus(dir.path()) else {
            return;
        };
        let mut child = program(dir.path(), &address, "0");
        let client = Builder::address(address.as_str()).build().await.unwrap();
        let names = DBusProxy::new(&client).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !names
            .name_has_owner(NAME.try_into().unwrap())
            .await
            .unwrap()
        {
            assert!(Instant::now() < deadline, "the name does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(bus);
        assert_eq!(ended(&mut child).await.code(), Some(1));
    });
}

#[test]
fn netns_the_program_serves_refuses_strangers_and_leaves_when_idle() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let dir = tempfile::tempdir().unwrap();
        let Some((_bus, address)) = bus(dir.path()) else {
            return;
        };
        let mut child = program(dir.path(), &address, "2");
        let client = Builder::address(address.as_str()).build().await.unwrap();
        let manager = ManagerProxy::new(&client).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let error = loop {
            let error = manager.attach().await.unwrap_err().to_string();
            if !error.contains("ServiceUnknown") {
                break error;
            }
            assert!(Instant::now() < deadline, "the name does not come");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        // This test is in no VM's unit.
        assert!(
            error.to_string().contains("not part of a VM's unit"),
            "{error}"
        );
        assert!(link("vbr0").is_null());
        let status = ended(&mut child).await;
        assert!(status.success(), "{status:?}");
    });
}

#[test]
fn netns_teardown_takes_bridge_and_rules_away_and_can_be_said_again() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        drop(
            ipam(state.path(), "")
                .attach(&"web".parse().unwrap())
                .await
                .unwrap(),
        );
        for _ in 0..2 {
            let status = Command::new(env!("CARGO_BIN_EXE_ipamd"))
                .args(["--teardown", "--config", "/nonexistent"])
                .status()
                .unwrap();
            assert!(status.success());
            assert!(link("vbr0").is_null());
            assert_eq!(sh("nft list ruleset"), "");
        }
    });
}
