//! Questions at the same time, where each answer may take its time.

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};

/// Asks all at the same time, and one after the other where the machine has no threads to give. The
/// answers are in the order of the asked.
pub fn at_once<I: Sync, A: Send>(asked: &[I], ask: impl Fn(&I) -> A + Sync) -> Vec<A> {
    thread::scope(|scope| {
        let begin = |of| {
            let ask = &ask;
            thread::Builder::new().spawn_scoped(scope, move || ask(of)).map_err(|_| of)
        };
        let begun: Vec<_> = asked.iter().map(begin).collect();
        begun.into_iter().map(|begun| begun.map_or_else(&ask, answer)).collect()
    })
}

/// Two different questions in the same way.
pub fn both<A: Send, B>(first: impl Fn() -> A + Sync, second: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let begun = thread::Builder::new().spawn_scoped(scope, &first);
        let other = second();
        (begun.map_or_else(|_| first(), answer), other)
    })
}

fn answer<A>(thread: ScopedJoinHandle<'_, A>) -> A {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
