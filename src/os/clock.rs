//! The only place that reads a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::core::moment::Moment;

/// The time now, on `CLOCK_MONOTONIC`: the same for all processes of the machine.
#[must_use]
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Moment::from_nanos(seconds * 1_000_000_000 + nanos)
}

/// The time since 1970 began (UTC), for people and programs of other machines. It may jump: nothing is decided by it.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the place where the time of day is read")]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
