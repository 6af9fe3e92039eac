//! The calls of registryd that are about VMs' configurations and secrets.

use volant_proto::registry::v1::{
    GetVmConfigRequest, GetVmConfigResponse, ListVmConfigsRequest, PutVmSecretRequest,
    RemoveVmSecretRequest, SecretValue, SetVmConfigRequest, VmConfigVersion,
};
use volant_spec::Name;

use super::{Registry, there, told};
use crate::{Kind, Problem, refusal::Asked};

impl Registry {
    /// A version of a VM's configuration; 0 is the newest.
    pub(crate) async fn config(
        &self,
        name: &Name,
        version: u64,
    ) -> Result<GetVmConfigResponse, Problem> {
        let answer = self.call(|mut client| {
            let name = name.to_string();
            async move {
                let request = GetVmConfigRequest { name, version };
                client.get_vm_config(request).await
            }
        });
        match told(Asked::Config, answer.await) {
            // Either the VM or the version is not there.
            Err(problem) if problem.kind == Kind::NoSuchVm && version != 0 => {
                self.vm(name).await?;
                Err(Problem::new(Kind::NoSuchVersion, problem.detail))
            }
            other => other,
        }
    }

    /// Makes a new version; `expected` is the one that must be the newest, 0 is any.
    pub(crate) async fn set_config(
        &self,
        name: &Name,
        config: &[u8],
        expected: u64,
        reason: &str,
    ) -> Result<VmConfigVersion, Problem> {
        let answer = self.call(|mut client| {
            let request = SetVmConfigRequest {
                name: name.to_string(),
                config: config.to_vec(),
                expected_version: expected,
                reason: reason.to_owned(),
            };
            async move { client.set_vm_config(request).await }
        });
        let answer = answer.await;
        let repeated = answer.repeated;
        match told(Asked::Config, answer) {
            // The first call may have made it, and its answer was lost.
            Err(problem) if repeated && problem.kind == Kind::VersionConflict => {
                let newest = there(self.config(name, 0).await?.config)?;
                match newest.config == config && newest.version == expected + 1 {
                    true => Ok(newest),
                    false => Err(problem),
                }
            }
            other => there(other?.config),
        }
    }

    /// All versions, the newest first.
    pub(crate) async fn configs(&self, name: &Name) -> Result<Vec<VmConfigVersion>, Problem> {
        let answer = self.call(|mut client| {
            let name = name.to_string();
            async move { client.list_vm_configs(ListVmConfigsRequest { name }).await }
        });
        Ok(told(Asked::Config, answer.await)?.configs)
    }

    /// Keeps a secret; durable when answered.
    pub(crate) async fn put_secret(&self, name: &Name, secret: SecretValue) -> Result<(), Problem> {
        let answer = self.call(|mut client| {
            let request = PutVmSecretRequest {
                name: name.to_string(),
                secret: Some(secret.clone()),
            };
            async move { client.put_vm_secret(request).await }
        });
        told(Asked::Secret, answer.await).map(drop)
    }

    /// Forgets a secret. Idempotent.
    pub(crate) async fn remove_secret(&self, name: &Name, secret: &str) -> Result<(), Problem> {
        let answer = self.call(|mut client| {
            let (name, secret) = (name.to_string(), secret.to_owned());
            async move {
                let request = RemoveVmSecretRequest { name, secret };
                client.remove_vm_secret(request).await
            }
        });
        told(Asked::Secret, answer.await).map(drop)
    }
}
