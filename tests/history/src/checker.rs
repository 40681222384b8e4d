//! The checker: takes the events in the order in which they were seen and judges each read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use crate::register::{ANY_OP, Conflict, Facts, INITIAL_OP, NEVER, Register, Rollback, Verdict};
use crate::violation::{Seen, Violation, ViolationKind, WriteReport};

/// What the checked device looks like.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number of units of the device.
    pub units: u64,
    /// The value that every unit has before the first write; 0 is zeroes.
    pub initial_value: u64,
    /// Number of replicas whose power can be lost one by one, at least 1.
    pub members: usize,
    /// True when an acknowledgement is told at the instant when the device gave it, as a simulator
    /// can. Only then can acknowledgements of an earlier tenure be judged (`StaleAck`).
    pub acks_are_instant: bool,
}

impl Config {
    /// A zeroed device of `units` units and one member, whose acknowledgements travel.
    pub fn new(units: u64) -> Self {
        Config { units, initial_value: 0, members: 1, acks_are_instant: false }
    }
}

/// A write, as the client asked for it. All ranges are in units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    units: Range<u64>,
    certain: Range<u64>,
    value: u64,
    fua: bool,
    tenure: Option<u64>,
}

impl Write {
    /// A write that leaves `value` in each of `units`. Values should never be used twice.
    pub fn data(units: Range<u64>, value: u64) -> Self {
        Write { certain: units.clone(), units, value, fua: false, tenure: None }
    }

    /// A request that must zero all of `units`.
    pub fn zero(units: Range<u64>) -> Self {
        Write::data(units, 0)
    }

    /// A trim that must zero `certain` and may or may not zero the rest of `units`. Give an empty
    /// range where the device may ignore the whole trim.
    pub fn trim(units: Range<u64>, certain: Range<u64>) -> Self {
        Write::optional(units, certain, 0)
    }

    /// A write of `value` that must reach `certain` and may or may not reach the rest of `units`.
    pub fn optional(units: Range<u64>, certain: Range<u64>, value: u64) -> Self {
        Write { certain, ..Write::data(units, value) }
    }

    /// The same with FUA: it is durable when it is acknowledged.
    pub fn fua(self) -> Self {
        Write { fua: true, ..self }
    }

    /// The same, sent to the primary of `tenure` and not of the newest tenure that was told.
    pub fn in_tenure(self, tenure: u64) -> Self {
        Write { tenure: Some(tenure), ..self }
    }
}

/// Who lost the content of its volatile caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLoss {
    /// Every member at once.
    AllMembers,
    /// One member, by its number below `Config::members`.
    Member(usize),
}

/// A write in the history. Kept for ever: it is the evidence.
#[derive(Debug)]
pub(crate) struct Op {
    pub id: u64,
    pub value: u64,
    pub units: Range<u64>,
    pub fua: bool,
    pub tenure: u64,
    pub started: u64,
    pub acked: u64,
    pub in_flight: bool,
}

#[derive(Debug)]
struct Read {
    start: u64,
    units: Range<u64>,
}

#[derive(Debug)]
struct Flush {
    start: u64,
    tenure: u64,
}

/// Neighbouring units that had the same history, and so have one register.
#[derive(Debug)]
struct Run {
    end: u64,
    register: Register,
}

/// Judges a history while it happens. See the crate documentation for the model.
///
/// Operation ids are the caller's, above 0, each used once. Telling the end of an operation that
/// is not in flight is a mistake of the caller and panics.
#[derive(Debug)]
pub struct Checker {
    config: Config,
    now: u64,
    ops: Vec<Op>,
    /// The newest write of each value.
    by_value: HashMap<u64, u32, BuildHasherDefault<NumberHasher>>,
    writes_in_flight: HashMap<u64, u32, BuildHasherDefault<NumberHasher>>,
    flushes_in_flight: HashMap<u64, Flush, BuildHasherDefault<NumberHasher>>,
    reads_in_flight: HashMap<u64, Read, BuildHasherDefault<NumberHasher>>,
    read_starts: BTreeSet<u64>,
    /// By the first unit of each run; units without one were never touched.
    runs: BTreeMap<u64, Run>,
    rollbacks: Vec<Rollback>,
    tenures: Vec<(u64, u64)>,
    newest_acking_tenure: u64,
    flushed_until: u64,
    last_power_loss: Vec<u64>,
}

