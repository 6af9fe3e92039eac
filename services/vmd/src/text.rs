//! Text of a guest, made fit for a host's log and terminal. Pure.

use std::fmt::Write;

/// The longest line that is kept, in bytes; what is longer comes in pieces.
pub const MAX_LINE: usize = 8 * 1024;

/// One line that no terminal takes for a command: control characters are written as escapes (tabs stay), bytes that are
/// no UTF-8 become `U+FFFD`, blanks at the end go, and after about `max` bytes it is cut.
#[must_use]
pub fn printable(bytes: &[u8], max: usize) -> String {
    let cut = bytes.len() > max;
    let bytes = bytes.get(..max).unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        // Format characters that turn the direction of text hide what a line says.
        let deceives = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\t') || deceives {
            // Writing to a String cannot fail.
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    if cut {
        line.push('…');
    }
    line
}

/// Cuts a stream of bytes into lines of at most [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes and gives the lines that are whole now, without their newlines.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_LINE - self.rest.len();
            let window = bytes.get(..room).unwrap_or(bytes);
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.rest.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    lines.push(std::mem::take(&mut self.rest));
                }
                None => {
                    self.rest.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.rest.len() == MAX_LINE {
                        lines.push(std::mem::take(&mut self.rest));
                    }
                }
            }
        }
        lines
    }

    /// Lines that go on where others stopped.
    #[must_use]
    pub fn with_rest(mut rest: Vec<u8>) -> Self {
        rest.truncate(MAX_LINE - 1);
        Self { rest }
    }

    /// What came without a newline yet; it stays.
    #[must_use]
    pub fn kept(&self) -> &[u8] {
        &self.rest
    }

    /// What came without a newline yet.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_made_harmless() {
        let cases: [(&[u8], &str); 7] = [
            (b"plain\ttext\r", "plain\ttext"),
            (b"\x1b[31mred", "\\u{1b}[31mred"),
            (b"a\0b\nc", "a\\u{0}b\\nc"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            ("größe".as_bytes(), "größe"),
            ("\u{202e}abc".as_bytes(), "\\u{202e}abc"),
            (b"", ""),
        ];
        for (bytes, expected) in cases {
            assert_eq!(printable(bytes, 100), expected);
        }
        assert_eq!(printable(b"abcdef", 3), "abc…");
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let line = printable(&bytes, 100);
            prop_assert!(line.chars().all(|c| c == '\t' || !c.is_control()));
        }

        #[test]
        fn lines_are_the_same_however_the_bytes_come(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cut in 1..40usize,
        ) {
            let mut lines = Lines::default();
            let mut found: Vec<_> = bytes.chunks(cut).flat_map(|chunk| lines.push(chunk)).collect();
            found.extend(lines.rest());
            let mut expected: Vec<_> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let mut lines = Lines::default();
        let pieces = lines.push(&vec![b'x'; 3 * MAX_LINE + 5]);
        assert_eq!(pieces.len(), 3);
        assert!(pieces.iter().all(|piece| piece.len() == MAX_LINE));
        assert_eq!(lines.rest().map(|rest| rest.len()), Some(5));
        assert_eq!(lines.rest(), None);
    }
}
