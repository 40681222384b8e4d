//! One unit of the device as a register: which writes may still be its value, and the test whether
//! a read fits. The model and the reason why this is exact are in the crate documentation.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::checker::{NumberHasher, Op};

/// A time that never comes.
pub(crate) const NEVER: u64 = u64::MAX;
/// Index of the pseudo write that put the initial content there.
pub(crate) const INITIAL_OP: u32 = 0;
/// Index of the pseudo write that stands for "any value ever written" after an allowed data loss.
pub(crate) const ANY_OP: u32 = 1;

/// What the registers need to know of the whole history.
pub(crate) struct Facts<'a> {
    pub ops: &'a [Op],
    /// The newest write of each value.
    pub by_value: &'a HashMap<u64, u32, BuildHasherDefault<NumberHasher>>,
    /// (tenure, event number at which it began), both rising.
    pub tenures: &'a [(u64, u64)],
    /// The latest start of an acknowledged flush: all that ended before it is durable.
    pub flushed_until: u64,
    /// No read that is in flight or will come began before this.
    pub oldest_read_start: u64,
}

impl Facts<'_> {
    /// When writes of `tenure` were fenced.
    pub fn fence(&self, tenure: u64) -> u64 {
        match self.tenures.last() {
            Some(&(last, _)) if last > tenure => {
                let next = self.tenures.partition_point(|&(t, _)| t <= tenure);
                self.tenures[next].1
            }
            _ => NEVER,
        }
    }
}

/// A moment at which every unit may have fallen back (see "Power loss").
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rollback {
    pub at: u64,
    /// Writes that started at or after this are not lost.
    pub cutoff: u64,
    pub flushed_until: u64,
    /// True for an allowed data loss: not even durable values stay for sure.
    pub to_anything: bool,
}

/// One write as seen by one unit, with the reads that returned it.
#[derive(Debug, Clone, Copy)]
struct Trace {
    op: u32,
    /// An acknowledged write that may have skipped this unit (trim).
    optional: bool,
    /// Event number of the roll-back of which this is a possible result; 0 if none.
    restored_at: u64,
    /// Earliest end of a read that returned it.
    first_read_end: u64,
    last_start: u64,
}

impl Trace {
    fn first_end(&self, facts: &Facts) -> u64 {
        self.first_end_as_of(NEVER, facts)
    }

    /// As it stood at event `now`: what came later is ignored.
    fn first_end_as_of(&self, now: u64, facts: &Facts) -> u64 {
        if self.restored_at > 0 {
            return self.restored_at;
        }
        let op = &facts.ops[self.op as usize];
        let until_now = |time: u64| if time <= now { time } else { NEVER };
        until_now(op.acked).min(until_now(facts.fence(op.tenure))).min(self.first_read_end)
    }

    fn was_read(&self) -> bool {
        self.first_read_end < NEVER
    }

    fn must_have_happened(&self, now: u64, facts: &Facts) -> bool {
        self.was_read()
            || (self.restored_at == 0 && !self.optional && facts.ops[self.op as usize].acked < now)
    }

    fn is_durable(&self, now: u64, flushed_until: u64, facts: &Facts) -> bool {
        if !self.must_have_happened(now, facts) {
            return false;
        }
        let op = &facts.ops[self.op as usize];
        // What a roll-back left is in place since then; its old acknowledgement says nothing.
        let settled = match self.restored_at {
            0 if op.acked < now => op.acked.min(self.first_read_end),
            0 => self.first_read_end,
            restored_at => restored_at,
        };
        settled < flushed_until || (op.fua && (self.restored_at..now).contains(&op.acked))
    }
}

/// The answer to one value that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fits,
    /// It fits nothing: the write it came from (if one is remembered), the newest write that had
    /// to be visible, and what they say about the kind.
    Wrong(Conflict),
}

/// Why a value cannot be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub seen: Option<u32>,
    pub expected: Option<u32>,
    pub expected_acked: bool,
    pub expected_flushed: bool,
    /// A read had shown a newer value before this read began.
    pub replacement_was_read: bool,
    /// The value seen is of a fenced write that nobody had read before.
    pub late: bool,
}