impl Checker {
    /// Begins a history on a fresh device, in tenure 0.
    pub fn new(config: Config) -> Self {
        assert!(config.members > 0, "a device has at least one member");
        let pseudo = |value| Op {
            id: 0,
            value,
            units: 0..config.units,
            fua: true,
            tenure: NEVER,
            started: 0,
            acked: 0,
            in_flight: false,
        };
        let ops = vec![pseudo(config.initial_value), pseudo(config.initial_value)];
        debug_assert_eq!((INITIAL_OP, ANY_OP), (0, 1));
        Checker {
            last_power_loss: vec![0; config.members],
            config,
            now: 0,
            ops,
            by_value: HashMap::default(),
            writes_in_flight: HashMap::default(),
            flushes_in_flight: HashMap::default(),
            reads_in_flight: HashMap::default(),
            read_starts: BTreeSet::new(),
            runs: BTreeMap::new(),
            rollbacks: Vec::new(),
            tenures: vec![(0, 0)],
            newest_acking_tenure: 0,
            flushed_until: 0,
        }
    }

    /// A write, zeroing or trim is about to be sent.
    pub fn write_started(&mut self, id: u64, write: Write) {
        assert!(id > 0, "operation id 0 is reserved");
        self.check_range(&write.units);
        let started = self.tick();
        let index = u32::try_from(self.ops.len()).expect("fewer than 2^32 writes");
        let Write { units, certain, value, fua, tenure } = write;
        let tenure = tenure.unwrap_or(self.tenure());
        self.ops.push(Op {
            id,
            value,
            units: units.clone(),
            fua,
            tenure,
            started,
            acked: NEVER,
            in_flight: true,
        });
        self.by_value.insert(value, index);
        let before = self.writes_in_flight.insert(id, index);
        assert!(before.is_none(), "operation id {id} is already in flight");
        self.make_runs(units.clone());
        self.split(certain.start);
        self.split(certain.end);
        self.each_run(units, |register, run, facts| {
            let register = register.expect("just made");
            register.write_started(index, !certain.contains(&run.start), facts);
        });
    }

    /// The device acknowledged the write. The answer is empty, or a `StaleAck`, or (for a write of
    /// an earlier tenure) the units where the later tenure has already shown that it is missing.
    pub fn write_acked(&mut self, id: u64) -> Vec<Violation> {
        let index = self.end_write(id);
        let now = self.tick();
        let op = &mut self.ops[index as usize];
        op.acked = now;
        let (tenure, units) = (op.tenure, op.units.clone());
        let mut violations = Vec::from_iter(self.judge_ack(id, tenure, units.start));
        if tenure < self.tenure() {
            let mut missing = Vec::new();
            self.each_run(units, |register, run, facts| {
                let register = register.expect("made when the write started");
                if let Verdict::Wrong(conflict) = register.acked_after_fence(index, now, facts) {
                    missing.push((run, conflict));
                }
            });
            for (run, conflict) in missing {
                violations.extend(run.map(|unit| Violation {
                    kind: ViolationKind::LostAcknowledged,
                    unit,
                    op: id,
                    seen: None,
                    seen_write: None,
                    expected: conflict.expected.map(|op| self.report(&self.ops[op as usize])),
                }));
            }
        }
        violations
    }

    /// The write failed, or its connection was lost: it may take effect later, or never.
    pub fn write_unknown(&mut self, id: u64) {
        self.end_write(id);
    }

    /// A flush is about to be sent.
    pub fn flush_started(&mut self, id: u64) {
        let (start, tenure) = (self.tick(), self.tenure());
        self.flush_started_at(id, start, tenure);
    }

