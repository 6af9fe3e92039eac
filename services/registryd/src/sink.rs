//! From a stream into the store: bytes are gathered, and written and hashed on a thread that may block.

use std::sync::Arc;

use volant_spec::Digest;

use crate::{
    blocking,
    store::{BlobError, Incoming, Store},
};

/// So many bytes are gathered before they are written.
const GATHER: usize = 256 * 1024;

/// An artifact that is being received. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Sink {
    store: Arc<Store>,
    /// Away while a thread writes to it.
    incoming: Option<Incoming>,
    gathered: Vec<u8>,
}

impl Sink {
    /// # Errors
    /// The store cannot begin a file.
    pub async fn open(store: Arc<Store>) -> Result<Self, BlobError> {
        let incoming = blocking({
            let store = Arc::clone(&store);
            move || store.receive()
        })
        .await?;
        Ok(Self {
            store,
            incoming: Some(incoming),
            gathered: Vec::new(),
        })
    }

    /// # Errors
    /// Too many bytes in all, or they cannot be written. The sink is of no use then.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() < GATHER {
            return Ok(());
        }
        self.flush().await
    }

    /// Keeps what was received, durably, if it matches `digest`. Answers its size.
    ///
    /// # Errors
    /// It does not match, or cannot be kept.
    pub async fn finish(mut self, digest: Digest) -> Result<u64, BlobError> {
        self.flush().await?;
        let Some(incoming) = self.incoming.take() else {
            unreachable!("a flush that succeeded puts it back");
        };
        blocking(move || self.store.keep(incoming, &digest)).await
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let gathered = std::mem::take(&mut self.gathered);
        if let Some(mut incoming) = self.incoming.take() {
            let written =
                blocking(move || incoming.write(&gathered).map(|()| (incoming, gathered)));
            let (incoming, mut gathered) = written.await?;
            gathered.clear();
            self.gathered = gathered;
            self.incoming = Some(incoming);
        }
        Ok(())
    }
}
