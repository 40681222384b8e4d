//! Verify on the primary: the copies of members that are up to date are compared with the own one,
//! block by block, while clients write. An operator orders it; it finds what no rule of ours can
//! prevent: a disk that changed what it was given.
//!
//! - Each step takes its range (no client's write overlaps it while it is compared), waits for the
//!   writes that are under way there, and has both disks read and hashed: the own by
//!   [`Effect::DigestDisk`], the member's by [`Message::Verify`], which stands in its order of
//!   frames behind the writes that it overlaps. A step that waits for writes holds later ones back,
//!   so that a busy range cannot keep it waiting for ever.
//! - Nothing is changed, unless it was ordered to repair. Then the primary's copy is taken: the
//!   blocks become durable dirty bits, the member's session is closed, and it is what any member
//!   is that lacks something: out of the set by R3, resynced, and back by R4. Of several members
//!   one is mended at a time. What this node serves is never changed.
//! - It ends with the session, with the office, or when an operator says so; then it says how far
//!   it came.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::bitmap::Blocks;
use crate::block::{BlockDigest, ByteRange, DIRTY_BLOCK_BYTES, PeerIndex};
use crate::command::{Answer, Refusal};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects, Retry};
use crate::input::{DiskFailure, DiskOutcome};
use crate::limits::{
    VERIFY_NEWS_BYTES, VERIFY_RUNS_MAX, VERIFY_STEP_BYTES, VERIFY_WINDOW_BYTES,
    VERIFY_YIELDING_BYTES,
};
use crate::note::{Note, dirty_bytes};
use crate::peer::{Lead, Link, Peer, Sent};
use crate::persist::After;
use crate::replica::{Purpose, Replica, Role};
use crate::request::Use;
use crate::status::VerifyStatus;
use crate::verify_news::VerifyNews;
use crate::wire::{Message, VERIFY_SINCE};

/// A verify of one member.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Verify {
    /// Tells the verifies of a peer apart.
    number: u64,
    repair: bool,
    total_bytes: u64,
    /// Where the next step begins.
    cursor: u64,
    steps: Vec<Step>,
    findings: Findings,
    /// Blocks to be copied by a repair: those that differ, and those that cannot be read there.
    to_mend: Blocks,
}

/// What was found so far.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Findings {
    /// Bytes that were compared.
    pub checked_bytes: u64,
    /// Blocks of [`DIRTY_BLOCK_BYTES`] that differ.
    pub differing_blocks: u64,
    /// Bytes that the primary could not read.
    pub unreadable_here_bytes: u64,
    /// Bytes that the member could not read.
    pub unreadable_there_bytes: u64,
    /// The first ranges that differ, in order.
    pub differing: Vec<ByteRange>,
    /// The first ranges that could not be read on either side.
    pub unreadable: Vec<ByteRange>,
}

impl Findings {
    /// Whether both copies were read and are the same, as far as it came.
    pub fn is_clean(&self) -> bool {
        self.differing_blocks == 0 && self.unreadable_here_bytes + self.unreadable_there_bytes == 0
    }
}

/// A range being compared.
#[derive(Clone, Debug, Hash)]
struct Step {
    range: ByteRange,
    state: Reading,
    theirs: Option<Digests>,
}

#[derive(Clone, Debug, Hash)]
enum Reading {
    /// Writes that came before it are under way in its range.
    AwaitsWrites,
    /// The own disk reads.
    Reads,
    Done(Digests),
}

/// Of each block of a range; none when it cannot be read.
type Digests = Option<Box<[BlockDigest]>>;

impl Verify {
    fn in_flight_bytes(&self) -> u64 {
        self.steps.iter().map(|step| step.range.length).sum()
    }

    fn is_through(&self) -> bool {
        self.cursor >= self.total_bytes && self.steps.is_empty()
    }

    /// For people.
    pub(crate) fn status(&self, copy: String) -> VerifyStatus {
        VerifyStatus {
            copy,
            total_bytes: self.total_bytes,
            repair: self.repair,
            findings: self.findings.clone(),
        }
    }

