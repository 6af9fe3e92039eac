//! The frames of a session between a VM's supervisor and its guest's agent: `proto/volant/agent/v1/session.proto` has the
//! format and what each kind means.
//!
//! A frame's length is checked before its payload is read, so that a peer can make nobody hold more than one frame. What a
//! kind's payload says is the caller's matter, and so is the order of frames.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most bytes of a payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Kind and length.
pub const HEADER: usize = 5;

/// What is made room for at first; then for as much as has come already, so that whoever claims a long frame without sending
/// it has nobody keep much, and a long one that comes is moved seldom.
const FIRST: usize = 16 * 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Open = 1,
    Opened = 2,
    Refused = 3,
    Input = 4,
    InputEnd = 5,
    Output = 6,
    Error = 7,
    Resize = 8,
    Signal = 9,
    OutputEnd = 10,
    End = 11,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Open,
        Self::Opened,
        Self::Refused,
        Self::Input,
        Self::InputEnd,
        Self::Output,
        Self::Error,
        Self::Resize,
        Self::Signal,
        Self::OutputEnd,
        Self::End,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub payload: Bytes,
}

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame has the unknown kind {0}")]
    Kind(u8),
    #[error("a frame has {0} bytes; at most {MAX_PAYLOAD} are read")]
    Length(u32),
    #[error("the connection ended in the middle of a frame")]
    CutOff,
    #[error("a frame has a message that cannot be read")]
    Message(#[source] prost::DecodeError),
    #[error("cannot read a frame")]
    Read(#[source] io::Error),
}

impl Frame {
    #[must_use]
    pub fn new(kind: Kind, payload: impl Into<Bytes>) -> Self {
        Self {
            kind,
            payload: payload.into(),
        }
    }

    /// A frame whose payload is that message. One that is too long is the caller's mistake, which [`Writer::send`] tells.
    #[must_use]
    pub fn message(kind: Kind, message: &impl prost::Message) -> Self {
        Self::new(kind, message.encode_to_vec())
    }

    /// The payload as a message.
    ///
    /// # Errors
    /// It is none.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, FrameError> {
        M::decode(self.payload.clone()).map_err(FrameError::Message)
    }
}

/// Reads frames. Holds what was read beyond the last one, which [`Reader::into_parts`] gives.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self::with_rest(inner, BytesMut::new())
    }

    /// A reader that goes on where another one stopped; `rest` is what that had read already.
    pub fn with_rest(inner: R, rest: BytesMut) -> Self {
        Self {
            inner,
            buffer: rest,
        }
    }

    /// The next frame; `None` when the connection ended after the last one. May be dropped at its await: nothing is lost.
    ///
    /// # Errors
    /// The connection fails, or what comes is no frame. There is no use in going on then.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = parse(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            let room = MAX_PAYLOAD + HEADER - self.buffer.len();
            self.buffer.reserve(room.min(self.buffer.len().max(FIRST)));
            let read = (&mut self.inner)
                .take(u64::try_from(room).unwrap_or(u64::MAX))
                .read_buf(&mut self.buffer)
                .await
                .map_err(FrameError::Read)?;
            if read == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(FrameError::CutOff),
                };
            }
        }
    }

    /// The connection.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// What was read of the next frames already.
    pub fn rest(&self) -> &[u8] {
        &self.buffer
    }

    /// The connection, and what was read of the next frames already.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.inner, self.buffer)
    }
}

/// Takes a whole frame out of `buffer`, if there is one.
///
/// # Errors
/// It begins with no frame.
pub fn parse(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some((head, _)) = buffer.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let kind = Kind::of(head[0]).ok_or(FrameError::Kind(head[0]))?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > MAX_PAYLOAD {
        return Err(FrameError::Length(length));
    }
    if buffer.len() < HEADER + size {
        return Ok(None);
    }
    buffer.advance(HEADER);
    let payload = buffer.split_to(size).freeze();
    Ok(Some(Frame { kind, payload }))
}

/// Writes frames.
#[derive(Debug)]
pub struct Writer<W>(pub W);

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Sends a frame. One that was dropped at its await may be half sent: the connection is of no use then.
    ///
    /// # Errors
    /// The connection fails, or the payload is longer than [`MAX_PAYLOAD`] (`InvalidInput`: nothing was sent).
    pub async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let size = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
        if frame.payload.len() > MAX_PAYLOAD {
            let message = format!("a frame of {size} bytes is too long");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut head = [0; HEADER];
        head[0] = frame.kind as u8;
        head[1..].copy_from_slice(&size.to_le_bytes());
        // One call for both: a guest's vsock makes a packet of each.
        let mut whole = Buf::chain(&head[..], &frame.payload[..]);
        self.0.write_all_buf(&mut whole).await?;
        self.0.flush().await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.push(frame.kind as u8);
            bytes.extend(u32::try_from(frame.payload.len()).unwrap().to_le_bytes());
            bytes.extend(&frame.payload);
        }
        bytes
    }

    async fn read(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        let mut reader = Reader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn what_is_no_frame_is_told() {
        let cases: [(&[u8], &str); 4] = [
            (&[99, 0, 0, 0, 0], "unknown kind 99"),
            (&[4, 0, 0, 1, 1], "16842752 bytes"),
            (&[4, 1, 0], "middle of a frame"),
            (&[4, 2, 0, 0, 0, 1], "middle of a frame"),
        ];
        for (bytes, expected) in cases {
            let error = read(bytes).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_not_sent() {
        let mut writer = Writer(Vec::new());
        let frame = Frame::new(Kind::Input, vec![0; MAX_PAYLOAD + 1]);
        let error = writer.send(&frame).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(writer.0.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_arrive_as_they_were_sent_and_the_rest_goes_on(
            sent in prop::collection::vec((prop::sample::select(Kind::ALL.to_vec()), 0..2 * MAX_PAYLOAD), 0..6),
            cut in 0..6usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let frames: Vec<_> = sent.iter()
                    .map(|(kind, size)| Frame::new(*kind, vec![b'x'; *size % (MAX_PAYLOAD + 1)]))
                    .collect();
                let mut writer = Writer(Vec::new());
                for frame in &frames {
                    writer.send(frame).await.unwrap();
                }
                assert_eq!(writer.0, wire(&frames));
                let mut first = Reader::new(&writer.0[..]);
                let mut got = Vec::new();
                for _ in 0..cut.min(frames.len()) {
                    got.push(first.next().await.unwrap().unwrap());
                }
                let (inner, rest) = first.into_parts();
                let mut second = Reader::with_rest(inner, rest);
                while let Some(frame) = second.next().await.unwrap() {
                    got.push(frame);
                }
                assert_eq!(got, frames);
            });
        }

        #[test]
        fn nothing_that_arrives_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(read(&bytes));
        }
    }
}
