//! The mark that the processes of commands bear: of which tree they are, of which secondary, and from
//! which of its starts they descend.
//!
//! It is written as the soft and the hard limit of `RLIMIT_LOCKS`, which Linux has not looked at since
//! 2.4.25 (getrlimit(2)). Limits are inherited by whatever a process starts and survive `execve(2)`,
//! a session of its own, and an empty environment.
//!
//! ```text
//! hard: 1 | the watchdog's pid (22 bits) | its start time, in clock ticks (40 bits)
//! soft: 0 | slot (16 bits) | incarnation (16 bits) | start (30 bits)
//! ```
//!
//! Without privilege a hard limit can only be lowered, a soft one be anything below. So a process may
//! spoil its mark, or say that it is of another start or secondary; it cannot become of another tree.

use crate::core::job::Incarnation;

/// Set in every hard limit: so that it is above every soft one, as the kernel wants it.
const HARD: u64 = 1 << 62;
const PID_BITS: u32 = 22;
const TIME_BITS: u32 = 62 - PID_BITS;
const INCARNATION_BITS: u32 = 16;
const START_BITS: u32 = 30;

/// A tree of processes, by its watchdog: with its start time a pid names a process for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The watchdog's pid.
    pub pid: u32,
    /// When that started, in clock ticks after boot.
    pub start_time: u64,
}

impl Tree {
    /// The hard limit of all that bear its mark.
    #[must_use]
    pub fn hard_limit(self) -> u64 {
        HARD | low(u64::from(self.pid), PID_BITS) << TIME_BITS | low(self.start_time, TIME_BITS)
    }
}

/// The n-th start of a command or a worker in a secondary, which all that descend from it are known by.
/// Of its number the low bits suffice: nobody lives for a thousand million starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Start(u32);

impl Start {
    /// The start with that number.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(u32::try_from(low(number, START_BITS)).unwrap_or(0))
    }
}

/// What a process bears that a secondary has started, and all that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The slot of the secondary, from 1.
    pub slot: u16,
    /// Which of those that the slot has had.
    pub incarnation: Incarnation,
    /// From which of its starts the process descends.
    pub start: Start,
}

impl Mark {
    /// The soft limit that says so.
    #[must_use]
    pub fn soft_limit(self) -> u64 {
        let secondary = u64::from(self.slot) << INCARNATION_BITS | u64::from(self.incarnation);
        secondary << START_BITS | u64::from(self.start.0)
    }

    /// What a soft limit says; `None` where it is no mark.
    #[must_use]
    pub fn from_soft_limit(soft: u64) -> Option<Self> {
        if soft >= HARD {
            return None;
        }
        let secondary = soft >> START_BITS;
        let incarnation = u16::try_from(low(secondary, INCARNATION_BITS)).ok()?;
        let slot = u16::try_from(secondary >> INCARNATION_BITS).ok().filter(|&slot| slot > 0)?;
        Some(Self { slot, incarnation, start: Start::new(soft) })
    }
}

fn low(number: u64, bits: u32) -> u64 {
    number & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_and_the_kernel_takes_it(
            slot in 1_u16.., incarnation: u16, number: u64, pid in 1_u32..1 << PID_BITS,
            start_time in 0_u64..1 << TIME_BITS,
        ) {
            let mark = Mark { slot, incarnation, start: Start::new(number) };
            let (soft, hard) = (mark.soft_limit(), Tree { pid, start_time }.hard_limit());
            prop_assert!(soft < hard && hard < 1 << 63);
            prop_assert_eq!(Mark::from_soft_limit(soft), Some(mark));
            prop_assert_ne!(hard, Tree { pid: pid ^ 1, start_time }.hard_limit());
        }
    }

    #[test]
    fn other_limits_are_no_mark() {
        for soft in [u64::MAX, 0, 1024, HARD] {
            assert_eq!(Mark::from_soft_limit(soft), None);
        }
    }
}
