//! Who waits for which of systemd's jobs. No bus here: what it says is put in.
//!
//! The end of a job may be told before the reply that names the job. So while a call is under way, the ends of
//! jobs that nobody waits for are kept; they are forgotten when no call is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The jobs that are waited for. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Jobs(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    calls: usize,
    early: HashMap<String, String>,
    waiting: HashMap<String, Vec<oneshot::Sender<String>>>,
    closed: bool,
}

/// A call under way that will name a job.
#[derive(Debug)]
pub struct Call(Jobs);

impl Jobs {
    /// To be called before a job is asked for.
    pub fn call(&self) -> Call {
        self.table().calls += 1;
        Call(self.clone())
    }

    /// A job ended.
    pub fn ended(&self, job: &str, result: &str) {
        let mut table = self.table();
        if let Some(waiters) = table.waiting.remove(job) {
            for waiter in waiters {
                // A waiter that is gone needs no answer.
                let _ = waiter.send(result.to_owned());
            }
        }
        if table.calls > 0 {
            table.early.insert(job.to_owned(), result.to_owned());
        }
    }

    /// No end will be told any more.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        table.waiting.clear();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No change below can be left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// The result of the job that the call named; an error once no end will be told.
    pub fn wait(self, job: &str) -> oneshot::Receiver<String> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.table();
        if let Some(result) = table.early.get(job) {
            let _ = sender.send(result.clone());
        } else if !table.closed {
            table
                .waiting
                .entry(job.to_owned())
                .or_default()
                .push(sender);
        }
        drop(table);
        receiver
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.calls -= 1;
        if table.calls == 0 {
            table.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_heard_before_and_after_the_reply() {
        let jobs = Jobs::default();
        let (first, second) = (jobs.call(), jobs.call());
        jobs.ended("/job/1", "done");
        let (mut first, mut second) = (first.wait("/job/1"), second.wait("/job/2"));
        assert_eq!(first.try_recv().unwrap(), "done");
        assert!(second.try_recv().is_err());
        jobs.ended("/job/2", "failed");
        assert_eq!(second.try_recv().unwrap(), "failed");
    }

    #[test]
    fn two_can_wait_for_one_job() {
        let jobs = Jobs::default();
        let mut both = [jobs.call().wait("/job/1"), jobs.call().wait("/job/1")];
        jobs.ended("/job/1", "done");
        for waiter in &mut both {
            assert_eq!(waiter.try_recv().unwrap(), "done");
        }
    }

    #[test]
    fn nothing_is_kept_when_no_call_is_under_way() {
        let jobs = Jobs::default();
        let call = jobs.call();
        jobs.ended("/job/1", "done");
        drop(call);
        jobs.ended("/job/2", "done");
        assert!(jobs.table().early.is_empty());
        assert!(jobs.table().waiting.is_empty());
    }

    #[test]
    fn a_closed_bus_ends_every_wait() {
        let jobs = Jobs::default();
        let mut before = jobs.call().wait("/job/1");
        jobs.close();
        let mut after = jobs.call().wait("/job/2");
        for waiter in [&mut before, &mut after] {
            let told = waiter.try_recv();
            assert_eq!(told, Err(oneshot::error::TryRecvError::Closed));
        }
    }
}
