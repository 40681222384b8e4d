//! What other nodes say, and what is said to them: who is believed, and what is learned from it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use replicator_core::Span;

use super::{Effect, Effects, Node};
use crate::ballot::NodeName;
use crate::cluster::{Cause, Epoch, Holder};
use crate::command::{Asker, Change};
use crate::defect::{Defect, defect};
use crate::detector::Own;
use crate::holder::Granted;
use crate::message::{Envelope, Heartbeat, Message, RecordSeen};
use crate::proposer::Proposal;

impl Node {
    fn envelope(&self, to: &NodeName, message: Message) -> Box<Envelope> {
        Box::new(Envelope {
            process: self.config.process,
            acceptor: self.acceptor.record().id,
            sequence: self.durable,
            began: self.began_with,
            epoch: self.durable_epoch,
            yours: self.detector.record(to),
            message,
        })
    }

    pub(super) fn say(&mut self, to: &NodeName, message: Message, effects: &mut Effects) {
        if *to == self.config.name {
            self.own.push_back(message);
        } else {
            let envelope = self.envelope(to, message);
            effects.push(Effect::Send { to: to.clone(), envelope });
        }
    }

    pub(super) fn received(&mut self, from: &NodeName, envelope: Envelope, effects: &mut Effects) {
        if !self.config.nodes.iter().any(|(name, _)| name == from) && !self.is_voter(from) {
            return;
        }
        if !self.belongs(from, &envelope, effects) {
            return;
        }
        if let Some(seen) = &envelope.yours {
            self.hear_of_own_record(seen);
        }
        if self.remembers_less_than(&envelope) {
            self.has_gone_back = true;
            return effects.push(Effect::WentBack);
        }
        let own = self.own_beats();
        let before = self.detector.process_of(from);
        if !self.detector.hears(self.now, from, &envelope, own) {
            return;
        }
        if before != self.detector.process_of(from) {
            // It is to know soon what this node knows of its record.
            self.next_beat = self.now;
        }
        let is_heartbeat = matches!(envelope.message, Message::Heartbeat(_));
        if !is_heartbeat && !self.may_follow(from, &envelope.message) {
            return;
        }
        let is_of_acceptors =
            !matches!(envelope.message, Message::Learn { .. } | Message::Heartbeat(_));
        if self.etcd.is_some() && is_of_acceptors {
            return;
        }
        let acceptor = match self.state() {
            Some(state) => state.vote_of(from, envelope.acceptor),
            None => envelope.acceptor,
        };
        self.said(from, envelope.process, acceptor, envelope.message, effects);
    }

    /// Whether the sender heard later heartbeats of this very process than it has sent: its machine
    /// went back with its memory.
    fn remembers_less_than(&self, envelope: &Envelope) -> bool {
        let Message::Heartbeat(heartbeat) = &envelope.message else { return false };
        heartbeat.echo_of == self.config.process
            && heartbeat.echo.is_some_and(|(number, _)| number > self.beats)
            && !defect(Defect::WentBackGoesOn)
    }

    fn own_beats(&self) -> Own {
        Own { process: self.config.process, beats: self.beats }
    }

    /// L5: whether what another node says counts here. First it has to hear this process and say
    /// in a heartbeat what it knows of the record here: an old copy follows nobody, since a record
    /// that went on from one would soon look as new as the one that is lost.
    fn may_follow(&self, from: &NodeName, message: &Message) -> bool {
        if self.is_old_copy {
            return matches!(message, Message::Learn { .. });
        }
        self.detector.has_answered(from) || defect(Defect::StrangersFollowed)
    }

    /// L5: somebody heard more of this node's acceptor, before this process, than its record had
    /// at the start; or more of this very process than it has made durable, so that the machine
    /// went back with all its memory. It is an old copy.
    fn hear_of_own_record(&mut self, seen: &RecordSeen) {
        let is_own = seen.process == self.config.process;
        let had = if is_own { self.durable } else { self.began_with };
        let is_newer = seen.sequence > had;
        if seen.acceptor == self.acceptor.record().id
            && (is_newer || seen.went_back)
            && !self.is_old_copy
            && !defect(Defect::OldRecordVotes)
        {
            self.is_old_copy = true;
            self.leave_out(self.epoch());
            self.is_dirty = true;
            self.next_beat = self.now;
        }
    }

    /// The acceptor here has no vote any more; what it was about to promise or accept would count.
    pub(crate) fn leave_out(&mut self, epoch: Epoch) {
        if !defect(Defect::OldCopyAnswers) {
            self.answers.clear();
        }
        self.acceptor.leave_out(epoch);
    }

