//! Which waiting job a data connection gets: the oldest plain one of its type and address, or
//! the tracked one whose jeton it knows.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::core::job::{Job, JobNumber};
use crate::core::list::{Ends, Links};
use crate::wire::client::TypeIndex;
use crate::wire::jeton::Jeton;
use crate::wire::tube::JobRef;

/// In which list a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// A plain job: by who may claim it.
    Plain(TypeIndex, IpAddr),
    /// A tracked job: by the part of its jeton that may be known.
    Tracked(TypeIndex, u32),
}

impl Key {
    fn of(job: &Job) -> Self {
        match job.jeton {
            None => Self::Plain(job.kind, job.client),
            Some(jeton) => Self::Tracked(job.kind, jeton.selector()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    number: JobNumber,
    key: Key,
    jeton: Option<Jeton>,
}

/// The waiting jobs that a secondary knows of. Bounded by the job table: an entry of
/// the table stands here once at most, under the job that was announced last for it.
#[derive(Debug)]
pub struct Admission {
    lists: HashMap<Key, Ends>,
    links: Links,
    /// Grows up to the last entry where a job waited: room for all is set aside.
    known: Vec<Option<Known>>,
    capacity: u32,
    /// Tracked jobs by request type, in the order in which they were announced. Those that were
    /// taken go when they are the oldest.
    tracked: Vec<VecDeque<JobRef>>,
}

impl Admission {
    /// Nothing waits yet in a table of that capacity.
    #[must_use]
    pub fn new(capacity: u32, types: usize) -> Self {
        Self {
            lists: HashMap::new(),
            links: Links::new(capacity as usize),
            known: Vec::with_capacity(capacity as usize),
            capacity,
            tracked: vec![VecDeque::new(); types],
        }
    }

    /// A job waits. Announced again, it keeps its place; an older job that stood at the
    /// same index is forgotten. An index out of bounds is ignored, and so is a type.
    pub fn add(&mut self, of: JobRef, job: &Job) {
        let known = Known { number: of.number, key: Key::of(job), jeton: job.jeton };
        if of.index >= self.capacity || job.kind >= self.tracked.len() || self.at(of.index) == Some(known) {
            return;
        }
        self.forget(of.index);
        let ends = self.lists.entry(known.key).or_default();
        self.links.push_back(ends, of.index);
        let index = of.index as usize;
        if self.known.len() <= index {
            self.known.resize(index + 1, None);
        }
        self.known[index] = Some(known);
        if job.jeton.is_some() {
            self.tracked[job.kind].push_back(of);
        }
    }

    /// Takes the oldest plain job of that type for that address.
    pub fn take(&mut self, kind: TypeIndex, client: IpAddr) -> Option<JobRef> {
        let index = self.lists.get(&Key::Plain(kind, client))?.first()?;
        self.take_at(index)
    }

    /// Takes the oldest plain job of that type, whoever asked for it.
    pub fn take_any(&mut self, kind: TypeIndex) -> Option<JobRef> {
        let oldest = self.known.iter().zip(0..).filter_map(|(known, index)| {
            let Known { number, key: Key::Plain(of, _), .. } = (*known)? else {
                return None;
            };
            (of == kind).then_some((number, index))
        });
        let (_, index) = oldest.min()?;
        self.take_at(index)
    }

    /// Takes the tracked job of that type that has this jeton.
    pub fn take_tracked(&mut self, kind: TypeIndex, jeton: Jeton) -> Option<JobRef> {
        let ends = self.lists.get(&Key::Tracked(kind, jeton.selector()))?;
        let found = self
            .links
            .iter(*ends)
            .find(|&index| self.at(index).is_some_and(|known| known.jeton == Some(jeton)));
        self.take_at(found?)
    }

    /// The tracked job of that type that was announced first. It may wait no longer.
    #[must_use]
    pub fn oldest_tracked(&self, kind: TypeIndex) -> Option<JobRef> {
        self.tracked.get(kind)?.front().copied()
    }

    /// Forgets that job: it waits no longer.
    pub fn forget_oldest_tracked(&mut self, kind: TypeIndex) {
        if let Some(job) = self.tracked[kind].pop_front()
            && self.at(job.index).is_some_and(|known| known.number == job.number)
        {
            self.forget(job.index);
        }
    }

    fn take_at(&mut self, index: u32) -> Option<JobRef> {
        let number = self.at(index)?.number;
        self.forget(index);
        Some(JobRef { index, number })
    }

    fn at(&self, index: u32) -> Option<Known> {
        self.known.get(index as usize).copied().flatten()
    }

    fn forget(&mut self, index: u32) {
        let Some(Known { key, .. }) = self.known.get_mut(index as usize).and_then(Option::take) else {
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
    use crate::core::moment::Moment;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn at(index: u32, number: JobNumber) -> JobRef {
        JobRef { index, number }
    }

    fn job(kind: TypeIndex, client: IpAddr) -> Job {
        Job { kind, client, given_at: Moment::from_nanos(1), jeton: None }
    }

    fn tracked(kind: TypeIndex, byte: u8) -> Job {
        Job { jeton: Some(jeton(byte)), ..job(kind, HOME) }
    }

    /// All begin alike.
    fn jeton(last: u8) -> Jeton {
        let mut bytes = [7; 16];
        bytes[15] = last;
        Jeton::from_bytes(bytes)
    }

    #[test]
    fn the_oldest_job_of_the_type_and_address_comes_first() {
        let other: IpAddr = "10.0.0.1".parse().unwrap();
        let mut admission = Admission::new(8, 2);
        admission.add(at(3, 1), &job(0, HOME));
        admission.add(at(1, 2), &job(0, HOME));
        admission.add(at(2, 3), &job(1, HOME));
        admission.add(at(0, 4), &job(0, other));
        admission.add(at(3, 1), &job(0, HOME));
        assert_eq!(admission.take(0, HOME), Some(at(3, 1)));
        assert_eq!(admission.take(0, HOME), Some(at(1, 2)));
        assert_eq!(admission.take(0, HOME), None);
        assert_eq!(admission.take(0, other), Some(at(0, 4)));
        assert_eq!(admission.take(1, HOME), Some(at(2, 3)));
        assert!(admission.lists.is_empty());
    }

    #[test]
    fn an_entry_that_was_used_again_is_known_under_its_new_job_only() {
        let mut admission = Admission::new(2, 2);
        admission.add(at(0, 1), &job(0, HOME));
        admission.add(at(0, 2), &job(1, HOME));
        admission.add(at(7, 3), &job(1, HOME));
        admission.add(at(1, 3), &job(2, HOME));
        assert_eq!(admission.take(0, HOME), None);
        assert_eq!(admission.take(1, HOME), Some(at(0, 2)));
        assert_eq!(admission.take(1, HOME), None);
    }

    #[test]
    fn a_tracked_job_is_for_who_knows_its_jeton() {
        let mut admission = Admission::new(8, 2);
        admission.add(at(0, 1), &tracked(0, 1));
        admission.add(at(1, 2), &tracked(0, 2));
        admission.add(at(2, 3), &job(0, HOME));
        assert_eq!(admission.take_tracked(1, jeton(1)), None, "of another type");
        assert_eq!(admission.take_tracked(0, jeton(3)), None);
        assert_eq!(admission.take_tracked(0, jeton(2)), Some(at(1, 2)));
        assert_eq!(admission.take_tracked(0, jeton(2)), None);
        assert_eq!(admission.take(0, HOME), Some(at(2, 3)));
        assert_eq!(admission.take(0, HOME), None, "a tracked one is not for the address");
        assert_eq!(admission.oldest_tracked(0), Some(at(0, 1)));
        admission.forget_oldest_tracked(0);
        assert_eq!(admission.take_tracked(0, jeton(1)), None, "it is forgotten");
        assert_eq!(admission.oldest_tracked(0), Some(at(1, 2)), "it was taken, but nobody has asked since");
        admission.forget_oldest_tracked(0);
        assert!(admission.oldest_tracked(0).is_none() && admission.lists.is_empty());
    }

    #[test]
    fn where_all_are_let_in_the_oldest_plain_job_is_anybody_s() {
        let mut admission = Admission::new(8, 2);
        admission.add(at(5, 1), &tracked(0, 1));
        admission.add(at(4, 2), &job(0, HOME));
        admission.add(at(3, 3), &job(0, "10.0.0.1".parse().unwrap()));
        admission.add(at(0, 4), &job(1, HOME));
        let any: Vec<_> = std::iter::from_fn(|| admission.take_any(0)).collect();
        assert_eq!(any, [at(4, 2), at(3, 3)]);
    }
}
