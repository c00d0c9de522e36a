//! When a secondary has served for long enough: by its jobs, or by the memory that it has.
//!
//! Each incarnation draws limits of its own, within 20 % of what is configured: those that were
//! started together shall not all go together.

use std::fmt;

use crate::core::restart::Jitter;

/// What the configuration says; zero: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recycling {
    /// Jobs.
    pub max_jobs: u64,
    /// Bytes of resident memory.
    pub max_bytes: u64,
    /// Decides the jitter.
    pub seed: u64,
}

/// Why a secondary leaves its place to a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worn {
    /// It has served so many jobs.
    Jobs {
        /// How many.
        served: u64,
        /// Its own limit.
        limit: u64,
    },
    /// It has so much memory.
    Memory {
        /// Resident bytes, at the last probe.
        resident: u64,
        /// Its own limit.
        limit: u64,
    },
    /// Somebody wants it so.
    Told,
}

impl fmt::Display for Worn {
    /// In words, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told => write!(f, "it was asked to"),
            Self::Jobs { served, limit } => write!(f, "{served} jobs served, its limit is {limit}"),
            Self::Memory { resident, limit } => {
                let [resident, limit] = [resident, limit].map(|bytes| bytes / 1024);
                write!(f, "{resident} KiB of memory, its limit is {limit} KiB")
            }
        }
    }
}

/// The limits of one incarnation, and how near to them it is.
#[derive(Clone, Copy, Debug)]
pub struct Wear {
    max_jobs: u64,
    max_bytes: u64,
    served: u64,
    /// At the last probe.
    resident: u64,
    /// At the last probe: its successor would be supervised, and so would it be while it drains.
    may_leave: bool,
    /// It was told to leave.
    told: bool,
}

impl Wear {
    /// Draws the limits of an incarnation.
    #[must_use]
    pub fn new(recycling: Recycling) -> Self {
        let mut jitter = Jitter::new(recycling.seed);
        let mut draw = |limit: u64| match limit {
            0 => 0,
            limit => jitter.spread_number(limit).max(1),
        };
        let (max_jobs, max_bytes) = (draw(recycling.max_jobs), draw(recycling.max_bytes));
        Self { max_jobs, max_bytes, served: 0, resident: 0, may_leave: false, told: false }
    }

    /// Whether there is any reason for which it might leave.
    #[must_use]
    pub fn can_wear_out(&self) -> bool {
        self.told || self.max_jobs > 0 || self.max_bytes > 0
    }

    /// It has claimed a job.
    pub fn count_job(&mut self) {
        self.served += 1;
    }

    /// It is to leave, worn out or not.
    pub fn tell(&mut self) {
        self.told = true;
    }

    /// The watchdog has probed it: so it is known, and has lived for a moment. Without that
    /// moment, a limit of one job would do nothing but start processes.
    pub fn handle_probe(&mut self, may_leave: bool, resident: u64) {
        (self.may_leave, self.resident) = (may_leave, resident);
    }

    /// Why it is to leave now, if it is. Who has served nobody stays: its successor would need
    /// as much memory.
    #[must_use]
    pub fn leaves(&self) -> Option<Worn> {
        let Self { max_jobs, max_bytes, served, resident, may_leave, told } = *self;
        if may_leave && told {
            Some(Worn::Told)
        } else if !may_leave || served == 0 {
            None
        } else if max_jobs > 0 && served >= max_jobs {
            Some(Worn::Jobs { served, limit: max_jobs })
        } else if max_bytes > 0 && resident > max_bytes {
            Some(Worn::Memory { resident, limit: max_bytes })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_spread_over_forty_percent() {
        let draw = |seed| Wear::new(Recycling { max_jobs: 1000, max_bytes: 1 << 30, seed });
        let drawn: Vec<Wear> = (0..500).map(draw).collect();
        let jobs = drawn.iter().map(|wear| wear.max_jobs);
        assert!(jobs.clone().all(|jobs| (800..=1200).contains(&jobs)));
        assert!(jobs.clone().any(|jobs| jobs < 850) && jobs.clone().any(|jobs| jobs > 1150));
        assert!(drawn.iter().any(|wear| wear.max_bytes / (1 << 20) * 1000 / 1024 != wear.max_jobs));
        let one = |seed| Wear::new(Recycling { max_jobs: 1, max_bytes: u64::MAX, seed }).max_jobs;
        assert!((0..500).all(|seed| one(seed) == 1));
    }

    #[test]
    fn who_is_worn_out_leaves_once_the_watchdog_knows_it() {
        let mut wear = Wear::new(Recycling { max_jobs: 1, max_bytes: 0, seed: 1 });
        wear.count_job();
        wear.count_job();
        assert_eq!(wear.leaves(), None);
        wear.handle_probe(true, 0);
        assert_eq!(wear.leaves(), Some(Worn::Jobs { served: 2, limit: 1 }));
        wear.handle_probe(false, 0);
        assert_eq!(wear.leaves(), None);
    }

    #[test]
    fn who_has_served_nobody_stays_however_large() {
        let mut wear = Wear::new(Recycling { max_jobs: 0, max_bytes: 100, seed: 1 });
        wear.handle_probe(true, 1000);
        assert_eq!(wear.leaves(), None);
        wear.count_job();
        assert!(matches!(wear.leaves(), Some(Worn::Memory { resident: 1000, limit: 80..=120 })));
        wear.handle_probe(true, 80);
        assert_eq!(wear.leaves(), None);
    }

    #[test]
    fn who_is_told_to_leaves_once_the_watchdog_knows_it() {
        let mut wear = Wear::new(Recycling::default());
        wear.tell();
        assert_eq!(wear.leaves(), None);
        wear.handle_probe(true, 0);
        assert_eq!(wear.leaves(), Some(Worn::Told));
    }

    #[test]
    fn without_limits_nobody_leaves() {
        let mut wear = Wear::new(Recycling::default());
        (0..10_000).for_each(|_| wear.count_job());
        wear.handle_probe(true, u64::MAX);
        assert_eq!(wear.leaves(), None);
    }
}
