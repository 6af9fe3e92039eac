//! Programs in the guest whose clients are to come back, as their supervisor was replaced.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;
use volant_session::Frame;

use crate::session::Session;

/// How long a program waits for its client.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program that runs in the guest.
#[derive(Debug)]
pub struct Program {
    pub id: String,
    /// In the guest.
    pub pid: u32,
    pub session: Session,
    /// A frame of the guest that its client did not get yet.
    pub undelivered: Option<Frame>,
    /// The client said that no input comes any more.
    pub input_ended: bool,
    /// The guest takes nothing any more.
    pub deaf: bool,
}

/// What is parked. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Parked(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    programs: HashMap<String, Program>,
    /// How many programs there were, those of earlier supervisors too.
    count: u64,
}

impl Parked {
    /// What an earlier supervisor left, which had so many programs.
    #[must_use]
    pub fn with_count(count: u64) -> Self {
        let state = State {
            programs: HashMap::new(),
            count,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new program's name, which no other of this run of the VM has.
    #[must_use]
    pub fn id(&self) -> String {
        let mut state = self.state();
        state.count += 1;
        format!("exec-{}", state.count)
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.state().count
    }

    /// Keeps a program for its client, for a while. Its connection's end is its own.
    pub fn put(&self, program: Program) {
        let id = program.id.clone();
        self.state().programs.insert(id.clone(), program);
        let parked = self.clone();
        tokio::spawn(async move {
            sleep(PATIENCE).await;
            if parked.take(&id).is_some() {
                tracing::warn!("nobody came back to {id}: it is ended");
            }
        });
    }

    pub fn take(&self, id: &str) -> Option<Program> {
        self.state().programs.remove(id)
    }

    /// Looks at what is parked.
    pub fn look<T>(&self, look: impl FnMut(&Program) -> T) -> Vec<T> {
        self.state().programs.values().map(look).collect()
    }
}
