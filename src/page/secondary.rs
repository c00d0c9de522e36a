//! `secondary<n>.page`: the liveness record of a secondary, and what it counts.
//!
//! | words | meaning |
//! |---|---|
//! | 3 | slot |
//! | 8..16 | liveness record ([`super::record`]) |
//! | 16 | data connections nobody was waiting for |
//! | 17 | data connections admitted |
//! | 18 | lines in the tube that were no commands |
//! | 19 | jobs that this incarnation has claimed and not ended |
//! | 20 | how often the server of this slot has left because it had served for long enough |
//! | 21..24 | the call of a handler that is under way, where the job's time is limited: the job's number (zero: none), its entry in the table, since when (monotonic ns) |

use std::io;
use std::path::{Path, PathBuf};

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::slots::Handling;
use crate::os::segment::Segment;
use crate::page::record::{AFTER_RECORD, Record};
use crate::page::{Access, Kind, Page, PageError, Source, record};
use crate::wire::tube::JobRef;

const SLOT: usize = 3;
const REJECTED: usize = AFTER_RECORD;
const ADMITTED: usize = AFTER_RECORD + 1;
const MALFORMED: usize = AFTER_RECORD + 2;
const OPEN: usize = AFTER_RECORD + 3;
const RECYCLED: usize = AFTER_RECORD + 4;
const HANDLED: usize = AFTER_RECORD + 5;
const HANDLED_ENTRY: usize = AFTER_RECORD + 6;
const HANDLED_SINCE: usize = AFTER_RECORD + 7;
const WORDS: usize = AFTER_RECORD + 8;

/// The page of one secondary.
#[derive(Debug)]
pub struct SecondaryPage {
    page: Page,
}

impl SecondaryPage {
    /// Creates the page of a new incarnation; it goes on counting where `before` stopped.
    ///
    /// # Errors
    /// [`PageError::Io`].
    pub fn create(path: &Path, slot: u16, before: Counts) -> Result<Self, PageError> {
        Ok(Self::going_on(Page::create(path, Kind::Secondary, WORDS, &[u64::from(slot)])?, before))
    }

    /// Makes a file that [`SecondaryPage::create_of`] can make such a page of.
    ///
    /// # Errors
    /// What [`Segment::create`] says.
    pub fn prepare(path: &Path) -> io::Result<()> {
        Segment::create(path, WORDS).map(|_| ())
    }

    /// As [`SecondaryPage::create`], of a file that was prepared.
    ///
    /// # Errors
    /// [`PageError`], also where it is not as it was prepared.
    pub fn create_of(path: &Path, slot: u16, before: Counts) -> Result<Self, PageError> {
        Ok(Self::going_on(Page::make_of(path, Kind::Secondary, WORDS, &[u64::from(slot)])?, before))
    }

    fn going_on(page: Page, before: Counts) -> Self {
        page.set(REJECTED, before.rejected);
        page.set(ADMITTED, before.admitted);
        page.set(MALFORMED, before.malformed);
        page.set(RECYCLED, before.recycled);
        Self { page }
    }

