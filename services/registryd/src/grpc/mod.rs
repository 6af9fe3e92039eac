//! The face for Volant's other parts: `volant.registry.v1.RegistryService`.

mod wire;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use tokio::{
    net::UnixListener,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use volant_proto::registry::v1::{
    self as v1,
    registry_service_server::{RegistryService, RegistryServiceServer},
    upload_blob_request::Part,
};

use crate::{Registry, status};

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

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryService for Face {
    async fn upload_blob(
        &self,
        request: Request<Streaming<v1::UploadBlobRequest>>,
    ) -> Result<Response<v1::UploadBlobResponse>, Status> {
        let _busy = self.0.busy();
        let mut parts = request.into_inner();
        let digest = match self.next_part(&mut parts).await? {
            Some(Part::Header(header)) => wire::digest(&header.digest)?,
            Some(Part::Chunk(_)) | None => {
                return Err(Status::invalid_argument(
                    "an upload begins with a header that names the digest",
                ));
            }
        };
        let there = self.0.blob(digest).await;
        if let Some(size) = there.map_err(|e| status::of_store(&e))? {
            return Ok(Response::new(v1::UploadBlobResponse { size }));
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
        Ok(Response::new(v1::UploadBlobResponse { size }))
    }

    async fn get_blob(
        &self,
        request: Request<v1::GetBlobRequest>,
    ) -> Result<Response<v1::GetBlobResponse>, Status> {
        let digest = wire::digest(&request.into_inner().digest)?;
        let size = self.0.blob(digest).await;
        let size = size
            .map_err(|e| status::of_store(&e))?
            .ok_or_else(|| Status::not_found(format!("no artifact {digest} is in the store")))?;
        Ok(Response::new(v1::GetBlobResponse { size }))
    }

    type InstallPluginStream = Events<v1::InstallPluginResponse>;

    async fn install_plugin(
        &self,
        request: Request<v1::InstallPluginRequest>,
    ) -> Result<Response<Self::InstallPluginStream>, Status> {
        let install = wire::install(request.into_inner())?;
        let (events, answers) = mpsc::channel(16);
        let registry = self.0.clone();
        tokio::spawn(async move {
            let told = |progress| {
                // A client that reads slowly misses some of them, but holds nothing up.
                let _ = events.try_send(Ok(wire::progress_event(progress)));
            };
            let installed = tokio::select! {
                installed = registry.install(install, told) => installed,
                // The client went away: it can ask again.
                () = events.closed() => return,
            };
            let answer = installed.map(wire::plugin_event);
            let answer = answer.map_err(|error| status::of_install(&error));
            // Nobody may be there any more to hear it.
            let _ = events.send(answer).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn list_plugins(
        &self,
        _: Request<v1::ListPluginsRequest>,
    ) -> Result<Response<v1::ListPluginsResponse>, Status> {
        let plugins = self.0.plugins(None).await;
        let plugins = plugins.map_err(|e| status::of_plugin(&e))?;
        let plugins = plugins.into_iter().map(wire::plugin).collect();
        Ok(Response::new(v1::ListPluginsResponse { plugins }))
    }

    async fn get_plugin(
        &self,
        request: Request<v1::GetPluginRequest>,
    ) -> Result<Response<v1::GetPluginResponse>, Status> {
        let asked = wire::plugin_ref(&request.into_inner().name)?;
        let found = self.0.plugin(asked).await;
        let (found, original) = found.map_err(|e| status::of_plugin(&e))?;
        let plugin = Some(wire::plugin_with(found, original));
        Ok(Response::new(v1::GetPluginResponse { plugin }))
    }

    async fn set_plugin_enabled(
        &self,
        request: Request<v1::SetPluginEnabledRequest>,
    ) -> Result<Response<v1::SetPluginEnabledResponse>, Status> {
        let request = request.into_inner();
        let asked = wire::plugin_ref(&request.name)?;
        let changed = self.0.enable_plugin(asked, request.enabled).await;
        let changed = changed.map_err(|e| status::of_plugin(&e))?;
        let plugins = changed.into_iter().map(wire::plugin).collect();
        Ok(Response::new(v1::SetPluginEnabledResponse { plugins }))
    }

    async fn remove_plugin(
        &self,
        request: Request<v1::RemovePluginRequest>,
    ) -> Result<Response<v1::RemovePluginResponse>, Status> {
        let request = request.into_inner();
        let asked = wire::plugin_ref(&request.name)?;
        let removed = self.0.remove_plugin(asked, request.all_versions).await;
        removed.map_err(|e| status::of_plugin(&e))?;
        Ok(Response::new(v1::RemovePluginResponse {}))
    }

    type VerifyPluginsStream = Events<v1::VerifyPluginsResponse>;

    async fn verify_plugins(
        &self,
        request: Request<v1::VerifyPluginsRequest>,
    ) -> Result<Response<Self::VerifyPluginsStream>, Status> {
        let asked = match request.into_inner().name.as_str() {
            "" => None,
            name => Some(wire::plugin_ref(name)?),
        };
        // What is read is as slow as disks are: there is always room for the findings until then.
        let (findings, answers) = mpsc::unbounded_channel();
        let registry = self.0.clone();
        tokio::spawn(async move {
            let told = |finding| findings.send(Ok(wire::finding(finding))).is_ok();
            if let Err(error) = registry.verify(asked, told).await {
                // Nobody may be there any more to hear it.
                let _ = findings.send(Err(status::of_verify(&error)));
            }
        });
        let answers = UnboundedReceiverStream::new(answers);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn collect_garbage(
        &self,
        _: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<v1::CollectGarbageResponse>, Status> {
        let collected = self.0.collect_garbage().await;
        let collected = collected.map_err(|e| status::of_store(&e))?;
        Ok(Response::new(v1::CollectGarbageResponse {
            artifacts: collected.artifacts,
            bytes: collected.bytes,
        }))
    }

    async fn search_plugins(
        &self,
        request: Request<v1::SearchPluginsRequest>,
    ) -> Result<Response<v1::SearchPluginsResponse>, Status> {
        let search = self.0.search(&request.into_inner().text).await;
        let search = search.map_err(|e| status::of_search(&e))?;
        Ok(Response::new(v1::SearchPluginsResponse {
            plugins: search.plugins.into_iter().map(wire::found).collect(),
            problems: search.problems,
        }))
    }

    async fn get_trust(
        &self,
        _: Request<v1::GetTrustRequest>,
    ) -> Result<Response<v1::GetTrustResponse>, Status> {
        let _busy = self.0.busy();
        let trust = self.0.trust().await;
        let trust = trust.map_err(|e| status::of_config(&e))?;
        Ok(Response::new(wire::trust(trust)))
    }

    async fn create_vm(
        &self,
        request: Request<v1::CreateVmRequest>,
    ) -> Result<Response<v1::CreateVmResponse>, Status> {
        let created = self.0.create_vm(wire::new_vm(request.into_inner())?).await;
        let created = created.map_err(|e| status::of_vm(&e))?;
        let vm = Some(wire::vm(created));
        Ok(Response::new(v1::CreateVmResponse { vm }))
    }

    async fn get_vm(
        &self,
        request: Request<v1::GetVmRequest>,
    ) -> Result<Response<v1::GetVmResponse>, Status> {
        let found = self.0.vm(wire::vm_name(&request.into_inner().name)?).await;
        let found = found.map_err(|e| status::of_vm(&e))?;
        let vm = Some(wire::vm(found));
        Ok(Response::new(v1::GetVmResponse { vm }))
    }

    async fn list_vms(
        &self,
        _: Request<v1::ListVmsRequest>,
    ) -> Result<Response<v1::ListVmsResponse>, Status> {
        let vms = self.0.vms().await.map_err(|e| status::of_vm(&e))?;
        let vms = vms.into_iter().map(wire::vm).collect();
        Ok(Response::new(v1::ListVmsResponse { vms }))
    }

    async fn delete_vm(
        &self,
        request: Request<v1::DeleteVmRequest>,
    ) -> Result<Response<v1::DeleteVmResponse>, Status> {
        let marked = self
            .0
            .delete_vm(wire::vm_name(&request.into_inner().name)?)
            .await;
        let marked = marked.map_err(|e| status::of_vm(&e))?;
        let vm = Some(wire::vm(marked));
        Ok(Response::new(v1::DeleteVmResponse { vm }))
    }

    async fn purge_vm(
        &self,
        request: Request<v1::PurgeVmRequest>,
    ) -> Result<Response<v1::PurgeVmResponse>, Status> {
        let purged = self
            .0
            .purge_vm(wire::vm_name(&request.into_inner().name)?)
            .await;
        purged.map_err(|e| status::of_vm(&e))?;
        Ok(Response::new(v1::PurgeVmResponse {}))
    }

    async fn get_vm_config(
        &self,
        request: Request<v1::GetVmConfigRequest>,
    ) -> Result<Response<v1::GetVmConfigResponse>, Status> {
        let request = request.into_inner();
        let version = Some(request.version).filter(|version| *version > 0);
        let found = self.0.vm_config(wire::vm_name(&request.name)?, version);
        let (found, effective) = found.await.map_err(|e| status::of_vm(&e))?;
        Ok(Response::new(v1::GetVmConfigResponse {
            config: Some(wire::config_version(found)),
            effective: effective.to_config().to_json(),
        }))
    }

    async fn set_vm_config(
        &self,
        request: Request<v1::SetVmConfigRequest>,
    ) -> Result<Response<v1::SetVmConfigResponse>, Status> {
        let request = request.into_inner();
        let name = wire::vm_name(&request.name)?;
        let set = self.0.set_vm_config(name, wire::new_config(&request)?);
        let (set, _) = set.await.map_err(|e| status::of_vm(&e))?;
        let config = Some(wire::config_version(set));
        Ok(Response::new(v1::SetVmConfigResponse { config }))
    }

    async fn list_vm_configs(
        &self,
        request: Request<v1::ListVmConfigsRequest>,
    ) -> Result<Response<v1::ListVmConfigsResponse>, Status> {
        let name = wire::vm_name(&request.into_inner().name)?;
        let found = self.0.vm_configs(name).await;
        let found = found.map_err(|e| status::of_vm(&e))?;
        let configs = found.into_iter().map(wire::config_version).collect();
        Ok(Response::new(v1::ListVmConfigsResponse { configs }))
    }

    async fn put_vm_secret(
        &self,
        request: Request<v1::PutVmSecretRequest>,
    ) -> Result<Response<v1::PutVmSecretResponse>, Status> {
        let request = request.into_inner();
        let name = wire::vm_name(&request.name)?;
        let (secret, value) = wire::secret(request.secret.unwrap_or_default())?;
        let kept = self.0.put_vm_secret(name, secret, value).await;
        kept.map_err(|e| status::of_vm(&e))?;
        Ok(Response::new(v1::PutVmSecretResponse {}))
    }

    async fn remove_vm_secret(
        &self,
        request: Request<v1::RemoveVmSecretRequest>,
    ) -> Result<Response<v1::RemoveVmSecretResponse>, Status> {
        let request = request.into_inner();
        let name = wire::vm_name(&request.name)?;
        let secret = wire::secret_name(&request.secret)?;
        let removed = self.0.remove_vm_secret(name, secret).await;
        removed.map_err(|e| status::of_vm(&e))?;
        Ok(Response::new(v1::RemoveVmSecretResponse {}))
    }
}

impl Face {
    /// The next part of an upload; a client that is silent for too long is given up.
    async fn next_part(
        &self,
        parts: &mut Streaming<v1::UploadBlobRequest>,
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
