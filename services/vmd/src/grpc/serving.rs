//! The face in operation: begun, and ended so that another supervisor can go on with it.

use std::{io, os::unix::net::UnixListener, time::Duration};

use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use super::{Mover, Parked, Service};
use crate::{console::Hub, handle::Handle};

/// The face of one VM, and its listener: it stays open, so that whoever connects while nobody serves waits.
#[derive(Debug)]
pub struct Serving {
    listener: UnixListener,
    handle: Handle,
    console: Hub,
    parked: Parked,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    mover: Mover,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Serving {
    /// Serves on `listener`.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn start(
        listener: UnixListener,
        handle: Handle,
        console: Hub,
        parked: Parked,
    ) -> io::Result<Self> {
        let mut serving = Self {
            listener,
            handle,
            console,
            parked,
            running: None,
        };
        serving.again()?;
        Ok(serving)
    }

    /// Serves again. Does nothing while it does.
    ///
    /// # Errors
    /// As for [`Serving::start`].
    pub fn again(&mut self) -> io::Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let listener = self.listener.try_clone()?;
        let (mover, moving) = Mover::new();
        let (stop, stopped) = oneshot::channel();
        let service = Service::new(
            self.handle.clone(),
            self.console.clone(),
            self.parked.clone(),
            moving,
        );
        let task = tokio::spawn(async move {
            // A dropped sender stops it too.
            let stopped = async { drop(stopped.await) };
            if let Err(error) = service.serve(listener, stopped).await {
                tracing::error!("cannot serve clients any more: {error}");
            }
        });
        self.running = Some(Running { mover, stop, task });
        Ok(())
    }

    /// Has programs parked and their clients told so, takes no more calls, and gives those that run `limit` to end.
    pub async fn pause(&mut self, limit: Duration) {
        let Some(Running {
            mover,
            stop,
            mut task,
        }) = self.running.take()
        else {
            return;
        };
        mover.go();
        drop(stop);
        if timeout(limit, &mut task).await.is_err() {
            tracing::warn!("cut off what clients did with the VM");
            task.abort();
            let _ = task.await;
        }
    }

    /// What another supervisor needs of it.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub fn parked(&self) -> &Parked {
        &self.parked
    }
}