    fn is_voter(&self, node: &NodeName) -> bool {
        self.state().is_some_and(|state| state.all_voters().any(|voter| voter.node == *node))
    }

    pub(super) fn said(
        &mut self,
        from: &NodeName,
        process: u64,
        acceptor: u128,
        message: Message,
        effects: &mut Effects,
    ) {
        let now = self.now;
        let mut doing = Vec::new();
        match message {
            Message::Prepare { ballot, takes } => {
                let answer = match self.acceptor.prepare(now, &ballot, &takes) {
                    Ok(accepted) => {
                        return self.after_durable(from, Message::Promise { ballot, accepted });
                    }
                    Err(why) => Message::Denied { ballot, is_accept: false, why },
                };
                self.say(from, answer, effects);
            }
            Message::Accept { ballot, state } => match self.acceptor.accept(now, &ballot, &state) {
                Ok(()) => self.after_durable(from, Message::Accepted { ballot }),
                Err(why) => {
                    let denied = Message::Denied { ballot, is_accept: true, why };
                    self.say(from, denied, effects);
                }
            },
            Message::Promise { ballot, accepted } => {
                let known = self.known.as_ref();
                let promise = (acceptor, &ballot, accepted);
                self.proposer.promised(now, promise, known, &mut doing);
            }
            Message::Accepted { ballot } => {
                self.proposer.accepted(now, acceptor, &ballot, &mut doing);
            }
            Message::Denied { ballot, is_accept, why } => {
                self.proposer.denied(now, acceptor, (&ballot, is_accept), why, &mut doing);
            }
            Message::Learn { ballot, state } => self.learn(ballot, state, effects),
            Message::Renew { request, offices, voters_since } => {
                let holder = Holder { node: from.clone(), process };
                let resources = self.acceptor.renew(now, &holder, &offices, voters_since);
                if resources.len() < offices.len() {
                    self.teach(from, effects);
                }
                let accepted = self.acceptor.accepted();
                let lease = accepted.map_or(Span(0), |state| state.lease);
                let revision = accepted.map_or(0, |state| state.revision);
                let granted = Message::Granted { request, process, lease, revision, resources };
                self.say(from, granted, effects);
            }
            Message::Granted { request, process, lease, revision, resources } => {
                let granted = Granted { acceptor, process, request, lease, resources: &resources };
                self.holder.granted(now, &granted);
                self.look_up(revision, &resources);
            }
            Message::Heartbeat(heartbeat) => self.heard(from, heartbeat, effects),
        }
        self.carry_out(doing, effects);
    }

    /// An acceptor that has something newer refused the lease of an office: what it has is settled
    /// at once (L3), lest an open change of the voters costs the lease (L7).
    fn look_up(&mut self, revision: u64, granted: &[String]) {
        let is_refused = self.offices().iter().any(|(resource, _)| !granted.contains(resource));
        let is_newer = self.state().is_some_and(|known| known.revision < revision);
        if is_refused && is_newer && self.proposer.is_idle() {
            let read =
                Proposal { asker: Asker::Own, change: Change::Read, cause: Cause::default() };
            let queued = self.proposer.propose(self.now, read);
            queued.expect("it was idle");
        }
    }

    fn heard(&mut self, from: &NodeName, heartbeat: Heartbeat, effects: &mut Effects) {
        let is_mine = heartbeat.echo_of == self.config.process;
        let sent = heartbeat.echo.filter(|_| is_mine).and_then(|(number, _)| {
            self.beat_times.iter().find(|(sent, _)| *sent == number).map(|(_, at)| *at)
        });
        let (revision, own) = (heartbeat.revision, self.own_beats());
        for seen in &heartbeat.records {
            if seen.node == self.config.name {
                // Of an earlier build, which says it nowhere else.
                self.hear_of_own_record(seen);
            } else {
                self.detector.told(seen, own);
            }
        }
        for (resource, facts) in &heartbeat.facts {
            self.note_facts(from, resource, facts);
        }
        self.detector.beat(self.now, from, heartbeat, (is_mine, sent));
        if self.state().is_some_and(|state| state.revision > revision) {
            self.teach(from, effects);
        }
    }

    /// Tells a node the newest committed state.
    pub(crate) fn teach(&mut self, node: &NodeName, effects: &mut Effects) {
        if let Some((ballot, state)) = self.known.clone()
            && *node != self.config.name
        {
            self.say(node, Message::Learn { ballot, state }, effects);
        }
    }
}
