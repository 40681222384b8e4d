//! The register: who may write, and which replicas count as in sync. It changes by
//! compare-and-swap of one authority before a change takes effect.
//!
//! Without a witness the authority is one node (SAFETY.md "No witness"): a change is committed
//! when it is durable in the superblock of the node that holds the authority, and the authority
//! moves with the office, durable at the giver first. With a witness the same state is kept by a
//! majority; the core then proposes to it instead of to its own superblock (`majority.rs`).

use alloc::vec::Vec;

use crate::block::{Incarnation, ReplicaId};

/// One member of the in-sync set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Member {
    /// Which replica.
    pub replica: ReplicaId,
    /// Its incarnation when it joined.
    pub incarnation: Incarnation,
}

/// How the present lineage began. Every take-over without the old authority's consent starts a
/// new one (R11d).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Basis {
    /// How many take-overs by force there were; compared before the generation.
    pub lineage: u64,
    /// Whether the taker was, or was about to become, a member then. Whether it really was one
    /// only the old primary's own register can tell.
    pub taker_was_member: bool,
}

/// The state of one resource in the register.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RegisterState {
    /// Rises with every change of primary, authority or in-sync set.
    pub generation: u64,
    /// The generation in which the present (or last) primary took office.
    pub tenure: u64,
    /// Who is primary.
    pub primary: Option<ReplicaId>,
    /// Who may change this state (no witness); nobody where a majority keeps it.
    pub authority: Option<ReplicaId>,
    /// The in-sync set, ordered by replica id.
    pub set: Vec<Member>,
    /// Whether the last primary released its office orderly: all members are equal, all flushed.
    pub released_clean: bool,
    /// The primary is the only member and its lease has no end (R5d).
    pub sole: bool,
    /// The last forced take-over.
    pub basis: Basis,
}

impl RegisterState {
    /// The member entry of a replica.
    pub fn member(&self, replica: ReplicaId) -> Option<&Member> {
        self.set.iter().find(|member| member.replica == replica)
    }

    /// Whether a replica is in the in-sync set.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.member(replica).is_some()
    }

    /// The same with one more member (or a member with a new incarnation), in the next generation.
    pub fn with(&self, replica: ReplicaId, incarnation: Incarnation) -> Self {
        let mut next = self.without(replica);
        next.sole = false;
        next.set.push(Member { replica, incarnation });
        next.set.sort_by_key(|member| member.replica);
        next
    }

    /// The same without a member, in the next generation. Whether the rest is alone with the office
    /// (`sole`) is said by whoever commits it.
    pub fn without(&self, replica: ReplicaId) -> Self {
        let mut next = self.clone();
        next.generation += 1;
        next.sole = false;
        next.set.retain(|member| member.replica != replica);
        next
    }

    /// What orders two states of one resource: a newer lineage wins, then the generation.
    pub fn order(&self) -> (u64, u64) {
        (self.basis.lineage, self.generation)
    }
}
