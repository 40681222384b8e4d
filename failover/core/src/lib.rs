//! Who may be primary, as a pure state machine: the cluster's register (CASPaxos), the lease, and
//! the decisions about takeovers. Inputs in, effects out. No I/O, no clock, no randomness.
//!
//! ```text
//!  node.rs       one node: the match on inputs; what it tells and to whom
//!    acceptor.rs   what this node has promised, durably; who holds a lease here (L2, L3, L5)
//!    proposer.rs   one command after the other becomes a committed state
//!    holder.rs     until when this node may act as primary (L3, L4)
//!    sole.rs       who judges that an office without end is over (R5d)
//!    detector.rs   who is heard, and what the others report
//!    decision.rs   when to take over, hand over, resume; and why not (explain)
//!  voters.rs     who may vote: a node replaced, added, removed (L5, L7)
//!  recovery.rs   a new epoch without a majority that is gone for ever; who belongs to it
//!  request.rs    what a configuration file wants of the register
//!  etcd.rs       etcd as the register, in place of acceptors, proposals' rounds and their leases
//!  fence.rs      without a witness: when a lost peer is switched off, and what confirms it
//!  services.rs   what runs on top of a resource: started, watched, restarted, moved, stopped
//!  guard.rs      what the guard withdraws when the daemon cannot, and when the watchdog is fed
//!  cluster.rs    the state in the register;  command.rs: the ways to change it
//! ```
#![no_std]
#![forbid(unsafe_code)]
// States and verdicts travel a few times a second: plain values are easier to read than boxes.
#![allow(clippy::large_enum_variant, clippy::result_large_err)]

extern crate alloc;

pub mod acceptor;
pub mod ballot;
pub mod cluster;
pub mod command;
pub mod decision;
pub mod defect;
pub mod detector;
pub mod etcd;
pub mod facts;
pub mod fence;
pub mod guard;
mod hindered;
pub mod holder;
mod known_record;
mod lapse;
pub mod message;
pub mod node;
pub mod proposer;
mod reached;
pub mod recovery;
pub mod request;
pub mod services;
mod sole;
pub mod verdict;
pub mod voters;
pub mod wording;

pub use ballot::{Ballot, NodeName};
pub use cluster::ClusterState;
pub use node::{Config, Effect, Effects, Input, Node};
pub use replicator_core::{Span, Time};
