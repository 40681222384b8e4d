//! Room for a volume to grow, made of a backing disk that was extended.
//!
//! The metadata lie at the end of their device. When that was extended there are bytes behind them;
//! they move to the new end, and what they leave and what was added becomes room:
//!
//! ```text
//!   | data area            | metadata |                          the disk as it was
//!   | data area            | metadata | anything               | it was extended
//!   | data area            | old      | anything    | metadata | moved
//!   | data area            | zeroes: room           | metadata | zeroed
//! ```
//!
//! 1. `MeasureDisk`. The new region must not reach into the old one.
//! 2. Nothing of the metadata is written any more; what wants to be waits for some milliseconds.
//! 3. `MoveMeta`: bitmaps and log are copied, durably; then both superblock copies are written, one
//!    after the other, durably; only then the old copies are destroyed. So whenever the machine
//!    stops, one region is whole, and it is the newest: nothing was written to the other since the
//!    copy. A process that starts takes what is at the end of the device, else what is at the end
//!    that the device had when a process attached it last.
//! 4. The superblock says how far the disk is known to be zeroes (`room_bytes`), at first no
//!    farther than before. Step by step the rest is zeroed and flushed, and that number raised; a
//!    new process goes on from there. Nothing of the data area is touched: it ends before.
//!
//! That the two regions hold the same log and bits is all that R9, R12 and R13 ask: nobody can tell
//! from them that they were moved.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::block::{ByteRange, PeerIndex, SessionId};
use crate::defect::{Defect, defect};
use crate::effect::{Effect, Effects};
use crate::flush::FlushWaiter;
use crate::input::{DiskFailure, DiskOutcome};
use crate::limits::ZERO_BYTES_MAX;
use crate::metadata::{Layout, SUPERBLOCK_BYTES, Superblock};
use crate::note::Note;
use crate::peer::RoomThere;
use crate::persist::After;
use crate::replica::{Purpose, Replica, Role};
use crate::wire::Message;

/// Zeroed bytes between two updates of the superblock.
const SAVED_BYTES: u64 = 4 << 30;

/// The metadata region on its way to the end of its device.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct MetaMove {
    /// Bytes of the device now.
    pub device_bytes: u64,
    /// The new region, absolute.
    pub region_start: u64,
    /// Its length: zeroed first.
    pub region_bytes: u64,
    /// What is copied: a range of the old region, and where it begins in the new one.
    pub copies: Vec<(Range<u64>, u64)>,
    /// Where the superblock copies are written then, in the new region, each durable before the
    /// next.
    pub superblocks: [u64; 2],
    /// What.
    pub superblock: Box<[u8]>,
    /// The superblock copies in the old region, destroyed at the end.
    pub old_superblocks: [u64; 2],
}

/// How far the making of room is.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Room {
    step: Step,
    /// Why no more was made the last time, in words.
    pub(crate) why_not: Option<String>,
    /// Zeroed by now, perhaps not durably.
    zeroed_to: u64,
    /// The leader of this session wants to know.
    told: Option<SessionId>,
}

#[derive(Clone, Debug, Default, Hash)]
enum Step {
    #[default]
    Idle,
    /// The disk is being measured.
    Measuring,
    /// What is being written of the metadata ends.
    Quieting { device_bytes: u64, room_bytes: u64 },
    /// They move.
    Moving { before: Box<Superblock> },
    /// A part of the room is zeroed.
    Zeroing(ByteRange),
    /// What is zeroed becomes durable.
    Flushing,
    /// And is recorded.
    Saving,
}

impl Room {
    /// Whether a step of it is on its way to the disk that must end before the disk is closed.
    pub(crate) fn is_on_disk(&self) -> bool {
        matches!(self.step, Step::Measuring | Step::Moving { .. } | Step::Zeroing(_))
    }

    /// Whether no more room will come soon.
    pub(crate) fn is_made(&self) -> bool {
        matches!(self.step, Step::Idle)
    }
}

impl Replica {
    /// Whether the metadata must not be written now.
    pub(crate) fn holds_metadata(&self) -> bool {
        matches!(self.room.step, Step::Quieting { .. } | Step::Moving { .. })
            && !defect(Defect::MovedWhileWritten)
    }

    /// Makes room of what was added to the disk, if something was.
    pub(crate) fn extend_room(&mut self, effects: &mut Effects) {
        if !self.room.is_made() || !self.may_make_room() {
            return;
        }
        self.room.why_not = None;
        self.room.step = Step::Measuring;
        let op = self.ops.begin(Purpose::Room);
        effects.push(Effect::MeasureDisk { op });
    }

    fn may_make_room(&self) -> bool {
        let ends = matches!(self.role, Role::Starting | Role::Stopping | Role::Stopped);
        !ends && self.stopping.is_none() && !self.metadata_failed && !self.disk_failed
    }

