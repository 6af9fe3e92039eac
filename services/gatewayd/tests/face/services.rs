//! Stand-ins for registryd and ipamd behind real gRPC, on sockets that outlive them as systemd's do.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixListener as StdListener,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use sha2::{Digest, Sha256};
use tokio::{net::UnixListener, runtime::Runtime, sync::Semaphore};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use volant_proto::{
    ipam::v1::{self as ipam, ipam_service_server as ipam_server},
    registry::v1::{
        self as wire,
        install_plugin_request::Source,
        install_plugin_response::Event,
        registry_service_server::{RegistryService, RegistryServiceServer},
        upload_blob_request::Part,
    },
};

/// What both services know, and what they were asked. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub struct State {
    pub plugins: BTreeMap<String, wire::Plugin>,
    pub vms: BTreeMap<String, wire::Vm>,
    pub leases: BTreeMap<String, ipam::Lease>,
    pub blobs: BTreeMap<String, u64>,
    pub calls: Vec<String>,
    /// The sizes of the pieces of the last upload.
    pub pieces: Vec<usize>,
    /// Uploads that were not what they said.
    pub mismatches: usize,
    pub full: bool,
    pub fails: bool,
    /// `ListVms` waits for a permit of it.
    pub listing: Option<Arc<Semaphore>>,
    made: u32,
}

impl World {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }
}

impl State {
    pub fn plugin(&mut self, name: &str, manifest: &str) -> wire::Plugin {
        let plugin = wire::Plugin {
            name: name.to_owned(),
            version: "1.0".to_owned(),
            manifest: manifest.as_bytes().to_vec(),
            installed_at: "2026-11-20T10:00:00Z".to_owned(),
            size_bytes: 42,
        };
        self.plugins.insert(name.to_owned(), plugin.clone());
        plugin
    }

    pub fn vm(&mut self, name: &str, deleting: bool) -> wire::Vm {
        self.made += 1;
        let vm = wire::Vm {
            uuid: format!("uuid-{}", self.made),
            name: name.to_owned(),
            plugin: "caddy".to_owned(),
            plugin_version: "1.0".to_owned(),
            cpu_cores: 1,
            memory_mb: 256,
            vmm: "auto".to_owned(),
            created_at: "2026-11-20T10:00:00Z".to_owned(),
            deleting,
        };
        self.vms.insert(name.to_owned(), vm.clone());
        let lease = ipam::Lease {
            vm: name.to_owned(),
            address: format!("192.168.127.{}", self.made + 1),
            mac: format!("52:54:00:00:00:{:02x}", self.made),
            cid: self.made + 2,
        };
        self.leases.insert(name.to_owned(), lease);
        vm
    }

    fn asked(&mut self, call: impl Into<String>) -> Result<(), Status> {
        self.calls.push(call.into());
        if self.fails {
            return Err(Status::internal("the database is on fire"));
        }
        Ok(())
    }
}

/// A service's processes: what can be killed while its socket stays.
#[derive(Debug)]
pub struct Process {
    listener: StdListener,
    runtime: Option<Runtime>,
}

impl Process {
    pub fn listen(socket: &Path) -> Self {
        let listener = StdListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self {
            listener,
            runtime: None,
        }
    }

    pub fn run_registry(&mut self, world: World) {
        let service =
            RegistryServiceServer::new(Registry(world)).max_decoding_message_size(8 << 20);
        self.run(Server::builder().add_service(service));
    }

    pub fn run_ipam(&mut self, world: World) {
        let service = ipam_server::IpamServiceServer::new(Ipam(world));
        self.run(Server::builder().add_service(service));
    }

