//! From a stream into the store: bytes are gathered, and written and hashed on a thread that may block.

use std::sync::Arc;

use volant_spec::Digest;

use crate::{
    blocking,
    store::{BlobError, Bringer, Incoming, Store},
};

/// So many bytes are gathered before they are written.
const GATHER: usize = 256 * 1024;

/// An artifact that is being received. Dropped, an upload leaves nothing; a download leaves what was written.
#[derive(Debug)]
pub struct Sink {
    store: Arc<Store>,
    bringer: Bringer,
    /// Away while a thread writes to it.
    incoming: Option<Incoming>,
    gathered: Vec<u8>,
}

impl Sink {
    /// For an upload.
    ///
    /// # Errors
    /// The store cannot begin a file.
    pub async fn open(store: Arc<Store>) -> Result<Self, BlobError> {
        Self::of(store, Bringer::Upload, Store::receive).await
    }

    /// For a download, which goes on where the last one ended. One at a time for each digest.
    ///
    /// # Errors
    /// The store cannot open the file.
    pub async fn resume(store: Arc<Store>, digest: Digest) -> Result<Self, BlobError> {
        Self::of(store, Bringer::Install, move |store| store.resume(&digest)).await
    }

    /// For a download beside another of the same, which begins anew and leaves nothing when it breaks off.
    ///
    /// # Errors
    /// The store cannot begin a file.
    pub async fn beside(store: Arc<Store>) -> Result<Self, BlobError> {
        Self::of(store, Bringer::Install, Store::receive).await
    }

    async fn of(
        store: Arc<Store>,
        bringer: Bringer,
        begin: impl FnOnce(&Store) -> Result<Incoming, BlobError> + Send + 'static,
    ) -> Result<Self, BlobError> {
        let incoming = blocking({
            let store = Arc::clone(&store);
            move || begin(&store)
        })
        .await?;
        Ok(Self {
            store,
            bringer,
            incoming: Some(incoming),
            gathered: Vec::new(),
        })
    }

    /// How many bytes there are so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.incoming.as_ref().map_or(0, Incoming::size) + self.gathered.len() as u64
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

    /// Writes what was gathered.
    ///
    /// # Errors
    /// As [`Sink::push`].
    pub async fn flush(&mut self) -> Result<(), BlobError> {
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

    /// Forgets what was received.
    ///
    /// # Errors
    /// The file cannot be made empty.
    pub fn restart(&mut self) -> Result<(), BlobError> {
        self.gathered.clear();
        self.incoming.as_mut().map_or(Ok(()), Incoming::restart)
    }

    /// Leaves nothing.
    pub fn discard(mut self) {
        if let Some(incoming) = &mut self.incoming {
            incoming.discard();
        }
    }

    /// Whether what was received has that digest.
    ///
    /// # Errors
    /// As [`Sink::push`].
    pub async fn matches(&mut self, digest: &Digest) -> Result<bool, BlobError> {
        self.flush().await?;
        let incoming = self.incoming.as_ref();
        Ok(incoming.is_some_and(|incoming| incoming.digest() == *digest))
    }

    /// Keeps what was received, durably, if it matches `digest`. Answers its size.
    ///
    /// # Errors
    /// It does not match, or cannot be kept: nothing is left then.
    pub async fn finish(mut self, digest: Digest) -> Result<u64, BlobError> {
        self.flush().await?;
        let Some(incoming) = self.incoming.take() else {
            unreachable!("a flush that succeeded puts it back");
        };
        let bringer = self.bringer;
        blocking(move || self.store.keep(incoming, &digest, bringer)).await
    }
}
