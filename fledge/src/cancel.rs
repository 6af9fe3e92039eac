//! Ctrl-C: a build that is told to end does so at its next step, and takes what it made with it.

use tokio_util::sync::CancellationToken;

/// Tells a build to end. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel(CancellationToken);

/// The build was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

impl Cancel {
    pub fn cancel(&self) {
        self.0.cancel();
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// # Errors
    /// The build was told to end.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    /// Waits until the build is told to end.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }
}