    /// Goes on with it as far as it can.
    pub(crate) fn go_on_with_room(&mut self, effects: &mut Effects) {
        if self.metadata_failed && matches!(self.room.step, Step::Quieting { .. } | Step::Saving) {
            self.room_ended("the metadata cannot be written".into(), effects);
        }
        match self.room.step {
            // What a former process has moved and not zeroed.
            Step::Idle
                if self.room.why_not.is_none()
                    && self.superblock.room_bytes < self.superblock.bitmaps_for_bytes
                    && self.may_make_room() =>
            {
                self.zero_room(effects);
            }
            Step::Quieting { device_bytes, room_bytes } => {
                let rests = self.metadata_rests() && !self.log_is_writing();
                if rests || defect(Defect::MovedWhileWritten) {
                    self.move_metadata(device_bytes, room_bytes, effects);
                }
            }
            _ => {}
        }
    }

    /// A step on the disk has ended.
    pub(crate) fn room_step_done(
        &mut self,
        result: Result<DiskOutcome, DiskFailure>,
        effects: &mut Effects,
    ) {
        match core::mem::take(&mut self.room.step) {
            Step::Measuring => match result {
                Ok(DiskOutcome::Measured { device_bytes, disk_bytes }) => {
                    self.disk_measured(device_bytes, disk_bytes, effects);
                }
                _ => self.room_ended("the disk cannot be measured".into(), effects),
            },
            Step::Moving { before } => self.metadata_moved(result.map(|_| ()), *before, effects),
            Step::Zeroing(range) => match result {
                Ok(_) => {
                    self.room.zeroed_to = range.end();
                    self.zero_next(effects);
                }
                Err(why) => {
                    effects.push(Effect::Note(Note::DiskFailed { during: "zeroing", range, why }));
                    self.room_ended("the new part of the disk cannot be zeroed".into(), effects);
                }
            },
            step => unreachable!("no operation of the disk belongs to {step:?}"),
        }
        self.stop_drained(effects);
    }

    fn disk_measured(&mut self, device_bytes: u64, disk_bytes: u64, effects: &mut Effects) {
        match self.plan_room(device_bytes, disk_bytes) {
            Ok(Some(room_bytes)) if self.may_make_room() => {
                if self.layout_for(device_bytes, room_bytes) != self.layout {
                    self.room.step = Step::Quieting { device_bytes, room_bytes };
                    return;
                }
                self.superblock.bitmaps_for_bytes = room_bytes;
                self.persist(After::Nothing, effects);
                self.zero_room(effects);
            }
            Ok(_) => self.zero_room(effects),
            Err(why) => self.room_ended(why, effects),
        }
    }

    /// The largest data area that a disk of this size has room for; `None`: no larger one.
    fn plan_room(&self, device_bytes: u64, disk_bytes: u64) -> Result<Option<u64>, String> {
        let now = &self.superblock;
        let room_bytes = if now.internal {
            // The bitmaps for the whole device are at least as long as those for the data area.
            let region = self.layout_for(u64::MAX / 2, device_bytes).region_bytes;
            (device_bytes & !4095).saturating_sub(region)
        } else {
            disk_bytes & !4095
        };
        if room_bytes <= now.bitmaps_for_bytes {
            return Ok(None);
        }
        let new = self.layout_for(device_bytes, room_bytes);
        let old_end = self.layout.region_start + self.layout.region_bytes;
        let missing = (old_end + new.region_bytes).saturating_sub(device_bytes & !4095);
        if new == self.layout || missing == 0 && device_bytes >= now.device_bytes {
            return Ok(Some(room_bytes));
        }
        let which = if now.internal { "disk" } else { "disk of the metadata" };
        Err(format!(
            "the {which} has to be {missing} bytes larger still, so that the metadata can move"
        ))
    }

    fn layout_for(&self, device_bytes: u64, room_bytes: u64) -> Layout {
        Layout::new(device_bytes, room_bytes, usize::from(self.superblock.bitmap_slots))
    }

    /// Nothing of the metadata is being written.
    fn move_metadata(&mut self, device_bytes: u64, room_bytes: u64, effects: &mut Effects) {
        let before = Box::new(self.superblock.clone());
        let old = self.layout.clone();
        self.superblock.device_bytes = device_bytes;
        self.superblock.bitmaps_for_bytes = room_bytes;
        let new = self.superblock.layout();
        let superblock = self.next_superblock();
        let parts = old.bitmaps.iter().cloned().zip(new.bitmaps.iter().map(|range| range.start));
        let mut copies: Vec<(Range<u64>, u64)> = parts.collect();
        copies.push((old.log.clone(), new.log.start));
        let absolute = |layout: &Layout| layout.superblocks.map(|at| layout.region_start + at);
        self.room.step = Step::Moving { before };
        let to = Box::new(MetaMove {
            device_bytes,
            region_start: new.region_start,
            region_bytes: new.region_bytes,
            copies,
            superblocks: new.superblocks,
            superblock,
            old_superblocks: absolute(&old),
        });
        debug_assert_eq!(to.superblock.len(), SUPERBLOCK_BYTES);
        let op = self.ops.begin(Purpose::Room);
        effects.push(Effect::MoveMeta { op, to });
    }