    fn compare(&mut self, range: ByteRange, own: &Digests, theirs: &Digests) {
        self.findings.checked_bytes += range.length;
        let findings = &mut self.findings;
        let (Some(own), Some(theirs)) = (own, theirs) else {
            let (here, there) = (own.is_none(), theirs.is_none());
            findings.unreadable_here_bytes += if here { range.length } else { 0 };
            findings.unreadable_there_bytes += if there { range.length } else { 0 };
            add_run(&mut findings.unreadable, range);
            if !here {
                // A disk that cannot read a sector any more often can once it was written.
                self.to_mend.insert(range.dirty_blocks());
            }
            return;
        };
        for (block, (own, theirs)) in range.dirty_blocks().zip(own.iter().zip(theirs)) {
            if own != theirs {
                findings.differing_blocks += 1;
                let start = block * DIRTY_BLOCK_BYTES;
                let end = range.end().min(start + DIRTY_BLOCK_BYTES);
                add_run(&mut findings.differing, ByteRange::new(start, end - start));
                self.to_mend.insert(block..block + 1);
            }
        }
    }
}

/// Adds a range to those that are kept in order and without gaps, the first so many of them.
fn add_run(runs: &mut Vec<ByteRange>, new: ByteRange) {
    let at = runs.partition_point(|run| run.start < new.start);
    if at > 0 && runs[at - 1].end() == new.start {
        runs[at - 1].length += new.length;
        if runs.get(at).is_some_and(|next| next.start == new.end()) {
            runs[at - 1].length += runs.remove(at).length;
        }
    } else if let Some(next) = runs.get_mut(at).filter(|next| next.start == new.end()) {
        *next = ByteRange::new(new.start, new.length + next.length);
    } else {
        runs.insert(at, new);
        runs.truncate(VERIFY_RUNS_MAX);
    }
}

impl Replica {
    // ------------------------------------------------------------------ an operator's orders

    pub(crate) fn verify(
        &mut self,
        repair: bool,
        effects: &mut Effects,
    ) -> Result<Answer, Refusal> {
        if !matches!(self.role, Role::Primary) {
            return Err(Refusal {
                code: "not_primary",
                rule: "",
                why: format!("this replica is {}", self.role.name()),
                next: "run it on the primary, or on a node that is connected to it".into(),
            });
        }
        if let Some((peer, verify)) =
            self.peers.iter().find_map(|peer| Some((peer, peer.verify.as_ref()?)))
        {
            let done = verify.findings.checked_bytes * 100 / verify.total_bytes.max(1);
            return Err(Refusal {
                code: "verify_runs",
                rule: "",
                why: format!("a verify of {} is under way: {done} % are compared", peer.node),
                next: "wait: replctl verify RESOURCE --wait; or end it: replctl verify RESOURCE \
                       --cancel"
                    .into(),
            });
        }
        let current: Vec<usize> = (0..self.peers.len()).filter(|&at| self.may_verify(at)).collect();
        if let Some(old) = current.iter().map(|&at| &self.peers[at]).find(|it| !it.can_verify()) {
            return Err(too_old(old));
        }
        if current.is_empty() {
            return Err(Refusal {
                code: "no_member_to_verify",
                rule: "",
                why: "no other replica is connected, in sync and up to date".into(),
                next: "replctl status RESOURCE says what it waits for; then say it again".into(),
            });
        }
        for at in current {
            let total_bytes = self.sizes.served;
            let to_mend = Blocks::new(self.superblock.blocks());
            let peer = &mut self.peers[at];
            peer.verifies += 1;
            peer.verify = Some(Verify {
                number: peer.verifies,
                repair,
                total_bytes,
                cursor: 0,
                steps: Vec::new(),
                findings: Findings::default(),
                to_mend,
            });
            let news = VerifyNews::Began { bytes: total_bytes, repair };
            self.tell_verify(at, news, effects);
        }
        self.go_on_with_verify(effects);
        Ok(Answer::Done)
    }

