//! Reads tar streams: ustar, GNU and PAX, with sparse files of all kinds.
//!
//! The `tar` crate gives the layout of headers; its own reader is not used, since it splits PAX records at
//! newlines (which capabilities contain), reads extended headers of any size into memory and knows no PAX
//! sparse files. Where readers differ, this one does as Go's `archive/tar`, with which images are unpacked
//! elsewhere: entries other than files have no content, whatever size they state.

mod number;
mod pax;
mod reader;
mod sparse;

pub use reader::{Entry, Reader, What};

use std::io;

/// Why a stream is no archive that can be taken.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it ends in the middle of an entry")]
    Truncated,
    #[error("the header at byte {0} is damaged")]
    Header(u64),
    #[error("the extended header at byte {at} {why}")]
    Extended { at: u64, why: &'static str },
    #[error("{name} {why}")]
    Entry { name: String, why: &'static str },
    #[error("it has more than {0} bytes")]
    TooLong(u64),
}
