//! Calls of registryd and ipamd: each with a deadline, and once more when the service died under the first.
//!
//! Both services exit when idle and may be killed at any time; their sockets are systemd's and outlive them.

use std::{path::Path, time::Duration};

use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

/// What a call may take, the service's start included.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer that is taken: lists carry whole manifests.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A channel to a Unix socket, connected at the first call and again whenever the connection broke.
pub fn channel(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", path.display()))
        .expect("any text after unix:// is a path")
        .connect_lazy()
}

/// What came of a call.
#[derive(Debug)]
pub struct Answer<T> {
    pub result: Result<T, Status>,
    /// The call was made twice: the first one may have been carried out, its answer lost.
    pub repeated: bool,
}

/// Makes a call that may be made twice.
pub async fn call<T, F>(make: impl Fn() -> F) -> Answer<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let result = once(make()).await;
    match result {
        Err(status) if lost(status.code()) => {
            tracing::debug!("a call is made again: {status}");
            let result = once(make()).await;
            Answer {
                result,
                repeated: true,
            }
        }
        result => Answer {
            result,
            repeated: false,
        },
    }
}

/// Makes a call with the deadline.
async fn once<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "no answer within {} seconds",
            DEADLINE.as_secs()
        ))),
    }
}

/// Whether the connection, not the callee, made the call fail. The services themselves answer with none of
/// `Cancelled` and `Unknown`; the transport does, when they die under a call.
fn lost(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Cancelled | Code::Unknown)
}
