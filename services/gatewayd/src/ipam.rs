//! The calls of ipamd.

use std::{collections::HashMap, path::Path};

use tonic::transport::Channel;
use volant_proto::ipam::v1::{
    Lease, ListLeasesRequest, ReleaseLeaseRequest, ipam_service_client::IpamServiceClient,
};
use volant_spec::Name;

use crate::{
    Problem,
    refusal::{Asked, problem},
    rpc,
};

/// A client of ipamd. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Ipam(IpamServiceClient<Channel>);

impl Ipam {
    /// The ipamd that listens there; nothing is connected yet.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        let client = IpamServiceClient::new(rpc::channel(socket));
        Self(client.max_decoding_message_size(rpc::MAX_ANSWER))
    }

    /// All leases, by the VM's name.
    ///
    /// # Errors
    /// ipamd does not answer.
    pub async fn leases(&self) -> Result<HashMap<String, Lease>, Problem> {
        let list = || {
            let mut client = self.0.clone();
            async move { client.list_leases(ListLeasesRequest {}).await }
        };
        let answer = rpc::call(list).await.result;
        let leases = answer
            .map_err(|status| problem(Asked::Lease, &status))?
            .leases;
        Ok(leases
            .into_iter()
            .map(|lease| (lease.vm.clone(), lease))
            .collect())
    }

    /// Gives the VM's address back; a VM without one is fine.
    ///
    /// # Errors
    /// ipamd does not answer, or fails.
    pub async fn release(&self, name: &Name) -> Result<(), Problem> {
        let release = || {
            let mut client = self.0.clone();
            let vm = name.to_string();
            async move { client.release_lease(ReleaseLeaseRequest { vm }).await }
        };
        let answer = rpc::call(release).await.result;
        answer
            .map(drop)
            .map_err(|status| problem(Asked::Lease, &status))
    }
}
