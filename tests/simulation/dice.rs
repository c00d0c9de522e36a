//! The only source of chance in a world (SplitMix64, Steele et al. 2014).

use std::time::Duration;

use osps::core::moment::nanos;

/// A stream of random numbers that its seed decides.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// A number from 0 up to, not including, `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// True that often in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// A time from `low` to `high`.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = nanos(high.saturating_sub(low)).saturating_add(1);
        low + Duration::from_nanos(self.below(span))
    }

    /// A time of at most `high`.
    pub fn up_to(&mut self, high: Duration) -> Duration {
        self.between(Duration::ZERO, high)
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let limit = u64::try_from(choices.len()).expect("a few");
        choices[usize::try_from(self.below(limit)).expect("a few")]
    }
}
