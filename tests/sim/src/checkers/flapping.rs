//! P6: a primary brings nobody up to date whom it dropped too often lately and has not heard for
//! long enough since. Counted here once more, from what each process is told and orders.

use replicator_core::block::ReplicaId;
use replicator_core::wire::Message;
use replicator_core::{Command, Effect, Input, Note};

use crate::failure::Kind;
use crate::world::World;

/// What one process did with its peer; times are those of its clock.
#[derive(Clone, Debug, Default)]
pub struct Flaps {
    life: u64,
    drops: Vec<u64>,
    /// Somebody wants the peer to leave.
    leaves: bool,
    met_at: u64,
    /// Who the peer says that it is, and who it was when it joined: one whose disk was replaced
    /// meanwhile was not dropped.
    is_now: Option<ReplicaId>,
    joined_as: Option<ReplicaId>,
}

impl Flaps {
    fn told(&mut self, input: &Input, session: u64) {
        match input {
            Input::Ordered { command: Command::Connect(_), .. } => self.drops.clear(),
            Input::Ordered { command: Command::Disconnect(_), .. } => self.leaves = true,
            Input::Ordered { command: Command::ResyncFull(_), .. } => {
                self.drops.clear();
                self.leaves = true;
            }
            Input::PeerSaid { session: of, message: Message::Leave { .. }, .. } => {
                self.leaves |= of.0 == session;
            }
            Input::PeerSaid { message: Message::Hello(hello), .. } => {
                self.is_now = Some(hello.replica);
                self.joined_as = self.joined_as.or(self.is_now);
            }
            // The peer is needed (R16).
            Input::DiskDone { result: Err(_), .. } => self.drops.clear(),
            _ => {}
        }
    }
}

impl World {
    /// A process is about to be told something.
    pub fn flaps_before(&mut self, node: usize, input: &Input) {
        let there = &self.nodes[node];
        let session = there.process.as_ref().map_or(0, |process| process.view.session.id);
        let flaps = &mut self.checkers.flaps[node];
        if flaps.life != there.lives {
            *flaps = Flaps { life: there.lives, ..Flaps::default() };
        }
        flaps.told(input, session);
    }

    /// What it orders then.
    pub fn flaps_after(&mut self, node: usize, effects: &[Effect]) {
        let now = self.local(node).0;
        for effect in effects {
            let flaps = &mut self.checkers.flaps[node];
            match effect {
                Effect::OpenDevice { .. } => flaps.drops.clear(),
                // What it says of the verify that it leads itself.
                Effect::Note(Note::VerifyEnded { with, repairs: true, .. })
                    if *with == self.nodes[node].name =>
                {
                    flaps.leaves = true;
                }
                Effect::Note(Note::PeerJoined { .. }) => {
                    flaps.met_at = now;
                    flaps.leaves = false;
                }
                Effect::Note(Note::Committed { what: "a member left the in-sync set", .. })
                    if !flaps.leaves && flaps.joined_as == flaps.is_now =>
                {
                    flaps.drops.push(now);
                }
                Effect::Note(Note::Committed {
                    what: "a replica joined the in-sync set", ..
                }) => {
                    flaps.joined_as = flaps.is_now;
                }
                Effect::SendPeer { message: Message::SyncStart { .. }, .. } => {
                    self.check_heard(node, now);
                }
                _ => {}
            }
        }
    }

    fn check_heard(&mut self, node: usize, now: u64) {
        let timing = &self.plan.timing;
        let flaps = &self.checkers.flaps[node];
        let recent = flaps.drops.iter().filter(|&&drop| now - drop < timing.drops_window.0).count();
        if recent < 3 {
            return;
        }
        // Twice as long for each further drop.
        let mut due = timing.rejoin_delay.0;
        for _ in 3..recent.min(20) {
            due *= 2;
        }
        let due = due.min(timing.rejoin_delay_max.0.max(timing.rejoin_delay.0));
        let heard = now - flaps.met_at;
        if heard < due {
            let text = format!(
                "{} dropped its peer {recent} times lately and resyncs it after {} ms, not {} ms",
                self.nodes[node].name,
                heard / 1_000_000,
                due / 1_000_000
            );
            self.fail(Kind::Safety, "P6", text);
        }
    }
}
