//! The processes that a start left running, attended until the stop: the death of one is noticed at
//! once, by the kernel's word and not by asking.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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

/// Processes of a service, held: the death of any of them is known later, whenever that is asked.
pub struct Held(Vec<(Process, Option<PidFd>)>);

impl Held {
    /// Takes hold of what there is now. Ask only then whether the service runs: what dies between
    /// a look and the hold would be missed by both.
    pub async fn of(scope: &Scope) -> Self {
        let roots = processes::roots(&scope.processes().await);
        let hold = |process: Process| {
            // The number may have gone to somebody else before it was held.
            let held = PidFd::open(process.pid).ok().filter(|_| process.lives());
            (process, held)
        };
        Self(roots.into_iter().take(ATTENDED_MAX).map(hold).collect())
    }

    /// There was nothing that could be held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the watcher of a service is told.
pub enum News {
    /// It was started. What died before its processes were held is not known.
    Began,
    /// A process died that ought to live.
    Died(Process),
}

/// Tells the watcher of a service when it is to run.
pub struct Attendance {
    /// Rises with every start; odd while it is to run.
    turn: watch::Sender<u64>,
    /// What the watcher attends next.
    held: Mutex<Option<Held>>,
    /// The turn of the last start that the watcher has not been told of.
    untold: AtomicU64,
}

impl Default for Attendance {
    fn default() -> Self {
        Self { turn: watch::channel(0).0, held: Mutex::default(), untold: AtomicU64::new(0) }
    }
}

impl Attendance {
    /// It runs from now on, and whatever of it ends has failed.
    pub fn begins(&self, held: Held) {
        *self.held() = Some(held);
        self.turn.send_modify(|turn| {
            *turn += if *turn % 2 == 0 { 1 } else { 2 };
            self.untold.store(*turn, Relaxed);
        });
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held before a monitor that may find it running: only where this process neither
    /// started nor found it yet.
    pub async fn before_adoption(&self, scope: &Scope) -> Option<Held> {
        let is_new = *self.turn.borrow() == 0;
        if is_new { Some(Held::of(scope).await) } else { None }
    }

    /// It was found running, by a daemon that did not start it itself.
    pub fn adopts(&self, held: Option<Held>) {
        self.turn.send_if_modified(|turn| {
            let is_new = *turn == 0;
            if is_new {
                *self.held() = held;
            }
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
        *self.held() = None;
        self.turn.send_modify(|turn| *turn += *turn % 2);
    }

    /// Waits until it was started, or a process of the scope dies that ought to live. Nothing is
    /// missed between two calls.
    pub async fn news(&self, scope: &Scope) -> News {
        let mut turns = self.turn.subscribe();
        loop {
            let turn = *turns.borrow_and_update();
            if turn.is_multiple_of(2) {
                turns.changed().await.expect("the sender is in self");
                continue;
            }
            if self.untold.compare_exchange(turn, 0, Relaxed, Relaxed).is_ok() {
                return News::Began;
            }
            let held = self.held().take();
            let died = async {
                let held = match held {
                    Some(held) => held,
                    None => Held::of(scope).await,
                };
                let died = first_death(held).await;
                (died, Held::of(scope).await)
            };
            tokio::select! {
                (died, others) = died => {
                    // A stop that began meanwhile has the death for itself.
                    if *turns.borrow() == turn {
                        *self.held() = Some(others);
                        return News::Died(died);
                    }
                }
                changed = turns.changed() => changed.expect("the sender is in self"),
            }
        }
    }
}

async fn first_death(Held(attended): Held) -> Process {
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

#[cfg(test)]
mod tests {
    use tokio::process::{Child, Command};

    use super::*;

    fn sleeper(scope: &Scope) -> Child {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").envs([scope.mark()]).kill_on_drop(true).spawn().unwrap()
    }

    async fn died(attendance: &Attendance, scope: &Scope) -> Option<u32> {
        let news = tokio::time::timeout(Duration::from_secs(30), attendance.news(scope)).await;
        match news.expect("news") {
            News::Began => None,
            News::Died(process) => Some(process.pid as u32),
        }
    }

    #[tokio::test]
    async fn who_dies_while_nobody_waits_for_it_is_missed_by_nobody() {
        let dir = std::env::temp_dir().join(format!("replicator-attended-{}", std::process::id()));
        let (scope, attendance) = (Scope::new(&dir, "db", "feed", "run"), Attendance::default());
        let mut children = [sleeper(&scope), sleeper(&scope)];
        let numbers = children.each_ref().map(|child| child.id());
        attendance.begins(Held::of(&scope).await);
        for (child, number) in children.iter_mut().zip(numbers) {
            // Killed and forgotten by the kernel before it is asked for.
            child.kill().await.unwrap();
            if number == numbers[0] {
                assert_eq!(died(&attendance, &scope).await, None, "the start comes first");
            }
            assert_eq!(died(&attendance, &scope).await, number);
        }
    }
}
