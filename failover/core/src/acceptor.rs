//! The acceptor: what this node has promised and accepted, durably, and who holds a lease here.
//! It decides nothing about availability; it only refuses what would not be safe.
//!
//! The rules are those of single-decree Paxos, re-run on one value (CASPaxos, Rystsov 2018), and
//! SAFETY.md L2, L3 and L5.

use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::{Span, Time};
use serde::{Deserialize, Serialize};

use crate::ballot::{Ballot, NodeName};
use crate::cluster::{ClusterState, Epoch, Holder};
use crate::defect::{Defect, defect};
use crate::sole::check_sole;

/// What an acceptor has on its disk, all of it in one record.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The random id it got with its first record.
    pub id: u128,
    /// Rises with every write: a lower one than anybody has seen is an old copy (L5).
    pub sequence: u64,
    /// No ballot below it is promised or accepted any more.
    pub promised: Ballot,
    /// The newest accepted state, with its ballot.
    pub accepted: Option<(Ballot, ClusterState)>,
    /// The longest lease it may have granted (L5).
    pub longest_lease: Span,
    /// The later epoch that began without this acceptor; its own, if it was told that this record
    /// is an old copy (L5): it never votes again.
    pub left_out_of: Option<Epoch>,
}

impl Record {
    /// The first record of a node.
    pub fn new(id: u128) -> Self {
        let (promised, accepted) = (Ballot::default(), None);
        let (longest_lease, left_out_of) = (Span(0), None);
        Self { id, sequence: 0, promised, accepted, longest_lease, left_out_of }
    }

    /// Whether it was found out to be an old copy (L5): its later processes are none the better.
    pub fn is_old_copy(&self) -> bool {
        self.left_out_of == Some(self.epoch()) && !defect(Defect::OldCopyForgotten)
    }
}

/// A promise to accept no takeover of a resource before a time, unless its holder proposes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Lease {
    /// The resource.
    pub resource: String,
    /// Who holds its office.
    pub holder: Holder,
    /// When it ends here.
    pub until: Time,
}

/// Why an acceptor does not do what it was asked.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Denial {
    /// It has promised a higher ballot.
    Promised(Ballot),
    /// The lease of the office that would be taken runs (L2).
    Leased {
        /// Whose.
        holder: NodeName,
        /// Of which resource.
        resource: String,
        /// For how long.
        remaining: Span,
    },
    /// It started a short time ago and does not know which leases it has granted (L5).
    JustStarted {
        /// How long it waits.
        remaining: Span,
    },
    /// The office is held for ever, the set being its holder alone (R5d).
    Sole {
        /// By whom.
        holder: NodeName,
        /// Of which resource.
        resource: String,
    },
}

/// The acceptor of one node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Acceptor {
    record: Record,
    /// The offices of the accepted state that is durable: only for them a lease is granted, since
    /// after a restart nothing else reminds the acceptor of it.
    durable: Vec<(String, Holder, u64)>,
    /// The longest lease for which a restart would wait (L5).
    durable_lease: Span,
    leases: Vec<Lease>,
    /// Until then it has to assume that every holder it knows has a lease (L5).
    unsure_until: Time,
}

impl Acceptor {
    /// Takes up the record of the disk.
    pub fn start(record: Record, now: Time) -> Self {
        let wait = if defect(Defect::RestartWithoutWait) {
            Span(0)
        } else {
            acceptor_term(record.longest_lease)
        };
        let mut record = record;
        if defect(Defect::PromiseForgotten) {
            record.promised = Ballot::default();
        }
        if defect(Defect::AcceptForgotten) {
            record.accepted = None;
        }
        let (durable, durable_lease) = (offices(&record), record.longest_lease);
        Self { record, durable, durable_lease, leases: Vec::new(), unsure_until: now + wait }
    }

    /// What has to be durable before anybody hears the answer.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Gives the record the next sequence number, to be written.
    pub fn next_record(&mut self) -> Record {
        self.record.sequence += 1;
        self.record.clone()
    }

    /// A record that [`Acceptor::next_record`] gave is durable.
    pub fn became_durable(&mut self, record: &Record) {
        self.durable = offices(record);
        self.durable_lease = record.longest_lease;
    }

