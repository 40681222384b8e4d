//! The first change in the queue becomes one transaction that replaces the state it was made from.
//! An outcome that is not known is settled by a read: the state is there, or the transaction can
//! never be done any more, or it is sent again as it was.

use alloc::boxed::Box;
use alloc::vec::Vec;

use replicator_core::{Span, Time};

use super::holding::Offices;
use super::store::{Ask, Contents, Founder, Key, Transaction, Value};
use super::{EtcdRegister, Purpose, ballot_of};
use crate::acceptor::{Denial, acceptor_term};
use crate::cluster::ClusterState;
use crate::command::{Change, Unfit};
use crate::defect::{Defect, defect};
use crate::node::{Effects, Node};
use crate::proposer::Outcome;
use crate::sole::check_sole;

/// The transaction of the first proposal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Writing {
    transaction: Transaction,
    /// What it puts.
    state: ClusterState,
    /// It changes nothing: that whatever was sent before can never be done is enough (R14).
    is_settling: bool,
    /// When it was sent first: a repeated one may be the first one, done late.
    sent: Time,
    /// The offices that its lease key covers.
    covered: Offices,
}

impl Node {
    /// The transaction was done.
    pub(super) fn written(&mut self, revision: u64, effects: &mut Effects) {
        let Some(etcd) = &mut self.etcd else { return };
        let Some(writing) = etcd.writing.take() else { return };
        let mut contents = etcd.newest.clone().unwrap_or_default();
        contents.state = Some((revision, writing.state.clone()));
        contents.revision = contents.revision.max(revision);
        etcd.newest = Some(contents);
        self.committed(writing, effects);
    }

    fn committed(&mut self, writing: Writing, effects: &mut Effects) {
        let Writing { state, sent, covered, .. } = writing;
        let (now, lease) = (self.now, state.lease);
        let Some(etcd) = &mut self.etcd else { return };
        let sent = if defect(Defect::LeaseFromReply) { now } else { sent };
        etcd.holding.granted(sent, lease, &covered);
        // Its lease may be nearly over, if this took long.
        etcd.renew_at = now;
        let is_new = self.state().is_none_or(|known| known.revision < state.revision);
        self.learn(ballot_of(&state), state, effects);
        if is_new {
            for node in self.others() {
                self.teach(&node, effects);
            }
        }
        self.end_first(Outcome::Committed, effects);
    }

    fn end_first(&mut self, outcome: Outcome, effects: &mut Effects) {
        let now = self.now;
        if let Some(etcd) = &mut self.etcd {
            etcd.begin_first(now);
        }
        if let Some(proposal) = self.proposer.end_first(now) {
            self.ended(proposal, outcome, effects);
        }
    }

    /// What is there is known now, later than the first proposal came to be the first.
    pub(super) fn proceed(&mut self, contents: &Contents, effects: &mut Effects) {
        let Some(etcd) = &mut self.etcd else { return };
        if let Some(writing) = etcd.writing.take() {
            let now_there = contents.state.as_ref().map(|(_, state)| state);
            if !writing.is_settling && now_there == Some(&writing.state) {
                return self.committed(writing, effects);
            }
            if defect(Defect::EtcdUnknownIsFailed) {
                let why = Denial::Promised(Default::default());
                return self.end_first(Outcome::NotNow(why), effects);
            }
            if writing.transaction.could_be_done(contents) {
                etcd.writing = Some(writing);
                return self.send_writing(effects);
            }
            if writing.is_settling {
                return self.end_first(Outcome::Committed, effects);
            }
        }
        self.write_first(contents, effects);
    }

