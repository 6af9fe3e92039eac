//! The calls of registryd: of artifacts and VMs here, of plugins in `plugins.rs`.

mod configs;
mod plugins;

pub(crate) use plugins::of_install;

use std::path::Path;

use tonic::{IntoStreamingRequest, transport::Channel};
use volant_proto::registry::v1::{
    CreateVmRequest, DeleteVmRequest, GetBlobRequest, GetVmRequest, ListVmsRequest, PurgeVmRequest,
    UploadBlobRequest, Vm, registry_service_client::RegistryServiceClient,
};
use volant_spec::{Digest, Name, PluginRef};

use crate::{
    Kind, Problem,
    refusal::{Asked, problem},
    rpc::{self, Answer},
};

/// A client of registryd. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Registry(RegistryServiceClient<Channel>);

impl Registry {
    /// The registryd that listens there; nothing is connected yet.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        let client = RegistryServiceClient::new(rpc::channel(socket));
        Self(client.max_decoding_message_size(rpc::MAX_ANSWER))
    }

    /// An artifact's size.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<u64, Problem> {
        let answer = self.call(|mut client| {
            let digest = digest.to_string();
            async move { client.get_blob(GetBlobRequest { digest }).await }
        });
        Ok(told(Asked::Blob, answer.await)?.size)
    }

    /// Uploads an artifact and gives its size. Takes as long as the parts do; is not repeated.
    pub(crate) async fn upload(
        &self,
        parts: impl IntoStreamingRequest<Message = UploadBlobRequest>,
    ) -> Result<u64, Problem> {
        let answer = self.0.clone().upload_blob(parts).await;
        let answer = answer.map_err(|status| problem(Asked::Blob, &status))?;
        Ok(answer.into_inner().size)
    }

    /// Defines a VM; durable when answered.
    pub(crate) async fn create_vm(&self, new: &CreateVmRequest) -> Result<Vm, Problem> {
        let answer = self.call(|mut client| {
            let new = new.clone();
            async move { client.create_vm(new).await }
        });
        let answer = answer.await;
        let repeated = answer.repeated;
        match told(Asked::CreateVm, answer) {
            // The first call may have made it, and its answer was lost: then it is as was asked.
            Err(problem) if repeated && problem.kind == Kind::VmExists => {
                let name = new.name.parse().map_err(|_| problem.clone())?;
                let vm = self.vm(&name).await?;
                if as_asked(&vm, new) {
                    Ok(vm)
                } else {
                    Err(problem)
                }
            }
            other => there(other?.vm),
        }
    }

    pub(crate) async fn vm(&self, name: &Name) -> Result<Vm, Problem> {
        let answer = self.call(|mut client| {
            let name = name.to_string();
            async move { client.get_vm(GetVmRequest { name }).await }
        });
        there(told(Asked::Vm, answer.await)?.vm)
    }

    pub(crate) async fn vms(&self) -> Result<Vec<Vm>, Problem> {
        let answer =
            self.call(|mut client| async move { client.list_vms(ListVmsRequest {}).await });
        Ok(told(Asked::Vm, answer.await)?.vms)
    }

    /// Marks a VM as being deleted.
    pub(crate) async fn delete_vm(&self, name: &Name) -> Result<(), Problem> {
        let answer = self.call(|mut client| {
            let name = name.to_string();
            async move { client.delete_vm(DeleteVmRequest { name }).await }
        });
        told(Asked::Vm, answer.await).map(drop)
    }

    /// Removes a VM that is marked; one that is gone is fine.
    pub(crate) async fn purge_vm(&self, name: &Name) -> Result<(), Problem> {
        let answer = self.call(|mut client| {
            let name = name.to_string();
            async move { client.purge_vm(PurgeVmRequest { name }).await }
        });
        match told(Asked::Vm, answer.await) {
            Err(problem) if problem.kind == Kind::NoSuchVm => Ok(()),
            other => other.map(drop),
        }
    }

    async fn call<T, F>(&self, make: impl Fn(RegistryServiceClient<Channel>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        rpc::call(|| make(self.0.clone())).await
    }
}

fn told<T>(asked: Asked, answer: Answer<T>) -> Result<T, Problem> {
    answer.result.map_err(|status| problem(asked, &status))
}

/// A field that the contract says is always there.
fn there<T>(field: Option<T>) -> Result<T, Problem> {
    field.ok_or_else(|| Problem::internal("registryd left the object out of its answer"))
}

fn as_asked(vm: &Vm, new: &CreateVmRequest) -> bool {
    let is_of = |plugin: PluginRef| {
        plugin.name.as_str() == vm.plugin
            && plugin
                .version
                .is_none_or(|version| version.as_str() == vm.plugin_version)
    };
    !vm.deleting
        && new.plugin.parse().is_ok_and(is_of)
        && new.cpu_cores.is_none_or(|cores| cores == vm.cpu_cores)
        && new.memory_mb.is_none_or(|memory| memory == vm.memory_mb)
        && (new.vmm.is_empty() || new.vmm == vm.vmm)
}
