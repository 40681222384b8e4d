//! What a replica waits for, as status shows it: for whom, for how long already, until when, and
//! what happens then. Only looks; every deadline named here is kept elsewhere.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use crate::membership::Change;
use crate::office::promotion::Phase;
use crate::peer::{Lead, Link};
use crate::replica::{Replica, Role};
use crate::request::{Blocked, Request, Stage};
use crate::status::{Party, Wait};
use crate::time::{Span, Time};

/// Frames of a resync are on their way all the time; from this age on one is worth a line.
const RESYNC_SHOWN_AFTER: Span = Span::from_ms(500);

/// A wait with its times as points.
struct Pending {
    party: Party,
    what: String,
    since: Time,
    until: Option<Time>,
    then: String,
}

impl Replica {
    /// What is waited for, the longest wait first, one line for each reason.
    pub(crate) fn waits(&self, now: Time) -> Vec<Wait> {
        let mut pending: Vec<Pending> = Vec::new();
        let mut add = |new: Pending| match pending.iter_mut().find(|old| old.what == new.what) {
            Some(old) => {
                old.since = old.since.min(new.since);
                old.until = old.until.or(new.until);
            }
            None => pending.push(new),
        };
        for (key, request) in &self.requests {
            add(self.request_wait(key, request, now));
        }
        self.role_waits().into_iter().for_each(&mut add);
        self.resize_waits().into_iter().for_each(&mut add);
        self.resync_waits(now).into_iter().for_each(&mut add);
        self.majority_waits(now).into_iter().for_each(&mut add);
        pending.sort_by_key(|wait| wait.since);
        let shown = |wait: Pending| Wait {
            party: wait.party,
            what: wait.what,
            since: now.since(wait.since),
            left: wait.until.map(|until| until.since(now)),
            then: wait.then,
        };
        pending.into_iter().map(shown).collect()
    }

    fn request_wait(&self, key: usize, request: &Request, now: Time) -> Pending {
        let since = request.since;
        let on = |party, what: &str, then: &str| Pending {
            party,
            what: what.to_string(),
            since,
            until: None,
            then: then.to_string(),
        };
        match request.stage {
            Stage::Queued => match request.blocked {
                Blocked::Overlap => {
                    on(Party::Request, "an overlapping request", "it goes on when that is done")
                }
                Blocked::Log => self.log_wait(since),
                Blocked::Window(peer) => {
                    let at = usize::from(peer.0);
                    let what = format!("room towards {}", self.peers[at].node);
                    Pending { what, ..self.peer_wait(at, since) }
                }
            },
            Stage::Held if !self.holds_lease(now) && self.change.is_none() => self.lease_wait(now),
            Stage::Held => self.held_wait(since),
            Stage::Flushing => match self.barrier_waits(key) {
                Some((false, Some(at))) => self.peer_wait(at, since),
                _ => self.disk_wait(since),
            },
            _ if request.awaits != 0 => {
                self.peer_wait(request.awaits.trailing_zeros() as usize, since)
            }
            _ => self.disk_wait(since),
        }
    }

    fn disk_wait(&self, since: Time) -> Pending {
        Pending {
            party: Party::Disk,
            what: "the disk".into(),
            since,
            until: None,
            then: "it goes on when the disk answers".into(),
        }
    }

    /// The log is written by the own disk, or has no extent to spare until members have flushed.
    fn log_wait(&self, since: Time) -> Pending {
        Pending { party: Party::Log, what: "the activity log".into(), ..self.disk_wait(since) }
    }

    /// A peer that does not answer is lost after its silence, or its oldest frame's age.
    fn peer_wait(&self, at: usize, since: Time) -> Pending {
        let peer = &self.peers[at];
        let timing = &self.config.timing;
        let heard = self.last_heard(at);
        let silent = heard + timing.peer_silence;
        let asked = peer.oldest_outstanding().into_iter().chain(peer.resize_asked).min();
        let hung = asked.map(|sent| sent + timing.ack_limit);
        // Signs of life put the end of its patience off: it counts once one did not come.
        let is_heard = self.now.since(heard) <= Span(timing.ping_interval.0 * 3 / 2);
        Pending {
            party: Party::Peer,
            what: format!("the acknowledgement of {}", peer.node),
            since,
            until: Some(hung.map_or(silent, |hung| if is_heard { hung } else { hung.min(silent) })),
            then: format!("{} is taken out of the in-sync set", peer.node),
        }
    }

    /// Done everywhere, and not to be acknowledged yet.
    fn held_wait(&self, since: Time) -> Pending {
        let mut wait = Pending {
            party: Party::Peer,
            what: "a missing member of the in-sync set".into(),
            since,
            until: None,
            then: "it is taken out of the in-sync set".into(),
        };
        match self.change {
            Some(Change::FlushHeir { peer, .. }) => {
                let at = usize::from(peer.0);
                wait.until = self.peer_wait(at, since).until;
                wait.what = "the hand-over to another replica".into();
                wait.then = format!("{} counts as lost", self.peers[at].node);
            }
            None if self.awaits_fence.is_some() => {
                let at = self.awaits_fence.map_or(0, |(peer, _)| usize::from(peer.0));
                let node = &self.peers[at].node;
                wait.party = Party::Fence;
                wait.what =
                    format!("the fence of {node}: it may take over until it is off for sure");
                wait.then = format!("it goes on when that is confirmed, or {node} is back");
            }
            Some(Change::HandOver) => {
                wait.what = "the hand-over to another replica".into();
                wait.then = "it goes on when that is committed".into();
            }
            Some(Change::Shrink { replica, proposed }) => {
                let node = self.node_of(replica);
                wait.what = format!("the removal of {node} from the in-sync set");
                (wait.party, wait.then) = match (proposed, self.by_majority()) {
                    (true, true) => (Party::Majority, "it goes on when a majority answers".into()),
                    _ => (Party::Disk, "it goes on when the own disk is flushed".into()),
                };
            }
            _ if self.now.since(self.office_since) < self.config.timing.join_grace => {
                wait.until = Some(self.office_since + self.config.timing.join_grace);
            }
            _ => {}
        }
        wait
    }