    /// The same, sent to the primary of `tenure` and not of the newest tenure that was told.
    pub fn flush_started_in(&mut self, id: u64, tenure: u64) {
        let start = self.tick();
        self.flush_started_at(id, start, tenure);
    }

    fn flush_started_at(&mut self, id: u64, start: u64, tenure: u64) {
        let before = self.flushes_in_flight.insert(id, Flush { start, tenure });
        assert!(before.is_none(), "operation id {id} is already in flight");
    }

    /// The device acknowledged the flush. The answer is `StaleAck` or nothing.
    pub fn flush_acked(&mut self, id: u64) -> Option<Violation> {
        let flush = self.end_flush(id);
        self.tick();
        self.flushed_until = self.flushed_until.max(flush.start);
        self.judge_ack(id, flush.tenure, 0)
    }

    /// The flush failed, or its connection was lost: it proves nothing.
    pub fn flush_unknown(&mut self, id: u64) {
        self.end_flush(id);
    }

    /// A read of `units` is about to be sent.
    pub fn read_started(&mut self, id: u64, units: Range<u64>) {
        self.check_range(&units);
        let start = self.tick();
        self.read_starts.insert(start);
        let before = self.reads_in_flight.insert(id, Read { start, units });
        assert!(before.is_none(), "operation id {id} is already in flight");
    }

    /// The read returned `seen`, one entry for each unit. The answer lists every unit that no
    /// correct device could have returned.
    pub fn read_done(&mut self, id: u64, seen: &[Seen]) -> Vec<Violation> {
        let Read { start, units } = self.end_read(id);
        let now = self.tick();
        assert_eq!(seen.len() as u64, units.end - units.start, "one value for each unit");
        let spans_rollback = self.rollbacks.last().is_some_and(|rollback| rollback.at > start);
        let mut violations = Vec::new();
        let initial = self.config.initial_value;
        let mut find = Vec::new();
        let mut first = units.start;
        for same in seen.chunk_by(|one, two| one == two) {
            let seen = same[0];
            let units = first..first + same.len() as u64;
            first = units.end;
            let Seen::Value(value) = seen else {
                find.push((units, seen, None));
                continue;
            };
            self.each_run(units, |register, run, facts| {
                let Some(register) = register else {
                    if value != initial {
                        find.push((run, seen, None));
                    }
                    return;
                };
                // What it returned may be from before the power loss or from after it.
                if spans_rollback {
                    return;
                }
                let older = || match value == initial {
                    true => Some(INITIAL_OP),
                    false => find_write(facts, run.start, value),
                };
                if let Verdict::Wrong(conflict) = register.read(value, start, now, facts, older) {
                    find.push((run, seen, Some(conflict)));
                }
            });
        }
        for (run, seen, conflict) in find {
            let conflict = conflict.as_ref();
            violations.extend(run.map(|unit| self.violation(unit, id, seen, conflict)));
        }
        violations
    }

    /// The read failed, or its connection was lost.
    pub fn read_failed(&mut self, id: u64) {
        self.end_read(id);
    }

    /// One step of a read-out that nothing overlaps: start and end of a read at once.
    pub fn read_out(&mut self, id: u64, first_unit: u64, seen: &[Seen]) -> Vec<Violation> {
        self.read_started(id, first_unit..first_unit + seen.len() as u64);
        self.read_done(id, seen)
    }

    /// Everything in flight was lost with its connection: writes and flushes of unknown outcome,
    /// reads without an answer. Returns how many of each: (writes, flushes, reads).
    pub fn connection_lost(&mut self) -> (usize, usize, usize) {
        let lost =
            (self.writes_in_flight.len(), self.flushes_in_flight.len(), self.reads_in_flight.len());
        for (_, index) in self.writes_in_flight.drain() {
            self.ops[index as usize].in_flight = false;
        }
        self.flushes_in_flight.clear();
        self.reads_in_flight.clear();
        self.read_starts.clear();
        lost
    }