    pub(crate) fn cancel_verify(&mut self, effects: &mut Effects) -> Answer {
        let runs = self.peers.iter().any(|peer| peer.verify.is_some());
        self.end_verifies("an operator ended it", effects);
        if runs { Answer::Done } else { Answer::Already }
    }

    fn may_verify(&self, at: usize) -> bool {
        let peer = &self.peers[at];
        peer.link == Link::Leading(Lead::Current) && self.register.contains(peer.replica())
    }

    // ------------------------------------------------------------------ steps

    /// Goes on with every verify as far as its window and the clients' ranges allow.
    pub(crate) fn go_on_with_verify(&mut self, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            if self.peers[at].verify.is_some() {
                self.start_comparing(at, effects);
                self.check_verify(at, effects);
            }
        }
    }

    fn start_comparing(&mut self, at: usize, effects: &mut Effects) {
        let (now, tenure) = (self.now, self.register.tenure);
        let window = match self.requests.is_empty() {
            true => VERIFY_WINDOW_BYTES,
            false => VERIFY_YIELDING_BYTES,
        };
        loop {
            let peer = &mut self.peers[at];
            let Some(verify) = &mut peer.verify else { return };
            if !matches!(verify.steps.last(), Some(Step { state: Reading::AwaitsWrites, .. })) {
                let is_full = verify.in_flight_bytes() + VERIFY_STEP_BYTES > window;
                if verify.cursor >= verify.total_bytes || is_full {
                    return;
                }
                let length = VERIFY_STEP_BYTES.min(verify.total_bytes - verify.cursor);
                let range = ByteRange::new(verify.cursor, length);
                verify.cursor = range.end();
                verify.steps.push(Step { range, state: Reading::AwaitsWrites, theirs: None });
                self.active.insert(range, Use::Compare);
            }
            let step = verify.steps.last_mut().expect("one waits");
            let (range, number) = (step.range, verify.number);
            if self.active.conflicts(range, Use::Compare) {
                return;
            }
            step.state = Reading::Reads;
            let seq = peer.record_sent(now, Sent::Verify { number, range });
            let peer = PeerIndex(at as u8);
            let op = self.ops.begin(Purpose::Verify { peer, number, range });
            effects.push(Effect::DigestDisk { op, range });
            self.send(peer, Message::Verify { tenure, seq, range }, None, effects);
        }
    }

    /// The own disk has read a step.
    pub(crate) fn verify_read(
        &mut self,
        (peer, number, range): (PeerIndex, u64, ByteRange),
        result: Result<DiskOutcome, DiskFailure>,
        effects: &mut Effects,
    ) {
        let at = usize::from(peer.0);
        let verify = self.peers[at].verify.as_ref();
        let noted = verify.map_or(0, |verify| verify.findings.unreadable.len());
        let digests = digests_of(("verify read", noted), range, result, effects);
        match self.step_of(at, number, range) {
            Some(step) => {
                step.state = Reading::Done(digests);
                self.compare_read(at, range, effects);
            }
            // The verify ended meanwhile, and left the range to this read.
            None => self.leave_range(range, effects),
        }
    }

    /// The member has read a step.
    pub(crate) fn digests_came(
        &mut self,
        at: usize,
        seq: u64,
        digests: Vec<BlockDigest>,
        effects: &mut Effects,
    ) {
        let index = PeerIndex(at as u8);
        let sent = self.peers[at].acknowledge(seq).map(|done| done.what);
        let Some(Sent::Verify { number, range }) = sent else {
            return self.misbehaved(index, "a digest of nothing", effects);
        };
        let blocks = range.dirty_blocks();
        if !digests.is_empty() && digests.len() as u64 != blocks.end - blocks.start {
            return self.misbehaved(index, "digests of another range", effects);
        }
        if let Some(step) = self.step_of(at, number, range) {
            step.theirs = Some((!digests.is_empty()).then(|| digests.into_boxed_slice()));
            self.compare_read(at, range, effects);
        }
    }

    fn step_of(&mut self, at: usize, number: u64, range: ByteRange) -> Option<&mut Step> {
        let verify = self.peers[at].verify.as_mut().filter(|verify| verify.number == number)?;
        verify.steps.iter_mut().find(|step| step.range == range)
    }

    /// Compares a step when both sides have read it, and lets clients write there again.
    fn compare_read(&mut self, at: usize, range: ByteRange, effects: &mut Effects) {
        let Some(verify) = &mut self.peers[at].verify else { return };
        let Some(index) = verify.steps.iter().position(|step| step.range == range) else { return };
        let step = &verify.steps[index];
        if let (Reading::Done(own), Some(theirs)) = (step.state.clone(), step.theirs.clone()) {
            verify.compare(range, &own, &theirs);
            verify.steps.remove(index);
            let (done, length) = (verify.findings.checked_bytes, range.length);
            if done / VERIFY_NEWS_BYTES != (done - length) / VERIFY_NEWS_BYTES {
                let findings = Box::new(verify.findings.clone());
                self.tell_verify(at, VerifyNews::Compared(findings), effects);
            }
            self.leave_range(range, effects);
        }
    }

    fn leave_range(&mut self, range: ByteRange, effects: &mut Effects) {
        self.active.remove(range, Use::Compare);
        self.start_queued(effects);
        self.go_on_with_verify(effects);
        self.requests_drained(effects);
    }

    // ------------------------------------------------------------------ on the member

    /// The own disk has read what the leader wants to compare.
    pub(crate) fn digest_taken(
        &mut self,
        key: usize,
        result: Result<DiskOutcome, DiskFailure>,
        effects: &mut Effects,
    ) {
        let range = self.applied_range(key);
        let noted = self.following.as_mut().map_or(0, |leader| {
            leader.verify_failures += usize::from(result.is_err());
            leader.verify_failures - usize::from(result.is_err())
        });
        let digests = digests_of(("read for a verify", noted), range, result, effects);
        let digests = digests.map(|digests| digests.into_vec()).unwrap_or_default();
        self.answer_applied(key, |seq| Message::VerifyDigests { seq, digests }, effects);
    }

    // ------------------------------------------------------------------ the end

    fn check_verify(&mut self, at: usize, effects: &mut Effects) {
        if !self.may_verify(at) {
            self.end_verify(at, "it is not up to date any more", effects);
            return self.start_queued(effects);
        }
        let others_mend = self.peers.iter().any(|peer| peer.mending_blocks > 0);
        let is_through = |verify: &Verify| {
            let waits = verify.repair && !verify.to_mend.is_empty() && others_mend;
            verify.is_through() && !waits
        };
        if let Some(verify) = self.peers[at].verify.take_if(|verify| is_through(verify)) {
            let repairs = verify.repair && !verify.to_mend.is_empty();
            let findings = Box::new(verify.findings);
            self.tell_verify(at, VerifyNews::Ended { broken: None, findings, repairs }, effects);
            if repairs {
                self.mend(at, &verify.to_mend, effects);
            }
        }
    }

    /// Ends the verify of a peer before it is through. Writes that waited for it may start.
    pub(crate) fn end_verify(&mut self, at: usize, why: &'static str, effects: &mut Effects) {
        let Some(verify) = self.peers[at].verify.take() else { return };
        for step in verify.steps {
            // A read that is under way keeps its range until it ends.
            if !matches!(step.state, Reading::Reads) {
                self.active.remove(step.range, Use::Compare);
            }
        }
        let (broken, findings) = (Some(why.into()), Box::new(verify.findings));
        self.tell_verify(at, VerifyNews::Ended { broken, findings, repairs: false }, effects);
    }

    pub(crate) fn end_verifies(&mut self, why: &'static str, effects: &mut Effects) {
        for at in 0..self.peers.len() {
            self.end_verify(at, why, effects);
        }
        self.start_queued(effects);
    }

    // ------------------------------------------------------------------ repair

    /// The primary's copy is taken: the member leaves the set, and comes back by a resync of these
    /// blocks. Their bits are durable before its removal is proposed (R3); from now on it counts as
    /// missing, so nothing is acknowledged meanwhile (R8).
    fn mend(&mut self, at: usize, blocks: &Blocks, effects: &mut Effects) {
        let peer = &mut self.peers[at];
        for (start, length) in blocks.merged_runs() {
            if !defect(Defect::RepairWithoutBits) {
                peer.bitmap.insert(start..start + length);
            }
        }
        peer.mending_blocks = blocks.count();
        peer.marks_unsaved = true;
        peer.flapping.leaves = true;
        peer.why = format!("a verify found {} blocks to be copied again", blocks.count());
        if !defect(Defect::RepairedMemberStays) {
            self.close(at, Retry::Now, effects);
        }
        let all = 0..self.superblock.blocks();
        self.save_pages(alloc::vec![all], After::VerifyMarked(PeerIndex(at as u8)), effects);
    }

    /// Whether the bits of a repair are on their way to the disk: meanwhile nobody is met and
    /// nobody leaves the set.
    pub(crate) fn marks_unsaved(&self) -> bool {
        self.peers.iter().any(|peer| peer.marks_unsaved)
    }

    /// They are durable.
    pub(crate) fn verify_marked(&mut self, peer: PeerIndex, effects: &mut Effects) {
        if core::mem::take(&mut self.peers[usize::from(peer.0)].marks_unsaved) {
            self.membership_changed(effects);
            self.greet_waiting(effects);
        }
    }

    /// The member was resynced and is one again.
    pub(crate) fn mended(&mut self, at: usize, effects: &mut Effects) {
        let blocks = core::mem::take(&mut self.peers[at].mending_blocks);
        if blocks > 0 {
            let news = VerifyNews::Repaired { bytes: dirty_bytes(blocks) };
            self.tell_verify(at, news, effects);
        }
    }

    /// The office is over, and with it what was ordered of its holder.
    pub(crate) fn forget_verifies(&mut self, effects: &mut Effects) {
        self.end_verifies("the office of this node ended", effects);
        for peer in &mut self.peers {
            peer.mending_blocks = 0;
        }
    }
}

