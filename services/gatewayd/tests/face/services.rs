//! Stand-ins for registryd and ipamd behind real gRPC, on sockets that outlive them as systemd's do.

use std::{os::unix::net::UnixListener as StdListener, path::Path, pin::Pin};

use tokio::{net::UnixListener, runtime::Runtime};
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

use volant_proto::vm::v1::vm_service_server::VmServiceServer;

use crate::{
    vmd::FakeVmd,
    world::{World, digest},
};

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

    pub fn run_vmd(&mut self, vmd: FakeVmd) {
        self.run(Server::builder().add_service(VmServiceServer::new(vmd)));
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

fn no_vm(name: &str) -> Status {
    Status::not_found(format!("there is no VM {name}"))
}

type Checks = Pin<Box<dyn Stream<Item = Result<wire::VerifyPluginsResponse, Status>> + Send>>;
type Events = Pin<Box<dyn Stream<Item = Result<wire::InstallPluginResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryService for Registry {
    type InstallPluginStream = Events;
    type VerifyPluginsStream = Checks;

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
        let request = request.into_inner();
        let manifest = match request.source {
            Some(Source::Manifest(bytes)) => String::from_utf8(bytes).unwrap(),
            Some(Source::ManifestUrl(url)) => format!("{{\"from\":\"{url}\"}}"),
            Some(Source::OciReference(reference)) if reference.contains("nowhere") => {
                return Err(Status::not_found("the registry has no such repository"));
            }
            Some(Source::OciReference(reference)) if reference.contains("private") => {
                return Err(Status::failed_precondition("it asks for credentials"));
            }
            Some(Source::OciReference(reference)) => format!("{{\"from\":\"{reference}\"}}"),
            Some(Source::Name(name)) if name == "nothing" => {
                return Err(Status::not_found("no index has plugin nothing"));
            }
            Some(Source::Name(name)) => format!("{{\"from\":\"{name}\"}}"),
            None => return Err(Status::invalid_argument("no source")),
        };
        let mut call = format!("InstallPlugin {manifest}");
        if !request.signature.is_empty() {
            let signature = String::from_utf8(request.signature).unwrap();
            call.push_str(&format!(" signed {signature:?}"));
        }
        if request.allow_downgrade {
            call.push_str(" though older");
        }
        state.asked(call)?;
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
        } else if manifest.contains("untrusted") {
            Err(Status::permission_denied(
                "the manifest is signed with the key 01, which is not trusted here",
            ))
        } else {
            event(Event::Plugin(wire::Plugin {
                warnings: vec!["it is only a fake".to_owned()],
                ..state.plugin("caddy", &manifest)
            }))
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
        let state = self.0.lock();
        let newest = state.meant(&name)?.pop().unwrap();
        let plugin = Some(state.plugins[&newest].clone());
        Ok(Response::new(wire::GetPluginResponse { plugin }))
    }

    async fn set_plugin_enabled(
        &self,
        request: Request<wire::SetPluginEnabledRequest>,
    ) -> Result<Response<wire::SetPluginEnabledResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock();
        let mut plugins = Vec::new();
        for key in state.meant(&request.name)? {
            let plugin = state.plugins.get_mut(&key).unwrap();
            plugin.enabled = request.enabled;
            plugins.push(plugin.clone());
        }
        Ok(Response::new(wire::SetPluginEnabledResponse { plugins }))
    }

    async fn remove_plugin(
        &self,
        request: Request<wire::RemovePluginRequest>,
    ) -> Result<Response<wire::RemovePluginResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock();
        let meant = state.meant(&request.name)?;
        if meant.len() > 1 && !request.all_versions {
            let message = format!("{} are installed", meant.join(", "));
            return Err(Status::failed_precondition(message));
        }
        for key in meant {
            let is_user = |vm: &&wire::Vm| format!("{}@{}", vm.plugin, vm.plugin_version) == key;
            if let Some(user) = state.vms.values().find(is_user) {
                let message = format!("plugin {key} is used by VM {}", user.name);
                return Err(Status::failed_precondition(message));
            }
            state.plugins.remove(&key);
        }
        Ok(Response::new(wire::RemovePluginResponse {}))
    }

    async fn verify_plugins(
        &self,
        request: Request<wire::VerifyPluginsRequest>,
    ) -> Result<Response<Checks>, Status> {
        let name = request.into_inner().name;
        let mut state = self.0.lock();
        state.asked(format!("VerifyPlugins {name}"))?;
        let keys = match name.as_str() {
            "" => state.plugins.keys().cloned().collect(),
            name => state.meant(name)?,
        };
        let checks = keys.into_iter().flat_map(|key| {
            let (plugin, version) = key.split_once('@').unwrap();
            let (plugin, version) = (plugin.to_owned(), version.to_owned());
            ["signature", "initramfs"].map(|subject| {
                Ok(wire::VerifyPluginsResponse {
                    plugin: plugin.clone(),
                    version: version.clone(),
                    subject: subject.to_owned(),
                    ok: subject == "signature",
                    detail: if subject == "signature" {
                        ""
                    } else {
                        "other bytes"
                    }
                    .to_owned(),
                })
            })
        });
        let checks: Vec<_> = checks.collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(checks))))
    }

    async fn collect_garbage(
        &self,
        _: Request<wire::CollectGarbageRequest>,
    ) -> Result<Response<wire::CollectGarbageResponse>, Status> {
        self.0.lock().asked("CollectGarbage")?;
        Ok(Response::new(wire::CollectGarbageResponse {
            artifacts: 2,
            bytes: 4711,
        }))
    }

    async fn search_plugins(
        &self,
        request: Request<wire::SearchPluginsRequest>,
    ) -> Result<Response<wire::SearchPluginsResponse>, Status> {
        let text = request.into_inner().text;
        self.0.lock().asked(format!("SearchPlugins {text}"))?;
        if text == "offline" {
            return Err(Status::unavailable(
                "https://a.example/index.json: no answer",
            ));
        }
        Ok(Response::new(wire::SearchPluginsResponse {
            plugins: vec![wire::FoundPlugin {
                name: "caddy".to_owned(),
                versions: vec!["2.0".to_owned(), "1.0".to_owned()],
                index: "https://a.example/index.json".to_owned(),
                installed: vec!["1.0".to_owned()],
                ..wire::FoundPlugin::default()
            }],
            problems: vec!["https://b.example/index.json: no answer".to_owned()],
        }))
    }

    async fn get_trust(
        &self,
        _: Request<wire::GetTrustRequest>,
    ) -> Result<Response<wire::GetTrustResponse>, Status> {
        Ok(Response::new(wire::GetTrustResponse {
            policy: "require".to_owned(),
            keys: vec![wire::TrustedKey {
                name: "acme".to_owned(),
                key_id: "E7620F1842B4E81F".to_owned(),
                public_key: "RWQ".to_owned(),
                plugins: vec!["caddy".to_owned(), "acme-*".to_owned()],
                comment: String::new(),
            }],
            problems: vec!["bad.pub: it is no text".to_owned()],
        }))
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
        let Some(plugin) = state.meant(&new.plugin).ok().and_then(|mut all| all.pop()) else {
            let message = format!("there is no plugin {}", new.plugin);
            return Err(Status::not_found(message));
        };
        let plugin = state.plugins[&plugin].clone();
        if !plugin.enabled {
            let message = format!("plugin {} is disabled", new.plugin);
            return Err(Status::failed_precondition(message));
        }
        if new.memory_mb == Some(0) {
            return Err(Status::invalid_argument("0 MiB of memory are not possible"));
        }
        let mut vm = state.vm(&new.name, false);
        vm.plugin_version = plugin.version;
        for secret in new.secrets {
            vm.secrets.push(secret.name.clone());
            state
                .secrets
                .insert((new.name.clone(), secret.name), secret.value);
        }
        state.vms.insert(new.name.clone(), vm.clone());
        if !new.config.is_empty() {
            state.configs.remove(&new.name);
            state.config(&new.name, &new.config, "created");
            vm = state.vms[&new.name].clone();
        }
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

    async fn get_vm_config(
        &self,
        request: Request<wire::GetVmConfigRequest>,
    ) -> Result<Response<wire::GetVmConfigResponse>, Status> {
        let request = request.into_inner();
        let state = self.0.lock();
        let versions = state.configs.get(&request.name);
        let versions = versions.ok_or_else(|| no_vm(&request.name))?;
        let config = match request.version {
            0 => versions.last(),
            version => versions.get(version as usize - 1),
        };
        let config = config.ok_or_else(|| Status::not_found("there is no such version"))?;
        Ok(Response::new(wire::GetVmConfigResponse {
            config: Some(config.clone()),
            effective: br#"{"cpu_cores":1}"#.to_vec(),
        }))
    }

    async fn set_vm_config(
        &self,
        request: Request<wire::SetVmConfigRequest>,
    ) -> Result<Response<wire::SetVmConfigResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock();
        state.asked(format!(
            "SetVmConfig {} after {}",
            request.name, request.expected_version
        ))?;
        let versions = state.configs.get(&request.name);
        let newest = versions.and_then(|versions| versions.last().cloned());
        let newest = newest.ok_or_else(|| no_vm(&request.name))?;
        if request.expected_version != 0 && request.expected_version != newest.version {
            return Err(Status::aborted(format!(
                "the newest is version {}",
                newest.version
            )));
        }
        let config = match newest.config == request.config {
            true => newest,
            false => state.config(&request.name, &request.config, &request.reason),
        };
        Ok(Response::new(wire::SetVmConfigResponse {
            config: Some(config),
        }))
    }

    async fn list_vm_configs(
        &self,
        request: Request<wire::ListVmConfigsRequest>,
    ) -> Result<Response<wire::ListVmConfigsResponse>, Status> {
        let name = request.into_inner().name;
        let configs = self.0.lock().configs.get(&name).cloned();
        let mut configs = configs.ok_or_else(|| no_vm(&name))?;
        configs.reverse();
        Ok(Response::new(wire::ListVmConfigsResponse { configs }))
    }

    async fn put_vm_secret(
        &self,
        request: Request<wire::PutVmSecretRequest>,
    ) -> Result<Response<wire::PutVmSecretResponse>, Status> {
        let wire::PutVmSecretRequest { name, secret } = request.into_inner();
        let secret = secret.unwrap();
        let mut state = self.0.lock();
        let vm = state.vms.get_mut(&name).ok_or_else(|| no_vm(&name))?;
        vm.secrets.push(secret.name.clone());
        state.secrets.insert((name, secret.name), secret.value);
        Ok(Response::new(wire::PutVmSecretResponse {}))
    }

    async fn remove_vm_secret(
        &self,
        request: Request<wire::RemoveVmSecretRequest>,
    ) -> Result<Response<wire::RemoveVmSecretResponse>, Status> {
        let wire::RemoveVmSecretRequest { name, secret } = request.into_inner();
        let mut state = self.0.lock();
        let vm = state.vms.get_mut(&name).ok_or_else(|| no_vm(&name))?;
        vm.secrets.retain(|there| *there != secret);
        state.secrets.remove(&(name, secret));
        Ok(Response::new(wire::RemoveVmSecretResponse {}))
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
