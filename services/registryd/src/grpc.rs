//! The face for Volant's other parts: `volant.registry.v1.RegistryService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use tokio::{
    net::UnixListener,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use volant_proto::registry::v1::{
    self as wire, install_plugin_request, install_plugin_response,
    registry_service_server::{RegistryService, RegistryServiceServer},
    upload_blob_request::Part,
};
use volant_spec::{Digest, Name, config::Vmm};

use crate::{
    Registry,
    install::{Progress, Source},
    status,
    store::{NewVm, Plugin, Vm},
};

/// The largest message that is taken: a manifest with room to say that it is too large, or a chunk of an upload.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// How long calls may go on after the service was told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until `end` resolves and the calls under way are done, or have had their time.
///
/// # Errors
/// The socket fails.
pub async fn serve(
    listener: UnixListener,
    registry: Registry,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let service = RegistryServiceServer::new(Face(registry)).max_decoding_message_size(MAX_MESSAGE);
    let ending = Arc::new(Notify::new());
    let end = {
        let ending = Arc::clone(&ending);
        async move {
            end.await;
            ending.notify_one();
        }
    };
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end);
    let grace_is_over = async {
        ending.notified().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving => served,
        () = grace_is_over => {
            tracing::warn!("calls that did not end in time are cut off");
            Ok(())
        }
    }
}

#[derive(Debug)]
struct Face(Registry);