    /// The yes to an accept leaves now, its record being durable. For its proposer it is the first
    /// grant of the offices it gives him (L3): so it leaves only while that state is the accepted
    /// one. Whether it does.
    pub fn first_grant(&mut self, now: Time, ballot: &Ballot) -> bool {
        let Some((accepted, state)) = &self.record.accepted else { return false };
        if accepted != ballot {
            return false;
        }
        if state.by == ballot.node {
            let holder = Holder { node: ballot.node.clone(), process: ballot.process };
            let voters_since = state.voters_since;
            let offices = state.offices_of(&holder);
            self.renew(now, &holder, &offices, voters_since);
        }
        true
    }

    /// The newest accepted state.
    pub fn accepted(&self) -> Option<&ClusterState> {
        self.record.accepted.as_ref().map(|(_, state)| state)
    }

    /// How long takeovers are refused because it started a short time ago.
    pub fn unsure(&self, now: Time) -> Span {
        self.unsure_until.since(now)
    }

    /// The leases that run.
    pub fn leases(&self, now: Time) -> impl Iterator<Item = &Lease> {
        self.leases.iter().filter(move |lease| lease.until > now)
    }

    /// Phase one: promises to accept nothing below the ballot. `takes` names the resources whose
    /// office the proposal would take from its holder: refused, without raising the promise, while
    /// a lease runs (L2).
    pub fn prepare(
        &mut self,
        now: Time,
        ballot: &Ballot,
        takes: &[String],
    ) -> Result<Option<(Ballot, ClusterState)>, Denial> {
        if *ballot < self.record.promised {
            return Err(Denial::Promised(self.record.promised.clone()));
        }
        if !defect(Defect::PrepareIgnoresLease) {
            for resource in takes {
                self.check_lease(now, resource, &ballot.node)?;
            }
        }
        self.record.promised = ballot.clone();
        Ok(self.record.accepted.clone())
    }

    fn check_lease(&self, now: Time, resource: &str, by: &NodeName) -> Result<(), Denial> {
        let mut running = self.leases(now).filter(|lease| lease.resource == resource);
        if let Some(lease) = running.find(|lease| lease.holder.node != *by) {
            return Err(Denial::Leased {
                holder: lease.holder.node.clone(),
                resource: resource.into(),
                remaining: lease.until.since(now),
            });
        }
        let holder = self.accepted().and_then(|state| state.resource(resource)?.holder.as_ref());
        if now < self.unsure_until && holder.is_some_and(|holder| holder.node != *by) {
            return Err(Denial::JustStarted { remaining: self.unsure(now) });
        }
        Ok(())
    }

    /// Phase two: accepts a state. No office that somebody holds a lease of is taken from him
    /// unless he proposed it himself, whoever sends it now (L2). Whether an office without end is
    /// over is nothing an acceptor can tell (`sole.rs`).
    pub fn accept(
        &mut self,
        now: Time,
        ballot: &Ballot,
        next: &ClusterState,
    ) -> Result<(), Denial> {
        if *ballot < self.record.promised {
            return Err(Denial::Promised(self.record.promised.clone()));
        }
        if !defect(Defect::AcceptIgnoresLease) {
            for lease in self.leases(now) {
                if !next.leaves_office(&lease.resource, &lease.holder) {
                    self.check_lease(now, &lease.resource, &next.by)?;
                }
            }
            if let Some(known) = self.accepted() {
                for (resource, _) in known.taken_by(next) {
                    self.check_lease(now, resource, &next.by)?;
                }
                if defect(Defect::SoleJudgedByAcceptors) {
                    check_sole(known, next)?;
                }
            }
        }
        self.wait_if_new(now, next);
        self.leases.retain(|lease| next.leaves_office(&lease.resource, &lease.holder));
        self.keep(ballot, next);
        Ok(())
    }

    /// L5, L7: an acceptor that was no full voter so far waits when the voters begin to change
    /// and again when it ends: others may have granted leases that it knows nothing of, to a
    /// holder that does not know the new voters, until a majority had accepted the beginning.
    fn wait_if_new(&mut self, now: Time, next: &ClusterState) {
        let id = self.record.id;
        let was_voter = self.accepted().is_some_and(|known| {
            let is_full = known.voters.iter().any(|voter| voter.acceptor == id);
            is_full || defect(Defect::NewAcceptorWaitsOnce) && known.is_voter(id)
        });
        if !was_voter && next.revision > 1 && !defect(Defect::NewAcceptorWithoutWait) {
            self.unsure_until = self.unsure_until.max(now + acceptor_term(next.longest_lease));
        }
    }

