//! What a client sent to a program's standard input and nobody may have taken yet. Pure.
//!
//! A supervisor that is replaced says how much it took; the rest is sent again to the new one. What is on its way is less
//! than what is kept: the connection's windows and the channels hold 128 KiB.

use std::collections::VecDeque;

use bytes::Bytes;

/// What is kept, in bytes.
const KEPT: usize = 256 * 1024;

/// Standard input on its way.
#[derive(Debug, Default)]
pub struct Stdin {
    /// To be sent yet, in order.
    waiting: VecDeque<Bytes>,
    /// Sent, the oldest first.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// In bytes, since the stream to this supervisor began.
    sent: u64,
    ended: bool,
    end_sent: bool,
}

/// What is to be sent next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Data(Bytes),
    End,
}

/// The supervisor lost more than is kept, or says that it took more than there was.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("standard input was lost while the VM's supervisor was replaced")]
pub struct Lost;

impl Stdin {
    /// Takes what the client sent; what comes after the end is nothing.
    pub fn push(&mut self, data: Bytes) {
        if !self.ended && !data.is_empty() {
            self.waiting.push_back(data);
        }
    }

    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Whether something is to be sent: then nothing more is to be taken.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || (self.ended && !self.end_sent)
    }

    /// Gives what is to be sent next, and counts it as sent.
    pub fn send(&mut self) -> Option<Next> {
        if let Some(data) = self.waiting.pop_front() {
            self.sent += data.len() as u64;
            self.kept_bytes += data.len();
            self.kept.push_back(data.clone());
            while self.kept_bytes > KEPT {
                let Some(old) = self.kept.pop_front() else {
                    break;
                };
                self.kept_bytes -= old.len();
            }
            return Some(Next::Data(data));
        }
        if self.ended && !self.end_sent {
            self.end_sent = true;
            return Some(Next::End);
        }
        None
    }

    /// Another stream begins, as the supervisor took so many bytes of this one: the rest waits again.
    pub fn again(&mut self, taken: u64) -> Result<(), Lost> {
        let lost = self.sent.checked_sub(taken).ok_or(Lost)?;
        let mut lost = usize::try_from(lost).map_err(|_| Lost)?;
        if lost > self.kept_bytes {
            return Err(Lost);
        }
        while lost > 0 {
            let mut piece = self.kept.pop_back().ok_or(Lost)?;
            let part = piece.split_off(piece.len() - piece.len().min(lost));
            lost -= part.len();
            self.waiting.push_front(part);
        }
        self.kept.clear();
        (self.kept_bytes, self.sent, self.end_sent) = (0, 0, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(stdin: &mut Stdin) -> (Vec<u8>, bool) {
        let (mut bytes, mut end) = (Vec::new(), false);
        while let Some(next) = stdin.send() {
            match next {
                Next::Data(data) => bytes.extend(data),
                Next::End => end = true,
            }
        }
        (bytes, end)
    }

    #[test]
    fn what_was_not_taken_is_sent_again_once() {
        for taken in 0..=6 {
            let mut stdin = Stdin::default();
            for piece in ["ab", "c", "def"] {
                stdin.push(Bytes::from_static(piece.as_bytes()));
            }
            stdin.end();
            assert_eq!(drain(&mut stdin), (b"abcdef".to_vec(), true));
            assert!(!stdin.is_waiting());
            stdin.again(taken).unwrap();
            let left = b"abcdef"[taken as usize..].to_vec();
            assert_eq!(drain(&mut stdin), (left.clone(), true), "{taken}");
            // And again, by the next one.
            stdin.again(0).unwrap();
            assert_eq!(drain(&mut stdin), (left, true), "{taken}");
        }
    }

    #[test]
    fn what_waits_comes_behind_what_is_sent_again() {
        let mut stdin = Stdin::default();
        stdin.push(Bytes::from_static(b"ab"));
        assert_eq!(stdin.send(), Some(Next::Data(Bytes::from_static(b"ab"))));
        stdin.push(Bytes::from_static(b"cd"));
        stdin.again(1).unwrap();
        assert_eq!(drain(&mut stdin), (b"bcd".to_vec(), false));
    }

    #[test]
    fn what_is_kept_is_bounded_and_its_loss_is_told() {
        let mut stdin = Stdin::default();
        for _ in 0..100 {
            stdin.push(Bytes::from(vec![7; 64 * 1024]));
            stdin.send();
        }
        assert!(stdin.kept_bytes <= KEPT);
        assert_eq!(stdin.again(0), Err(Lost));
        let mut stdin = Stdin::default();
        stdin.push(Bytes::from_static(b"ab"));
        stdin.send();
        assert_eq!(stdin.again(3), Err(Lost));
    }
}
