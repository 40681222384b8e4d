//! The same question to many, where each answer may take its time.

use std::thread;

/// Asks all at the same time, and one after the other where the machine has no threads to give. The
/// answers are in the order of the asked.
pub fn at_once<I: Sync, A: Send>(asked: &[I], ask: impl Fn(&I) -> A + Sync) -> Vec<A> {
    thread::scope(|scope| {
        let begin = |of| {
            let ask = &ask;
            thread::Builder::new().spawn_scoped(scope, move || ask(of)).map_err(|_| of)
        };
        let begun: Vec<_> = asked.iter().map(begin).collect();
        let answers = begun.into_iter().map(|begun| match begun {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(of) => ask(of),
        });
        answers.collect()
    })
}
