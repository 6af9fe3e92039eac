//! What of a turn of a life others want to hear. Pure.

use super::{Life, Step};

/// Something that happened to the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The agent said hello.
    Booted,
    Ready,
    Paused,
    Resumed,
    Rebooting,
    Stopping,
    Ended,
}

impl News {
    /// Its name on the bus and in `VOLANT_EVENT=`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Rebooting => "rebooting",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }
}

/// What happened between two looks at a life.
#[must_use]
pub fn news(before: &Life, after: &Life) -> Option<News> {
    use Step::{Booting, Ended, Paused, Running, Starting, Stopping};
    if after.rebooted() > before.rebooted() && !matches!(after.step(), Ended(_)) {
        return Some(News::Rebooting);
    }
    match (before.step(), after.step()) {
        (Ended(_), _) => None,
        (_, Ended(_)) => Some(News::Ended),
        (Stopping(_), Stopping(_)) => None,
        (_, Stopping(_)) => Some(News::Stopping),
        (Booting { greeted: true } | Running | Paused, Booting { greeted: true }) => None,
        (_, Booting { greeted: true }) => Some(News::Booted),
        (Running, Running) | (Paused, Paused) => None,
        (Paused, Running) => Some(News::Resumed),
        (_, Running) => Some(News::Ready),
        (_, Paused) => Some(News::Paused),
        (_, Starting | Booting { greeted: false }) => None,
    }
}
