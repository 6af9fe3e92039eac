//! Cuts a stream of bytes into lines of bounded length.

/// The most bytes of one piece.
pub const MAX_LINE: usize = 8 * 1024;

/// Holds the beginning of a line whose end has not come yet: never more than [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes of the stream and gives `emit` each line that they complete, without its newline. A line that is
    /// longer than [`MAX_LINE`] comes in pieces.
    pub fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Vec<u8>)) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.partial.len();
            // A newline right after a full piece ends that piece, and makes no empty line of its own.
            let end = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            if let Some(end) = end {
                self.partial.extend_from_slice(&bytes[..end]);
                emit(std::mem::take(&mut self.partial));
                bytes = &bytes[end + 1..];
            } else if bytes.len() > room {
                self.partial.extend_from_slice(&bytes[..room]);
                emit(std::mem::take(&mut self.partial));
                bytes = &bytes[room..];
            } else {
                self.partial.extend_from_slice(bytes);
                bytes = &[];
            }
        }
    }

    /// The stream has ended: what is left of it, if anything.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then_some(self.partial)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |line| lines.push(line));
        }
        lines.extend(splitter.finish());
        lines
    }

    /// The naive way: all at once.
    fn model(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut parts: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
        let last = parts.pop().unwrap();
        for part in parts {
            if part.is_empty() {
                lines.push(Vec::new());
            }
            lines.extend(part.chunks(MAX_LINE).map(<[u8]>::to_vec));
        }
        lines.extend(last.chunks(MAX_LINE).map(<[u8]>::to_vec));
        lines
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_bound() {
        let full = vec![b'x'; MAX_LINE];
        let more = vec![b'x'; MAX_LINE + 1];
        let full_and_newline = [&full[..], b"\n"].concat();
        for (chunks, expected) in [
            (vec![], vec![]),
            (vec![&b"a\nb\n"[..]], vec![&b"a"[..], b"b"]),
            (vec![b"a", b"b", b"\n\nc"], vec![b"ab", b"", b"c"]),
            (vec![b"\0\xff\r\n"], vec![b"\0\xff\r"]),
            (vec![&full_and_newline], vec![&full]),
            (vec![&full, b"\n"], vec![&full]),
            (vec![&more, b"\n"], vec![&full, b"x"]),
        ] {
            assert_eq!(split(&chunks), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn how_the_bytes_arrive_does_not_matter(
            runs in prop::collection::vec((prop::sample::select(vec![b'\n', b'a', 0]), 1..(MAX_LINE + 3)), 0..8),
            size in 1..3 * MAX_LINE,
        ) {
            let bytes: Vec<u8> = runs.iter().flat_map(|(byte, count)| {
                // Newlines one at a time, or the runs would be of empty lines only.
                vec![*byte; if *byte == b'\n' { 1 } else { *count }]
            }).collect();
            let chunks: Vec<_> = bytes.chunks(size).collect();
            prop_assert_eq!(split(&chunks), model(&bytes));
        }
    }
}
