//! Frames on their way to the guest, which a wait that is given up does not tear apart.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use volant_session::{Frame, HEADER};

/// What is to be written. Whoever puts frames in waits for [`Outbox::flush`] before the next long one: nothing else bounds
/// it.
#[derive(Debug)]
pub struct Outbox<W> {
    inner: W,
    rest: BytesMut,
}

impl<W> Outbox<W> {
    pub fn new(inner: W) -> Self {
        Self::with_rest(inner, BytesMut::new())
    }

    /// An outbox that goes on where another one stopped.
    pub fn with_rest(inner: W, rest: BytesMut) -> Self {
        Self { inner, rest }
    }

    /// All is written.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes a frame, whose payload is no longer than a frame's may be.
    pub fn put(&mut self, frame: &Frame) {
        let size = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
        self.rest.reserve(HEADER + frame.payload.len());
        self.rest.put_u8(frame.kind as u8);
        self.rest.put_u32_le(size);
        self.rest.put_slice(&frame.payload);
    }

    /// What is not written yet.
    pub fn rest(&self) -> Bytes {
        Bytes::copy_from_slice(&self.rest)
    }

    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The connection, without what is not written yet.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    /// Writes all that was put in. May be dropped at its await and called again.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.rest.has_remaining() {
            if self.inner.write_buf(&mut self.rest).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        // What a long frame took is given back.
        self.rest = BytesMut::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::duplex, time::timeout};
    use volant_session::{Kind, Reader};

    use super::*;

    #[tokio::test]
    async fn a_flush_that_is_given_up_loses_and_repeats_nothing() {
        let (ours, theirs) = duplex(100);
        let frame = Frame::new(Kind::Input, vec![7; 10_000]);
        let mut outbox = Outbox::new(ours);
        outbox.put(&frame);
        assert!(
            timeout(Duration::from_millis(10), outbox.flush())
                .await
                .is_err()
        );
        assert!(!outbox.is_empty());
        let mut reader = Reader::new(theirs);
        let (sent, got) = tokio::join!(outbox.flush(), reader.next());
        sent.unwrap();
        assert_eq!(got.unwrap(), Some(frame));
        assert!(outbox.is_empty());
    }
}