/// The possible present values of one unit.
#[derive(Debug, Clone)]
pub(crate) struct Register {
    pub rollbacks_done: u32,
    traces: Vec<Trace>,
    /// When it last fell back to anything it ever held; 0: never.
    any_since: u64,
}

impl Register {
    pub fn new(rollbacks_done: u32) -> Self {
        let initial = Trace {
            op: INITIAL_OP,
            optional: false,
            restored_at: 0,
            first_read_end: NEVER,
            last_start: 0,
        };
        Register { rollbacks_done, traces: vec![initial], any_since: 0 }
    }

    /// How many writes this unit still has to remember.
    pub fn remembered(&self) -> usize {
        self.traces.len()
    }

    pub fn write_started(&mut self, op: u32, optional: bool, facts: &Facts) {
        self.forget_what_cannot_return(facts);
        self.traces.push(Trace {
            op,
            optional,
            restored_at: 0,
            first_read_end: NEVER,
            last_start: facts.ops[op as usize].started,
        });
    }

    /// A read that ran from `start` to `now` returned `value`. `find_older` looks in the whole
    /// history for a write of that value to this unit.
    pub fn read(
        &mut self,
        value: u64,
        start: u64,
        now: u64,
        facts: &Facts,
        find_older: impl Fn() -> Option<u32>,
    ) -> Verdict {
        let mut fitting = None;
        let mut fitting_count = 0;
        for (index, trace) in self.traces.iter().enumerate() {
            if trace.op != ANY_OP
                && facts.ops[trace.op as usize].value == value
                && self.fits(index, start, now, facts)
            {
                fitting = Some(index);
                fitting_count += 1;
            }
        }
        if fitting_count == 0 {
            fitting = self.settle_any(start, now, facts, &find_older);
            fitting_count = usize::from(fitting.is_some());
        }
        match (fitting_count, fitting) {
            (1, Some(index)) => {
                let trace = &mut self.traces[index];
                trace.first_read_end = trace.first_read_end.min(now);
                trace.last_start = trace.last_start.max(start);
                self.forget_what_cannot_return(facts);
                Verdict::Fits
            }
            (0, _) => {
                let conflict = self.explain(value, start, now, facts, find_older);
                self.adopt(&conflict, start, now, facts);
                Verdict::Wrong(conflict)
            }
            // Several writes of one value: whichever it was, it teaches nothing for certain.
            _ => Verdict::Fits,
        }
    }

    /// A write of a fenced tenure was acknowledged late. It must fit what was read in the meantime.
    pub fn acked_after_fence(&mut self, op: u32, now: u64, facts: &Facts) -> Verdict {
        let index = self.traces.iter().position(|t| t.op == op && t.restored_at == 0);
        let Some(index) = index else { return Verdict::Fits };
        let Trace { last_start, optional, .. } = self.traces[index];
        let started = facts.ops[op as usize].started;
        let was_too_late_to_start = facts.fence(facts.ops[op as usize].tenure) < started;
        // One that started too late is judged when it is read.
        if optional || was_too_late_to_start || self.fits(index, last_start, now, facts) {
            return Verdict::Fits;
        }
        self.traces[index].optional = true;
        Verdict::Wrong(Conflict {
            seen: None,
            expected: Some(op),
            expected_acked: true,
            expected_flushed: false,
            replacement_was_read: false,
            late: false,
        })
    }

    /// Gives the wildcard of an allowed data loss the value that was read, if it may be that.
    fn settle_any(
        &mut self,
        start: u64,
        now: u64,
        facts: &Facts,
        find_older: &impl Fn() -> Option<u32>,
    ) -> Option<usize> {
        let index = self.traces.iter().position(|t| t.op == ANY_OP)?;
        if !self.fits(index, start, now, facts) {
            return None;
        }
        self.traces[index].op = find_older()?;
        Some(index)
    }

