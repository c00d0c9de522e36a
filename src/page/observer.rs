//! `observer.page`: the liveness record of the observer, and what it counts. New for every incarnation.
//!
//! | words | meaning |
//! |---|---|
//! | 8..16 | liveness record ([`super::record`]) |
//! | 16 | connections that are open |
//! | 17 | connections accepted |
//! | 18 | requests answered |
//! | 19 | those of them that were answered with an error of the client (status 400 to 499, or 505) |

use std::path::Path;

use serde::Serialize;

use crate::page::record::{AFTER_RECORD, Record};
use crate::page::{Access, Kind, Page, PageError, Source, record};

const WORDS: usize = AFTER_RECORD + 8;

/// The page of an observer.
#[derive(Debug)]
pub struct ObserverPage {
    page: Page,
}

/// What an observer has done so far, in the order of its words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Visits {
    /// Connections that are open now.
    pub connected: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests that were none, or for what is not there.
    pub errors: u64,
}

impl Visits {
    /// A request was answered with this status.
    pub fn note_answer(&mut self, status: u16) {
        self.requests += 1;
        self.errors += u64::from((400..500).contains(&status));
    }

    /// Whether a request was answered that cannot be understood or served, whatever the status that says so.
    pub fn note_refused(&mut self, was_refused: bool) {
        self.requests += u64::from(was_refused);
        self.errors += u64::from(was_refused);
    }
}

impl ObserverPage {
    /// Creates the page of a new incarnation.
    ///
    /// # Errors
    /// [`PageError::Io`].
    pub fn create(path: &Path) -> Result<Self, PageError> {
        Ok(Self { page: Page::create(path, Kind::Observer, WORDS, &[])? })
    }

    /// Maps an existing page.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn attach<'a>(source: impl Into<Source<'a>>, access: Access) -> Result<Self, PageError> {
        let (page, ()) = Page::attach(source.into(), Kind::Observer, access, |_| Some(((), WORDS)))?;
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

    /// What tells whether the record has changed ([`record::glance`]).
    #[must_use]
    pub fn glance(&self) -> [u64; 3] {
        record::glance(&self.page)
    }

    /// What it has done so far.
    #[must_use]
    pub fn visits(&self) -> Visits {
        let [connected, accepted, requests, errors] =
            std::array::from_fn(|index| self.page.get(AFTER_RECORD + index));
        Visits { connected, accepted, requests, errors }
    }

    /// Tells what it has done so far.
    pub fn set_visits(&self, visits: Visits) {
        let Visits { connected, accepted, requests, errors } = visits;
        for (at, word) in (AFTER_RECORD..).zip([connected, accepted, requests, errors]) {
            self.page.set(at, word);
        }
    }
}
