//! When a server that died is started again: at once after a healthy life, with
//! exponential back-off after young deaths, never where it said that it cannot start.

use std::time::Duration;

use crate::core::moment::{Moment, nanos};

/// A server that lives this long after it was ready has proven itself.
pub const YOUNG: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How a life ended, as far as restarting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// When the server declared itself ready; `None` if it never did.
    pub ready_since: Option<Moment>,
    /// Whether it said that starting it again is of no use (bad configuration).
    pub cannot_start: bool,
}

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again at that moment.
    StartAt(Moment),
    /// Leave it down: it said that it cannot start.
    GiveUp,
}

/// The restart policy of one seat.
#[derive(Clone, Debug)]
pub struct Restart {
    young_deaths: u32,
    jitter: Jitter,
}

impl Restart {
    /// A seat with no deaths yet. The seed decides its jitter.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { young_deaths: 0, jitter: Jitter(seed) }
    }

    /// Consecutive young deaths so far.
    #[must_use]
    pub fn young_deaths(&self) -> u32 {
        self.young_deaths
    }

    /// It has been of use: what died before it is forgotten.
    pub fn forgive(&mut self) {
        self.young_deaths = 0;
    }

    /// Decides when to start again after a death at `now`.
    pub fn after_death(&mut self, now: Moment, death: Death) -> Verdict {
        if death.cannot_start && death.ready_since.is_none() {
            return Verdict::GiveUp;
        }
        let proven = death.ready_since.is_some_and(|ready| now.since(ready) >= YOUNG);
        if proven {
            self.young_deaths = 0;
            return Verdict::StartAt(now);
        }
        self.young_deaths = self.young_deaths.saturating_add(1);
        Verdict::StartAt(now + self.wait())
    }

    /// 10 ms x 2^(k-1), plus or minus 20 %, at most 10 s.
    fn wait(&mut self) -> Duration {
        let doublings = (self.young_deaths - 1).min(10);
        let wait = FIRST_WAIT.saturating_mul(1 << doublings);
        self.jitter.spread(wait.min(LONGEST_WAIT)).min(LONGEST_WAIT)
    }
}

/// A small deterministic source of jitter (SplitMix64, Steele et al. 2014), so that
/// a simulated run can be replayed from its seed.
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// `wait`, plus or minus up to 20 %.
    fn spread(&mut self, wait: Duration) -> Duration {
        Duration::from_nanos(nanos(wait) / 100 * self.percent())
    }

    /// `number`, plus or minus up to 20 %.
    pub(super) fn spread_number(&mut self, number: u64) -> u64 {
        let spread = (u128::from(number) * u128::from(self.percent()) + 50) / 100;
        u64::try_from(spread).unwrap_or(u64::MAX)
    }

    /// 80 to 120.
    fn percent(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        80 + bits % 41
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(restart: &mut Restart, now: Moment, ready_since: Option<Moment>) -> Duration {
        match restart.after_death(now, Death { ready_since, cannot_start: false }) {
            Verdict::StartAt(at) => at.since(now),
            Verdict::GiveUp => panic!("gave up"),
        }
    }

    #[test]
    fn a_proven_server_is_restarted_at_once() {
        let mut restart = Restart::new(1);
        let now = Moment::from_nanos(5_000_000_000);
        assert_eq!(waited(&mut restart, now, Some(now - YOUNG)), Duration::ZERO);
    }

    #[test]
    fn young_deaths_double_the_wait_up_to_ten_seconds() {
        for seed in 0..200 {
            let mut restart = Restart::new(seed);
            let now = Moment::from_nanos(1_000_000_000_000);
            for death in 1..30u32 {
                let wait = waited(&mut restart, now, None);
                let middle = Duration::from_millis(10 * (1 << (death - 1).min(20))).min(LONGEST_WAIT);
                assert!(wait >= middle.mul_f64(0.799), "death {death}: {wait:?}");
                assert!(wait <= middle.mul_f64(1.2).min(LONGEST_WAIT), "death {death}: {wait:?}");
            }
        }
    }

    #[test]
    fn a_second_of_health_forgets_the_young_deaths() {
        let mut restart = Restart::new(7);
        let now = Moment::from_nanos(1_000_000_000_000);
        for _ in 0..8 {
            waited(&mut restart, now, None);
        }
        assert_eq!(waited(&mut restart, now, Some(now - YOUNG)), Duration::ZERO);
        assert!(waited(&mut restart, now, Some(now)) <= Duration::from_millis(12));
    }

    #[test]
    fn what_cannot_start_is_left_down() {
        let death = Death { ready_since: None, cannot_start: true };
        assert_eq!(Restart::new(0).after_death(Moment::default(), death), Verdict::GiveUp);
    }
}