    /// Nothing of the first proposal is under way: what is to be written?
    fn write_first(&mut self, contents: &Contents, effects: &mut Effects) {
        let Some(first) = self.proposer.first().cloned() else { return };
        let base = contents.state.as_ref().map(|(_, state)| state);
        if first.change == Change::Read
            && let Some(base) = base
        {
            if self.is_settled || defect(Defect::EtcdSettledByRead) {
                return self.end_first(Outcome::Committed, effects);
            }
            let state = base.clone();
            return self.begin_writing(contents, state, true, effects);
        }
        if let (Some(open), Some(base)) = (self.proposer.open(), base)
            && base.revision > open.revision
            && !first.change.is_guarded()
        {
            // It may have been done, and undone since by somebody else: it is not done again.
            return self.end_first(Outcome::Unfit(Unfit::Newer), effects);
        }
        match first.change.apply(base, &self.config.name, &first.cause) {
            Ok(next) => match base.map_or(Ok(()), |base| self.check_taking(base, &next)) {
                Ok(()) => self.begin_writing(contents, next, false, effects),
                Err(why) => self.end_first(Outcome::NotNow(why), effects),
            },
            Err(Unfit::Already) => self.end_first(Outcome::Committed, effects),
            Err(unfit) => self.end_first(Outcome::Unfit(unfit), effects),
        }
    }

    /// No office is taken from somebody else before this node has seen his lease key unchanged for
    /// long enough; nor one without end but by force (R5d).
    fn check_taking(&self, base: &ClusterState, next: &ClusterState) -> Result<(), Denial> {
        let Some(etcd) = &self.etcd else { return Ok(()) };
        for (resource, holder) in base.taken_by(next) {
            let seen = etcd.watching.remaining(self.now, resource, holder);
            let remaining = seen.unwrap_or_else(|| acceptor_term(base.longest_lease));
            if remaining > Span(0) {
                let (holder, resource) = (holder.node.clone(), resource.into());
                return Err(Denial::Leased { holder, resource, remaining });
            }
        }
        check_sole(base, next)
    }

    fn begin_writing(
        &mut self,
        contents: &Contents,
        state: ClusterState,
        is_settling: bool,
        effects: &mut Effects,
    ) {
        let (now, me) = (self.now, self.me());
        let base = contents.state.as_ref().map(|(_, state)| state);
        let held = state.offices_of(&me);
        let before = base.map_or_else(Vec::new, |base| base.offices_of(&me));
        let alive = self.offices();
        let is_covered =
            |office: &&(_, _)| !is_settling && (alive.contains(office) || !before.contains(office));
        let covered: Offices = held.iter().filter(is_covered).cloned().collect();
        let mut compares = alloc::vec![(Key::State, contents.revision_of(&Key::State))];
        let mut puts = alloc::vec![(Key::State, Value::State(Box::new(state.clone())))];
        if let Some(base) = base {
            for (_, holder) in base.taken_by(&state) {
                let key = Key::Lease(holder.node.clone());
                let revision = contents.revision_of(&key);
                if !compares.iter().any(|(compared, _)| *compared == key)
                    && !defect(Defect::EtcdLeaseNotCompared)
                {
                    compares.push((key, revision));
                }
            }
        }
        let Some(etcd) = &mut self.etcd else { return };
        if base.is_none() {
            compares.push((Key::Founder, 0));
            let founder = Founder { cluster: etcd.cluster.clone(), id: state.epoch.founder };
            puts.push((Key::Founder, Value::Founder(founder)));
        }
        if !covered.is_empty() {
            let key = etcd.holding.next_key(&held, &covered, state.lease);
            puts.push((Key::Lease(me.node), Value::Lease(key)));
        }
        let transaction = Transaction { compares, puts };
        if !is_settling {
            self.proposer.opened(state.clone());
        }
        etcd.writing = Some(Writing { transaction, state, is_settling, sent: now, covered });
        self.send_writing(effects);
    }

    fn send_writing(&mut self, effects: &mut Effects) {
        let (now, known) = (self.now, self.known_to_all());
        let Some(etcd) = &mut self.etcd else { return };
        let Some(writing) = &etcd.writing else { return };
        let ask = Ask::Write(writing.transaction.clone());
        effects.push(etcd.ask(Purpose::Write, now, known, ask).1);
    }
}

impl EtcdRegister {
    /// Whether a transaction of the first proposal may be done at any time.
    pub fn is_open(&self) -> bool {
        self.writing.is_some()
    }
}
