//! The REST face over a real Unix socket, with stand-ins for systemd (real D-Bus), registryd and ipamd (real gRPC).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod client;
mod config;
mod devices;
mod files;
mod lifecycle;
mod logs;
mod plugins;
mod refusals;
mod service;
mod services;
mod sessions;
mod systemd;
mod vmd;
mod watching;
mod world;

use std::{path::PathBuf, time::Duration};

use gatewayd::{
    Gateway, Parts, Systemd, ipam::Ipam, journal::Journal, registry::Registry, rest, serve,
    vmd::Vmds,
};
use tokio::{net::UnixListener, sync::oneshot, task::JoinHandle};
use volant_service::Idle;

use services::Process;
use systemd::FakeSystemd;
use vmd::FakeVmd;
use world::World;

/// All of it, running.
#[derive(Debug)]
pub struct Setup {
    pub socket: PathBuf,
    pub systemd: FakeSystemd,
    pub world: World,
    pub registryd: Process,
    pub ipamd: Process,
    pub gateway: Gateway,
    pub idle: Idle,
    pub serving: JoinHandle<()>,
    pub end: Option<oneshot::Sender<()>>,
    _bus: zbus::Connection,
    pub dir: tempfile::TempDir,
}

impl Setup {
    pub async fn new() -> Self {
        Self::ending_after(None).await
    }

    /// With `quiet`, it ends by itself when idle for so long.
    pub async fn ending_after(quiet: Option<Duration>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let world = World::default();
        world.lock().plugin("caddy", "{}");
        let mut registryd = Process::listen(&at("registryd.sock"));
        registryd.run_registry(world.clone());
        let mut ipamd = Process::listen(&at("ipamd.sock"));
        ipamd.run_ipam(world.clone());

        let (fake, server, bus) = FakeSystemd::connect().await;
        let systemd = Systemd::new(&bus).await.unwrap();
        let idle = Idle::new();
        let gateway = Gateway::new(Parts {
            registry: Registry::at(&at("registryd.sock")),
            ipam: Ipam::at(&at("ipamd.sock")),
            systemd,
            vmds: Vmds::at(&at("vm")),
            journal: Journal::by(at("journalctl")),
            unit_control: at("system.control"),
            idle: idle.clone(),
        });
        let socket = at("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (end, told) = oneshot::channel::<()>();
        let serving = tokio::spawn({
            let (gateway, idle) = (gateway.clone(), idle.clone());
            async move {
                let quiet = async {
                    match quiet {
                        Some(quiet) => idle.wait(quiet).await,
                        None => std::future::pending().await,
                    }
                };
                let end = async {
                    tokio::select! { _ = told => {}, () = quiet => {} }
                };
                let ending = gateway.ending().clone();
                serve::serve(listener, rest::router(gateway), idle.clone(), ending, end).await;
            }
        });
        Self {
            socket,
            systemd: fake,
            world,
            registryd,
            ipamd,
            gateway,
            idle,
            serving,
            end: Some(end),
            _bus: server,
            dir,
        }
    }

    /// A VM that runs, and its supervisor.
    pub fn running(&self, name: &str) -> (FakeVmd, Process) {
        self.world.lock().vm(name, false);
        let unit = format!("volant-vm@{name}.service");
        self.systemd.set(&unit, systemd::Unit::new("active"));
        let folder = self.dir.path().join("vm").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let vmd = FakeVmd::default();
        let mut process = Process::listen(&folder.join("vmd.sock"));
        process.run_vmd(vmd.clone());
        (vmd, process)
    }
}

/// Waits until the condition holds; fails after ten seconds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within 10 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
