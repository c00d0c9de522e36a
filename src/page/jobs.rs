//! `secondary<n>.jobs`: the job table of a slot.
//!
//! It belongs to the slot, not to the process in it: a job that was given but not yet
//! claimed outlives the secondary and is served by its replacement.
//!
//! | words | writer | meaning |
//! |---|---|---|
//! | 3 | creator | capacity: entries in the table |
//! | 4 | principal | the number of the job published last, to tell whether a doorbell is still under way |
//! | 5 | principal | tracked jobs published so far: nobody is let in as plain before all are known |
//! | 8.. | | entries of eight words (one cache line) each |
//!
//! An entry:
//!
//! | word | writer | meaning |
//! |---|---|---|
//! | 0 | both, by compare-and-swap | the state word ([`crate::core::job`]) |
//! | 1 | principal | request type (low half); high half: the process group that serves it, where a command does (secondary) |
//! | 2, 3 | principal | the client's address, as 16 bytes of IPv6 (IPv4 mapped) |
//! | 4 | principal | when it was given (monotonic ns) |
//! | 5, 6 | principal | the jeton of a tracked job, else zero |
//! | 7 | secondary | how long it had waited when it was claimed (low half, microseconds); then sixteen bits: why it failed ([`Reason`]); the highest sixteen: how long it was served ([`latency::pack`]; 0: it has not ended) |

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::core::job::{Garbage, Job, JobNumber, Reason, Table, Word};
use crate::core::latency;
use crate::core::moment::Moment;
use crate::os::segment::Segment;
use crate::page::{Access, HEADER_WORDS, Kind, Page, PageError, Source};
use crate::wire::jeton::Jeton;

/// More entries than any configuration may ask for.
pub const MAX_CAPACITY: usize = 1 << 20;
const ENTRY_WORDS: usize = 8;
const LAST_PUBLISHED: usize = 4;
const TRACKED_JOBS: usize = 5;

/// The job table of one slot.
#[derive(Debug)]
pub struct JobTable {
    page: Page,
    capacity: usize,
}

impl JobTable {
    /// Creates an empty table.
    ///
    /// # Errors
    /// [`PageError::Io`].
    pub fn create(path: &Path, capacity: usize) -> Result<Self, PageError> {
        let words = HEADER_WORDS + capacity * ENTRY_WORDS;
        let page = Page::create(path, Kind::Jobs, words, &[capacity as u64])?;
        Ok(Self { page, capacity })
    }

    /// Maps an existing table.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn attach<'a>(source: impl Into<Source<'a>>, access: Access) -> Result<Self, PageError> {
        let (page, capacity) = Page::attach(source.into(), Kind::Jobs, access, |page| {
            let capacity = page.dimension(0, MAX_CAPACITY)?;
            Some((capacity, HEADER_WORDS + capacity * ENTRY_WORDS))
        })?;
        Ok(Self { page, capacity })
    }

    /// Writes the header again, over whatever stands there. For its keeper only.
    pub fn restore_header(&self) {
        self.page.write_header(Kind::Jobs, &[self.capacity as u64]);
    }

    /// As [`JobTable::restore_header`], of a table that is not mapped.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn restore(file: &File, capacity: usize) -> io::Result<()> {
        let page = Page { words: Segment::map(file)? };
        Self { page, capacity }.restore_header();
        Ok(())
    }

    /// Writes a job into a free entry and publishes it as waiting. For the principal only.
    pub fn publish(&self, index: u32, number: JobNumber, job: Job) {
        let Some(at) = self.entry(index) else {
            return;
        };
        let bits = match job.client {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        }
        .to_bits();
        self.page.set(at + 1, job.kind as u64);
        self.page.set(at + 2, u64::try_from(bits >> 64).unwrap_or(0));
        self.page.set(at + 3, u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0));
        self.page.set(at + 4, job.given_at.as_nanos());
        let [first, second] = job.jeton.map_or([0, 0], Jeton::words);
        self.page.set(at + 5, first);
        self.page.set(at + 6, second);
        self.page.set(at, Word::given(number, &job).pack());
        self.page.set(LAST_PUBLISHED, number);
        // Last: whoever counts a job finds it below the number published last.
        if job.jeton.is_some() {
            self.page.add(TRACKED_JOBS, 1);
        }
    }

    /// How long the job at that index had waited to be claimed, and how long it was served: as the secondary has noted
    /// that ended it, `None` where none has.
    #[must_use]
    pub fn times(&self, index: u32) -> Option<(Duration, Duration)> {
        let noted = self.page.get(self.entry(index)? + 7);
        let [low, lower, high, higher, .., last_but_one, last] = noted.to_le_bytes();
        let waited = Duration::from_micros(u32::from_le_bytes([low, lower, high, higher]).into());
        Some((waited, latency::unpack(u16::from_le_bytes([last_but_one, last]))?))
    }

    fn entry(&self, index: u32) -> Option<usize> {
        let index = index as usize;
        (index < self.capacity).then_some(HEADER_WORDS + index * ENTRY_WORDS)
    }
}

