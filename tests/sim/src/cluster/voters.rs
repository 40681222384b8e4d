//! Acceptors that lose their record, or come back with an old copy of it, and have no vote until
//! the operator has them replaced (L5); witnesses that come and go (L7). All of it while leases are
//! held and other troubles go on.

use failover_core::acceptor::Record;
use failover_core::command::Change;
use failover_core::voters::VotersWish;

use crate::cluster::{Happening, NAMES, WITNESS, name};
use crate::failure::Kind;
use crate::occasions::Occasion;
use crate::tell;
use crate::world::{MS, World};

/// When nothing is in the way, an old copy is noticed in this time.
const NOTICED_WITHIN: u64 = 20_000 * MS;
/// The operator looks so often.
const LOOKS: u64 = 300 * MS;

/// An acceptor without a vote.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outsider {
    seat: usize,
    since: u64,
    /// Its record is an old copy; else it is empty.
    is_old_copy: bool,
}

impl Outsider {
    /// Whether it is the old copy of that seat.
    pub(crate) fn is_old_copy_at(&self, seat: usize) -> bool {
        self.is_old_copy && self.seat == seat
    }
}

impl World {
    /// An old copy is recognised by those who heard a newer one (L5): until it knows that itself,
    /// durably, their processes are spared, since who forgot too cannot know.
    pub(crate) fn must_stay(&self, seat: usize) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        cluster.outsider.is_some_and(|outsider| {
            let knows_itself = cluster.seats[outsider.seat].record.left_out_of.is_some();
            outsider.is_old_copy && outsider.seat != seat && !knows_itself
        })
    }

    /// Whether the acceptor of a seat votes, no change of the voters is under way, and nobody else
    /// is without a vote: so that this one may fail.
    fn may_lose_its_vote(&self, seat: usize) -> bool {
        let cluster = self.cluster();
        let is_quiet = |seat: &crate::cluster::Seat| {
            let accepted = seat.record.accepted.as_ref().map(|(_, state)| state);
            let here = seat.node.as_ref().and_then(|node| node.acceptor().accepted());
            accepted.into_iter().chain(here).all(|state| state.next_voters.is_none())
        };
        let id = cluster.seats[seat].record.id;
        let votes = cluster.newest().is_some_and(|state| state.is_voter(id));
        let is_free = cluster.outsider.is_none() && cluster.forcing.is_none();
        votes && is_free && cluster.went_back_at.is_none() && cluster.seats.iter().all(is_quiet)
    }

    /// Whether all others live and heard this acceptor with a newer record than a copy of it.
    fn others_know_more(&self, seat: usize, copy: &Record) -> bool {
        (0..self.cluster().count()).filter(|other| *other != seat).all(|other| {
            let local = self.seat_local(other);
            let Some(node) = &self.cluster().seats[other].node else { return false };
            let heard = node.detector().node(&name(seat));
            heard.is_some_and(|heard| {
                heard.acceptor() == copy.id
                    && heard.newest_record() > copy.sequence
                    && node.detector().hears_now(local, &name(seat))
            })
        })
    }

    /// A node comes back with an old copy of its acceptor's record.
    pub(super) fn restore_record(&mut self, seat: usize) {
        let Some(copy) = self.cluster().seats[seat].older.clone() else { return };
        let is_current = copy.id == self.cluster().seats[seat].record.id;
        if !is_current
            || self.operator_is_busy()
            || !self.may_lose_its_vote(seat)
            || !self.others_know_more(seat, &copy)
        {
            return;
        }
        tell!(self, "{} comes back with an old record, of {}", NAMES[seat], copy.sequence);
        let most = [20, 500, 3_000][self.draw.below(3) as usize];
        let mut back_after = (1 + self.draw.below(most)) * MS;
        let memory = self.cluster_mut().seats[seat].with_older.take();
        let memory = memory.filter(|_| self.draw.chance(50));
        if memory.is_some() {
            tell!(self, "and with its memory of that time");
            self.happened(Occasion::OldMemory);
            // Nothing that was sent before is on its way by then.
            back_after += (self.cluster().plan.late_ms + 100) * MS;
        }
        self.seat_falls(seat, back_after, memory.is_none());
        self.cluster_mut().seats[seat].resumes = memory;
        if self.draw.chance(50) {
            // Whether one of the data nodes may take over depends on this acceptor alone.
            let until = self.now + back_after + self.draw.below(4_000) * MS;
            let cut = &mut self.cluster_mut().cut_until;
            (cut[0][1], cut[1][0]) = (until, until);
            self.blocked_until = [until; 2];
        }
        let since = self.now;
        let cluster = self.cluster_mut();
        (cluster.seats[seat].record, cluster.seats[seat].older) = (copy, None);
        cluster.outsider = Some(Outsider { seat, since, is_old_copy: true });
        self.soon(LOOKS, Happening::VoterCare);
        if self.draw.chance(50) {
            let delay = back_after + self.draw.below(400) * MS;
            self.soon(delay, Happening::OldCopyFalls { seat });
        }
    }

    /// The old copy starts again at once, maybe before anybody could tell it what it is.
    pub(super) fn old_copy_falls(&mut self, seat: usize) {
        let outsider = self.cluster().outsider;
        let is_it = outsider.is_some_and(|it| it.is_old_copy && it.seat == seat);
        if is_it && self.cluster().seats[seat].node.is_some() {
            let back_after = (1 + self.draw.below(10)) * MS;
            self.seat_falls(seat, back_after, false);
        }
    }

    /// systemd starts another process at once.
    pub(super) fn ends_gone_back(&mut self, seat: usize, life: u64) {
        if self.seat_runs(seat, life) {
            let back_after = (100 + self.draw.below(200)) * MS;
            self.seat_falls(seat, back_after, false);
        }
    }

    /// A node loses its record.
    pub(super) fn lose_record(&mut self, seat: usize, back_after: u64) {
        if self.may_lose_its_vote(seat) {
            self.wipe(seat, back_after);
            self.soon(LOOKS, Happening::VoterCare);
        }
    }

    fn seat_falls(&mut self, seat: usize, back_after: u64, power: bool) {
        if seat >= WITNESS {
            self.witness_falls(seat, back_after, power);
        } else {
            self.fall(seat, back_after, power);
        }
    }

    /// A node begins with an empty state directory; sometimes it is a new machine altogether.
    fn wipe(&mut self, seat: usize, back_after: u64) {
        tell!(self, "{} has an empty state directory", NAMES[seat]);
        let is_secondary = self.device().is_some_and(|(primary, _)| primary == 1 - seat.min(1));
        if seat < WITNESS && is_secondary && self.may_lose_its_disk(seat) && self.draw.chance(30) {
            self.replace_disk(back_after);
        } else {
            self.seat_falls(seat, back_after, false);
        }
        let id = u128::from(self.draw.number()) | 1;
        let since = self.now;
        let cluster = self.cluster_mut();
        (cluster.seats[seat].record, cluster.seats[seat].older) = (Record::new(id), None);
        cluster.outsider = Some(Outsider { seat, since, is_old_copy: false });
    }

    /// The operator sees to it that everybody votes.
    pub(super) fn care_for_voters(&mut self) {
        let Some(outsider) = self.cluster().outsider else { return };
        self.soon(LOOKS, Happening::VoterCare);
        if outsider.is_old_copy {
            return self.look_for_old_copy(outsider);
        }
        let cluster = self.cluster();
        let id = cluster.seats[outsider.seat].record.id;
        let votes =
            |state: &failover_core::ClusterState| state.next_voters.is_none() && state.is_voter(id);
        if cluster.newest().is_some_and(votes) {
            self.happened(Occasion::EmptyRecordReplaced);
            self.cluster_mut().outsider = None;
        } else if cluster.operator.is_idle() {
            self.wish(&VotersWish::Replace(name(outsider.seat)));
        }
    }

    fn look_for_old_copy(&mut self, outsider: Outsider) {
        let cluster = self.cluster();
        let others = cluster.seats.iter().enumerate().filter(|(seat, _)| *seat != outsider.seat);
        let says_so = |(_, seat): (usize, &crate::cluster::Seat)| {
            let trouble = seat.node.as_ref()?.vote_trouble(&name(outsider.seat))?;
            (trouble.code == "went_back").then_some(())
        };
        let is_noticed = others.filter_map(says_so).next().is_some();
        if is_noticed && (self.draw.chance(30) || self.is_calm()) {
            self.happened(Occasion::OldRecordRefused);
            let back_after = self.draw.below(1_000) * MS + MS;
            self.wipe(outsider.seat, back_after);
        } else if let Some(calm) = self.checkers.calm_since
            && self.now - outsider.since.max(calm) > NOTICED_WITHIN
        {
            let text = format!("nobody notices the old record of {}", NAMES[outsider.seat]);
            self.fail(Kind::Liveness, "L5", text);
        }
    }

    /// The operator orders a change of the voters at some data node, if that can be done now.
    fn wish(&mut self, wish: &VotersWish) {
        let by = self.draw.below(2) as usize;
        let Some(node) = &self.cluster().seats[by].node else { return };
        match node.check_voters(wish) {
            Ok(change) => self.switch(by, change),
            Err(verdict) => tell!(self, "{wish:?} is refused: {}", verdict.why),
        }
    }

    /// A witness comes or goes; or the operator wants too much at once.
    pub(super) fn change_members(&mut self) {
        let cluster = self.cluster();
        let Some(state) = cluster.newest() else { return };
        if cluster.outsider.is_some() || state.next_voters.is_some() {
            return;
        }
        if !cluster.plan.has_delta || self.draw.chance(20) {
            return self.want_too_much();
        }
        let seat = WITNESS + self.draw.below(2) as usize;
        let votes = |state: &failover_core::ClusterState| {
            state.voters.iter().any(|voter| voter.node == name(seat))
        };
        let is_voter = self.cluster().newest().is_some_and(votes);
        self.happened(if is_voter { Occasion::WitnessRemoved } else { Occasion::WitnessAdded });
        self.wish(&match is_voter {
            true => VotersWish::Remove(name(seat)),
            false => VotersWish::Add(name(seat)),
        });
    }

    /// Two voters at once: refused by the register (L7).
    fn want_too_much(&mut self) {
        let Some(state) = self.cluster().newest() else { return };
        let (expected, mut next) = (state.voters.clone(), state.voters.clone());
        for voter in next.iter_mut().take(2) {
            voter.acceptor ^= 2;
        }
        let by = self.draw.below(2) as usize;
        self.switch(by, Change::Voters { expected, next });
    }
}
