//! A failure that is none, for tests of what reports, minimises and counts failures. It happens in
//! every seed, once its troubles 5 and 9 took place and its request 7 was made.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::failure::Kind;
use crate::world::World;

static KIND: AtomicU8 = AtomicU8::new(0);
const KINDS: [Kind; 3] = [Kind::Crash, Kind::Liveness, Kind::Safety];

/// Every seed fails from now on in this way; `None` when it is called `crash`, `liveness` or
/// `safety` by nobody.
pub fn pretend(name: &str) -> Option<()> {
    let at = KINDS.iter().position(|kind| format!("{kind:?}").eq_ignore_ascii_case(name))?;
    KIND.store(at as u8 + 1, Ordering::Relaxed);
    Some(())
}

impl World {
    /// Fails for no reason, if that is wanted.
    pub fn pretend(&mut self) {
        let Some(at) = usize::from(KIND.load(Ordering::Relaxed)).checked_sub(1) else { return };
        let took_place = |number| self.caused.iter().any(|trouble| trouble.0 == number);
        let is_made = self.plan.requests - self.clients.left >= 7 && self.parts.requests.has(7);
        if took_place(5) && took_place(9) && is_made {
            let text = "a pretended failure";
            assert!(KINDS[at] != Kind::Crash, "{text}");
            self.fail(KINDS[at], "(none)", text.into());
        }
    }
}
