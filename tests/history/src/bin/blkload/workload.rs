//! Draws the next request of the mixed load.

use std::ops::Range;

use history::draw::Draw;

use crate::args::{Args, Mix, TrimPromise};
use crate::journal::{Layout, Record};
use crate::wire::{self, Export};

const PAGE_BYTES: u64 = 4096;
const HOT_BYTES: u64 = 1 << 20;

/// A source of requests.
#[derive(Debug)]
pub struct Workload {
    draw: Draw,
    mix: Mix,
    unaligned: u64,
    hot: u64,
    trim: TrimPromise,
    max_units: u64,
    layout: Layout,
}

impl Workload {
    /// Fits the mix of the command line to what the export can do.
    pub fn new(args: &Args, layout: Layout, seed: u64) -> Self {
        Workload {
            draw: Draw::new(seed),
            mix: args.mix,
            unaligned: args.unaligned,
            hot: args.hot,
            trim: args.trim,
            max_units: (args.max_request / layout.unit_bytes).max(1),
            layout,
        }
    }

    /// The next request, with this id. Kinds that `export` cannot do become reads or plain writes.
    pub fn next(&mut self, id: u64, export: &Export) -> Record {
        let Mix { read, write, fua, flush, trim, zero } = self.mix;
        let can = |flag: u16| export.flags & flag != 0;
        let with_fua = can(wire::CAN_FUA) && self.draw.chance(10);
        let mut at = self.draw.below(read + write + fua + flush + trim + zero);
        let mut is = |weight: u64| {
            let hit = at < weight;
            at = at.wrapping_sub(weight);
            hit
        };
        if is(flush) && can(wire::CAN_FLUSH) {
            return Record::Flush { id };
        }
        if is(write) {
            return Record::Write { id, units: self.units(), fua: false };
        }
        if is(fua) {
            return Record::Write { id, units: self.units(), fua: can(wire::CAN_FUA) };
        }
        if is(trim) && can(wire::CAN_TRIM) {
            let units = self.units();
            let certain = self.trimmed_for_sure(&units);
            return Record::Trim { id, units, certain };
        }
        if is(zero) && can(wire::CAN_ZERO) {
            return Record::Zero { id, units: self.units(), fua: with_fua };
        }
        Record::Read { id, units: self.units() }
    }

    /// True in half of the cases.
    pub fn coin(&mut self) -> bool {
        self.draw.chance(50)
    }

    fn units(&mut self) -> Range<u64> {
        let page = (PAGE_BYTES / self.layout.unit_bytes).max(1);
        let area = if self.draw.chance(self.hot) {
            (HOT_BYTES / self.layout.unit_bytes).min(self.layout.units)
        } else {
            self.layout.units
        };
        let unaligned = self.draw.chance(self.unaligned);
        let longest = self.max_units.min(area);
        let limit = match self.draw.below(10) {
            0..6 => page,
            6..9 => page * 16,
            _ => longest,
        };
        let mut length = 1 + self.draw.below(limit.min(longest));
        let mut first = self.draw.below(area);
        if !unaligned {
            first -= first % page;
            length = length.div_ceil(page) * page;
        }
        first..(first + length).min(self.layout.units)
    }

    fn trimmed_for_sure(&self, units: &Range<u64>) -> Range<u64> {
        let TrimPromise::Zeroes { align } = self.trim else { return 0..0 };
        let unit = self.layout.unit_bytes;
        let from = (units.start * unit).next_multiple_of(align);
        let to = units.end * unit / align * align;
        from.div_ceil(unit)..(to / unit).max(from.div_ceil(unit))
    }
}
