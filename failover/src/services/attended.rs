//! The processes that a start left running, attended until the stop: the death of one is noticed at
//! once, by the kernel's word and not by asking.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;

use super::pidfd::PidFd;
use super::processes::{self, Process};
use super::scope::Scope;

/// More are not attended one by one; the others are still killed and named.
const ATTENDED_MAX: usize = 200;
/// When the monitor is asked after a death, each after the one before: who dies may be a zombie
/// for a while, and what is left of the service may go on for a moment.
pub const ASKED_AFTER: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(500), Duration::from_secs(2)];

/// Processes, and what holds them where they could be held.
type Attended = Vec<(Process, Option<PidFd>)>;

/// Tells the watcher of a service when it is to run.
pub struct Attendance {
    /// Rises with every start; odd while it is to run.
    turn: watch::Sender<u64>,
    /// What the start left, held before it is called done.
    left: Mutex<Option<Attended>>,
}

impl Default for Attendance {
    fn default() -> Self {
        Self { turn: watch::channel(0).0, left: Mutex::default() }
    }
}

impl Attendance {
    /// It runs from now on, and whatever of it ends has failed.
    pub async fn begins(&self, scope: &Scope) {
        let left = attend(scope).await;
        *self.left() = Some(left);
        self.turn.send_modify(|turn| *turn += if *turn % 2 == 0 { 1 } else { 2 });
    }

    fn left(&self) -> MutexGuard<'_, Option<Attended>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was found running, by a daemon that did not start it itself.
    pub fn adopts(&self) {
        self.turn.send_if_modified(|turn| {
            let is_new = *turn == 0;
            *turn += u64::from(is_new);
            is_new
        });
    }

    /// Whether it is to run, as far as this process knows.
    pub fn is_open(&self) -> bool {
        *self.turn.borrow() % 2 == 1
    }

    /// Runs something, and drops it when the service is to end meanwhile.
    pub async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut turns = self.turn.subscribe();
        tokio::select! {
            done = work => Some(done),
            _ = turns.wait_for(|turn| turn % 2 == 0) => None,
        }
    }

    /// From now on its processes may end.
    pub fn ends(&self) {
        *self.left() = None;
        self.turn.send_modify(|turn| *turn += *turn % 2);
    }

    /// Waits until a process of the scope dies that ought to live; returns its name.
    pub async fn death(&self, scope: &Scope) -> Process {
        let mut turns = self.turn.subscribe();
        loop {
            let turn = *turns.borrow_and_update();
            if turn % 2 == 1 {
                let left = self.left().take();
                let died = async {
                    let attended = match left {
                        Some(left) => left,
                        None => attend(scope).await,
                    };
                    first_death(attended).await
                };
                tokio::select! {
                    died = died => {
                        // A stop that began meanwhile has the death for itself.
                        if *turns.borrow() == turn {
                            return died;
                        }
                        continue;
                    }
                    changed = turns.changed() => changed.expect("the sender is in self"),
                }
            } else {
                turns.changed().await.expect("the sender is in self");
            }
        }
    }
}

async fn attend(scope: &Scope) -> Attended {
    let roots = processes::roots(&scope.processes().await);
    let hold = |process: Process| {
        // The number may have gone to somebody else before it was held.
        let held = PidFd::open(process.pid).ok().filter(|_| process.lives());
        (process, held)
    };
    roots.into_iter().take(ATTENDED_MAX).map(hold).collect()
}

async fn first_death(attended: Attended) -> Process {
    let mut held = Vec::new();
    for (process, fd) in attended {
        match fd {
            Some(fd) => held.push(Box::pin(async move {
                match fd.ended().await {
                    // It may have become another program meanwhile; a zombie still has its name.
                    Ok(()) => Process::of(process.pid)
                        .filter(|now| now.began == process.began)
                        .unwrap_or(process),
                    // It cannot be attended; the monitor still asks.
                    Err(_) => std::future::pending().await,
                }
            })),
            None => return process,
        }
    }
    match held.is_empty() {
        true => std::future::pending().await,
        false => select_all(held).await.0,
    }
}
