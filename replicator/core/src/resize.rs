//! The volume grows while it is used.
//!
//! Behind the data area of a replica there is room: bytes that read as zeroes and that its bitmaps
//! on disk are long enough for (`metadata.rs`). So the end of the data area is one number in the
//! superblock, and to raise it moves nothing and copies nothing: replicas that were equal up to the
//! old end are equal up to the new one.
//!
//! ```text
//! primary   Resize ------> each that follows       own superblock
//!           Resized <----- when it is durable there     |
//!           `-- all that follow have it, every member is here, and it is durable here --> clients
//! ```
//!
//! Why no rule is hurt:
//! - **Nobody takes over with a smaller device than clients saw.** They see a new end when every
//!   member of the newest committed set has it durably, this replica included: whoever may be
//!   promoted without force (R11a) has it. A takeover commits {taker} alone (R6b), and everybody
//!   else has to have its size before it may join. The set is kept by a clean release only; that
//!   waits until all members have one size (`members_have_one_size`). So an end of its own that is
//!   durable before the members have it, or after a growth that was cut off, does no harm: clients
//!   of a later office see it with that office's set.
//! - **Frames (R2, R4).** `Resize` is obeyed like a frame of the tenure that is followed. A frame
//!   beyond the end that is durable on a follower is refused; a primary sends none, since all that
//!   follow have answered before clients know of the new end, and who begins to follow hears of it
//!   before its resync.
//! - **Bits and log (R9, R10, R13).** All structures grow with the number in the superblock, in one
//!   step. Nothing is dirty in the new part until it is written: it is zeroes on both sides, also
//!   where one of them has not grown yet. Bits for a peer that is away count for the new part as
//!   for the old one, and what it has written there itself is in its own bits (union of R13).
//! - **A loss in between.** Who does not answer is lost like one that does not acknowledge (R3),
//!   and the growth goes on with the rest. Two that greet with different sizes are no strangers
//!   when the smaller one has room: a primary takes up a larger size of its follower, a follower
//!   that of its primary. Between two secondaries nothing happens.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::block::{PeerIndex, SessionId, Ticket};
use crate::command::{Answer, Refusal};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::note::Note;
use crate::office::busy;
use crate::peer::{Lead, Link, RoomThere};
use crate::persist::After;
use crate::replica::{Replica, Role};
use crate::time::Time;
use crate::wire::Message;

/// How far the data area reaches, and for whom. While it grows, the superblock in memory is ahead.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Sizes {
    /// What the superblock on disk says: frames of a leader may reach so far.
    pub(crate) durable: u64,
    /// What clients of the present office know.
    pub(crate) served: u64,
    /// An order that waits until all have made what room they can.
    order: Option<Order>,
    resize: Option<Resize>,
}

/// An operator's order.
#[derive(Clone, Copy, Debug, Hash)]
struct Order {
    ticket: Ticket,
    size: Option<u64>,
    since: Time,
}

/// A growth under way on the primary.
#[derive(Clone, Copy, Debug, Hash)]
struct Resize {
    to: u64,
    since: Time,
    /// Who ordered it; `None`: the size of a follower is taken up.
    ticket: Option<Ticket>,
}

impl Sizes {
    pub(crate) fn new(data_bytes: u64) -> Self {
        Self { durable: data_bytes, served: data_bytes, order: None, resize: None }
    }

    fn is_busy(&self) -> bool {
        self.order.is_some() || self.resize.is_some()
    }

    pub(crate) fn resizing_to(&self) -> Option<u64> {
        self.resize.map(|resize| resize.to)
    }
}

