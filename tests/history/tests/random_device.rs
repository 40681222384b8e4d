//! Long random histories of a simulated device with several clients: a correct one must pass, and
//! one with a planted defect must be caught each time the defect has had an effect.

use history::draw::Draw;
use history::{Checker, Config, PowerLoss, Seen, ViolationKind, Write};

const UNITS: u64 = 64;
const DEPTH: usize = 12;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Defect {
    /// An acknowledged write never reaches the device.
    DropWrite,
    /// A flush is acknowledged and does nothing; then the power is lost.
    EmptyFlush,
    /// An old value comes back after the newer one was read.
    Revert,
    /// A write of the earlier tenure lands after the later one has read the unit.
    LateWrite,
    /// The value of an unanswered write is read and then gone.
    Unread,
    /// A unit gets the data of a write to another unit.
    Misdirect,
}

#[derive(Clone, Debug)]
enum Request {
    Write { from: u64, to: u64, value: u64, fua: bool, applied: u64 },
    Flush { done: bool },
    Read { from: u64, to: u64, seen: Vec<Seen> },
}

struct Device {
    draw: Draw,
    checker: Checker,
    /// Each unit's values in the order of effect; the first is durable.
    units: Vec<Vec<u64>>,
    in_flight: Vec<(u64, Request)>,
    next_id: u64,
    tenure: u64,
}