    fn metadata_moved(
        &mut self,
        result: Result<(), DiskFailure>,
        before: Superblock,
        effects: &mut Effects,
    ) {
        if let Err(why) = result {
            let range = ByteRange::default();
            effects.push(Effect::Note(Note::DiskFailed { during: "move of metadata", range, why }));
            // They lie where they did.
            self.superblock.device_bytes = before.device_bytes;
            self.superblock.bitmaps_for_bytes = before.bitmaps_for_bytes;
            self.metadata_go_on(self.layout.clone(), effects);
            return self.room_ended("the metadata cannot be moved".into(), effects);
        }
        let device_bytes = self.superblock.device_bytes;
        effects.push(Effect::Note(Note::MetadataMoved { device_bytes }));
        self.metadata_go_on(self.superblock.layout(), effects);
        self.zero_room(effects);
    }

    /// Zeroes what is not known to be zeroes.
    fn zero_room(&mut self, effects: &mut Effects) {
        self.room.zeroed_to = self.superblock.room_bytes;
        self.zero_next(effects);
    }

    /// Zeroes the next part, or makes what is zeroed durable.
    fn zero_next(&mut self, effects: &mut Effects) {
        let end = self.superblock.bitmaps_for_bytes;
        if defect(Defect::RoomNotZeroed) {
            self.room.zeroed_to = end;
        }
        let from = self.room.zeroed_to;
        if !self.may_make_room() {
            // What is not recorded is zeroed once more by the next process.
            return self.tell_room(effects);
        }
        let unsaved = from - self.superblock.room_bytes;
        if unsaved > 0 && (from == end || unsaved >= SAVED_BYTES) {
            if defect(Defect::RoomNotFlushed) {
                return self.room_flushed(from, Ok(()), effects);
            }
            self.room.step = Step::Flushing;
            return self.flush_disk(FlushWaiter::Room(from), effects);
        }
        if from == end {
            return self.tell_room(effects);
        }
        let range = ByteRange::new(from, ZERO_BYTES_MAX.min(end - from));
        self.room.step = Step::Zeroing(range);
        let op = self.ops.begin(Purpose::Room);
        let may_punch = self.config.can_punch;
        effects.push(Effect::ZeroDisk { op, range, may_punch });
    }

    pub(crate) fn room_flushed(
        &mut self,
        end: u64,
        result: Result<(), DiskFailure>,
        effects: &mut Effects,
    ) {
        if result.is_err() {
            return self.room_ended("the new part of the disk cannot be flushed".into(), effects);
        }
        self.room.step = Step::Saving;
        self.superblock.room_bytes = end;
        self.persist(After::RoomSaved(end), effects);
    }

    pub(crate) fn room_saved(&mut self, end: u64, effects: &mut Effects) {
        debug_assert!(self.superblock.room_bytes >= end);
        self.room.step = Step::Idle;
        self.zero_next(effects);
        if !self.room.is_made() {
            self.tell_room(effects);
        }
    }

    fn room_ended(&mut self, why: String, effects: &mut Effects) {
        self.room.step = Step::Idle;
        self.room.why_not = Some(why.clone());
        effects.push(Effect::Note(Note::NoRoomMade { why }));
        self.tell_room(effects);
    }

    /// How far there will be room when all is zeroed.
    pub(crate) fn making_room_to(&self) -> Option<u64> {
        let superblock = &self.superblock;
        let is_more = superblock.room_bytes < superblock.bitmaps_for_bytes;
        (is_more && !self.room.is_made()).then_some(superblock.bitmaps_for_bytes)
    }

    // ------------------------------------------------------------------ between replicas

    /// The leader wants the volume to grow.
    pub(crate) fn room_wanted(&mut self, at: usize, effects: &mut Effects) {
        if !self.leads_us(at) {
            return self.misbehaved(PeerIndex(at as u8), "a wish out of order", effects);
        }
        self.room.told = Some(self.peers[at].session);
        self.extend_room(effects);
        if self.room.is_made() {
            self.tell_room(effects);
        }
    }

    fn tell_room(&mut self, effects: &mut Effects) {
        let (room_bytes, is_growing) = (self.superblock.room_bytes, !self.room.is_made());
        if let Some(session) = self.room.told.take() {
            self.room.told = Some(session).filter(|_| is_growing);
            self.say_to_leader(session, Message::Room { room_bytes, is_growing }, effects);
        }
    }

    /// A follower that was asked tells how much room it has.
    pub(crate) fn room_told(
        &mut self,
        at: usize,
        room_bytes: u64,
        is_growing: bool,
        effects: &mut Effects,
    ) {
        let peer = &mut self.peers[at];
        let hello = peer.hello.as_mut().filter(|hello| room_bytes >= hello.room_bytes);
        let Some(hello) = hello.filter(|_| peer.room == RoomThere::Comes) else {
            return self.misbehaved(PeerIndex(at as u8), "room out of order", effects);
        };
        hello.room_bytes = room_bytes;
        peer.room = if is_growing { RoomThere::Comes } else { RoomThere::Made };
    }
}
