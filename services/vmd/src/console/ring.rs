//! The last bytes of a stream, and how many there ever were. Pure.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Keeps [`Ring::KEPT`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    bytes: VecDeque<u8>,
    /// How many bytes there ever were: the position after the last one.
    end: u64,
}

impl Ring {
    pub const KEPT: usize = 256 * 1024;

    pub fn push(&mut self, bytes: &[u8]) {
        self.end = self.end.saturating_add(count(bytes.len()));
        let bytes = &bytes[bytes.len().saturating_sub(Self::KEPT)..];
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(Self::KEPT);
        self.bytes.drain(..excess);
        self.bytes.extend(bytes);
    }

    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The position from which the last `bytes` are read, or as many as there are.
    #[must_use]
    pub fn back(&self, bytes: usize) -> u64 {
        self.end - count(bytes.min(self.bytes.len()))
    }

    /// At most `max` bytes from a position on, and how many bytes before them are not kept any more.
    #[must_use]
    pub fn read(&self, position: u64, max: usize) -> (u64, Vec<u8>) {
        let first = self.back(Self::KEPT);
        let lost = first.saturating_sub(position);
        let skipped = position.max(first).min(self.end) - first;
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let bytes = self.bytes.iter().skip(skipped).take(max);
        (lost, bytes.copied().collect())
    }
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_reader_gets_all_in_order_or_is_told_how_much_it_lost(
            pushes in prop::collection::vec((1..3 * Ring::KEPT / 2, 0..4usize), 1..6),
        ) {
            let mut ring = Ring::default();
            let mut all = Vec::new();
            let mut position = 0;
            for (size, reads) in pushes {
                let chunk: Vec<u8> = (all.len()..all.len() + size).map(|at| (at % 251) as u8).collect();
                ring.push(&chunk);
                all.extend(chunk);
                prop_assert!(ring.bytes.len() <= Ring::KEPT);
                for _ in 0..reads {
                    let (lost, bytes) = ring.read(position, 50_000);
                    let from = usize::try_from(position + lost).unwrap();
                    prop_assert_eq!(&bytes[..], &all[from..(from + 50_000).min(all.len())]);
                    prop_assert!(lost == 0 || all.len() - from == Ring::KEPT);
                    position += lost + bytes.len() as u64;
                }
            }
            prop_assert_eq!(ring.end(), all.len() as u64);
            prop_assert_eq!(ring.read(ring.back(10), 100).1, &all[all.len().saturating_sub(10)..]);
            prop_assert_eq!(ring.read(ring.end() + 5, 100), (0, Vec::new()));
        }
    }
}
