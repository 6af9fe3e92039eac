//! The terminal that a person sits at.

use std::io::{self, IsTerminal};

use rustix::termios::{self, OptionalActions, Termios};

use crate::failure::Failure;

/// Rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// The terminal as long as its keys are somebody else's; it is as it was when this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// From now on every key goes through as it is.
    pub fn enter() -> Result<Self, Failure> {
        let failed = |errno: rustix::io::Errno| Failure::Io {
            act: "cannot set the terminal".to_owned(),
            source: errno.into(),
        };
        let before = termios::tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        // The guard first: what is set halfway is undone, too.
        let guard = Self(before);
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // After what was written to it. A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Raw")
    }
}

/// The size of the terminal here, if there is one and it has a size.
#[must_use]
pub fn size() -> Option<Size> {
    let size = [
        termios::tcgetwinsize(io::stdout()),
        termios::tcgetwinsize(io::stdin()),
    ];
    let size = size.into_iter().flatten().find(|size| size.ws_col > 0)?;
    Some(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

#[must_use]
pub fn is_typed() -> bool {
    io::stdin().is_terminal()
}
