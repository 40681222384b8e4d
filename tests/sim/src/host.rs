//! A simulated machine with its disk, and the daemon's process on it.

use std::rc::Rc;

use history::draw::Draw;
use replicator_core::block::{Incarnation, ReplicaId};
use replicator_core::metadata::{self, FormatRequest};
use replicator_core::{BufId, Replica};

use crate::clock::Clock;
use crate::disk::Disk;
use crate::other_disk::{Impostor, Other};
use crate::plan::Plan;
use crate::rules::View;

const NAMES: [&str; 2] = ["alpha", "beta"];
/// Extents of the activity log: the smallest, so that extents must leave.
const LOG_EXTENTS: u16 = 64;

/// A machine.
#[derive(Debug)]
pub struct Node {
    /// For people and metadata.
    pub name: &'static str,
    /// Its disk.
    pub disk: Disk,
    /// The boot id.
    pub incarnation: u128,
    /// The daemon.
    pub process: Option<Process>,
    /// Processes so far; the number of the present one.
    pub lives: u64,
    /// The process stands still until then.
    pub paused_until: u64,
    /// The process is to be started at this time.
    pub start_at: Option<u64>,
    /// The operator keeps this node off.
    pub held: bool,
    /// Its clock.
    pub clock: Clock,
    /// The driver may connect again then.
    pub retry_at: u64,
    /// How many times slower the disk is.
    pub slowness: u64,
    /// The disk is slow until then.
    pub slow_until: u64,
    /// The disk answers nothing until then.
    pub hung_until: u64,
    /// Its data writes are not done before then; everything else is.
    pub writes_hang_until: u64,
    /// Operations that will fail: which kind of them.
    pub failing: Option<Failing>,
    /// Whether it can punch holes.
    pub can_punch: bool,
    /// A flush of this process failed: what it covered may not be durable.
    pub flush_failed: bool,
    /// `failing` lasts until then, and not only for one operation.
    pub failing_until: u64,
    /// Another disk is in the machine; it must refuse to start.
    pub other: Option<Other>,
    /// A disk is in the machine that the peer must refuse.
    pub impostor: Option<Impostor>,
    /// A copy of the disk that will be restored.
    pub older_copy: Option<Box<Disk>>,
    /// Some metadata rot before the next start.
    pub rots: bool,
    /// Somebody will write to its disk when the daemon is stopped.
    pub used_without_us: bool,
}

/// Which operation is to fail next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failing {
    /// A data write.
    Write,
    /// A read of any kind.
    Read,
    /// A flush.
    Flush,
    /// A metadata write.
    Meta,
    /// A data write, for want of space.
    Space,
    /// Every operation, also the reading of the metadata at a start.
    Everything,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its number on this node.
    pub life: u64,
    /// The shipping core.
    pub replica: Replica,
    /// Payload buffers.
    pub buffers: Buffers,
    /// The device is open: the number of its office.
    pub device: Option<u64>,
    /// Its size, as clients see it.
    pub size_bytes: u64,
    /// When the next time-out is due (world time); events for other times are void.
    pub timer_at: u64,
    /// The session the driver has with the peer.
    pub session: Option<u64>,
    /// The connections that its sessions are, in the order in which they came in.
    pub sessions: Vec<usize>,
    /// It was told the state of the register.
    pub knows_register: bool,
    /// Who watches whether it keeps the rules.
    pub view: View,
}

impl Node {
    /// A machine before its first start; the first one is the origin of the data.
    pub fn new(number: usize, plan: &Plan, draw: &mut Draw) -> Self {
        Self {
            name: NAMES[number],
            disk: fresh_disk(number, plan, draw, number == 0),
            incarnation: first_boot(number),
            process: None,
            lives: 0,
            paused_until: 0,
            start_at: None,
            held: false,
            clock: Clock::booted(0, plan.clock_rates[number]),
            retry_at: 0,
            slowness: 1,
            slow_until: 0,
            hung_until: 0,
            writes_hang_until: 0,
            failing: None,
            failing_until: 0,
            other: None,
            impostor: None,
            older_copy: None,
            rots: false,
            can_punch: plan.can_punch[number],
            used_without_us: false,
            flush_failed: false,
        }
    }
}

fn first_boot(number: usize) -> u128 {
    1001 + number as u128
}

/// An empty disk with fresh metadata.
pub fn fresh_disk(number: usize, plan: &Plan, draw: &mut Draw, origin: bool) -> Disk {
    let room_bytes = if plan.extends { plan.data_bytes } else { plan.room_bytes };
    let device_bytes = room_bytes + (4 << 20);
    let formatted = metadata::format(&FormatRequest {
        device_bytes,
        internal: true,
        disk_bytes: device_bytes,
        data_bytes: Some(plan.data_bytes),
        room_bytes: Some(room_bytes),
        block_bytes: plan.block_bytes,
        log_extents: LOG_EXTENTS,
        resource: "sim".into(),
        resource_id: 77,
        node: NAMES[number].into(),
        replica: ReplicaId(u128::from(draw.number()) | 1),
        peers: vec![NAMES[1 - number].into()],
        bitmap_slots: 1,
        incarnation: Incarnation(first_boot(number)),
        origin,
        assume_equal: false,
    })
    .expect("a plan that fits");
    let layout = &formatted.layout;
    let mut disk = Disk::new(device_bytes, layout.region_bytes);
    for (offset, bytes) in &formatted.writes {
        disk.write_meta(offset - layout.region_start, bytes);
    }
    disk
}

/// The buffers of a process.
#[derive(Debug, Default)]
pub struct Buffers {
    slots: Vec<Option<Rc<[u64]>>>,
    free: Vec<u32>,
}

impl Buffers {
    /// Puts contents into a free buffer.
    pub fn take(&mut self, contents: Rc<[u64]>) -> BufId {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[at as usize] = Some(contents);
        BufId(at)
    }

    /// The contents of a buffer.
    pub fn get(&self, buf: BufId) -> Rc<[u64]> {
        self.slots[buf.0 as usize].clone().expect("a buffer is used after its release")
    }

    /// Changes the contents of a buffer that is still in use.
    pub fn set(&mut self, buf: BufId, contents: Rc<[u64]>) {
        assert!(self.slots[buf.0 as usize].is_some(), "a buffer is filled after its release");
        self.slots[buf.0 as usize] = Some(contents);
    }

    /// Frees a buffer; panics when it is free.
    pub fn release(&mut self, buf: BufId) {
        assert!(self.slots[buf.0 as usize].take().is_some(), "a buffer is released twice");
        self.free.push(buf.0);
    }

    /// Buffers in use.
    pub fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