    /// Whether the write at `index` could have been returned by a read from `start` to `now`.
    fn fits(&self, index: usize, start: u64, now: u64, facts: &Facts) -> bool {
        let x = &self.traces[index];
        if x.restored_at == 0 {
            let op = &facts.ops[x.op as usize];
            if facts.fence(op.tenure) < op.started {
                return false;
            }
        }
        let first_end = x.first_end(facts).min(now);
        let last_start = x.last_start.max(start);
        !self.traces.iter().enumerate().any(|(other, y)| {
            other != index
                && first_end < y.last_start
                && y.must_have_happened(NEVER, facts)
                && y.first_end(facts) < last_start
        })
    }

    /// Finds the evidence for a value that fits nothing.
    fn explain(
        &self,
        value: u64,
        start: u64,
        now: u64,
        facts: &Facts,
        find_older: impl Fn() -> Option<u32>,
    ) -> Conflict {
        let x = self
            .traces
            .iter()
            .filter(|t| t.op != ANY_OP && facts.ops[t.op as usize].value == value)
            .max_by_key(|t| t.last_start);
        let x_first_end = x.map_or(0, |t| t.first_end(facts)).min(now);
        let overtakers = self.traces.iter().filter(|y| {
            x.is_none_or(|x| x.op != y.op)
                && y.must_have_happened(NEVER, facts)
                && x_first_end < y.last_start
                && y.first_end(facts) < x.map_or(0, |t| t.last_start).max(start)
        });
        let mut conflict = Conflict {
            seen: x.map(|t| t.op).or_else(find_older),
            expected: None,
            expected_acked: false,
            expected_flushed: false,
            replacement_was_read: false,
            late: x.is_some_and(|t| {
                let op = &facts.ops[t.op as usize];
                op.acked == NEVER && !t.was_read() && facts.fence(op.tenure) < start
            }),
        };
        let mut newest = (false, false, 0);
        for y in overtakers {
            let acked = facts.ops[y.op as usize].acked < NEVER;
            let flushed = y.is_durable(NEVER, facts.flushed_until, facts);
            conflict.expected_acked |= acked;
            conflict.expected_flushed |= flushed && acked;
            conflict.replacement_was_read |= y.first_read_end < start;
            if (flushed, acked, y.last_start) >= newest {
                newest = (flushed, acked, y.last_start);
                conflict.expected = Some(y.op);
            }
        }
        if conflict.expected.is_none() {
            self.explain_by_rollback(&mut conflict, facts);
        }
        conflict
    }

    /// The value seen was ruled out by a loss of power that could not go back so far: what was
    /// durable then is among the possible results of that roll-back.
    fn explain_by_rollback(&self, conflict: &mut Conflict, facts: &Facts) {
        for trace in self.traces.iter().filter(|t| t.restored_at > 0 && t.op != ANY_OP) {
            let op = &facts.ops[trace.op as usize];
            if op.acked < NEVER {
                conflict.expected = Some(trace.op);
                conflict.expected_acked = true;
                conflict.expected_flushed |= op.fua || op.acked < facts.flushed_until;
            }
        }
    }

    /// After a violation: goes on from the value that was read.
    fn adopt(&mut self, conflict: &Conflict, start: u64, now: u64, facts: &Facts) {
        let Some(op) = conflict.seen else { return };
        self.traces.retain(|t| t.op != op && t.first_end(facts) == NEVER);
        self.traces.push(Trace {
            op,
            optional: false,
            restored_at: start,
            first_read_end: now,
            last_start: start,
        });
    }

