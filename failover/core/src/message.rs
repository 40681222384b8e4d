//! What nodes say to each other. Every message may be lost, doubled or come late.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;
use serde::{Deserialize, Serialize};

use crate::acceptor::Denial;
use crate::ballot::{Ballot, NodeName};
use crate::cluster::{ClusterState, Epoch};
use crate::facts::Facts;

/// A message with what every message carries.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The process that sends it.
    pub process: u64,
    /// The id of the sender's acceptor.
    pub acceptor: u128,
    /// The sequence number of its durable record (L5).
    pub sequence: u64,
    /// The one with which the process began.
    pub began: u64,
    /// The epoch of that record.
    pub epoch: Epoch,
    /// What the sender has heard of the receiver's record: an old copy learns that it is one before
    /// it acts on the message (L5). It travels behind the message: builds without it ignore that.
    #[serde(skip)]
    pub yours: Option<RecordSeen>,
    /// What it says.
    pub message: Message,
}

/// What a node says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Phase one of a proposal, with the offices it would take (L2).
    Prepare {
        /// Its number.
        ballot: Ballot,
        /// The resources whose office it takes.
        takes: Vec<String>,
    },
    /// Yes to a prepare, and the newest state the acceptor has accepted.
    Promise {
        /// The number it answers.
        ballot: Ballot,
        /// The accepted state with its ballot.
        accepted: Option<(Ballot, ClusterState)>,
    },
    /// Phase two.
    Accept {
        /// Its number.
        ballot: Ballot,
        /// The state.
        state: ClusterState,
    },
    /// Yes to an accept.
    Accepted {
        /// The number it answers.
        ballot: Ballot,
    },
    /// No to a prepare or an accept.
    Denied {
        /// The number it answers.
        ballot: Ballot,
        /// Whether to the accept.
        is_accept: bool,
        /// Why.
        why: Denial,
    },
    /// A committed state, for those who may have missed it.
    Learn {
        /// The ballot it was committed with.
        ballot: Ballot,
        /// The state.
        state: ClusterState,
    },
    /// A holder asks for its lease (L3).
    Renew {
        /// The holder's number.
        request: u64,
        /// The resources and the tenure of each.
        offices: Vec<(String, u64)>,
        /// The revision of the newest change of the voters that the holder knows (L7).
        voters_since: u64,
    },
    /// The lease of these resources is granted.
    Granted {
        /// The number it answers.
        request: u64,
        /// The process that asked.
        process: u64,
        /// The lease that the acceptor goes by.
        lease: Span,
        /// The accepted revision: a deposed holder learns at once (L3).
        revision: u64,
        /// Those that are.
        resources: Vec<String>,
    },
    /// A sign of life, and what the sender sees.
    Heartbeat(Heartbeat),
}

/// A sign of life.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Rises with each.
    pub number: u64,
    /// The newest heartbeat of the receiver that the sender has, and how long it had it.
    pub echo: Option<(u64, Span)>,
    /// The process of the receiver that said it.
    pub echo_of: u64,
    /// The revision of the newest committed state it knows; 0: none.
    pub revision: u64,
    /// The revision of the state its acceptor has accepted; 0: none.
    pub accepted: u64,
    /// Whether its acceptor has never accepted anything.
    pub is_blank: bool,
    /// Leases that run at its acceptor: resource, holder, remaining.
    pub leases: Vec<(String, NodeName, Span)>,
    /// How long ago it heard the others.
    pub heard: Vec<(NodeName, Span)>,
    /// Its replicas.
    pub facts: Vec<(String, Facts)>,
    /// How new the records of the acceptors are that it has heard.
    pub records: Vec<RecordSeen>,
}

/// How new an acceptor's record is, as one who heard it tells the others: an old copy is refused
/// by those too who heard nothing newer themselves (L5).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct RecordSeen {
    /// The node.
    pub node: NodeName,
    /// Its acceptor.
    pub acceptor: u128,
    /// The highest sequence number that any process of it named.
    pub sequence: u64,
    /// The process that named it.
    pub process: u64,
    /// It came back with an old copy.
    pub went_back: bool,
}
