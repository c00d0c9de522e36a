//! The secondary's side of the job table.

use std::net::IpAddr;
use std::path::Path;

use crate::core::admission::Admission;
use crate::core::job::{Incarnation, State, Word};
use crate::core::moment::Moment;
use crate::page::jobs::JobTable;
use crate::page::{Access, PageError};
use crate::wire::client::TypeIndex;
use crate::wire::tube::JobRef;

/// The job table, and which of its jobs wait for whom.
pub struct Jobs {
    table: JobTable,
    incarnation: Incarnation,
    waiting: Admission,
    /// How many jobs were published when the whole table was last looked through.
    looked_at: u64,
}

impl Jobs {
    /// Maps the table and takes note of what waits in it: jobs that were given out
    /// while a predecessor was here, or nobody.
    pub fn attach(path: &Path, incarnation: Incarnation) -> Result<Self, PageError> {
        let table = JobTable::attach(path, Access::ReadWrite)?;
        let waiting = Admission::new(table.capacity());
        let mut jobs = Self { table, incarnation, waiting, looked_at: 0 };
        jobs.look_through();
        Ok(jobs)
    }

    /// The principal says that a job waits.
    pub fn announce(&mut self, job: JobRef) {
        let word = self.table.state(job.index);
        if word.is_ok_and(|word| word.state == State::Waiting && word.number == job.number)
            && let Some(found) = self.table.job(job.index)
        {
            self.waiting.add(job, found.kind, found.client);
        }
    }

    /// Takes note of every waiting job in the table, oldest first.
    pub fn look_through(&mut self) {
        self.looked_at = self.table.published();
        let mut found: Vec<JobRef> = self
            .table
            .indices()
            .filter_map(|index| {
                let word = self.table.state(index).ok()?;
                (word.state == State::Waiting).then_some(JobRef { index, number: word.number })
            })
            .collect();
        found.sort_by_key(|job| job.number);
        for job in found {
            self.announce(job);
        }
    }

    /// Claims the oldest job that waits for that type and address.
    pub fn claim(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Option<JobRef> {
        loop {
            let job = self.waiting.take(kind, client)?;
            let waiting = Word::waiting(job.number);
            // It may have expired meanwhile, and its entry may hold another job.
            if self.table.swap(job.index, waiting, waiting.claimed_by(self.incarnation)) {
                self.table.note_claim(job.index, now);
                return Some(job);
            }
        }
    }

    /// As [`Jobs::claim`], after a look at the table itself: a doorbell may be late or
    /// lost, the table is the truth.
    pub fn claim_after_look(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Option<JobRef> {
        if let Some(job) = self.claim(kind, client, now) {
            return Some(job);
        }
        if self.table.published() == self.looked_at {
            return None;
        }
        self.look_through();
        self.claim(kind, client, now)
    }

    /// Ends a job of ours. Returns whether it was still ours to end.
    #[must_use]
    pub fn end(&self, job: JobRef, end: State) -> bool {
        let claimed = Word::waiting(job.number).claimed_by(self.incarnation);
        self.table.swap(job.index, claimed, claimed.in_state(end))
    }
}
