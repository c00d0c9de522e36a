//! How much somebody may say: so many words at once, and then as many as come back with time.

use std::time::Duration;

use crate::core::moment::Moment;

/// What may be said at once.
const MOST: u32 = 1000;
/// How soon one more may be said.
const EACH: Duration = Duration::from_millis(10);

/// Lines that a program may add to the log (a token bucket).
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    left: u32,
    /// What came back was counted up to then.
    counted: Option<Moment>,
    withheld: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: MOST, counted: None, withheld: 0 }
    }
}

impl Allowance {
    /// Whether one more may be said now; if not, it is counted.
    pub fn take(&mut self, now: Moment) -> bool {
        let counted = *self.counted.get_or_insert(now);
        let back = u32::try_from(now.since(counted).as_nanos() / EACH.as_nanos()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(back).min(MOST);
        self.counted = Some(if self.left == MOST { now } else { counted + EACH * back });
        if self.left == 0 {
            self.withheld += 1;
            return false;
        }
        self.left -= 1;
        true
    }

    /// What was withheld since this was asked last.
    pub fn take_withheld(&mut self) -> u64 {
        std::mem::take(&mut self.withheld)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_flood_is_cut_to_a_trickle_and_what_is_withheld_is_counted() {
        let mut allowance = Allowance::default();
        let said = (0..5000).filter(|_| allowance.take(at(7))).count();
        assert_eq!((said, allowance.take_withheld()), (1000, 4000));
        let said = (0..10_000).filter(|number| allowance.take(at(7 + number / 10))).count();
        assert_eq!(said, 99, "one in ten milliseconds");
        assert!(!allowance.take(at(1006)));
        let said = (0..5000).filter(|_| allowance.take(at(60_000))).count();
        assert_eq!(said, 1000);
    }
}
