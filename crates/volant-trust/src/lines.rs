//! What minisign's three kinds of file have in common: comment lines and lines of base64.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Begins a line that nobody has signed.
pub(crate) const UNTRUSTED: &str = "untrusted comment: ";
/// Begins the line that the global signature covers.
pub(crate) const TRUSTED: &str = "trusted comment: ";

/// The lines of a file; those after the last that is not blank are not given.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.trim_end_matches(['\n', '\r', ' ', '\t'])
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
}

/// Exactly `N` bytes of base64, padded.
pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Longer than N bytes can be: do not decode it at all.
    if text.len() > N.div_ceil(3) * 4 {
        return None;
    }
    STANDARD.decode(text).ok()?.try_into().ok()
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Cuts `N` bytes off the front.
///
/// # Panics
/// Not while the callers' sizes add up to that of their array.
pub(crate) fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes
        .split_first_chunk::<N>()
        .expect("the parts add up to the whole, whose size was checked");
    *bytes = rest;
    *taken
}

/// Whether a comment can be shown on a terminal, and stands on one line.
pub(crate) fn is_plain(comment: &str) -> bool {
    comment.chars().all(|c| c == '\t' || !c.is_control())
}
