//! Which waiting job a data connection gets: the oldest of its type and address.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::core::job::JobNumber;
use crate::core::list::{Ends, Links};
use crate::wire::client::TypeIndex;
use crate::wire::tube::JobRef;

type Key = (TypeIndex, IpAddr);

/// The waiting jobs that a secondary knows of. Bounded by the job table: an entry of
/// the table stands here once at most, under the job that was announced last for it.
#[derive(Debug)]
pub struct Admission {
    lists: HashMap<Key, Ends>,
    links: Links,
    known: Vec<Option<(JobNumber, Key)>>,
}

impl Admission {
    /// Nothing waits yet in a table of that capacity.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity as usize;
        Self { lists: HashMap::new(), links: Links::new(capacity), known: vec![None; capacity] }
    }

    /// A job waits. Announced again, it keeps its place; an older job that stood at the
    /// same index is forgotten. An index out of bounds is ignored.
    pub fn add(&mut self, job: JobRef, kind: TypeIndex, client: IpAddr) {
        let Some(known) = self.known.get(job.index as usize).copied() else {
            return;
        };
        if known == Some((job.number, (kind, client))) {
            return;
        }
        self.forget(job.index);
        let ends = self.lists.entry((kind, client)).or_default();
        self.links.push_back(ends, job.index);
        self.known[job.index as usize] = Some((job.number, (kind, client)));
    }

    /// Takes the oldest job of that type for that address.
    pub fn take(&mut self, kind: TypeIndex, client: IpAddr) -> Option<JobRef> {
        let index = self.lists.get(&(kind, client))?.first()?;
        let number = self.known.get(index as usize).copied().flatten()?.0;
        self.forget(index);
        Some(JobRef { index, number })
    }

    fn forget(&mut self, index: u32) {
        let Some((_, key)) = self.known[index as usize].take() else {
            return;
        };
        if let Some(ends) = self.lists.get_mut(&key) {
            self.links.remove(ends, index);
            if ends.is_empty() {
                self.lists.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn job(index: u32, number: JobNumber) -> JobRef {
        JobRef { index, number }
    }

    #[test]
    fn the_oldest_job_of_the_type_and_address_comes_first() {
        let other: IpAddr = "10.0.0.1".parse().unwrap();
        let mut admission = Admission::new(8);
        admission.add(job(3, 1), 0, HOME);
        admission.add(job(1, 2), 0, HOME);
        admission.add(job(2, 3), 1, HOME);
        admission.add(job(0, 4), 0, other);
        admission.add(job(3, 1), 0, HOME);
        assert_eq!(admission.take(0, HOME), Some(job(3, 1)));
        assert_eq!(admission.take(0, HOME), Some(job(1, 2)));
        assert_eq!(admission.take(0, HOME), None);
        assert_eq!(admission.take(0, other), Some(job(0, 4)));
        assert_eq!(admission.take(1, HOME), Some(job(2, 3)));
        assert!(admission.lists.is_empty());
    }

    #[test]
    fn an_entry_that_was_used_again_is_known_under_its_new_job_only() {
        let mut admission = Admission::new(2);
        admission.add(job(0, 1), 0, HOME);
        admission.add(job(0, 2), 1, HOME);
        admission.add(job(7, 3), 1, HOME);
        assert_eq!(admission.take(0, HOME), None);
        assert_eq!(admission.take(1, HOME), Some(job(0, 2)));
        assert_eq!(admission.take(1, HOME), None);
    }
}