type Events = Pin<Box<dyn Stream<Item = Result<wire::InstallPluginResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryService for Face {
    async fn upload_blob(
        &self,
        request: Request<Streaming<wire::UploadBlobRequest>>,
    ) -> Result<Response<wire::UploadBlobResponse>, Status> {
        let _busy = self.0.busy();
        let mut parts = request.into_inner();
        let digest = match self.next_part(&mut parts).await? {
            Some(Part::Header(header)) => digest(&header.digest)?,
            Some(Part::Chunk(_)) | None => {
                return Err(Status::invalid_argument(
                    "an upload begins with a header that names the digest",
                ));
            }
        };
        let there = self.0.blob(digest).await;
        if let Some(size) = there.map_err(|e| status::of_store(&e))? {
            return Ok(Response::new(wire::UploadBlobResponse { size }));
        }
        let failed = |error| status::of_blob(&error);
        let mut sink = self.0.receive().await.map_err(failed)?;
        while let Some(part) = self.next_part(&mut parts).await? {
            let Part::Chunk(chunk) = part else {
                return Err(Status::invalid_argument("an upload has one header"));
            };
            sink.push(&chunk).await.map_err(failed)?;
        }
        let size = sink.finish(digest).await.map_err(failed)?;
        Ok(Response::new(wire::UploadBlobResponse { size }))
    }

    async fn get_blob(
        &self,
        request: Request<wire::GetBlobRequest>,
    ) -> Result<Response<wire::GetBlobResponse>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let size = self.0.blob(digest).await;
        let size = size
            .map_err(|e| status::of_store(&e))?
            .ok_or_else(|| Status::not_found(format!("no artifact {digest} is in the store")))?;
        Ok(Response::new(wire::GetBlobResponse { size }))
    }

    type InstallPluginStream = Events;

    async fn install_plugin(
        &self,
        request: Request<wire::InstallPluginRequest>,
    ) -> Result<Response<Events>, Status> {
        let source = match request.into_inner().source {
            Some(install_plugin_request::Source::Manifest(bytes)) => Source::Bytes(bytes),
            Some(install_plugin_request::Source::ManifestUrl(url)) => Source::Url(url),
            None => {
                return Err(Status::invalid_argument(
                    "an install needs a manifest or its URL",
                ));
            }
        };
        let (events, answers) = mpsc::channel(16);
        let registry = self.0.clone();
        tokio::spawn(async move {
            let told = |progress| {
                // A client that reads slowly misses some of them, but holds nothing up.
                let _ = events.try_send(Ok(progress_event(progress)));
            };
            let installed = tokio::select! {
                installed = registry.install(source, told) => installed,
                // The client went away: it can ask again.
                () = events.closed() => return,
            };
            let answer = installed.map(plugin_event);
            let answer = answer.map_err(|error| status::of_install(&error));
            // Nobody may be there any more to hear it.
            let _ = events.send(answer).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn list_plugins(
        &self,
        _: Request<wire::ListPluginsRequest>,
    ) -> Result<Response<wire::ListPluginsResponse>, Status> {
        let plugins = self.0.plugins().await;
        let plugins = plugins.map_err(|e| status::of_plugin(&e))?;
        let plugins = plugins.into_iter().map(plugin).collect();
        Ok(Response::new(wire::ListPluginsResponse { plugins }))
    }

    async fn get_plugin(
        &self,
        request: Request<wire::GetPluginRequest>,
    ) -> Result<Response<wire::GetPluginResponse>, Status> {
        let found = self
            .0
            .plugin(plugin_name(&request.into_inner().name)?)
            .await;
        let found = found.map_err(|e| status::of_plugin(&e))?;
        let plugin = Some(plugin(found));
        Ok(Response::new(wire::GetPluginResponse { plugin }))
    }

    async fn remove_plugin(
        &self,
        request: Request<wire::RemovePluginRequest>,
    ) -> Result<Response<wire::RemovePluginResponse>, Status> {
        let name = plugin_name(&request.into_inner().name)?;
        let removed = self.0.remove_plugin(name).await;
        removed.map_err(|e| status::of_plugin(&e))?;
        Ok(Response::new(wire::RemovePluginResponse {}))
    }

    async fn create_vm(
        &self,
        request: Request<wire::CreateVmRequest>,
    ) -> Result<Response<wire::CreateVmResponse>, Status> {
        let created = self.0.create_vm(new_vm(&request.into_inner())?).await;
        let created = created.map_err(|e| status::of_vm(&e))?;
        let vm = Some(vm(created));
        Ok(Response::new(wire::CreateVmResponse { vm }))
    }

    async fn get_vm(
        &self,
        request: Request<wire::GetVmRequest>,
    ) -> Result<Response<wire::GetVmResponse>, Status> {
        let found = self.0.vm(vm_name(&request.into_inner().name)?).await;
        let found = found.map_err(|e| status::of_vm(&e))?;
        let vm = Some(vm(found));
        Ok(Response::new(wire::GetVmResponse { vm }))
    }

    async fn list_vms(
        &self,
        _: Request<wire::ListVmsRequest>,
    ) -> Result<Response<wire::ListVmsResponse>, Status> {
        let vms = self.0.vms().await.map_err(|e| status::of_vm(&e))?;
        let vms = vms.into_iter().map(vm).collect();
        Ok(Response::new(wire::ListVmsResponse { vms }))
    }

    async fn delete_vm(
        &self,
        request: Request<wire::DeleteVmRequest>,
    ) -> Result<Response<wire::DeleteVmResponse>, Status> {
        let marked = self.0.delete_vm(vm_name(&request.into_inner().name)?).await;
        let marked = marked.map_err(|e| status::of_vm(&e))?;
        let vm = Some(vm(marked));
        Ok(Response::new(wire::DeleteVmResponse { vm }))
    }

    async fn purge_vm(
        &self,
        request: Request<wire::PurgeVmRequest>,
    ) -> Result<Response<wire::PurgeVmResponse>, Status> {
        let purged = self.0.purge_vm(vm_name(&request.into_inner().name)?).await;
        purged.map_err(|e| status::of_vm(&e))?;
        Ok(Response::new(wire::PurgeVmResponse {}))
    }
}

impl Face {
    /// The next part of an upload; a client that is silent for too long is given up.
    async fn next_part(
        &self,
        parts: &mut Streaming<wire::UploadBlobRequest>,
    ) -> Result<Option<Part>, Status> {
        let patience = self.0.fetcher().limits().window;
        let message = tokio::time::timeout(patience, parts.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the upload stalled and was given up"))??;
        match message {
            None => Ok(None),
            Some(message) => match message.part {
                None => Err(Status::invalid_argument("a part of the upload is empty")),
                part => Ok(part),
            },
        }
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(status::chain(&error)))
}

fn vm_name(text: &str) -> Result<Name, Status> {
    name("VM", text)
}

fn plugin_name(text: &str) -> Result<Name, Status> {
    name("plugin", text)
}

fn name(of: &str, text: &str) -> Result<Name, Status> {
    text.parse().map_err(|error: volant_spec::name::NameError| {
        Status::invalid_argument(format!("no {of} can be named so: {error}"))
    })
}

fn new_vm(request: &wire::CreateVmRequest) -> Result<NewVm, Status> {
    let vmm = match request.vmm.as_str() {
        "" => Vmm::Auto,
        text => text.parse().map_err(Status::invalid_argument)?,
    };
    Ok(NewVm {
        name: vm_name(&request.name)?,
        plugin: plugin_name(&request.plugin)?,
        cpu_cores: request.cpu_cores,
        memory_mb: request.memory_mb,
        vmm,
    })
}

fn vm(vm: Vm) -> wire::Vm {
    wire::Vm {
        uuid: vm.uuid,
        name: vm.name,
        plugin: vm.plugin,
        plugin_version: vm.plugin_version,
        cpu_cores: vm.cpu_cores,
        memory_mb: vm.memory_mb,
        vmm: vm.vmm,
        created_at: vm.created_at,
        deleting: vm.deleting,
    }
}

fn plugin(plugin: Plugin) -> wire::Plugin {
    wire::Plugin {
        name: plugin.name,
        version: plugin.version,
        manifest: plugin.manifest,
        installed_at: plugin.installed_at,
        size_bytes: plugin.size_bytes,
    }
}

fn plugin_event(installed: Plugin) -> wire::InstallPluginResponse {
    wire::InstallPluginResponse {
        event: Some(install_plugin_response::Event::Plugin(plugin(installed))),
    }
}

fn progress_event(progress: Progress) -> wire::InstallPluginResponse {
    let progress = wire::Progress {
        artifact: progress.artifact.to_owned(),
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes.unwrap_or(0),
    };
    wire::InstallPluginResponse {
        event: Some(install_plugin_response::Event::Progress(progress)),
    }
}
