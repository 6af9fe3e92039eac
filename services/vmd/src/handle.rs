//! The door to a running VM: its faces (D-Bus, gRPC) ask here, the supervisor answers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{agent::Token, live::Live};

/// Questions on their way to the supervisor.
const QUEUE: usize = 16;

/// A running VM. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    live: watch::Receiver<Live>,
    vsock: PathBuf,
    token: Token,
}

/// What somebody wants of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Pause,
    Resume,
    /// `None`: as it is.
    Resize {
        cpu_cores: Option<u32>,
        memory_mb: Option<u32>,
    },
}

/// A wish, and where its answer goes.
#[derive(Debug)]
pub struct Ask {
    pub wish: Wish,
    pub answer: oneshot::Sender<Result<(), HandleError>>,
}

/// The supervisor's end.
pub type Asks = mpsc::Receiver<Ask>;

/// Why a wish was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// Not now: the VM is in no state for it.
    #[error("{0}")]
    Denied(String),
    /// No VM has such values.
    #[error("{0}")]
    Invalid(String),
    /// The VMM cannot; nothing was changed.
    #[error("{0}")]
    Unsupported(String),
    /// The VMM was asked, and did not do it.
    #[error("{0}")]
    Failed(String),
    #[error("the VM is at its end")]
    Gone,
}

impl Handle {
    /// A handle on a VM whose vsock is `vsock`, and the end at which its supervisor listens.
    #[must_use]
    pub fn new(live: watch::Receiver<Live>, vsock: PathBuf, token: Token) -> (Self, Asks) {
        let (asks, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared { live, vsock, token });
        (Self { asks, shared }, queue)
    }

    /// Stops the guest's CPUs. Idempotent.
    ///
    /// # Errors
    /// The guest boots or stops, or the VMM does not do it.
    pub async fn pause(&self) -> Result<(), HandleError> {
        self.ask(Wish::Pause).await
    }

    /// Lets the guest's CPUs go on, and has the agent set the clock. Idempotent.
    ///
    /// # Errors
    /// As for [`Handle::pause`].
    pub async fn resume(&self) -> Result<(), HandleError> {
        self.ask(Wish::Resume).await
    }

    /// Gives the running guest other resources; `None` is as it is. Idempotent.
    ///
    /// # Errors
    /// The guest is not running, there can be no such resources, or the VMM cannot.
    pub async fn resize(
        &self,
        cpu_cores: Option<u32>,
        memory_mb: Option<u32>,
    ) -> Result<(), HandleError> {
        self.ask(Wish::Resize {
            cpu_cores,
            memory_mb,
        })
        .await
    }

    /// How the VM is.
    #[must_use]
    pub fn live(&self) -> watch::Receiver<Live> {
        self.shared.live.clone()
    }

    /// Where connections into the guest are asked for: `CONNECT port\n`.
    #[must_use]
    pub fn vsock(&self) -> &Path {
        &self.shared.vsock
    }

    /// What sessions open with.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.shared.token
    }

    async fn ask(&self, wish: Wish) -> Result<(), HandleError> {
        let (answer, answered) = oneshot::channel();
        let asked = self.asks.send(Ask { wish, answer }).await;
        asked.map_err(|_| HandleError::Gone)?;
        answered.await.unwrap_or(Err(HandleError::Gone))
    }
}
