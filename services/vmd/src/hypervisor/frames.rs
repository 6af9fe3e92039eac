//! Messages of a VMM that come one after the other on a stream, with a mark between them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest message. A VMM that was taken over must not make us grow.
const MAX: usize = 256 * 1024;

/// Cuts a stream into messages.
#[derive(Debug)]
pub(super) struct Frames<R> {
    reader: R,
    mark: &'static [u8],
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(super) fn new(reader: R, mark: &'static [u8]) -> Self {
        Self::with_rest(reader, mark, Vec::new())
    }

    /// Goes on where others stopped; `rest` is what they had read already.
    pub(super) fn with_rest(reader: R, mark: &'static [u8], rest: Vec<u8>) -> Self {
        Self {
            reader,
            mark,
            buffer: rest,
        }
    }

    /// What was read of the next messages already.
    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn get_ref(&self) -> &R {
        &self.reader
    }

    /// The next message without its mark; none at the stream's end. May be dropped and called again.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let end = self
                .buffer
                .windows(self.mark.len())
                .position(|bytes| bytes == self.mark);
            if let Some(end) = end {
                let mut message: Vec<u8> = self.buffer.drain(..end + self.mark.len()).collect();
                message.truncate(end);
                return Ok(Some(message));
            }
            if self.buffer.len() > MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a message without an end",
                ));
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_cut_at_their_marks() {
        let mut frames = Frames::new(&b"one\n\ntwo\nthree\n\n\n\nrest"[..], b"\n\n");
        let mut seen = Vec::new();
        while let Some(message) = frames.next().await.unwrap() {
            seen.push(String::from_utf8(message).unwrap());
        }
        assert_eq!(seen, ["one", "two\nthree", ""]);
    }

    #[tokio::test]
    async fn a_message_without_an_end_is_refused() {
        let mut frames = Frames::new(tokio::io::repeat(b'x'), b"\n");
        let error = frames.next().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(frames.buffer.len() < 4 * MAX);
    }
}
