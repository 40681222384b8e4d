//! What a model is made of: who takes part, what may happen how often, which clocks go.

use failover_core::acceptor::Record;
use failover_core::cluster::{Holder, Resource, Voter};
use failover_core::{Ballot, ClusterState, NodeName, Span, Time};
use replicator_core::block::Incarnation;
use replicator_core::register::{Member, RegisterState};

use crate::parts::{Machine, RESOURCE, Seat, replica_of};

/// The lease of all models.
pub const LEASE: Span = Span::from_ms(1_000);
/// When they begin: long after the machines did.
pub const START: Time = Time(1_000_000_000_000);

/// A model.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seats: Vec<Seat>,
    pub machines: Vec<Machine>,
    /// Each begins the exploration anew: how fast the clock of each node goes, in percent.
    pub clocks: Vec<Vec<(NodeName, u64)>>,
    pub start: Time,
    /// How long a step of time is, and how many there are.
    pub tick: Span,
    pub ticks: u8,
    /// The acceptors whose records become durable some time after the message, not at once.
    pub lazy: Vec<u8>,
    /// Who cannot speak to whose acceptor.
    pub cut: Vec<(NodeName, NodeName)>,
    /// No message is doubled, and what a node says to itself it hears at once. A renewal that comes
    /// twice only lengthens what an acceptor promised.
    pub once: bool,
    /// Committed states are told to all machines, and to all acceptors.
    pub teaches: bool,
    pub teaches_seats: bool,
    /// How often acceptors fall back to their records, and which of them may.
    pub crashes: u8,
    pub crashing: Vec<u8>,
    /// How often machines start as a new process.
    pub restarts: u8,
    pub restarting: Vec<u8>,
    /// The time that a proposer waits after it lost against another one is not modelled.
    pub waits_out_back_off: bool,
    /// The revision of the beginning.
    pub first_revision: u64,
    /// What was committed before, besides the beginning.
    pub committed: Vec<(Ballot, ClusterState)>,
    /// The revision that has to be committed in one order of events at least: a rule that refuses
    /// for ever what may be done is as wrong as one that allows too much.
    pub has_to_reach: Option<u64>,
}

impl Scenario {
    /// With nothing but its parts: no time, no crashes.
    pub fn new(seats: Vec<Seat>, machines: Vec<Machine>) -> Self {
        Self {
            seats,
            machines,
            clocks: vec![Vec::new()],
            start: START,
            tick: Span(0),
            ticks: 0,
            lazy: Vec::new(),
            cut: Vec::new(),
            once: false,
            teaches: false,
            teaches_seats: false,
            crashes: 0,
            crashing: Vec::new(),
            restarts: 0,
            restarting: Vec::new(),
            waits_out_back_off: true,
            first_revision: 1,
            committed: Vec::new(),
            has_to_reach: None,
        }
    }
}

/// The id of a node's acceptor.
pub fn acceptor_of(node: &str) -> u128 {
    u128::from(node.as_bytes()[0])
}

/// Who votes: nodes by name; the witness is `w`.
pub fn voters(names: &[&str]) -> Vec<Voter> {
    let voter = |name: &&str| Voter {
        node: NodeName::from(*name),
        acceptor: acceptor_of(name),
        witness: *name == "w",
    };
    names.iter().map(voter).collect()
}

/// The state of the beginning: revision 1, and `holder` the primary if there is one.
pub fn beginning(names: &[&str], holder: Option<&str>) -> (Ballot, ClusterState) {
    let mut state = ClusterState {
        revision: 1,
        lease: LEASE,
        longest_lease: LEASE,
        voters: voters(names),
        voters_since: 1,
        ..ClusterState::default()
    };
    let ballot = Ballot { counter: 1, node: NodeName::from("a"), process: 0 };
    state.by = ballot.node.clone();
    if let Some(holder) = holder {
        let node = NodeName::from(holder);
        let member = |name: &str| Member {
            replica: replica_of(&NodeName::from(name)),
            incarnation: Incarnation(1),
        };
        state.resources.push(Resource {
            name: RESOURCE.into(),
            state: RegisterState {
                generation: 1,
                tenure: 1,
                primary: Some(replica_of(&node)),
                set: vec![member("a"), member("b")],
                ..RegisterState::default()
            },
            holder: Some(Holder { node, process: 1 }),
            ..Resource::default()
        });
    }
    (ballot, state)
}

/// The record of a node that has accepted this.
pub fn record(node: &str, accepted: &(Ballot, ClusterState)) -> Record {
    let mut record = Record::new(acceptor_of(node));
    record.promised = accepted.0.clone();
    record.longest_lease = accepted.1.longest_lease;
    record.accepted = Some(accepted.clone());
    record
}