    /// Takes note of a committed state that it missed. Whether that is new to it.
    pub fn learn(&mut self, now: Time, ballot: &Ballot, state: &ClusterState) -> bool {
        let known = self.record.accepted.as_ref();
        if known.is_some_and(|(accepted, _)| accepted >= ballot) {
            return false;
        }
        self.wait_if_new(now, state);
        self.leases.retain(|lease| state.leaves_office(&lease.resource, &lease.holder));
        self.keep(ballot, state);
        true
    }

    /// Takes up the first or a later state of another epoch than its own, whose promises mean
    /// nothing there. What it granted before still counts, and others may have granted more (L5).
    pub fn enter_epoch(&mut self, now: Time, ballot: &Ballot, state: &ClusterState) {
        let longest = self.record.longest_lease.max(state.longest_lease);
        self.unsure_until = self.unsure_until.max(now + acceptor_term(longest));
        self.leases.retain(|lease| state.leaves_office(&lease.resource, &lease.holder));
        self.record.promised = ballot.clone();
        self.record.left_out_of = None;
        self.keep(ballot, state);
    }

    /// A later epoch began without it, or it is an old copy in its own.
    pub fn leave_out(&mut self, epoch: Epoch) {
        self.record.left_out_of = Some(epoch);
        self.leases.clear();
    }

    fn keep(&mut self, ballot: &Ballot, state: &ClusterState) {
        let record = &mut self.record;
        record.promised = record.promised.clone().max(ballot.clone());
        record.longest_lease = match defect(Defect::LongerLeaseForgotten) {
            true => state.lease,
            false => record.longest_lease.max(state.longest_lease).max(state.lease),
        };
        record.accepted = Some((ballot.clone(), state.clone()));
    }

    /// Grants or renews the lease of offices that the accepted state gives this very process, and
    /// says which of them it does (L3). The time counts from now, which is when the answer leaves.
    /// A holder that knows older voters (`voters_since`) gets none: it would count this grant in
    /// a majority that decides nothing any more (L7).
    pub fn renew(
        &mut self,
        now: Time,
        holder: &Holder,
        offices: &[(String, u64)],
        voters_since: u64,
    ) -> Vec<String> {
        let Some(state) = self.accepted() else { return Vec::new() };
        if voters_since < state.voters_since && !defect(Defect::GrantToUninformed) {
            return Vec::new();
        }
        let until = now + acceptor_term(state.lease);
        let names = |(resource, tenure): &&(String, u64)| {
            let is_named = state.resource(resource).is_some_and(|entry| {
                entry.holder.as_ref() == Some(holder) && entry.state.tenure == *tenure
            });
            let mut durable = self.durable.iter();
            let is_durable = self.durable_lease >= state.lease
                && durable.any(|own| own.0 == *resource && own.1 == *holder && own.2 == *tenure);
            is_named && (is_durable || defect(Defect::GrantBeforeDurable))
                || defect(Defect::GrantAfterTakeover)
        };
        let granted: Vec<String> =
            offices.iter().filter(names).map(|(resource, _)| resource.clone()).collect();
        for resource in &granted {
            match self.leases.iter_mut().find(|lease| lease.resource == *resource) {
                Some(lease) => {
                    lease.until = lease.until.max(until);
                    lease.holder = holder.clone();
                }
                None => self.leases.push(Lease {
                    resource: resource.clone(),
                    holder: holder.clone(),
                    until,
                }),
            }
        }
        granted
    }
}

fn offices(record: &Record) -> Vec<(String, Holder, u64)> {
    let state = record.accepted.as_ref().map(|(_, state)| state);
    let resources = state.into_iter().flat_map(|state| &state.resources);
    resources
        .filter_map(|entry| Some((entry.name.clone(), entry.holder.clone()?, entry.state.tenure)))
        .collect()
}

/// How long an acceptor keeps its word: a tenth longer than the lease, for clocks that drift (L4).
pub fn acceptor_term(lease: Span) -> Span {
    Span(lease.0.saturating_add(lease.0 / 10))
}

/// How long a holder trusts its lease: a tenth shorter (L4).
pub fn holder_term(lease: Span) -> Span {
    if defect(Defect::HolderKeepsTooLong) {
        return acceptor_term(acceptor_term(lease));
    }
    Span(lease.0 - lease.0 / 10)
}
