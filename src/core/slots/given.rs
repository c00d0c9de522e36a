//! What a principal knows of the jobs that it has given, by their entries in a slot's table.

use crate::core::crowd::Network;
use crate::core::job::{ClientId, JobNumber, Reason};
use crate::core::slots::Followed;

/// The job at an entry of a table, as this principal gave it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    /// Zero where none is: who writes something else into the table is not believed.
    pub number: JobNumber,
    /// Who asked for it; nobody is told of what a dead principal gave.
    pub client: Option<ClientId>,
    /// Whose share it counts in, if that is known.
    pub network: Option<Network>,
    /// Its client follows it.
    pub tracked: bool,
    /// Its client knows that it was claimed.
    pub claimed: bool,
    /// Why it failed, where it did so with its secondary.
    pub lost: Option<Reason>,
}

impl Given {
    /// A job that another principal gave, and who is to hear of it.
    pub(super) fn followed_by(number: JobNumber, follower: Option<(ClientId, Followed)>) -> Self {
        let known = Self { number, ..Self::default() };
        follower.map_or(known, |(client, Followed { tracked, claimed, .. })| Self {
            client: Some(client),
            tracked,
            claimed,
            ..known
        })
    }
}

/// The jobs of a table. The lowest entries are given first, so memory is touched only as far as there were ever
/// jobs at once; room for all is set aside at the start, and giving allocates nothing.
#[derive(Debug)]
pub(super) struct GivenJobs {
    known: Vec<Given>,
    entries: u32,
}

impl GivenJobs {
    /// None, in a table of so many entries.
    pub(super) fn new(entries: u32) -> Self {
        Self { known: Vec::with_capacity(entries as usize), entries }
    }

    /// Of the table, with a job or without.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// All entries at which a job was ever given.
    pub(super) fn reached(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.known.len()).unwrap_or(u32::MAX)
    }

    /// What is at an entry; any number may be asked for.
    pub(super) fn get(&self, entry: u32) -> Given {
        self.known.get(entry as usize).copied().unwrap_or_default()
    }

    /// The same, to be changed, where a job was ever given.
    pub(super) fn get_mut(&mut self, entry: u32) -> Option<&mut Given> {
        self.known.get_mut(entry as usize)
    }

    /// A job is given at an entry.
    pub(super) fn put(&mut self, entry: u32, given: Given) {
        debug_assert!(entry < self.entries);
        let index = entry as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, Given::default());
        }
        self.known[index] = given;
    }

    /// The job at an entry has ended.
    pub(super) fn remove(&mut self, entry: u32) {
        if let Some(given) = self.get_mut(entry) {
            *given = Given::default();
        }
    }

    /// All jobs that have not ended, by their entries.
    pub(super) fn open(&self) -> impl Iterator<Item = (u32, Given)> + '_ {
        (0..).zip(&self.known).filter(|(_, given)| given.number != 0).map(|(entry, given)| (entry, *given))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_known_until_it_ends_and_any_entry_may_be_asked_for() {
        let mut jobs = GivenJobs::new(8);
        let room = jobs.known.capacity();
        for entry in [2, 7, 0] {
            jobs.put(entry, Given { number: u64::from(entry) + 10, ..Given::default() });
        }
        assert_eq!(
            jobs.open().map(|(entry, given)| (entry, given.number)).collect::<Vec<_>>(),
            [(0, 10), (2, 12), (7, 17)]
        );
        jobs.remove(2);
        jobs.remove(5);
        assert_eq!(jobs.open().count(), 2);
        assert_eq!([1, 2, 7, 8, u32::MAX].map(|entry| jobs.get(entry).number), [0, 0, 17, 0, 0]);
        assert!(jobs.get_mut(8).is_none());
        assert_eq!((jobs.reached(), GivenJobs::new(8).reached()), (0..8, 0..0));
        assert_eq!((jobs.entries(), jobs.known.capacity()), (8, room), "nothing was allocated");
    }
}
