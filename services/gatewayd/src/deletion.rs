//! The deletions under way, so that two requests to delete a VM are one deletion.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tracing::Instrument;
use volant_spec::Name;

use crate::Problem;

/// A deletion under way, and how it ended for all who wait for it.
pub type Deletion = Shared<BoxFuture<'static, Result<(), Problem>>>;

/// All of them, by name. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Deletions(Arc<Mutex<HashMap<Name, Deletion>>>);

impl Deletions {
    /// The deletion of that name that is under way; without one, `work` is, from now on.
    pub fn join<W>(&self, name: &Name, work: impl FnOnce() -> W) -> Deletion
    where
        W: Future<Output = Result<(), Problem>> + Send + 'static,
    {
        let begin = || {
            let (these, name, work) = (self.clone(), name.clone(), work());
            let task = async move {
                let _listed = Listed { these, name };
                work.await
            };
            let task = tokio::spawn(task.in_current_span());
            let ended = async move { task.await.unwrap_or_else(|error| Err(cut_off(&error))) };
            ended.boxed().shared()
        };
        self.table()
            .entry(name.clone())
            .or_insert_with(begin)
            .clone()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Name, Deletion>> {
        // No change can be left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A deletion is on the list while this is there: one that panics must not keep later ones from beginning.
struct Listed {
    these: Deletions,
    name: Name,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.these.table().remove(&self.name);
    }
}

/// What is told of a task that did not come to its end.
pub fn cut_off(error: &tokio::task::JoinError) -> Problem {
    Problem::internal(format!("the work was cut off: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deletion_that_panics_is_not_in_the_way_of_the_next_one() {
        let (deletions, web) = (Deletions::default(), "web".parse::<Name>().unwrap());
        let first = deletions.join(&web, || async { panic!("out of luck") });
        let joined = deletions.join(&web, || async { Ok(()) });
        for told in [first.await, joined.await] {
            assert!(told.unwrap_err().detail.contains("cut off"));
        }
        let next = deletions.join(&web, || async { Ok(()) });
        assert_eq!(next.await, Ok(()));
        assert!(deletions.table().is_empty());
    }
}