    /// A later tenure began: a take-over. Tell it after the last request that is sent to the
    /// earlier one's device and before the first that is sent to the later one (or mark the
    /// former with [`Write::in_tenure`]). Numbers rise; an older or equal one is ignored.
    pub fn tenure_changed(&mut self, tenure: u64) {
        let now = self.tick();
        if tenure > self.tenure() {
            self.tenures.push((tenure, now));
        }
    }

    /// The newest tenure that was told.
    pub fn tenure(&self) -> u64 {
        self.tenures.last().expect("never empty").0
    }

    /// Members lost the content of their volatile caches.
    pub fn power_lost(&mut self, who: PowerLoss) {
        let at = self.tick();
        let before = self.power_cutoff();
        match who {
            PowerLoss::AllMembers => self.last_power_loss.fill(at),
            PowerLoss::Member(member) => self.last_power_loss[member] = at,
        }
        let cutoff = self.power_cutoff();
        if cutoff > before {
            self.rollbacks.push(Rollback {
                at,
                cutoff,
                flushed_until: self.flushed_until,
                to_anything: false,
            });
        }
    }

    /// An operator allowed the loss of data: every unit may fall back to anything it ever held.
    pub fn data_loss_allowed(&mut self) {
        let at = self.tick();
        let flushed_until = self.flushed_until;
        self.rollbacks.push(Rollback { at, cutoff: at, flushed_until, to_anything: true });
    }

    /// Every write that touched `unit`, oldest first. Looks through the whole history.
    pub fn unit_history(&self, unit: u64) -> Vec<WriteReport> {
        let touched = |op: &&Op| op.id > 0 && op.units.contains(&unit);
        self.ops.iter().filter(touched).map(|op| self.report(op)).collect()
    }

    /// Requests in flight: writes, flushes, reads.
    pub fn in_flight(&self) -> (usize, usize, usize) {
        (self.writes_in_flight.len(), self.flushes_in_flight.len(), self.reads_in_flight.len())
    }

    /// Number of writes that some unit still remembers, summed over the units: the memory used.
    pub fn remembered(&self) -> usize {
        let units = |(start, run): (&u64, &Run)| (run.end - start) as usize;
        self.runs.iter().map(|run| units(run) * run.1.register.remembered()).sum()
    }