    /// Maps an existing page.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn attach<'a>(source: impl Into<Source<'a>>, access: Access) -> Result<Self, PageError> {
        let (page, ()) = Page::attach(source.into(), Kind::Secondary, access, |_| Some(((), WORDS)))?;
        Ok(Self { page })
    }

    /// The page itself, for its record.
    #[must_use]
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// The process that introduced itself here, if one did.
    #[must_use]
    pub fn introduced(&self) -> Option<Introduced> {
        let slot = u16::try_from(self.page.get(SLOT)).ok()?;
        let Record { incarnation, pid, start_time, .. } = self.record();
        let is_somebody = slot != 0 && incarnation != 0;
        is_somebody.then(|| Introduced { name: Name::secondary(slot, incarnation), pid, start_time })
    }

    /// The liveness record.
    #[must_use]
    pub fn record(&self) -> Record {
        record::load(&self.page)
    }

    /// What tells whether the record has changed ([`record::glance`]).
    #[must_use]
    pub fn glance(&self) -> [u64; 3] {
        record::glance(&self.page)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            rejected: self.page.get(REJECTED),
            admitted: self.page.get(ADMITTED),
            malformed: self.page.get(MALFORMED),
            recycled: self.page.get(RECYCLED),
        }
    }

    /// Jobs that the secondary has claimed and not ended: what dies with it.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.page.get(OPEN)
    }

    /// Tells how many jobs are claimed and not ended.
    pub fn set_open(&self, jobs: u32) {
        self.page.set(OPEN, u64::from(jobs));
    }

    /// A handler is called for a job whose time is limited.
    pub fn enter_handler(&self, job: JobRef, now: Moment) {
        self.page.set(HANDLED_SINCE, now.as_nanos());
        self.page.set(HANDLED_ENTRY, u64::from(job.index));
        self.page.set(HANDLED, job.number);
    }

    /// The handler has come back.
    pub fn leave_handler(&self) {
        self.page.set(HANDLED, 0);
    }

    /// The call of a handler that is under way, where the job's time is limited.
    #[must_use]
    pub fn handling(&self) -> Option<Handling> {
        let since = self.page.get(HANDLED_SINCE);
        let (number, entry) = (self.page.get(HANDLED), self.page.get(HANDLED_ENTRY));
        // Calls of one moment differ by their jobs, which the table tells apart.
        let is_one_call = number != 0 && self.page.get(HANDLED_SINCE) == since;
        let index = u32::try_from(entry).ok().filter(|_| is_one_call)?;
        Some(Handling { job: JobRef { index, number }, since: Moment::from_nanos(since) })
    }

    /// Counts a data connection that nobody was waiting for.
    pub fn count_rejected(&self) {
        self.page.add(REJECTED, 1);
    }

    /// Counts a data connection that was admitted.
    pub fn count_admitted(&self) {
        self.page.add(ADMITTED, 1);
    }

    /// Counts that this server leaves because it has served for long enough.
    pub fn count_recycled(&self) {
        self.page.add(RECYCLED, 1);
    }

    /// Counts lines that were no commands.
    pub fn count_malformed(&self, lines: u64) {
        self.page.add(MALFORMED, lines);
    }
}

/// A process as it introduced itself in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduced {
    /// Its name.
    pub name: Name,
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks after boot.
    pub start_time: u64,
}

impl Introduced {
    /// Incarnation, pid and start time.
    #[must_use]
    pub fn as_watched(&self) -> (Incarnation, u32, u64) {
        (self.name.incarnation, self.pid, self.start_time)
    }
}

/// Who has introduced itself in these pages, be it dead or alive. What is no page of a secondary
/// is passed over.
///
/// # Errors
/// [`PageError::Io`], but for pages that have gone.
pub fn introduced(pages: impl IntoIterator<Item = PathBuf>) -> Result<Vec<Introduced>, PageError> {
    let mut all = Vec::new();
    for path in pages {
        match SecondaryPage::attach(&path, Access::ReadOnly) {
            Ok(page) => all.extend(page.introduced()),
            Err(PageError::Mismatch { .. }) => {}
            Err(PageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The counters of a slot, which outlive its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Data connections nobody was waiting for.
    pub rejected: u64,
    /// Data connections admitted.
    pub admitted: u64,
    /// Lines in the tube that were no commands.
    pub malformed: u64,
    /// Servers that left because they had served for long enough.
    pub recycled: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_was_never_finished_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("odd"), "abc").unwrap();
        std::fs::write(path("zeros"), [0; 4096]).unwrap();
        let page = SecondaryPage::create(&path("page"), 7, Counts::default()).unwrap();
        record::introduce(page.page(), 3, 4711, 5);
        let pages = ["empty", "odd", "zeros", "gone", "page"].map(path);
        let found: Vec<Name> = introduced(pages).unwrap().into_iter().map(|known| known.name).collect();
        assert_eq!(found, [Name::secondary(7, 3)]);
    }

    #[test]
    fn a_call_of_a_handler_is_seen_while_it_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("page");
        let secondary = SecondaryPage::create(&path, 1, Counts::default()).unwrap();
        let principal = SecondaryPage::attach(&path, Access::ReadOnly).unwrap();
        assert_eq!(principal.handling(), None);
        let call = Handling { job: JobRef { index: 3, number: 9 }, since: Moment::from_nanos(5) };
        secondary.enter_handler(call.job, call.since);
        assert_eq!(principal.handling(), Some(call));
        secondary.leave_handler();
        assert_eq!(principal.handling(), None);
    }
}