    /// Every write that is before a durable one can never be read again, once no read in flight
    /// began before that one was in place.
    fn forget_what_cannot_return(&mut self, facts: &Facts) {
        // The late acknowledgement of a fenced write is judged with all the evidence there is.
        let awaits_late_ack = |t: &Trace| {
            let op = &facts.ops[t.op as usize];
            op.in_flight && facts.fence(op.tenure) < NEVER
        };
        if self.traces.len() < 2 || self.traces.iter().any(awaits_late_ack) {
            return;
        }
        let floor = (0..self.traces.len())
            .filter(|&i| {
                let t = &self.traces[i];
                t.is_durable(NEVER, facts.flushed_until, facts)
                    && t.first_end(facts) < facts.oldest_read_start
            })
            .max_by_key(|&i| self.traces[i].last_start);
        let Some(floor) = floor else { return };
        let mut floor_start = self.traces[floor].last_start;
        let (limit, floor_op) = (floor_start, self.traces[floor].op);
        self.traces.retain(|t| {
            let stays = t.op == floor_op || t.first_end(facts) >= limit;
            // One that may never have happened knows nothing about the order.
            if !stays && t.must_have_happened(NEVER, facts) {
                floor_start = floor_start.max(t.last_start);
            }
            stays
        });
        let kept = self.traces.iter_mut().find(|t| t.op == floor_op);
        kept.expect("the floor is never forgotten").last_start = floor_start;
    }

    /// Marks every write that one of `pushes`, or one that is marked so, has overtaken.
    fn overtaken(&self, mut pushes: Vec<bool>, marked: &mut [bool], at: u64, facts: &Facts) {
        let count = self.traces.len();
        loop {
            let mut changed = false;
            for x in 0..count {
                let end = self.traces[x].first_end_as_of(at, facts);
                let overtaken =
                    (0..count).any(|z| z != x && pushes[z] && end < self.traces[z].last_start);
                if !marked[x] && overtaken {
                    // One that may never have happened overtakes nothing.
                    let happened = self.traces[x].must_have_happened(at, facts);
                    (marked[x], pushes[x], changed) = (true, happened, true);
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// Falls back: what is before a durable write is gone, one of the rest is the value now.
    pub fn roll_back(&mut self, rollback: &Rollback, facts: &Facts) {
        let at = rollback.at;
        let is_durable = |t: &Trace| t.is_durable(at, rollback.flushed_until, facts);
        // What was found after a fall to anything is no more durable than anything else.
        let again = self.any_since > 0
            && rollback.flushed_until <= self.any_since
            && !self.traces.iter().any(is_durable);
        if rollback.to_anything || again {
            self.any_since = at;
            self.traces.retain_mut(|t| {
                t.optional = true;
                t.first_end_as_of(at, facts) == NEVER
            });
            self.traces.push(Trace {
                op: ANY_OP,
                optional: true,
                restored_at: at,
                first_read_end: NEVER,
                last_start: at,
            });
            return;
        }
        // Not lost this time, but perhaps the next: it hides what it overtook and ends nothing.
        let stays_this_time = |t: &Trace| {
            let op = &facts.ops[t.op as usize];
            t.restored_at == 0
                && op.started >= rollback.cutoff
                && t.must_have_happened(at, facts)
                && op.acked < at
        };
        let impossible = |x: &Trace| {
            let end = x.first_end_as_of(at, facts);
            !x.must_have_happened(at, facts)
                && self.traces.iter().any(|y| {
                    y.must_have_happened(at, facts)
                        && end < y.last_start
                        && y.first_end_as_of(at, facts) < x.last_start
                })
        };
        // One that never found room between the others is not among the results either.
        let mut gone: Vec<bool> = self.traces.iter().map(impossible).collect();
        let durable: Vec<bool> = self.traces.iter().map(is_durable).collect();
        self.overtaken(durable, &mut gone, at, facts);
        let mut hidden = gone.clone();
        let sure: Vec<bool> = self.traces.iter().map(stays_this_time).collect();
        self.overtaken(sure.clone(), &mut hidden, at, facts);
        let mut index = 0;
        self.traces.retain_mut(|t| {
            index += 1;
            if sure[index - 1] || hidden[index - 1] {
                // As it was: still in order, so that what is hidden cannot be read.
            } else if t.first_end_as_of(at, facts) < NEVER {
                t.restored_at = at;
                t.last_start = at;
                t.first_read_end = NEVER;
            } else if facts.ops[t.op as usize].started < rollback.cutoff {
                // Its acknowledgement may be on the way, and its data lost all the same.
                t.optional = true;
            }
            !gone[index - 1]
        });
        assert!(!self.traces.is_empty(), "a unit always has a value");
    }
}
