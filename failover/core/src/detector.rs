//! Who is heard, and what the others say they see.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use crate::ballot::NodeName;
use crate::message::{Envelope, Heartbeat};

/// Former processes of a node that are remembered, so that their late messages do not count.
const FORMER_MAX: usize = 4;

/// One other node as this one hears it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Heard {
    /// When anything of it came in last; `None`: never.
    pub at: Option<Time>,
    /// Its process.
    pub process: u64,
    /// Its acceptor.
    pub acceptor: u128,
    /// Its newest heartbeat.
    pub heartbeat: Heartbeat,
    /// When that came in.
    pub heartbeat_at: Time,
    /// The way there and back, measured with the last heartbeat.
    pub round_trip: Option<Span>,
    /// Its record is older than one that was seen of the same acceptor (L5).
    pub went_back: bool,
    former: Vec<u64>,
    /// The highest sequence of its acceptor's record.
    sequence: u64,
    /// The same at the time when its process was seen first.
    floor: u64,
}

/// All other nodes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Detector {
    nodes: BTreeMap<NodeName, Heard>,
    /// Silence after which a node is lost.
    patience: Span,
}

impl Detector {
    /// Nobody was heard yet.
    pub fn new(patience: Span) -> Self {
        Self { nodes: BTreeMap::new(), patience }
    }

    /// A message came in. Whether it counts: it comes from the node's present process, whose
    /// acceptor did not go back.
    pub fn hears(&mut self, now: Time, from: &NodeName, envelope: &Envelope) -> bool {
        let patience = self.patience;
        let node = self.nodes.entry(from.clone()).or_default();
        if node.process != envelope.process {
            let is_silent = node.at.is_none_or(|at| now.since(at) >= patience);
            let is_former = node.former.contains(&envelope.process);
            let is_older = node.acceptor == envelope.acceptor && envelope.sequence < node.sequence;
            // A late message counts for nothing while a later process speaks. Which of two is the
            // later one is a guess after the own start: who goes on speaking is right.
            if !is_silent && (is_former || is_older) {
                return false;
            }
        }
        if node.acceptor != envelope.acceptor {
            (node.acceptor, node.sequence, node.floor) = (envelope.acceptor, 0, 0);
            node.went_back = false;
        }
        if node.process != envelope.process {
            if node.at.is_some() {
                node.former.retain(|process| *process != envelope.process);
                node.former.push(node.process);
                if node.former.len() > FORMER_MAX {
                    node.former.remove(0);
                }
            }
            node.process = envelope.process;
            node.floor = node.sequence;
            node.went_back = envelope.sequence < node.floor;
            node.heartbeat = Heartbeat::default();
        }
        node.sequence = node.sequence.max(envelope.sequence);
        node.at = Some(now);
        !node.went_back
    }

    /// A heartbeat came in.
    pub fn beat(&mut self, now: Time, from: &NodeName, heartbeat: Heartbeat, own: Option<Time>) {
        let Some(node) = self.nodes.get_mut(from) else { return };
        if heartbeat.number <= node.heartbeat.number {
            return;
        }
        if let (Some((_, held)), Some(sent)) = (heartbeat.echo, own) {
            node.round_trip = Some(Span(now.since(sent).0.saturating_sub(held.0)));
        }
        node.heartbeat = heartbeat;
        node.heartbeat_at = now;
    }

    /// What is known of a node.
    pub fn node(&self, name: &NodeName) -> Option<&Heard> {
        self.nodes.get(name)
    }

    /// All that were ever heard.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Heard)> {
        self.nodes.iter()
    }

    /// Whether a node was heard a short time ago.
    pub fn hears_now(&self, now: Time, name: &NodeName) -> bool {
        let at = self.nodes.get(name).and_then(|node| node.at);
        at.is_some_and(|at| now.since(at) < self.patience)
    }

    /// How long ago a node was heard; `None`: never.
    pub fn silence(&self, now: Time, name: &NodeName) -> Option<Span> {
        self.nodes.get(name)?.at.map(|at| now.since(at))
    }

    /// The lease has another length now, and so has the silence after which a node is lost.
    pub fn set_patience(&mut self, patience: Span) {
        self.patience = patience;
    }

    /// Silence after which a node is lost.
    pub fn patience(&self) -> Span {
        self.patience
    }
}
