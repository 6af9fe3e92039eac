//! The gRPC face: `volant.ipam.v1`.

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use volant_proto::ipam::v1::{
    GetNetworkRequest, GetNetworkResponse, Lease, ListLeasesRequest, ListLeasesResponse,
    ReleaseLeaseRequest, ReleaseLeaseResponse,
    ipam_service_server::{IpamService, IpamServiceServer},
};
use volant_spec::{Name, name::NameError};

use crate::{Ipam, ReleaseError, chain, pool, store::StoreError};

/// Requests hold a name.
const MAX_REQUEST: usize = 16 * 1024;

/// Serves until `shutdown` resolves and calls under way are answered.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: UnixListener,
    ipam: Ipam,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(service(ipam))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
}

fn service(ipam: Ipam) -> IpamServiceServer<Face> {
    IpamServiceServer::new(Face(ipam)).max_decoding_message_size(MAX_REQUEST)
}

/// The service.
#[derive(Debug)]
struct Face(Ipam);

#[tonic::async_trait]
impl IpamService for Face {
    async fn release_lease(
        &self,
        request: Request<ReleaseLeaseRequest>,
    ) -> Result<Response<ReleaseLeaseResponse>, Status> {
        let vm: Name = request
            .into_inner()
            .vm
            .parse()
            .map_err(|error: NameError| Status::invalid_argument(error.to_string()))?;
        let released = self.0.release(&vm).await.map_err(|error| refused(&error))?;
        Ok(Response::new(ReleaseLeaseResponse { released }))
    }

    async fn list_leases(
        &self,
        _: Request<ListLeasesRequest>,
    ) -> Result<Response<ListLeasesResponse>, Status> {
        let leases = self.0.leases().map_err(|error| broken(&error))?;
        Ok(Response::new(ListLeasesResponse {
            leases: leases.iter().map(wire).collect(),
        }))
    }

    async fn get_network(
        &self,
        _: Request<GetNetworkRequest>,
    ) -> Result<Response<GetNetworkResponse>, Status> {
        let overview = self.0.overview().map_err(|error| broken(&error))?;
        Ok(Response::new(GetNetworkResponse {
            bridge: overview.bridge,
            subnet: overview.subnet.to_string(),
            gateway: overview.gateway.to_string(),
            capacity: overview.capacity,
            leased: overview.leased,
        }))
    }
}

fn wire(lease: &pool::Lease) -> Lease {
    Lease {
        vm: lease.vm.to_string(),
        address: lease.address.to_string(),
        mac: lease.mac.to_string(),
        cid: lease.cid.get(),
    }
}

fn refused(error: &ReleaseError) -> Status {
    match error {
        ReleaseError::Store(error) => broken(error),
        ReleaseError::InUse { .. } => Status::failed_precondition(chain(error)),
    }
}

fn broken(error: &StoreError) -> Status {
    let text = chain(error);
    tracing::error!("{text}");
    Status::internal(text)
}
