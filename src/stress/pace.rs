//! When requests begin.
//!
//! In a *closed loop* each client asks again once it was served: a server that stalls is asked less, and
//! the stall shows in one request for each client. In an *open loop* requests have their moments whatever
//! the server does; one that finds no client free begins late, and its time counts from the moment when
//! it should have begun, so that no stall is left out ("coordinated omission").

use std::time::Duration;

use crate::core::moment::Moment;

/// The moments of an open loop.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    start: Moment,
    /// Requests in a second, after the ramp.
    rate: f64,
    ramp: Duration,
    /// The next request is the n-th.
    next: u64,
}

impl Pace {
    /// So many requests a second, evenly spaced; during the ramp the rate grows from nothing.
    #[must_use]
    pub fn new(start: Moment, rate: f64, ramp: Duration) -> Self {
        Self { start, rate, ramp, next: 0 }
    }

    /// When the next request is to begin.
    #[must_use]
    pub fn at(&self) -> Moment {
        let (number, ramp) = (self.next as f64, self.ramp.as_secs_f64());
        // With a rate that grows evenly, rate * t^2 / (2 * ramp) requests have begun by the time t.
        let in_ramp = self.rate * ramp / 2.0;
        let seconds = if number < in_ramp {
            (2.0 * ramp * number / self.rate).sqrt()
        } else {
            ramp + (number - in_ramp) / self.rate
        };
        self.start + Duration::from_secs_f64(seconds)
    }

    /// How many requests are to have begun by then.
    #[must_use]
    pub fn due_by(&self, moment: Moment) -> u64 {
        let (seconds, ramp) = (moment.since(self.start).as_secs_f64(), self.ramp.as_secs_f64());
        let due = if seconds < ramp {
            self.rate * seconds * seconds / (2.0 * ramp)
        } else {
            self.rate * (ramp / 2.0 + seconds - ramp)
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let due = due as u64;
        due.max(self.next)
    }

    /// How many have been taken.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.next
    }

    /// Takes the next request, if its moment has come: when that was.
    pub fn take(&mut self, now: Moment) -> Option<Moment> {
        let at = self.at();
        (at <= now).then(|| {
            self.next += 1;
            at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut pace: Pace, count: usize) -> Vec<u64> {
        let mut taken = || pace.take(Moment::from_nanos(u64::MAX)).unwrap().as_nanos() / 1_000_000;
        (0..count).map(|_| taken()).collect()
    }

    #[test]
    fn requests_are_evenly_spaced_however_late_they_are_taken() {
        let pace = Pace::new(Moment::from_nanos(0), 100.0, Duration::ZERO);
        assert_eq!(moments(pace, 4), [0, 10, 20, 30]);
        let mut pace = pace;
        let before = Moment::from_nanos(5_000_000);
        assert!(pace.take(before).is_some());
        assert_eq!(pace.take(before), None);
    }

    #[test]
    fn a_ramp_begins_slowly_and_ends_at_the_rate() {
        let pace = Pace::new(Moment::from_nanos(0), 100.0, Duration::from_secs(2));
        let moments = moments(pace, 301);
        assert_eq!(
            [1000, 2000, 4000].map(|ms| pace.due_by(Moment::from_nanos(ms * 1_000_000))),
            [25, 100, 300]
        );
        assert_eq!(moments[100], 2000, "half as many as without a ramp");
        assert_eq!(moments[300], 4000);
        assert!(moments.is_sorted() && moments[1] > 100);
    }
}