    fn power_cutoff(&self) -> u64 {
        *self.last_power_loss.iter().min().expect("at least one member")
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn check_range(&self, units: &Range<u64>) {
        assert!(
            units.start < units.end && units.end <= self.config.units,
            "units {units:?} are outside of the {} of the device",
            self.config.units
        );
    }

    fn end_write(&mut self, id: u64) -> u32 {
        let index = self.writes_in_flight.remove(&id);
        let index = index.unwrap_or_else(|| panic!("no write {id} in flight"));
        self.ops[index as usize].in_flight = false;
        index
    }

    fn end_flush(&mut self, id: u64) -> Flush {
        let flush = self.flushes_in_flight.remove(&id);
        flush.unwrap_or_else(|| panic!("no flush {id} in flight"))
    }

    fn end_read(&mut self, id: u64) -> Read {
        let read = self.reads_in_flight.remove(&id);
        let read = read.unwrap_or_else(|| panic!("no read {id} in flight"));
        self.read_starts.remove(&read.start);
        read
    }

    fn judge_ack(&mut self, id: u64, tenure: u64, unit: u64) -> Option<Violation> {
        let stale = tenure < self.newest_acking_tenure;
        self.newest_acking_tenure = self.newest_acking_tenure.max(tenure);
        (stale && self.config.acks_are_instant).then_some(Violation {
            kind: ViolationKind::StaleAck,
            unit,
            op: id,
            seen: None,
            seen_write: None,
            expected: None,
        })
    }

    /// Makes a run end before `unit` and another begin with it, where one goes across.
    fn split(&mut self, unit: u64) {
        let Some((_, run)) = self.runs.range_mut(..unit).next_back() else { return };
        if run.end > unit {
            let after = Run { end: run.end, register: run.register.clone() };
            run.end = unit;
            self.runs.insert(unit, after);
        }
    }

    /// Gives registers to the units that have none.
    fn make_runs(&mut self, units: Range<u64>) {
        let rollbacks = self.rollbacks.len() as u32;
        let mut gaps = Vec::new();
        self.each_run(units, |register, gap, _| {
            if register.is_none() {
                gaps.push(gap);
            }
        });
        for gap in gaps {
            // A unit without a register has its initial value, and that is durable.
            self.runs.insert(gap.start, Run { end: gap.end, register: Register::new(rollbacks) });
        }
    }

    /// Every run within the units, with its register brought up to date; and what lies between.
    fn each_run(
        &mut self,
        units: Range<u64>,
        mut f: impl FnMut(Option<&mut Register>, Range<u64>, &Facts),
    ) {
        self.split(units.start);
        self.split(units.end);
        let facts = Facts {
            ops: &self.ops,
            by_value: &self.by_value,
            tenures: &self.tenures,
            flushed_until: self.flushed_until,
            oldest_read_start: self.read_starts.first().copied().unwrap_or(NEVER),
        };
        let mut at = units.start;
        for (&start, Run { end, register }) in self.runs.range_mut(units.clone()) {
            if at < start {
                f(None, at..start, &facts);
            }
            for rollback in &self.rollbacks[register.rollbacks_done as usize..] {
                register.roll_back(rollback, &facts);
            }
            register.rollbacks_done = self.rollbacks.len() as u32;
            f(Some(register), start..*end, &facts);
            at = *end;
        }
        if at < units.end {
            f(None, at..units.end, &facts);
        }
    }

    fn violation(&self, unit: u64, op: u64, seen: Seen, conflict: Option<&Conflict>) -> Violation {
        let kind = match (seen, conflict) {
            (Seen::Torn, _) => ViolationKind::Torn,
            (Seen::Foreign, _) | (_, None) => ViolationKind::NeverWritten,
            (Seen::Value(value), Some(conflict)) => self.kind(value, conflict),
        };
        let report = |index: u32| self.report(&self.ops[index as usize]);
        Violation {
            kind,
            unit,
            op,
            seen: Some(seen),
            seen_write: conflict.and_then(|c| c.seen).map(report),
            expected: conflict.and_then(|c| c.expected).map(report),
        }
    }

    fn kind(&self, value: u64, conflict: &Conflict) -> ViolationKind {
        if conflict.seen.is_none() {
            ViolationKind::NeverWritten
        } else if conflict.late {
            ViolationKind::LateWrite
        } else if conflict.expected.is_some() && !conflict.expected_acked {
            ViolationKind::Unread
        } else if value != self.config.initial_value && conflict.replacement_was_read {
            ViolationKind::Resurrected
        } else if conflict.expected_flushed {
            ViolationKind::LostFlushed
        } else {
            ViolationKind::LostAcknowledged
        }
    }

    fn report(&self, op: &Op) -> WriteReport {
        let acked = (op.acked < NEVER).then_some(op.acked);
        WriteReport {
            op: op.id,
            value: op.value,
            units: op.units.clone(),
            tenure: if op.id == 0 { 0 } else { op.tenure },
            started: op.started,
            acked,
            flushed: acked.is_some_and(|at| op.fua || at < self.flushed_until),
        }
    }
}

/// The newest write of `value` that touched `unit`.
fn find_write(facts: &Facts, unit: u64, value: u64) -> Option<u32> {
    let newest = *facts.by_value.get(&value)?;
    let wrote = |op: &Op| op.value == value && op.units.contains(&unit);
    let index = facts.ops[..=newest as usize].iter().rposition(wrote)?;
    (index > ANY_OP as usize).then_some(index as u32)
}

/// Spreads small numbers over a hash table: one multiplication, since nobody attacks it.
#[derive(Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("all keys are u64");
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}
