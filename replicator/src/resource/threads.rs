//! Work that may block, on a thread of its own; and what becomes of it when the machine has no
//! thread to give (TasksMax of systemd, memory).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::Resource;
use crate::control::RefusalReport;
use crate::events::Weight;

impl Resource {
    /// Runs something that may block on a thread of its own. Without one it is not done: for what
    /// comes again by itself.
    pub(crate) fn in_helper(
        self: &Arc<Self>,
        what: &str,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        // Dropped with its error told.
        let _ = self.try_in_helper(what, work);
    }

    /// The same for what must be done: without a thread here and now, however long it takes.
    pub(crate) fn in_helper_or_here(
        self: &Arc<Self>,
        what: &str,
        work: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        if let Err(work) = self.try_in_helper(what, work) {
            work(self);
        }
    }

    /// The same for who must not wait and has an answer to give: the work comes back when there
    /// is no thread for it.
    pub(super) fn try_in_helper<W>(self: &Arc<Self>, what: &str, work: W) -> Result<(), W>
    where
        W: FnOnce(&Arc<Self>) + Send + 'static,
    {
        let builder = thread::Builder::new().name(format!("{what} {}", self.name()));
        let resource = self.clone();
        start(builder, work, move |work| work(&resource)).map_err(|(error, work)| {
            self.emit(Weight::Error, format!("cannot start a thread to {what}: {error}"));
            work
        })
    }
}

/// Why nothing was done.
pub(super) fn no_thread(what: &str) -> RefusalReport {
    RefusalReport::new(
        "no_thread",
        format!("this machine gives no thread to {what}"),
        "see that memory is left, and what TasksMax= of the unit and pids.max of its cgroup say",
    )
}

/// Starts a thread; without one the work comes back.
fn start<W: Send + 'static>(
    builder: thread::Builder,
    work: W,
    run: impl FnOnce(W) + Send + 'static,
) -> Result<(), (io::Error, W)> {
    let place = Arc::new(Mutex::new(Some(work)));
    let take = |place: &Mutex<Option<W>>| {
        place.lock().unwrap_or_else(PoisonError::into_inner).take().expect("it is taken once")
    };
    let theirs = place.clone();
    match builder.spawn(move || run(take(&theirs))) {
        Ok(_) => Ok(()),
        Err(error) => Err((error, take(&place))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn without_a_thread_the_work_comes_back() {
        let (told, heard) = mpsc::channel();
        let run = |told: mpsc::Sender<&str>| told.send("done").unwrap();
        start(thread::Builder::new(), told.clone(), run).unwrap();
        assert_eq!(heard.recv().unwrap(), "done");
        // No machine has so much memory.
        let builder = thread::Builder::new().stack_size(1 << 60);
        let (_, told) = start(builder, told, run).unwrap_err();
        told.send("is back").unwrap();
        assert_eq!(heard.recv().unwrap(), "is back");
    }
}
