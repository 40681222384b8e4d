//! Histograms of durations: fixed size, cheap to record, exact to an eighth.

use replicator_core::Span;

/// Buckets for each power of two.
const STEPS: usize = 8;
/// Durations of 2^MAX_POWER ns (about 18 minutes) and more share the last bucket.
const MAX_POWER: usize = 40;
const BUCKETS: usize = (MAX_POWER - 2) * STEPS;

/// Counts durations by their size; each bucket is at most 12.5 % wide.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    count: u64,
    sum_ns: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), count: 0, sum_ns: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, took: Span) {
        self.counts[bucket(took.0)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(took.0);
        self.max_ns = self.max_ns.max(took.0);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All durations together, in nanoseconds.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean in nanoseconds; 0 when nothing was counted.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count).unwrap_or(0)
    }

    /// The duration in nanoseconds that a share (0.0 to 1.0) of all does not exceed, at most an
    /// eighth too high; 0 when nothing was counted.
    pub fn quantile_ns(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += count;
            if count > 0 && seen >= wanted {
                return upper_ns(index).min(self.max_ns);
            }
        }
        0
    }

    /// How many took at most `limit_ns`; durations in the bucket of the limit count as longer,
    /// unless the limit is the last of its bucket. For the cumulative buckets of Prometheus.
    pub fn at_most(&self, limit_ns: u64) -> u64 {
        let end = bucket(limit_ns.saturating_add(1));
        self.counts[..end].iter().sum()
    }
}

/// Durations below STEPS ns have a bucket each; above, each power of two has STEPS.
fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let power = ns.ilog2() as usize;
    if power >= MAX_POWER {
        return BUCKETS - 1;
    }
    // The three bits behind the leading one.
    let step = (ns >> (power - 3)) as usize & (STEPS - 1);
    (power - 2) * STEPS + step
}

/// The longest duration of a bucket.
fn upper_ns(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let power = index / STEPS + 2;
    let step = (index % STEPS) as u64;
    ((STEPS as u64 + step + 1) << (power - 3)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_in_the_bucket_whose_bounds_hold_it() {
        for ns in (0..5_000).chain((10..39).flat_map(|p| [(1 << p) - 1, 1 << p, (1 << p) + 7])) {
            let index = bucket(ns);
            assert!(ns <= upper_ns(index), "{ns} above bucket {index}");
            assert!(index == 0 || ns > upper_ns(index - 1), "{ns} below bucket {index}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_at_most_an_eighth_too_high() {
        let mut histogram = Histogram::default();
        for us in 1..=1000 {
            histogram.record(Span(us * 1000));
        }
        for (share, exact) in [(0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)] {
            let told = histogram.quantile_ns(share);
            assert!(told >= exact && told <= exact + exact / 8, "{share}: {told}");
        }
        assert_eq!(histogram.mean_ns(), 500_500);
        assert!(histogram.at_most(500_000) <= 500);
        assert!(histogram.at_most(600_000) >= 500);
    }
}