impl Table for JobTable {
    fn capacity(&self) -> u32 {
        u32::try_from(self.capacity).unwrap_or(u32::MAX)
    }

    fn state(&self, index: u32) -> Result<Word, Garbage> {
        let at = self.entry(index).ok_or(Garbage(u64::MAX))?;
        Word::unpack(self.page.get(at))
    }

    fn job(&self, index: u32) -> Option<Job> {
        let at = self.entry(index)?;
        let high = u128::from(self.page.get(at + 2)) << 64;
        let address = Ipv6Addr::from_bits(high | u128::from(self.page.get(at + 3)));
        Some(Job {
            kind: usize::try_from(self.page.get(at + 1) & 0xffff_ffff).ok()?,
            client: IpAddr::V6(address).to_canonical(),
            given_at: Moment::from_nanos(self.page.get(at + 4)),
            jeton: Jeton::from_words([self.page.get(at + 5), self.page.get(at + 6)]),
        })
    }

    fn swap(&self, index: u32, from: Word, to: Word) -> bool {
        let Some(at) = self.entry(index) else {
            return false;
        };
        #[cfg(debug_assertions)]
        crate::page::fuse::burn();
        let (from, to) = (from.pack(), to.pack());
        self.page.word(at).compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn overwrite(&self, index: u32, word: Word) {
        if let Some(at) = self.entry(index) {
            self.page.set(at, word.pack());
        }
    }

    fn note_claim(&self, index: u32, now: Moment) {
        if let Some(at) = self.entry(index) {
            let waited = now.since(Moment::from_nanos(self.page.get(at + 4)));
            let micros = u32::try_from(waited.as_micros()).unwrap_or(u32::MAX);
            self.page.set(at + 7, u64::from(micros));
        }
    }

    fn claimed_at(&self, index: u32) -> Option<Moment> {
        let at = self.entry(index)?;
        let micros = u32::try_from(self.page.get(at + 7) & u64::from(u32::MAX)).ok()?;
        let waited = Duration::from_micros(micros.into());
        (micros < u32::MAX).then(|| Moment::from_nanos(self.page.get(at + 4)) + waited)
    }

    fn note_end(&self, index: u32, now: Moment) {
        if let (Some(at), Some(claimed_at)) = (self.entry(index), self.claimed_at(index)) {
            let served = u64::from(latency::pack(now.since(claimed_at)));
            self.page.set(at + 7, served << 48 | self.page.get(at + 7) & ((1 << 48) - 1));
        }
    }

    fn note_reason(&self, index: u32, reason: Reason) {
        if let Some(at) = self.entry(index) {
            let others = self.page.get(at + 7) & !(0xffff << 32);
            self.page.set(at + 7, others | u64::from(reason.pack() & 0xffff) << 32);
        }
    }

    fn reason(&self, index: u32) -> Option<Reason> {
        let at = self.entry(index)?;
        Reason::unpack(u32::try_from(self.page.get(at + 7) >> 32 & 0xffff).ok()?)
    }

    fn note_group(&self, index: u32, group: u32) {
        if let Some(at) = self.entry(index) {
            let kind = self.page.get(at + 1) & u64::from(u32::MAX);
            self.page.set(at + 1, u64::from(group) << 32 | kind);
        }
    }

    fn group(&self, index: u32) -> u32 {
        let found = self.entry(index).map(|at| self.page.get(at + 1) >> 32);
        found.and_then(|group| u32::try_from(group).ok()).unwrap_or(0)
    }

    fn last_published(&self) -> JobNumber {
        self.page.get(LAST_PUBLISHED)
    }

    fn tracked_jobs(&self) -> u64 {
        self.page.get(TRACKED_JOBS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::job::State;

    #[test]
    fn what_is_published_is_read_by_the_other_side() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs");
        let principal = JobTable::create(&path, 4).unwrap();
        let secondary = JobTable::attach(&path, Access::ReadWrite).unwrap();
        let job = Job {
            kind: 3,
            client: "192.0.2.7".parse().unwrap(),
            given_at: Moment::from_nanos(99),
            jeton: Some(Jeton::from_bytes([9; 16])),
        };
        principal.publish(2, 17, job);
        assert_eq!(secondary.job(2), Some(job));
        let waiting = secondary.state(2).unwrap();
        assert_eq!(waiting, Word { tracked: true, ..Word::waiting(17) });
        assert!(secondary.swap(2, waiting, waiting.claimed_by(5)));
        assert!(!secondary.swap(2, waiting, waiting.claimed_by(6)), "it is claimed already");
        assert_eq!(principal.state(2).map(|word| (word.state, word.holder)), Ok((State::Claimed, 5)));
        assert_eq!(principal.last_published(), 17);
        secondary.note_claim(2, Moment::from_nanos(5_099));
        assert_eq!(principal.claimed_at(2), Some(Moment::from_nanos(5_099)));
        assert_eq!(principal.reason(2), None);
        assert_eq!(principal.times(2), None);
        secondary.note_end(2, Moment::from_nanos(1_005_099));
        secondary.note_reason(2, Reason::Stopping);
        assert_eq!(principal.reason(2), Some(Reason::Stopping));
        assert_eq!(principal.times(2), Some((Duration::from_micros(5), Duration::from_millis(1))));
        assert_eq!(principal.claimed_at(2), Some(Moment::from_nanos(5_099)));
        secondary.note_group(2, u32::MAX);
        assert_eq!((principal.group(2), principal.job(2)), (u32::MAX, Some(job)));
        secondary.note_claim(2, Moment::from_nanos(99) + Duration::from_secs(5000));
        assert_eq!(principal.claimed_at(2), None, "more than an hour is not noted");
        principal.publish(2, 18, Job { jeton: None, ..job });
        assert_eq!(secondary.job(2), Some(Job { jeton: None, ..job }));
        assert_eq!((secondary.last_published(), secondary.tracked_jobs()), (18, 1));
    }

    #[test]
    fn an_index_out_of_bounds_is_garbage_not_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let table = JobTable::create(&dir.path().join("jobs"), 4).unwrap();
        assert!(table.state(4).is_err());
        assert_eq!(table.job(u32::MAX), None);
        assert!(!table.swap(4, Word::FREE, Word::waiting(1)));
    }

    #[test]
    fn a_page_of_another_kind_or_a_lying_header_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        Page::create(&path, Kind::Jobs, 100, &[2]).unwrap();
        let error = JobTable::attach(&path, Access::ReadOnly).unwrap_err().to_string();
        assert!(error.contains("100 words"), "{error}");
        std::fs::remove_file(&path).unwrap();
        Page::create(&path, Kind::Secondary, 24, &[1]).unwrap();
        assert!(JobTable::attach(&path, Access::ReadOnly).unwrap_err().to_string().contains("kind 3"));
    }
}