impl Replica {
    /// An operator's order.
    pub(crate) fn resize(
        &mut self,
        ticket: Ticket,
        size: Option<u64>,
        effects: &mut Effects,
    ) -> Result<Option<Answer>, Refusal> {
        match self.role {
            Role::Primary if self.sizes.is_busy() => return Err(busy("resizing")),
            Role::Primary => {}
            Role::Secondary => {
                return Err(Refusal {
                    code: "not_primary",
                    rule: "",
                    why: "this replica is secondary: a volume grows where it is served".into(),
                    next: "order it on the primary: replctl resize RESOURCE".into(),
                });
            }
            _ => return Err(busy(self.role.name())),
        }
        if self.metadata_failed || self.disk_failed {
            return Err(no_disk());
        }
        self.check_members_to_resize()?;
        self.sizes.order = Some(Order { ticket, size, since: self.now });
        for peer in &mut self.peers {
            peer.room = RoomThere::NotAsked;
        }
        if size.is_none_or(|size| size > self.superblock.room_bytes) {
            self.extend_room(effects);
        }
        Ok(None)
    }

    /// Everybody has made what room there is: it is enough, or it is not.
    fn go_on_with_order(&mut self, effects: &mut Effects) {
        let Some(order) = self.sizes.order else { return };
        if self.role != Role::Primary || self.metadata_failed {
            self.sizes.order = None;
            return self.refuse_resize(order.ticket, "before there was room", effects);
        }
        for at in self.led().collect::<Vec<_>>() {
            let lacks = order.size.is_none_or(|size| size > self.room_of(at));
            if lacks && self.is_ready(at) && self.peers[at].room == RoomThere::NotAsked {
                self.peers[at].room = RoomThere::Comes;
                self.send(PeerIndex(at as u8), Message::MakeRoom, None, effects);
            }
        }
        let comes = self.led().any(|at| {
            let peer = &self.peers[at];
            peer.room == RoomThere::Comes || peer.link == Link::Leading(Lead::AwaitFollow)
        });
        if comes || !self.room.is_made() || self.sizes.resize.is_some() {
            return;
        }
        self.sizes.order = None;
        let ticket = order.ticket;
        let checked =
            self.check_members_to_resize().and_then(|()| self.size_to_grow_to(order.size));
        match checked {
            Ok(size) if size == self.superblock.data_bytes => {
                effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Already) });
            }
            Ok(size) => self.begin_resize(size, Some(ticket), effects),
            Err(refusal) => {
                let result = Err(Box::new(refusal));
                effects.push(Effect::AnswerOperator { ticket, result });
            }
        }
    }

    fn check_members_to_resize(&self) -> Result<(), Refusal> {
        let mine = self.superblock.replica;
        let missing = self.register.set.iter().map(|member| member.replica).find(|&replica| {
            let at = self.peer_of(replica);
            replica != mine && !at.is_some_and(|at| self.peers[at].is_required())
        });
        if let Some(replica) = missing {
            let node = self.node_of(replica);
            return Err(Refusal {
                code: "member_missing",
                rule: "R11a",
                why: format!(
                    "{node} is a member of the in-sync set and not here: it could take over \
                     without the new size"
                ),
                next: "wait until it is back or has left the set: replctl status".into(),
            });
        }
        let too_old = self.led().find(|&at| self.room_of(at) == 0);
        if let Some(at) = too_old {
            let node = &self.peers[at].node;
            return Err(Refusal {
                code: "peer_too_old",
                rule: "",
                why: format!("{node} runs a build that cannot grow a volume"),
                next: format!("upgrade it on {node}"),
            });
        }
        Ok(())
    }

    /// The wanted size, or the largest that all who are here have room for.
    fn size_to_grow_to(&self, wanted: Option<u64>) -> Result<u64, Refusal> {
        let now = self.superblock.data_bytes;
        let mut rooms: Vec<(&str, u64)> =
            alloc::vec![(self.config.node.as_str(), self.superblock.room_bytes)];
        rooms.extend(self.led().map(|at| (self.peers[at].node.as_str(), self.room_of(at))));
        let least = rooms.iter().map(|&(_, room)| room).min().unwrap_or(now);
        // A block of the volume is never half a dirty block.
        let size = wanted.unwrap_or(least) & !(crate::block::DIRTY_BLOCK_BYTES - 1);
        if size < now {
            return Err(Refusal {
                code: "shrinks",
                rule: "",
                why: format!("the volume has {now} bytes, more than {size}: it cannot shrink"),
                next: "create a smaller one beside it and copy what is in this one".into(),
            });
        }
        if size > least {
            let names: Vec<String> =
                rooms.iter().map(|(node, room)| format!("{node} {room}")).collect();
            let short: Vec<&str> =
                rooms.iter().filter(|&&(_, room)| room < size).map(|&(node, _)| node).collect();
            let own = self.room.why_not.as_ref().map(|why| format!("; here {why}"));
            return Err(Refusal {
                code: "no_room",
                rule: "",
                why: format!(
                    "there is room for so many bytes: {}{}",
                    names.join(", "),
                    own.unwrap_or_default()
                ),
                next: format!(
                    "extend the backing disk of {}, then say it again: replctl resize RESOURCE",
                    short.join(" and of ")
                ),
            });
        }
        Ok(size)
    }

    /// The peers that follow or are about to.
    fn led(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.peers.len()).filter(|&at| matches!(self.peers[at].link, Link::Leading(_)))
    }

    fn room_of(&self, at: usize) -> u64 {
        self.peers[at].hello.as_ref().map_or(0, |hello| hello.room_bytes)
    }

    /// A follower that is about to be led may have a larger size than this primary: one that was
    /// cut off while it grew, or whose own office an operator ended. It is taken up, unless
    /// somebody else here cannot. Whether the peer may be led.
    pub(crate) fn takes_up_size_of(&mut self, at: usize, effects: &mut Effects) -> bool {
        let size = self.peers[at].hello.as_ref().map_or(0, |hello| hello.size_bytes);
        if size <= self.superblock.data_bytes {
            return true;
        }
        let short = self.led().find(|&other| other != at && self.room_of(other) < size);
        if let Some(other) = short {
            let node = &self.peers[other].node;
            let reason =
                format!("its data area has {size} bytes, and {node} has no room for as many");
            let reason_text = reason.clone().into_boxed_str();
            let message = Message::Refused { reason: reason_text, diverged_blocks: 0 };
            self.send(PeerIndex(at as u8), message, None, effects);
            self.refused(at, &reason, 0, effects);
            return false;
        }
        self.begin_resize(size, None, effects);
        true
    }

    fn begin_resize(&mut self, to: u64, ticket: Option<Ticket>, effects: &mut Effects) {
        let before = self.sizes.resize;
        self.sizes.resize = Some(Resize {
            to,
            since: before.map_or(self.now, |resize| resize.since),
            ticket: ticket.or(before.and_then(|resize| resize.ticket)),
        });
        self.set_data_bytes(to);
        self.persist(After::SizeSaved(None, to), effects);
    }

    fn set_data_bytes(&mut self, data_bytes: u64) {
        self.superblock.data_bytes = data_bytes;
        let blocks = self.superblock.blocks();
        for peer in &mut self.peers {
            peer.bitmap.grow(blocks);
            if let Some(resync) = &mut peer.resync {
                resync.grow(blocks);
            }
        }
        self.log.grow(data_bytes);
    }

    /// Tells a follower that has less than this replica, before anything that needs it.
    pub(crate) fn tell_size(&mut self, at: usize, effects: &mut Effects) {
        let size_bytes = self.superblock.data_bytes;
        if self.has_less(at) && self.peers[at].resize_asked.is_none() {
            self.peers[at].resize_asked = Some(self.now);
            self.send(PeerIndex(at as u8), Message::Resize { size_bytes }, None, effects);
        }
    }

    /// Whether a peer is led and has less than this replica. One that is leaving comes back with a
    /// new greeting.
    fn has_less(&self, at: usize) -> bool {
        let peer = &self.peers[at];
        let stays = !matches!(peer.link, Link::Leading(Lead::Leaving { .. }));
        let size = peer.hello.as_ref().map_or(0, |hello| hello.size_bytes);
        matches!(peer.link, Link::Leading(_)) && stays && size < self.superblock.data_bytes
    }

    /// Whether a peer may be asked for something: it follows, and stays.
    fn is_ready(&self, at: usize) -> bool {
        matches!(self.peers[at].link, Link::Leading(lead)
            if !matches!(lead, Lead::AwaitFollow | Lead::Leaving { .. }))
    }

    /// Whether a growth waits for a peer. One that is not ready to follow hears of it when it is.
    fn is_smaller(&self, at: usize) -> bool {
        self.has_less(at) && self.is_ready(at)
    }

    /// Goes on with a growth as far as it can.
    pub(crate) fn go_on_with_resize(&mut self, effects: &mut Effects) {
        self.go_on_with_order(effects);
        let Some(resize) = self.sizes.resize else { return };
        if self.metadata_failed || !self.role.serves() {
            return self.give_up_resize(resize, effects);
        }
        for at in 0..self.peers.len() {
            if self.is_smaller(at) {
                self.tell_size(at, effects);
            }
        }
        let has_it = self.sizes.durable >= resize.to;
        let members_have_it = self.members_complete() && self.followers_have_it();
        if has_it && (members_have_it || defect(Defect::ResizedBeforeMembers)) {
            self.finish_resize(resize, effects);
        }
    }

    fn finish_resize(&mut self, resize: Resize, effects: &mut Effects) {
        self.sizes.resize = None;
        let from = core::mem::replace(&mut self.sizes.served, resize.to);
        effects.push(Effect::Note(Note::Resized { from, to: resize.to }));
        if self.role == Role::Primary {
            effects.push(Effect::ResizeDevice { size_bytes: resize.to });
        }
        if let Some(ticket) = resize.ticket {
            effects.push(Effect::AnswerOperator { ticket, result: Ok(Answer::Done) });
        }
        // A release may have waited for it.
        self.requests_drained(effects);
    }

    /// The office or the disk is lost: clients never knew of it. What has the new size keeps it,
    /// and a later primary takes it up.
    fn give_up_resize(&mut self, resize: Resize, effects: &mut Effects) {
        self.sizes.resize = None;
        if let Some(ticket) = resize.ticket {
            self.refuse_resize(ticket, "before every member had the new size", effects);
        }
    }

    fn refuse_resize(&mut self, ticket: Ticket, when: &str, effects: &mut Effects) {
        let refusal = match self.metadata_failed {
            true => no_disk(),
            false => Refusal {
                code: "not_primary",
                rule: "",
                why: format!("this node lost its office {when}"),
                next: "say it again when there is a primary: replctl resize RESOURCE".into(),
            },
        };
        effects.push(Effect::AnswerOperator { ticket, result: Err(Box::new(refusal)) });
    }

    /// A new size is durable here.
    pub(crate) fn size_saved(
        &mut self,
        session: Option<SessionId>,
        size_bytes: u64,
        effects: &mut Effects,
    ) {
        let from = self.sizes.durable;
        self.sizes.durable = from.max(size_bytes);
        if let Some(session) = session {
            if size_bytes > from {
                effects.push(Effect::Note(Note::Resized { from, to: size_bytes }));
            }
            self.say_to_leader(session, Message::Resized { size_bytes }, effects);
        }
        self.greet_waiting(effects);
    }

    /// The primary grows, or has grown while this replica was away.
    pub(crate) fn resize_asked(&mut self, at: usize, size_bytes: u64, effects: &mut Effects) {
        let room = self.superblock.room_bytes;
        let fits = size_bytes <= room && size_bytes.is_multiple_of(self.block_bytes());
        if !self.leads_us(at) || !fits || self.is_persisting_too_much() {
            return self.misbehaved(PeerIndex(at as u8), "a size out of order", effects);
        }
        if self.stopping.is_some() {
            // It leaves, and comes back with the size that it has.
            return;
        }
        if size_bytes > self.superblock.data_bytes {
            self.set_data_bytes(size_bytes);
        }
        let session = self.peers[at].session;
        if defect(Defect::ResizedBeforeDurable) {
            self.say_to_leader(session, Message::Resized { size_bytes }, effects);
            return self.persist(After::SizeSaved(None, size_bytes), effects);
        }
        self.persist(After::SizeSaved(Some(session), size_bytes), effects);
    }

    /// A follower has a new size durably.
    pub(crate) fn resized(&mut self, at: usize, size_bytes: u64, effects: &mut Effects) {
        let peer = &mut self.peers[at];
        let was_asked = peer.resize_asked.take().is_some();
        let hello = peer.hello.as_mut().filter(|hello| {
            was_asked && (hello.size_bytes..=hello.room_bytes).contains(&size_bytes)
        });
        let Some(hello) = hello else {
            return self.misbehaved(PeerIndex(at as u8), "a size out of order", effects);
        };
        hello.size_bytes = size_bytes;
        self.go_on_with_resize(effects);
        // A release may have waited for it.
        self.requests_drained(effects);
    }

    /// R6c: a clean release keeps the set, and whoever of it is promoted shows its own size. Who is
    /// not of it may never come to have that size.
    pub(crate) fn members_have_one_size(&self) -> bool {
        let is_in_the_way = |at: usize| self.peers[at].is_required() && self.is_smaller(at);
        let have_it = !(0..self.peers.len()).any(is_in_the_way);
        self.sizes.resize.is_none() && have_it || defect(Defect::ReleasedWhileResizing)
    }

    fn followers_have_it(&self) -> bool {
        (0..self.peers.len()).all(|at| !self.is_smaller(at))
    }

    /// Opens the device, with what this replica has: nobody is in the set that has less.
    pub(crate) fn open_device(&mut self, effects: &mut Effects) {
        let size_bytes = self.superblock.data_bytes;
        assert_eq!(self.sizes.durable, size_bytes, "an office is durable, and the size with it");
        self.sizes.served = size_bytes;
        effects.push(Effect::OpenDevice { tenure: self.register.tenure, size_bytes });
    }

    /// The size of the volume, for those who look.
    pub(crate) fn size_bytes(&self) -> u64 {
        if self.role.serves() { self.sizes.served } else { self.sizes.durable }
    }

    /// See [`Replica::check_invariants`].
    pub(crate) fn check_sizes(&self) {
        let superblock = &self.superblock;
        assert!(superblock.data_bytes <= superblock.room_bytes, "grown beyond the room");
        assert!(self.sizes.durable <= superblock.data_bytes, "the size went back");
        if self.role.serves() {
            assert!(self.sizes.served <= self.sizes.durable, "clients see what is not durable");
        }
    }

    /// Since when an order waits for room, and for that of which peer or of this node.
    pub(crate) fn order_awaits(&self) -> Option<(Time, Option<usize>)> {
        let order = self.sizes.order?;
        Some((order.since, self.led().find(|&at| self.peers[at].room == RoomThere::Comes)))
    }

    /// Whom a growth waits for, and since when.
    pub(crate) fn resize_awaits(&self) -> Option<(Time, Option<usize>)> {
        let resize = self.sizes.resize?;
        let asked = (0..self.peers.len()).find(|&at| self.peers[at].resize_asked.is_some());
        Some((resize.since, asked))
    }
}

fn no_disk() -> Refusal {
    Refusal {
        code: "no_disk",
        rule: "R16",
        why: "the disk of this replica cannot be written".into(),
        next: "replace it, or let the other node have the office".into(),
    }
}
