//! What [`Fence`](super::Fence) is told and what it orders: its settings, the facts, the orders.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;

use crate::verdict::Verdict;

/// What the agent does with the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Off, and it stays off.
    Off,
    /// Off, confirmed, and on again once the office is taken. The agent's own `reboot` is not used:
    /// after it nothing could be confirmed.
    Reboot,
}

/// What the configuration says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The node that decides.
    pub node: String,
    /// The node that it may switch off.
    pub peer: String,
    /// How the agent is called in messages.
    pub agent: String,
    /// Whether it is done without an operator.
    pub is_automatic: bool,
    /// Off, or off and on again.
    pub action: Action,
    /// Silence after which a lost primary is fenced; a primary fences its lost peer after half of
    /// it.
    pub fence_after: Span,
    /// How much longer a node waits that holds fewer offices than its peer: see
    /// [`Facts::own_offices`].
    pub delay: Span,
    /// For so long at most `status` may go on to say on after an `off` that succeeded.
    pub off_within: Span,
    /// Attempts of a round, at least 1.
    pub attempts: u32,
}

/// What the driver sees, told again and again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Whether the peer was heard since the last facts, on any path, proved by the shared key.
    pub is_heard: bool,
    /// Resources whose primary the peer was, that are up to date here.
    pub lost: Vec<String>,
    /// Resources whose primary the peer was, that may not be promoted here, with the reason.
    pub not_mine: Vec<(String, String)>,
    /// Offices that this node holds. In a duel the node with more of them does not wait; with
    /// equal numbers `delay` of the configuration decides, then the name.
    pub own_offices: usize,
    /// Own offices that acknowledge nothing until the peer is off, or stands back.
    pub waiting: Vec<Waiting>,
}

/// A resource that this node serves and that waits for the fence of its peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// The resource.
    pub resource: String,
    /// The last session with the peer: what is found out counts for this one only.
    pub session: u64,
}

/// How a run of the agent ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this code.
    Exit(i32),
    /// It was killed after its time.
    TimedOut,
    /// It could not be run.
    NotRun,
}

/// What the agent is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Switch the peer off.
    Off,
    /// Say whether it is on.
    Status,
    /// Switch it on again.
    On,
}

impl Request {
    /// The value of `action=` in the agent's contract.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Status => "status",
            Self::On => "on",
        }
    }
}

/// A fact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Time passed, and this is how things are.
    Looked(Facts),
    /// An operator wants the peer fenced; or says that he has switched it off himself.
    Ordered {
        /// Whether it is off by his word.
        is_off: bool,
    },
    /// A living peer was asked to stand back.
    StoodBack {
        /// For what.
        waiting: Waiting,
        /// Why it did not promise.
        refused: Option<String>,
    },
    /// The agent ended.
    AgentEnded {
        /// What it was asked.
        request: Request,
        /// How it ended.
        ended: Ended,
        /// What it said about it, bounded by the driver.
        said: String,
    },
    /// All addresses of the peer were tried; the first that accepted a connection.
    Probed {
        /// The address, in words.
        accepted: Option<String>,
    },
    /// A promotion ended; with the reason when it was refused.
    PromotionEnded {
        /// The resource.
        resource: String,
        /// Why not.
        refused: Option<String>,
    },
}

/// An order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Run the agent; answered by [`Input::AgentEnded`].
    RunAgent(Request),
    /// Try to connect to every address of the peer; answered by [`Input::Probed`].
    Probe,
    /// Promote with the meaning of `--old-primary-is-off`; answered by [`Input::PromotionEnded`].
    Promote {
        /// The resource.
        resource: String,
    },
    /// The peer is off or stands back: the resource may go on alone.
    Proceed(Waiting),
    /// Ask the living peer to stand back; answered by [`Input::StoodBack`].
    AskToStandBack(Waiting),
    /// Say what happened.
    Note(Note),
    /// The operator's order ended.
    Answer(Result<String, Verdict>),
}

/// What happened, for the log and the events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// The peer is silent, and that matters.
    Suspected(String),
    /// The agent is called.
    Fencing(String),
    /// Confirmed: belongs into the history.
    Fenced(String),
    /// An attempt failed.
    Failed(String),
    /// The peer is heard again.
    Back(String),
    /// A living peer promised not to take over: belongs into the history.
    StoodBack {
        /// Of what.
        resource: String,
        /// In words.
        text: String,
    },
}
