//! What is written: every unit says itself which write it comes from and where it belongs.
//!
//! A unit begins with magic and run id (8 bytes), write id (8), unit number (8) and a checksum of
//! these (8), all little-endian. The rest is a pattern made from them, and the last 8 bytes (of a
//! unit of 64 bytes or more) are the first 8 again, so that half a unit is recognised from either
//! side.

use history::Seen;
use history::draw::{Draw, mix};

const MAGIC: u32 = 0x4c4b_4c42; // "BLKL"
const HEADER_BYTES: usize = 32;

/// Smallest size of a unit: its header.
pub const MIN_UNIT_BYTES: usize = HEADER_BYTES;

/// Fills `unit` with the content of write `id`; `id` 0 is zeroes.
pub fn fill(unit: &mut [u8], run: u32, id: u64, unit_number: u64) {
    if id == 0 {
        unit.fill(0);
        return;
    }
    let tag = u64::from(run) << 32 | u64::from(MAGIC);
    let sum = mix(mix(mix(tag) ^ id) ^ unit_number);
    let mut pattern = Draw::new(sum);
    let last = unit.len() / 8 - 1;
    for (index, word) in unit.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => tag,
            1 => id,
            2 => unit_number,
            3 => sum,
            _ if index == last => tag,
            _ => pattern.number(),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Says which write left `unit` as it is. `scratch` has the length of a unit.
pub fn identify(unit: &[u8], run: u32, unit_number: u64, scratch: &mut [u8]) -> Seen {
    let word = |at: usize| u64::from_le_bytes(unit[at..at + 8].try_into().expect("8 bytes"));
    if unit.iter().all(|byte| *byte == 0) {
        return Seen::Value(0);
    }
    let tag = u64::from(run) << 32 | u64::from(MAGIC);
    let id = word(8);
    if word(0) == tag && id > 0 {
        fill(scratch, run, id, unit_number);
        if scratch == unit {
            return Seen::Value(id);
        }
        // Whole and in order, but of another place: misdirected.
        fill(scratch, run, id, word(16));
        if scratch == unit {
            return Seen::Foreign;
        }
    }
    let ours = word(0) == tag || word(unit.len() - 8) == tag;
    if ours { Seen::Torn } else { Seen::Foreign }
}
