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
//! | 20..24 | spare |

use std::path::Path;

use crate::page::record::{AFTER_RECORD, Record};
use crate::page::{Access, Kind, Page, PageError, Source, record};

const REJECTED: usize = AFTER_RECORD;
const ADMITTED: usize = AFTER_RECORD + 1;
const MALFORMED: usize = AFTER_RECORD + 2;
const OPEN: usize = AFTER_RECORD + 3;
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
        let page = Page::create(path, Kind::Secondary, WORDS, &[u64::from(slot)])?;
        page.set(REJECTED, before.rejected);
        page.set(ADMITTED, before.admitted);
        page.set(MALFORMED, before.malformed);
        Ok(Self { page })
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

    /// The liveness record.
    #[must_use]
    pub fn record(&self) -> Record {
        record::load(&self.page)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            rejected: self.page.get(REJECTED),
            admitted: self.page.get(ADMITTED),
            malformed: self.page.get(MALFORMED),
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

    /// Counts a data connection that nobody was waiting for.
    pub fn count_rejected(&self) {
        self.page.add(REJECTED, 1);
    }

    /// Counts a data connection that was admitted.
    pub fn count_admitted(&self) {
        self.page.add(ADMITTED, 1);
    }

    /// Counts lines that were no commands.
    pub fn count_malformed(&self, lines: u64) {
        self.page.add(MALFORMED, lines);
    }
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
}
