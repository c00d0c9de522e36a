//! How long things take: histograms with fixed bounds, that one process counts and others read.

use std::time::Duration;

use serde::Serialize;

/// Bounds in a histogram, each three to a decade.
pub const BOUNDS: usize = 22;
/// Buckets of a histogram: below each bound, and above them all.
pub const BUCKETS: usize = BOUNDS + 1;

/// Upper bounds of the buckets, in microseconds, each included: 10 us to 100 s.
pub const BOUNDS_US: [u64; BOUNDS] = [
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
];

/// The bucket of a time in microseconds.
#[must_use]
pub fn bucket(micros: u64) -> usize {
    BOUNDS_US.partition_point(|&bound| bound < micros)
}

/// Times, counted by bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Histogram {
    /// How many fell in each bucket; the last has no upper bound.
    pub buckets: [u64; BUCKETS],
    /// The sum of all, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, &count| sum.wrapping_add(count))
    }

    /// What came after `earlier`, an older reading of the same.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let of = |bucket: usize| self.buckets[bucket].saturating_sub(earlier.buckets[bucket]);
        Self { buckets: std::array::from_fn(of), sum_us: self.sum_us.saturating_sub(earlier.sum_us) }
    }

    /// These and others together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let of = |bucket: usize| self.buckets[bucket].wrapping_add(other.buckets[bucket]);
        Self { buckets: std::array::from_fn(of), sum_us: self.sum_us.wrapping_add(other.sum_us) }
    }

    /// The time that this share of all (0 to 1) does not exceed, as far as the bounds tell: within its bucket, times
    /// are taken to be spread evenly. `None` where nothing was counted.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rank is an estimate anyway")]
        let rank = share.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        for (bucket, &inside) in self.buckets.iter().enumerate().filter(|&(_, &inside)| inside > 0) {
            #[expect(clippy::cast_precision_loss, reason = "the same")]
            let inside = inside as f64;
            if below + inside >= rank {
                let lower = bucket.checked_sub(1).map_or(0, |before| BOUNDS_US[before]);
                // Nobody knows how far the last bucket goes.
                let upper = BOUNDS_US.get(bucket).copied().unwrap_or(lower);
                let part = ((rank - below) / inside).clamp(0.0, 1.0);
                let width = Duration::from_micros(upper - lower);
                return Some(Duration::from_micros(lower) + width.mul_f64(part));
            }
            below += inside;
        }
        None
    }
}

/// A length of time in sixteen bits, as one word of the job table has them left: eleven bits, and by how many places
/// they are shifted. Zero is never written: it means that nothing was.
#[must_use]
pub fn pack(time: Duration) -> u16 {
    // What is added keeps zero free.
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).saturating_add(1).min(MOST_US);
    let shift = (64 - micros.leading_zeros()).saturating_sub(MANTISSA_BITS);
    let mantissa = u16::try_from(micros >> shift).unwrap_or(0);
    u16::try_from(shift << MANTISSA_BITS).unwrap_or(0) | mantissa
}

/// What [`pack`] has written, to a part in a thousand.
#[must_use]
pub fn unpack(bits: u16) -> Option<Duration> {
    let shift = bits >> MANTISSA_BITS;
    let micros = u64::from(bits & ((1 << MANTISSA_BITS) - 1)) << shift;
    (bits != 0).then(|| Duration::from_micros(micros.saturating_sub(1)))
}

const MANTISSA_BITS: u32 = 11;
/// The longest time that can be packed: 50 days.
const MOST_US: u64 = ((1 << MANTISSA_BITS) - 1) << 31;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(micros: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for &micros in micros {
            histogram.buckets[bucket(micros)] += 1;
            histogram.sum_us += micros;
        }
        histogram
    }

    #[test]
    fn a_bound_belongs_to_its_bucket_and_nothing_is_too_long() {
        assert_eq!((bucket(0), bucket(10), bucket(11), bucket(25)), (0, 0, 1, 1));
        assert_eq!((bucket(100_000_000), bucket(100_000_001), bucket(u64::MAX)), (21, 22, 22));
    }

    #[test]
    fn quantiles_are_read_off_the_buckets() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        let histogram = of(&[300, 300, 300, 300]);
        assert_eq!(histogram.quantile(0.0), Some(Duration::from_micros(250)));
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_micros(375)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_micros(500)));
        let endless = of(&[200_000_000]);
        assert_eq!(endless.quantile(0.99), Some(Duration::from_secs(100)), "at least that");
    }

    #[test]
    fn what_came_after_an_older_reading_is_a_histogram_too() {
        let (early, late) = (of(&[5, 300]), of(&[5, 300, 7, 7_000]));
        assert_eq!(late.since(&early), of(&[7, 7_000]));
        assert_eq!(early.with(&of(&[7, 7_000])), late);
        assert_eq!(late.count(), 4);
    }

    proptest! {
        #[test]
        fn a_time_is_known_to_a_part_in_a_thousand(micros in 0..MOST_US - 1) {
            let time = Duration::from_micros(micros);
            let known = unpack(pack(time)).unwrap();
            prop_assert!(known <= time);
            prop_assert!((time - known).as_micros() * 1000 <= time.as_micros() + 1);
        }
    }

    #[test]
    fn the_shortest_and_the_longest_time() {
        assert_eq!(unpack(0), None);
        assert_eq!(unpack(pack(Duration::ZERO)), Some(Duration::ZERO));
        assert_eq!(unpack(pack(Duration::MAX)), Some(Duration::from_micros(MOST_US - 1)));
    }
}