impl Device {
    fn new(seed: u64) -> Self {
        Device {
            draw: Draw::new(seed),
            checker: Checker::new(Config::new(UNITS)),
            units: vec![vec![0]; UNITS as usize],
            in_flight: Vec::new(),
            next_id: 1,
            tenure: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn start(&mut self) {
        let id = self.id();
        let from = self.draw.below(UNITS);
        let to = (from + 1 + self.draw.below(8)).min(UNITS);
        let request = match self.draw.below(10) {
            0 => {
                self.checker.flush_started(id);
                Request::Flush { done: false }
            }
            1..5 => {
                self.checker.read_started(id, from..to);
                Request::Read { from, to, seen: Vec::new() }
            }
            kind => {
                let value = if kind == 9 { 0 } else { id };
                let fua = self.draw.chance(10);
                let write = Write::data(from..to, value);
                self.checker.write_started(id, if fua { write.fua() } else { write });
                Request::Write { from, to, value, fua, applied: from }
            }
        };
        self.in_flight.push((id, request));
    }

    /// Moves one request a unit further, or answers it.
    fn advance(&mut self) -> usize {
        let index = self.draw.below(self.in_flight.len() as u64) as usize;
        let id = self.in_flight[index].0;
        let finished = match &mut self.in_flight[index].1 {
            Request::Write { from, to, value, fua, applied } => {
                if *applied < *to {
                    self.units[*applied as usize].push(*value);
                    *applied += 1;
                    None
                } else {
                    if *fua {
                        for unit in *from..*to {
                            harden(&mut self.units[unit as usize]);
                        }
                    }
                    Some(self.checker.write_acked(id))
                }
            }
            Request::Flush { done } if !*done => {
                self.units.iter_mut().for_each(harden);
                *done = true;
                None
            }
            Request::Flush { .. } => Some(Vec::from_iter(self.checker.flush_acked(id))),
            Request::Read { from, to, seen } => {
                let next = *from + seen.len() as u64;
                if next < *to {
                    seen.push(Seen::Value(*self.units[next as usize].last().unwrap()));
                    None
                } else {
                    Some(self.checker.read_done(id, seen))
                }
            }
        };
        let Some(violations) = finished else { return 0 };
        self.in_flight.swap_remove(index);
        assert_eq!(violations, vec![], "a correct device");
        1
    }

    /// The connection breaks: what is in flight may stay half done and land later, or never.
    fn lose_connection(&mut self) {
        self.checker.connection_lost();
        let left = std::mem::take(&mut self.in_flight);
        let lands = self.draw.chance(50);
        for (_, request) in left {
            if let Request::Write { to, value, applied, .. } = request
                && lands
            {
                (applied..to).for_each(|unit| self.units[unit as usize].push(value));
            }
        }
    }

    fn take_over(&mut self) {
        self.lose_connection();
        self.tenure += 1;
        self.checker.tenure_changed(self.tenure);
    }

    fn lose_power(&mut self) {
        self.take_over();
        self.checker.power_lost(PowerLoss::AllMembers);
        for unit in &mut self.units {
            let kept = self.draw.below(unit.len() as u64) as usize;
            *unit = vec![unit[kept]];
        }
    }

    fn work(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.draw.below(1000) {
                0 => self.lose_connection(),
                1 => self.take_over(),
                2 => self.lose_power(),
                _ if self.in_flight.len() < DEPTH && self.draw.chance(20) => self.start(),
                _ if !self.in_flight.is_empty() => drop(self.advance()),
                _ => self.start(),
            }
        }
        while !self.in_flight.is_empty() {
            self.advance();
        }
    }

    fn write(&mut self, unit: u64) -> u64 {
        let id = self.id();
        self.checker.write_started(id, Write::data(unit..unit + 1, id));
        self.units[unit as usize].push(id);
        assert_eq!(self.checker.write_acked(id), vec![]);
        id
    }

    fn flush(&mut self) {
        let id = self.id();
        self.checker.flush_started(id);
        self.units.iter_mut().for_each(harden);
        assert_eq!(self.checker.flush_acked(id), None);
    }

    fn read_all(&mut self) -> Vec<history::Violation> {
        let id = self.id();
        let seen: Vec<Seen> =
            self.units.iter().map(|unit| Seen::Value(*unit.last().unwrap())).collect();
        self.checker.read_out(id, 0, &seen)
    }

    /// Does the damage to one unit. Returns the kind that must be reported for it.
    fn break_unit(&mut self, unit: u64, defect: Defect) -> ViolationKind {
        let at = unit as usize;
        match defect {
            Defect::DropWrite => {
                self.write(unit);
                self.units[at].pop();
                ViolationKind::LostAcknowledged
            }
            Defect::EmptyFlush => {
                let before = *self.units[at].last().unwrap();
                self.write(unit);
                self.flush();
                self.lose_power();
                self.units[at] = vec![before];
                ViolationKind::LostFlushed
            }
            Defect::Revert => {
                let old = self.write(unit);
                self.write(unit);
                assert_eq!(self.read_all(), vec![]);
                self.units[at].push(old);
                ViolationKind::Resurrected
            }
            Defect::LateWrite | Defect::Unread => {
                self.write(unit);
                let id = self.id();
                self.checker.write_started(id, Write::data(unit..unit + 1, id));
                if defect == Defect::Unread {
                    self.units[at].push(id);
                    self.lose_connection();
                    assert_eq!(self.read_all(), vec![]);
                    self.units[at].pop();
                    return ViolationKind::Unread;
                }
                self.take_over();
                assert_eq!(self.read_all(), vec![]);
                self.units[at].push(id);
                ViolationKind::LateWrite
            }
            Defect::Misdirect => {
                let id = self.write((unit + 1) % UNITS);
                self.units[at].push(id);
                ViolationKind::NeverWritten
            }
        }
    }
}

fn harden(unit: &mut Vec<u64>) {
    let newest = *unit.last().unwrap();
    *unit = vec![newest];
}

#[test]
fn a_correct_device_passes() {
    for seed in 0..60 {
        let mut device = Device::new(seed);
        for _ in 0..5 {
            device.work(1_500);
            assert_eq!(device.read_all(), vec![], "seed {seed}");
        }
    }
}

#[test]
fn every_defect_is_caught_and_named() {
    let defects = [
        Defect::DropWrite,
        Defect::EmptyFlush,
        Defect::Revert,
        Defect::LateWrite,
        Defect::Unread,
        Defect::Misdirect,
    ];
    for (seed, defect) in (0..30).flat_map(|seed| defects.map(|defect| (seed, defect))) {
        let mut device = Device::new(seed);
        device.work(1_500);
        let unit = device.draw.below(UNITS);
        let kind = device.break_unit(unit, defect);
        let found: Vec<_> = device.read_all().iter().map(|v| (v.unit, v.kind)).collect();
        assert_eq!(found, vec![(unit, kind)], "seed {seed} {defect:?}");
        // What nobody wrote is reported each time, the rest once.
        let again = usize::from(kind == ViolationKind::NeverWritten);
        assert_eq!(device.read_all().len(), again);
    }
}

#[test]
fn the_history_of_a_busy_device_stays_small() {
    let mut device = Device::new(7);
    device.work(100_000);
    device.flush();
    device.take_over();
    device.flush();
    for unit in 0..UNITS {
        device.write(unit);
    }
    device.flush();
    assert_eq!(device.read_all(), vec![]);
    assert!(device.checker.remembered() as u64 <= 2 * UNITS, "{}", device.checker.remembered());
}