pub(crate) fn too_old(peer: &Peer) -> Refusal {
    Refusal {
        code: "peer_too_old",
        rule: "",
        why: format!(
            "{} speaks protocol version {}, a verify needs {VERIFY_SINCE}",
            peer.node, peer.version
        ),
        next: format!("upgrade the software of {} first", peer.node),
    }
}

impl Peer {
    /// Whether the software there knows what a verify is.
    pub(crate) fn can_verify(&self) -> bool {
        self.version >= VERIFY_SINCE
    }
}

/// A failure is for the record, unless so many were already.
fn digests_of(
    (during, noted): (&'static str, usize),
    range: ByteRange,
    result: Result<DiskOutcome, DiskFailure>,
    effects: &mut Effects,
) -> Digests {
    match result {
        Ok(DiskOutcome::Digests(digests)) => Some(digests),
        Ok(_) => unreachable!("a digest was ordered"),
        Err(why) => {
            if noted < VERIFY_RUNS_MAX {
                effects.push(Effect::Note(Note::DiskFailed { during, range, why }));
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(starts: &[u64]) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        for &start in starts {
            add_run(&mut runs, ByteRange::new(start * 10, 10));
        }
        runs.iter().map(|run| (run.start / 10, run.length / 10)).collect()
    }

    #[test]
    fn ranges_are_merged_in_whatever_order_they_are_found() {
        assert_eq!(runs(&[5, 6, 7]), [(5, 3)]);
        assert_eq!(runs(&[7, 5, 6]), [(5, 3)]);
        assert_eq!(runs(&[9, 1, 2, 4]), [(1, 2), (4, 1), (9, 1)]);
    }

    #[test]
    fn the_first_ranges_are_kept() {
        let many: Vec<u64> = (0..100).rev().map(|number| number * 2).collect();
        let kept = runs(&many);
        assert_eq!(kept.len(), VERIFY_RUNS_MAX);
        assert_eq!((kept[0], kept[1]), ((0, 1), (2, 1)));
    }
}
