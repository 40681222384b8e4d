//! What a node sees of the targets of a `reach` service, which tell whether clients reach it. Every
//! data node looks all the time and tells the others; where the office goes by it, is decided in
//! [`crate::reached`].

use core::fmt;

use serde::{Deserialize, Serialize};

/// What a node sees of the targets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// How many answer.
    pub answer: u16,
    /// Of how many.
    pub of: u16,
    /// How many must.
    pub need: u16,
    /// Whether the link has a carrier, where one is asked for.
    pub has_carrier: bool,
}

impl Seen {
    /// Whether clients are taken to reach this node.
    pub fn is_enough(&self) -> bool {
        self.has_carrier && self.answer >= self.need
    }
}

/// `1 of 3 targets (2 must answer)`.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answer, of, need, has_carrier } = self;
        match (of, has_carrier) {
            (0, true) => f.write_str("a link with a carrier"),
            (0, false) => f.write_str("a link without a carrier"),
            (_, true) => write!(f, "{answer} of {of} targets ({need} must answer)"),
            (_, false) => write!(f, "{answer} of {of} targets, its link has no carrier"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn a_lost_carrier_is_seeing_nothing() {
        let seen = Seen { answer: 2, of: 3, need: 2, has_carrier: true };
        assert!(seen.is_enough());
        assert_eq!(seen.to_string(), "2 of 3 targets (2 must answer)");
        assert!(!Seen { answer: 1, ..seen }.is_enough());
        let dark = Seen { has_carrier: false, ..seen };
        assert!(!dark.is_enough());
        assert_eq!(dark.to_string(), "2 of 3 targets, its link has no carrier");
    }
}