    fn run(&mut self, router: tonic::transport::server::Router) {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let listener = self.listener.try_clone().unwrap();
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).unwrap();
            router
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// As `kill -9`: no goodbye to anyone.
    pub fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Registry(World);

pub fn digest(bytes: &[u8]) -> String {
    volant_spec::Digest::from_bytes(Sha256::digest(bytes).into()).to_string()
}

fn no_vm(name: &str) -> Status {
    Status::not_found(format!("there is no VM {name}"))
}

type Events = Pin<Box<dyn Stream<Item = Result<wire::InstallPluginResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryService for Registry {
    type InstallPluginStream = Events;

    async fn upload_blob(
        &self,
        request: Request<Streaming<wire::UploadBlobRequest>>,
    ) -> Result<Response<wire::UploadBlobResponse>, Status> {
        self.0.lock().asked("UploadBlob")?;
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = parts.message().await?.and_then(|message| message.part)
        else {
            return Err(Status::invalid_argument("no header"));
        };
        if self.0.lock().full {
            return Err(Status::resource_exhausted("no space is left in the store"));
        }
        let mut bytes = Vec::new();
        while let Some(message) = parts.message().await? {
            let Some(Part::Chunk(chunk)) = message.part else {
                return Err(Status::invalid_argument("no chunk"));
            };
            self.0.lock().pieces.push(chunk.len());
            bytes.extend(chunk);
        }
        if header.digest != digest(&bytes) {
            self.0.lock().mismatches += 1;
            return Err(Status::invalid_argument("the bytes are not of that digest"));
        }
        let size = bytes.len() as u64;
        self.0.lock().blobs.insert(header.digest, size);
        Ok(Response::new(wire::UploadBlobResponse { size }))
    }

    async fn get_blob(
        &self,
        request: Request<wire::GetBlobRequest>,
    ) -> Result<Response<wire::GetBlobResponse>, Status> {
        let mut state = self.0.lock();
        state.asked("GetBlob")?;
        let digest = request.into_inner().digest;
        let size = state.blobs.get(&digest).copied();
        let size = size.ok_or_else(|| Status::not_found(format!("no artifact {digest}")))?;
        Ok(Response::new(wire::GetBlobResponse { size }))
    }

    async fn install_plugin(
        &self,
        request: Request<wire::InstallPluginRequest>,
    ) -> Result<Response<Events>, Status> {
        let mut state = self.0.lock();
        let manifest = match request.into_inner().source {
            Some(Source::Manifest(bytes)) => String::from_utf8(bytes).unwrap(),
            Some(Source::ManifestUrl(url)) => format!("{{\"from\":\"{url}\"}}"),
            None => return Err(Status::invalid_argument("no source")),
        };
        state.asked(format!("InstallPlugin {manifest}"))?;
        let progress = Event::Progress(wire::Progress {
            artifact: "initramfs".to_owned(),
            done_bytes: 1,
            total_bytes: 2,
        });
        let event = |event| Ok(wire::InstallPluginResponse { event: Some(event) });
        let last = if manifest.contains("broken") {
            Err(Status::failed_precondition(
                "the initramfs was not uploaded",
            ))
        } else {
            event(Event::Plugin(state.plugin("caddy", &manifest)))
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([
            event(progress),
            last,
        ]))))
    }

    async fn list_plugins(
        &self,
        _: Request<wire::ListPluginsRequest>,
    ) -> Result<Response<wire::ListPluginsResponse>, Status> {
        let mut state = self.0.lock();
        state.asked("ListPlugins")?;
        let plugins = state.plugins.values().cloned().collect();
        Ok(Response::new(wire::ListPluginsResponse { plugins }))
    }

    async fn get_plugin(
        &self,
        request: Request<wire::GetPluginRequest>,
    ) -> Result<Response<wire::GetPluginResponse>, Status> {
        let name = request.into_inner().name;
        let plugin = self.0.lock().plugins.get(&name).cloned();
        let plugin = plugin.ok_or_else(|| Status::not_found(format!("no plugin {name}")))?;
        Ok(Response::new(wire::GetPluginResponse {
            plugin: Some(plugin),
        }))
    }

    async fn remove_plugin(
        &self,
        request: Request<wire::RemovePluginRequest>,
    ) -> Result<Response<wire::RemovePluginResponse>, Status> {
        let name = request.into_inner().name;
        let mut state = self.0.lock();
        let users: Vec<_> = state.vms.values().filter(|vm| vm.plugin == name).collect();
        if let Some(user) = users.first() {
            let message = format!("plugin {name} is used by VM {}", user.name);
            return Err(Status::failed_precondition(message));
        }
        let removed = state.plugins.remove(&name);
        removed.ok_or_else(|| Status::not_found(format!("no plugin {name}")))?;
        Ok(Response::new(wire::RemovePluginResponse {}))
    }

    async fn create_vm(
        &self,
        request: Request<wire::CreateVmRequest>,
    ) -> Result<Response<wire::CreateVmResponse>, Status> {
        let new = request.into_inner();
        let mut state = self.0.lock();
        state.asked(format!("CreateVm {}", new.name))?;
        if state.vms.contains_key(&new.name) {
            return Err(Status::already_exists(format!("VM {} exists", new.name)));
        }
        if !state.plugins.contains_key(&new.plugin) {
            return Err(Status::not_found(format!(
                "there is no plugin {}",
                new.plugin
            )));
        }
        if new.memory_mb == Some(0) {
            return Err(Status::invalid_argument("0 MiB of memory are not possible"));
        }
        let vm = state.vm(&new.name, false);
        Ok(Response::new(wire::CreateVmResponse { vm: Some(vm) }))
    }

    async fn get_vm(
        &self,
        request: Request<wire::GetVmRequest>,
    ) -> Result<Response<wire::GetVmResponse>, Status> {
        let name = request.into_inner().name;
        let vm = self.0.lock().vms.get(&name).cloned();
        let vm = vm.ok_or_else(|| no_vm(&name))?;
        Ok(Response::new(wire::GetVmResponse { vm: Some(vm) }))
    }

    async fn list_vms(
        &self,
        _: Request<wire::ListVmsRequest>,
    ) -> Result<Response<wire::ListVmsResponse>, Status> {
        let listing = {
            let mut state = self.0.lock();
            state.asked("ListVms")?;
            state.listing.clone()
        };
        if let Some(listing) = listing {
            listing.acquire().await.unwrap().forget();
        }
        let vms = self.0.lock().vms.values().cloned().collect();
        Ok(Response::new(wire::ListVmsResponse { vms }))
    }

    async fn delete_vm(
        &self,
        request: Request<wire::DeleteVmRequest>,
    ) -> Result<Response<wire::DeleteVmResponse>, Status> {
        let name = request.into_inner().name;
        let mut state = self.0.lock();
        state.asked(format!("DeleteVm {name}"))?;
        let vm = state.vms.get_mut(&name).ok_or_else(|| no_vm(&name))?;
        vm.deleting = true;
        let vm = Some(vm.clone());
        Ok(Response::new(wire::DeleteVmResponse { vm }))
    }

    async fn purge_vm(
        &self,
        request: Request<wire::PurgeVmRequest>,
    ) -> Result<Response<wire::PurgeVmResponse>, Status> {
        let name = request.into_inner().name;
        let mut state = self.0.lock();
        state.asked(format!("PurgeVm {name}"))?;
        let vm = state.vms.get(&name).ok_or_else(|| no_vm(&name))?;
        if !vm.deleting {
            return Err(Status::failed_precondition("it is not marked"));
        }
        state.vms.remove(&name);
        Ok(Response::new(wire::PurgeVmResponse {}))
    }
}

#[derive(Debug)]
struct Ipam(World);

#[tonic::async_trait]
impl ipam_server::IpamService for Ipam {
    async fn release_lease(
        &self,
        request: Request<ipam::ReleaseLeaseRequest>,
    ) -> Result<Response<ipam::ReleaseLeaseResponse>, Status> {
        let vm = request.into_inner().vm;
        let mut state = self.0.lock();
        state.calls.push(format!("ReleaseLease {vm}"));
        let released = state.leases.remove(&vm).is_some();
        Ok(Response::new(ipam::ReleaseLeaseResponse { released }))
    }

    async fn list_leases(
        &self,
        _: Request<ipam::ListLeasesRequest>,
    ) -> Result<Response<ipam::ListLeasesResponse>, Status> {
        let leases = self.0.lock().leases.values().cloned().collect();
        Ok(Response::new(ipam::ListLeasesResponse { leases }))
    }

    async fn get_network(
        &self,
        _: Request<ipam::GetNetworkRequest>,
    ) -> Result<Response<ipam::GetNetworkResponse>, Status> {
        Err(Status::unimplemented("nobody here asks for it"))
    }
}
