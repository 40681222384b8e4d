//! Why a seed fails.

/// What kind of promise is broken; the exit code of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A core panicked, or a step of it does not end.
    Crash,
    /// Something that must never happen has happened.
    Safety,
    /// Something that must happen has not happened in time.
    Liveness,
}

/// A failed seed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind.
    pub kind: Kind,
    /// The rule of SAFETY.md.
    pub rule: &'static str,
    /// What was seen.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {}: {}", self.kind, self.rule, self.text)
    }
}

impl Kind {
    /// The exit code that tells it.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Crash => 127,
            Self::Liveness => 128,
            Self::Safety => 129,
        }
    }
}
