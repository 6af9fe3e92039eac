//! What a client is told of what failed.

use tonic::Status;
use volant_proto::agent::v1::session_refused::Kind;

use crate::{
    console::WriteError,
    session::{Garbage, OpenError},
};

/// `err` with its causes.
fn text(err: &(dyn std::error::Error + 'static)) -> String {
    volant_service::chain(err)
}

pub(super) fn not_opened(error: &OpenError) -> Status {
    match error {
        OpenError::TooMany => Status::resource_exhausted(text(error)),
        OpenError::Unreachable(_) | OpenError::Silent => Status::unavailable(text(error)),
        OpenError::Garbage(garbage) => broken(garbage),
        OpenError::TooLong(_) => Status::invalid_argument(text(error)),
        OpenError::Refused { kind, message } => match kind {
            // The agent does not know us: it is another boot's, or not the agent.
            Kind::Denied => Status::unavailable(format!("the agent refused: {message}")),
            Kind::Invalid => Status::invalid_argument(message.clone()),
            Kind::NotFound => Status::not_found(message.clone()),
            Kind::Unusable | Kind::Unspecified => Status::failed_precondition(message.clone()),
            Kind::Busy => Status::resource_exhausted(message.clone()),
        },
    }
}

/// A session that broke off, or whose guest talks nonsense.
pub(super) fn broken(garbage: &Garbage) -> Status {
    match garbage {
        Garbage::Closed => Status::unavailable("the guest's agent closed the session"),
        Garbage::Frame(_) | Garbage::Kind(_) => Status::unavailable(format!(
            "the session with the guest broke: {}",
            text(garbage)
        )),
    }
}

/// A session that failed by the guest's word.
pub(super) fn failed(message: &str) -> Status {
    Status::aborted(message)
}

pub(super) fn cannot_write(error: WriteError) -> Status {
    Status::failed_precondition(error.to_string())
}

pub(super) fn first(what: &str) -> Status {
    Status::invalid_argument(format!("the first message has {what}"))
}

pub(super) fn moved() -> Status {
    Status::unavailable("this VM's supervisor is being replaced: call again")
}