    /// A promotion that is on its way.
    fn role_waits(&self) -> Option<Pending> {
        let Role::Promoting(promotion) = self.role else { return None };
        let limit = promotion.since + self.config.timing.drain_limit;
        let (party, what) = match promotion.phase {
            Phase::Asking(peer, _) => {
                let node = &self.peers[usize::from(peer.0)].node;
                (Party::Peer, format!("the authority, which {node} was asked for"))
            }
            Phase::Draining => {
                (Party::Disk, "writes of the old primary on their way to the own disk".into())
            }
            Phase::Flushing => (Party::Disk, "the flush of the own disk before the office".into()),
            Phase::Committing | Phase::AwaitLease => return None,
        };
        let then = "the promotion is given up and another member may try".into();
        Some(Pending { party, what, since: promotion.since, until: Some(limit), then })
    }

    fn resync_waits(&self, now: Time) -> Vec<Pending> {
        let mut waits = Vec::new();
        for (at, peer) in self.peers.iter().enumerate() {
            if let Link::Leading(Lead::HeldBack { since, until }) = peer.link {
                waits.push(Pending {
                    party: Party::HeldBack,
                    what: format!(
                        "{0} to be heard without a break: it was dropped {1} times lately",
                        peer.node,
                        peer.flapping.drops(now, &self.config.timing)
                    ),
                    since,
                    until: Some(until),
                    then: format!(
                        "it is brought up to date; at once: replctl connect RESOURCE --peer {}",
                        peer.node
                    ),
                });
            }
            if !matches!(peer.link, Link::Leading(Lead::Syncing | Lead::Joining(_))) {
                continue;
            }
            if let Some(until) = peer.resync.as_ref().and_then(|resync| resync.deadline(now)) {
                waits.push(Pending {
                    party: Party::Resync,
                    what: format!("the resync of {}: a block could not be read here", peer.node),
                    since: now,
                    until: Some(until),
                    then: "it is read again".into(),
                });
            }
            let Some(sent) = peer.oldest_outstanding() else { continue };
            if now.since(sent) >= RESYNC_SHOWN_AFTER {
                waits.push(Pending {
                    party: Party::Resync,
                    what: format!("the resync of {0}: its disk or its acknowledgement", peer.node),
                    then: format!("{} counts as lost; it goes on when it is back", peer.node),
                    ..self.peer_wait(at, sent)
                });
            }
        }
        waits
    }

    /// A growth of the volume.
    fn resize_waits(&self) -> Option<Pending> {
        if let Some((since, peer)) = self.order_awaits() {
            let node = peer.map_or(&self.config.node, |at| &self.peers[at].node);
            return Some(Pending {
                party: if peer.is_some() { Party::Peer } else { Party::Disk },
                what: format!("{node} to make room of what was added to its disk"),
                since,
                until: None,
                then: "the volume grows when every replica has made what room it can".into(),
            });
        }
        let (since, peer) = self.resize_awaits()?;
        let waits = |at: usize| Pending {
            party: Party::Peer,
            what: format!("{} to make the new size durable", self.peers[at].node),
            then: format!("{} counts as lost; the volume grows without it", self.peers[at].node),
            ..self.peer_wait(at, since)
        };
        let then = "the volume grows when every member has the new size".into();
        Some(peer.map_or_else(|| Pending { then, ..self.disk_wait(since) }, waits))
    }

    fn lease_wait(&self, now: Time) -> Pending {
        let ended = self.without_lease_since().unwrap_or(now);
        Pending {
            party: Party::Lease,
            what: "the lease".into(),
            since: ended,
            until: Some(ended + self.config.timing.demote_after),
            then: "the office is given up and clients get errors".into(),
        }
    }

    fn majority_waits(&self, now: Time) -> Vec<Pending> {
        let mut waits = Vec::new();
        if !self.by_majority() {
            return waits;
        }
        let mut wait = |since: Time, what: String, then: &str| {
            let (party, then) = (Party::Majority, then.into());
            waits.push(Pending { party, what, since, until: None, then });
        };
        let answers = "it goes on when a majority answers";
        if !self.majority.is_learned() {
            let what = "the register: no majority has answered since the start".into();
            wait(self.started_at, what, answers);
        }
        if let Some(state) = self.majority.state_that_went_back() {
            let (here, there) = (self.committed().generation, state.generation);
            let what = format!("the register, which went back from {here} to {there} (R11c)");
            wait(self.started_at, what, "an operator decides: replctl explain");
        }
        if let Some((since, generation)) = self.majority.open_since() {
            wait(since, format!("the majority's decision on {generation}"), answers);
        }
        if self.without_lease_since().is_some() && !self.holds_lease(now) {
            waits.push(self.lease_wait(now));
        }
        waits
    }
}
