//! What the cores order of a disk: begun when its fate and time are drawn, ended with an answer.

use replicator_core::{BufId, ByteRange, DiskFailure, DiskOutcome, Effect, Input};

use crate::disk::{Job, Working, span};
use crate::host::Failing;
use crate::sectors::{Payload, SECTOR_BYTES};
use crate::tell;
use crate::world::{Event, MS, World};

/// The slowest disk operation, unless the disk hangs.
const SLOWEST: u64 = 4_000 * MS;

impl World {
    pub(super) fn start_disk(&mut self, node: usize, effect: Effect) {
        let process = self.nodes[node].process.as_ref().expect("a process");
        let life = process.life;
        let take = |buf: BufId, range: ByteRange| -> Payload {
            let contents = process.buffers.get(buf);
            let count = (range.length / SECTOR_BYTES) as usize;
            Some(contents[..count].into())
        };
        let (op, job) = match effect {
            Effect::WriteDisk { op, range, buf } => {
                (op, Job::Write { range, payload: take(buf, range) })
            }
            Effect::ZeroDisk { op, range, .. } => (op, Job::Write { range, payload: None }),
            Effect::ReadDisk { op, range, buf } => (op, Job::Read { range, buf }),
            Effect::ReadEdges { op, wanted, aligned, buf } => {
                (op, Job::Edges { wanted, aligned, buf })
            }
            Effect::ReadForResync { op, range } => (op, Job::ReadForResync { range }),
            Effect::DigestDisk { op, range } => (op, Job::Digest { range }),
            Effect::FlushDisk { op } => (op, Job::Flush { before: 0 }),
            Effect::WriteMeta { op, offset, bytes } => (op, Job::Meta { offset, bytes }),
            Effect::TakeFingerprint { op, size_bytes } => (op, Job::Fingerprint { size_bytes }),
            Effect::MapDisk { op, .. } => (op, Job::Map),
            Effect::MeasureDisk { op } => (op, Job::Measure),
            Effect::MoveMeta { op, to } => (op, Job::Move { to }),
            other => unreachable!("not a disk operation: {other:?}"),
        };
        self.spring_at_proposal(node, &job);
        let fate = self.fate(node, &job);
        let delay = self.disk_delay(node, &job);
        let began = self.now;
        let working = Working { life, op, job, fate, began };
        let key = self.nodes[node].disk.begin(&mut self.draw, working);
        self.after(delay, Event::Disk { node, key });
    }

    fn fate(&mut self, node: usize, job: &Job) -> Result<(), DiskFailure> {
        let Some(failing) = self.nodes[node].failing else { return Ok(()) };
        let hit = match job {
            _ if failing == Failing::Everything => !matches!(job, Job::Map),
            Job::Write { .. } => matches!(failing, Failing::Write | Failing::Space),
            Job::Read { .. }
            | Job::Edges { .. }
            | Job::ReadForResync { .. }
            | Job::Digest { .. } => failing == Failing::Read,
            Job::Flush { .. } => failing == Failing::Flush,
            Job::Meta { .. } | Job::Move { .. } => failing == Failing::Meta,
            Job::Fingerprint { .. } | Job::Map | Job::Measure => false,
        };
        if !hit {
            return Ok(());
        }
        if self.nodes[node].failing_until <= self.now {
            self.nodes[node].failing = None;
        }
        self.nodes[node].flush_failed |= matches!(job, Job::Flush { .. });
        if let Some(cluster) = &mut self.cluster {
            cluster.seats[node].metadata_failed |= matches!(job, Job::Meta { .. });
        }
        self.occasions_of_error(node, failing);
        tell!(self, "{}: {failing:?} fails", self.nodes[node].name);
        Err(if failing == Failing::Space { DiskFailure::NoSpace } else { DiskFailure::Io(5) })
    }

    fn disk_delay(&mut self, node: usize, job: &Job) -> u64 {
        let most = match job {
            Job::Flush { .. } | Job::Meta { .. } | Job::Move { .. } => self.plan.flush_us,
            _ => self.plan.disk_us,
        };
        let mut delay = (20 + self.draw.below(most)) * 1000;
        let disk = &self.nodes[node];
        if disk.slow_until > self.now {
            delay = (delay * disk.slowness).min(SLOWEST);
        }
        if matches!(job, Job::Write { .. }) {
            delay = delay.max(disk.writes_hang_until.saturating_sub(self.now));
        }
        delay = delay.max(disk.hung_until.saturating_sub(self.now));
        self.occasions_of_hang(node, delay);
        delay
    }

    pub(super) fn disk_done(&mut self, node: usize, key: u64) {
        // A power cut took it.
        if !self.nodes[node].disk.working.contains_key(&key) {
            return;
        }
        let working = self.nodes[node].disk.finish(&mut self.draw, key);
        let life = working.life;
        if matches!(working.job, Job::Flush { .. }) && working.fate.is_err() {
            // R8: what a failed flush covered counts as lost, as with the power.
            self.tell_history_of_power_loss(node);
        }
        if !self.runs(node, life) {
            return;
        }
        let disk = &self.nodes[node].disk;
        let contents = |range: ByteRange| {
            let (first, count) = span(range);
            disk.live.read(first, count)
        };
        let mut outcome = DiskOutcome::Done;
        let mut fill = None;
        if working.fate.is_ok() {
            match &working.job {
                Job::Read { range, buf } => fill = Some((*buf, *range, *range, contents(*range))),
                Job::Edges { wanted, aligned, buf } => {
                    fill = Some((*buf, *wanted, *aligned, contents(*aligned)));
                }
                Job::ReadForResync { range } => {
                    let data = contents(*range);
                    let process = self.nodes[node].process.as_mut().expect("a process");
                    let data = data.map(|values| process.buffers.take(values));
                    outcome = DiskOutcome::Read { data };
                }
                Job::Digest { range } => outcome = DiskOutcome::Digests(disk.digests(*range)),
                Job::Measure => {
                    let bytes = disk.actual_bytes();
                    outcome = DiskOutcome::Measured { device_bytes: bytes, disk_bytes: bytes };
                }
                Job::Fingerprint { size_bytes } => {
                    outcome = DiskOutcome::Fingerprint(disk.fingerprint_of(*size_bytes));
                }
                _ => {}
            }
        }
        let is_edges = matches!(working.job, Job::Edges { .. });
        if let Some((buf, wanted, aligned, data)) = fill {
            self.fill(node, buf, is_edges.then_some(wanted), aligned, data);
        }
        let input = Input::DiskDone { op: working.op, result: working.fate.map(|()| outcome) };
        self.fact(node, life, Box::new(input));
    }

    fn fill(
        &mut self,
        node: usize,
        buf: BufId,
        keep: Option<ByteRange>,
        range: ByteRange,
        data: Payload,
    ) {
        let process = self.nodes[node].process.as_mut().expect("a process");
        let old = process.buffers.get(buf);
        let count = (range.length / SECTOR_BYTES) as usize;
        let kept = keep.map_or(0..0, |keep| {
            let first = ((keep.start - range.start) / SECTOR_BYTES) as usize;
            first..first + (keep.length / SECTOR_BYTES) as usize
        });
        let new = (0..old.len())
            .map(|at| {
                if at >= count || kept.contains(&at) {
                    old[at]
                } else {
                    data.as_ref().map_or(0, |values| values[at])
                }
            })
            .collect();
        process.buffers.set(buf, new);
    }
}
