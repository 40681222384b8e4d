//! Reads a block of the activity log as its description says (`activity_log.rs`), independently
//! of the code that writes it.

/// The slots that a block names, context first, each with its extent.
pub fn slots(block: &[u8]) -> Vec<(usize, u32)> {
    let half = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let word =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (updates, first, context, slots) = (half(24), half(26), half(28), half(30));
    let context_at = 32 + updates * 8;
    let mut named: Vec<(usize, u32)> =
        (0..context).map(|step| ((first + step) % slots, word(context_at + step * 4))).collect();
    named.extend((0..updates).map(|update| {
        let at = 32 + update * 8;
        (word(at) as usize, word(at + 4))
    }));
    named
}
