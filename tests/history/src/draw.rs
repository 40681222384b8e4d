//! Reproducible random numbers (the SplitMix64 sequence) for the load generator and the tests.

/// A sequence of numbers that depends on its seed alone.
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// Begins the sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Draw(seed)
    }

    /// The next number of the sequence.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from 0 to `limit - 1`; `limit` must be above 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Spreads the bits of a number over 64 bits; the same input always gives the same output.
pub fn mix(number: u64) -> u64 {
    let a = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}
