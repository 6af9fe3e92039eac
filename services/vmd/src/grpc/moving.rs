//! The moment in which everything here is handed over to another vmd.

use tokio::sync::watch;

/// Says when. Clones say the same.
#[derive(Clone, Debug)]
pub struct Moving(watch::Receiver<bool>);

/// Who decides.
#[derive(Debug)]
pub struct Mover(watch::Sender<bool>);

impl Mover {
    #[must_use]
    pub fn new() -> (Self, Moving) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), Moving(receiver))
    }

    /// Has everything park, or end.
    pub fn go(&self) {
        self.0.send_replace(true);
    }
}

impl Moving {
    /// Resolves when it is time; never without anybody to decide. May be dropped at its await.
    pub async fn now(&mut self) {
        if self.0.wait_for(|moving| *moving).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
