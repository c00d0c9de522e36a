//! The mark that the processes of commands bear: of which tree they are, of which secondary, and
//! whom they serve.
//!
//! It is written as the soft and the hard limit of `RLIMIT_LOCKS`, which Linux has not looked at since
//! 2.4.25 (getrlimit(2)). Limits are inherited by whatever a process starts and survive `execve(2)`,
//! a session of its own, and an empty environment. Without privilege a hard limit can be lowered only,
//! so a mark can be spoilt by who means to, but not be made another's.
//!
//! ```text
//! hard: 1 | the watchdog's pid (22 bits) | its start time, in clock ticks (40 bits)
//! soft: 0 | slot (16 bits) | incarnation (16 bits) | 1 of a worker (1 bit) | number (29 bits)
//! ```

use std::fmt;

use crate::core::job::{Incarnation, JobNumber};

/// Set in every hard limit: so that it is above every soft one, as the kernel wants it.
const HARD: u64 = 1 << 62;
const PID_BITS: u32 = 22;
const TIME_BITS: u32 = 62 - PID_BITS;
const INCARNATION_BITS: u32 = 16;
const NUMBER_BITS: u32 = 29;

/// A tree of processes, by its watchdog: with its start time a pid names a process for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The watchdog's pid.
    pub pid: u32,
    /// When that started, in clock ticks after boot.
    pub start_time: u64,
}

impl Tree {
    fn hard(self) -> u64 {
        HARD | low(u64::from(self.pid), PID_BITS) << TIME_BITS | low(self.start_time, TIME_BITS)
    }
}

impl fmt::Display for Tree {
    /// As it stands in the environment of commands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pid, self.start_time)
    }
}

/// Whom a process serves: the low bits of a number, which suffice among all that live in one secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whose {
    /// A job.
    Job(u32),
    /// A worker, by the number of its start in this secondary.
    Worker(u32),
}

impl Whose {
    /// A job's.
    #[must_use]
    pub fn job(number: JobNumber) -> Self {
        Self::Job(short(number))
    }

    /// A worker's.
    #[must_use]
    pub fn worker(number: u64) -> Self {
        Self::Worker(short(number))
    }
}

/// What a process bears that a secondary has started, and all that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The slot of the secondary, from 1.
    pub slot: u16,
    /// Which of those that the slot has had.
    pub incarnation: Incarnation,
    /// Whom the process serves there.
    pub whose: Whose,
}

impl Mark {
    /// The soft and the hard limit that say so, in that tree.
    #[must_use]
    pub fn limits(self, tree: Tree) -> (u64, u64) {
        let (of_worker, number) = match self.whose {
            Whose::Job(number) => (0, number),
            Whose::Worker(number) => (1, number),
        };
        let secondary = u64::from(self.slot) << INCARNATION_BITS | u64::from(self.incarnation);
        let soft = (secondary << 1 | of_worker) << NUMBER_BITS | low(u64::from(number), NUMBER_BITS);
        (soft, tree.hard())
    }

    /// What the limits of a process say, where it is of that tree.
    #[must_use]
    pub fn from_limits((soft, hard): (u64, u64), tree: Tree) -> Option<Self> {
        if hard != tree.hard() || soft >= HARD {
            return None;
        }
        let number = short(soft);
        let whose = if soft >> NUMBER_BITS & 1 == 1 { Whose::Worker(number) } else { Whose::Job(number) };
        let secondary = soft >> (NUMBER_BITS + 1);
        let incarnation = u16::try_from(low(secondary, INCARNATION_BITS)).ok()?;
        let slot = u16::try_from(secondary >> INCARNATION_BITS).ok()?;
        Some(Self { slot, incarnation, whose })
    }
}

fn low(number: u64, bits: u32) -> u64 {
    number & ((1 << bits) - 1)
}

fn short(number: u64) -> u32 {
    u32::try_from(low(number, NUMBER_BITS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_and_the_kernel_takes_it(
            slot: u16, incarnation: u16, of_worker: bool, number: u64, pid in 1_u32..1 << PID_BITS,
            start_time in 0_u64..1 << TIME_BITS,
        ) {
            let whose = if of_worker { Whose::worker(number) } else { Whose::job(number) };
            let (mark, tree) = (Mark { slot, incarnation, whose }, Tree { pid, start_time });
            let (soft, hard) = mark.limits(tree);
            prop_assert!(soft < hard && hard < 1 << 63);
            prop_assert_eq!(Mark::from_limits((soft, hard), tree), Some(mark));
            let other = Tree { pid: pid ^ 1, start_time };
            prop_assert_eq!(Mark::from_limits((soft, hard), other), None);
        }
    }

    #[test]
    fn other_limits_are_no_mark() {
        let tree = Tree { pid: 7, start_time: 8 };
        for limits in [(u64::MAX, u64::MAX), (0, 0), (tree.hard(), tree.hard())] {
            assert_eq!(Mark::from_limits(limits, tree), None);
        }
    }
}
