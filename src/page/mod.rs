//! What the words of the shared segments mean.
//!
//! | file | writer | holds |
//! |---|---|---|
//! | `watchdog.page` | watchdog | probe numbers, verdicts, names and ports ([`watchdog`]) |
//! | `principal.page` | principal | its liveness record, the ledger, the slots ([`principal`]) |
//! | `secondary<n>.page` | secondary n | its liveness record and counters ([`secondary`]) |
//! | `secondary<n>.jobs` | both | the job table ([`jobs`]) |
//! | `observer.page` | observer | its liveness record and counters ([`observer`]) |
//!
//! Each field has a single writer, the job's state word apart (see
//! [`crate::core::job`]). All pages begin with the same eight words:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | magic: the bytes `OSPSpage` |
//! | 1 | kind (high half) and layout version (low half) |
//! | 2 | length of the segment in words |
//! | 3.. | dimensions, told by each kind |

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::core::moment::Moment;
use crate::os::segment::Segment;

pub mod books;
#[cfg(debug_assertions)]
pub mod fuse;
pub mod jobs;
pub mod obituary;
pub mod observer;
pub mod principal;
pub mod record;
pub mod secondary;
pub mod watchdog;

/// Changes with every change of what a word means. A binary refuses pages of another version.
pub const LAYOUT_VERSION: u32 = 7;

const MAGIC: u64 = u64::from_le_bytes(*b"OSPSpage");
/// Words that every page begins with.
pub const HEADER_WORDS: usize = 8;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `watchdog.page`
    Watchdog = 1,
    /// `principal.page`
    Principal = 2,
    /// `secondary<n>.page`
    Secondary = 3,
    /// `secondary<n>.jobs`
    Jobs = 4,
    /// `observer.page`
    Observer = 5,
}

/// Why a page cannot be used.
#[derive(Debug, Error)]
pub enum PageError {
    /// It could not be created, opened or mapped.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// `create`, `map`.
        what: &'static str,
        /// The page.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a page of this program.
    #[error("{path} is not what it should be: {what}")]
    Mismatch {
        /// The page.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

/// How a page is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To load and store.
    ReadWrite,
    /// To load only.
    ReadOnly,
}

/// Where a page is found.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Under this name.
    Path(&'a Path),
    /// Open already: inherited, so that it can be had although its name was removed.
    File(&'a File),
}

impl<'a> From<&'a Path> for Source<'a> {
    fn from(path: &'a Path) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a PathBuf> for Source<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::Path(path)
    }
}

impl<'a> From<&'a File> for Source<'a> {
    fn from(file: &'a File) -> Self {
        Self::File(file)
    }
}

impl Source<'_> {
    fn map(self, access: Access) -> io::Result<Segment> {
        match (self, access) {
            (Self::Path(path), Access::ReadWrite) => {
                Segment::map(&OpenOptions::new().read(true).write(true).open(path)?)
            }
            (Self::Path(path), Access::ReadOnly) => Segment::map_read_only(&File::open(path)?),
            (Self::File(file), Access::ReadWrite) => Segment::map(file),
            (Self::File(file), Access::ReadOnly) => Segment::map_read_only(file),
        }
    }

    /// Its name, for words.
    fn path(self) -> PathBuf {
        match self {
            Self::Path(path) => path.to_owned(),
            Self::File(file) => {
                let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                std::fs::read_link(&link).unwrap_or(link)
            }
        }
    }
}

/// A mapped page whose header was checked.
#[derive(Debug)]
pub struct Page {
    words: Segment,
}

impl Page {
    /// Creates a page: `dimensions` go to word 3 and following.
    ///
    /// # Errors
    /// [`PageError::Io`].
    pub fn create(path: &Path, kind: Kind, words: usize, dimensions: &[u64]) -> Result<Self, PageError> {
        let segment = Segment::create(path, words).map_err(|source| PageError::Io {
            what: "create",
            path: path.to_owned(),
            source,
        })?;
        let page = Self { words: segment };
        page.write_header(kind, dimensions);
        Ok(page)
    }

    /// Makes a page of a file of zeros that nobody has mapped ([`Segment::create`]).
    ///
    /// # Errors
    /// As [`Page::attach`].
    fn make_of(path: &Path, kind: Kind, words: usize, dimensions: &[u64]) -> Result<Self, PageError> {
        let segment = Source::Path(path).map(Access::ReadWrite).map_err(|source| PageError::Io {
            what: "map",
            path: path.to_owned(),
            source,
        })?;
        let page = Self { words: segment };
        if page.words.len() != words || (0..words).any(|word| page.get(word) != 0) {
            return Err(PageError::Mismatch { path: path.to_owned(), what: "it is not empty".to_owned() });
        }
        page.write_header(kind, dimensions);
        Ok(page)
    }

    /// Writes the header; again, where somebody else may have written over it.
    fn write_header(&self, kind: Kind, dimensions: &[u64]) {
        for (index, &dimension) in dimensions.iter().enumerate() {
            self.set(3 + index, dimension);
        }
        self.set(2, self.words.len() as u64);
        self.set(1, kind_and_version(kind));
        // The magic comes last: who finds it finds a whole header.
        self.set(0, MAGIC);
    }

    /// Maps an existing page and checks its header. `explain` reads the dimensions, once, for
    /// they may be written over at any time, and says how many words they ask for.
    ///
    /// # Errors
    /// [`PageError::Io`], [`PageError::Mismatch`].
    pub fn attach<D>(
        source: Source<'_>,
        kind: Kind,
        access: Access,
        explain: impl FnOnce(&Self) -> Option<(D, usize)>,
    ) -> Result<(Self, D), PageError> {
        let words = source.map(access).map_err(|error| match error.kind() {
            // Whoever made it was killed before it had given it its length.
            io::ErrorKind::InvalidData => {
                PageError::Mismatch { path: source.path(), what: error.to_string() }
            }
            _ => PageError::Io { what: "map", path: source.path(), source: error },
        })?;
        let page = Self { words };
        match page.check(kind, explain) {
            Ok(dimensions) => Ok((page, dimensions)),
            Err(what) => Err(PageError::Mismatch { path: source.path(), what }),
        }
    }

    fn check<D>(&self, kind: Kind, explain: impl FnOnce(&Self) -> Option<(D, usize)>) -> Result<D, String> {
        if self.words.len() < HEADER_WORDS || self.get(0) != MAGIC {
            return Err("no page of osps".to_owned());
        }
        let found = self.get(1);
        if found != kind_and_version(kind) {
            return Err(format!(
                "kind {}, layout {}; this program wants kind {}, layout {LAYOUT_VERSION}",
                found >> 32,
                found & 0xffff_ffff,
                kind as u32
            ));
        }
        let words = self.words.len();
        match explain(self) {
            Some((dimensions, explained)) if explained == words && self.get(2) == words as u64 => {
                Ok(dimensions)
            }
            Some(_) | None => Err(format!("{words} words long, which its header does not explain")),
        }
    }

    /// How many words it has.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a page has a header")]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Loads a word that another process may have stored.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        // A relaxed load and a fence are an acquire, and are sound on a read-only mapping.
        let value = self.words[index].load(Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::Acquire);
        value
    }

    /// Stores a word after all that was stored before.
    pub fn set(&self, index: usize, value: u64) {
        #[cfg(debug_assertions)]
        fuse::burn();
        self.words[index].store(value, Ordering::Release);
    }

    /// Adds to a word that only this process stores into.
    pub fn add(&self, index: usize, amount: u64) {
        self.set(index, self.get(index).wrapping_add(amount));
    }

    /// The word itself, for a compare-and-swap.
    #[must_use]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        &self.words[index]
    }

    /// A dimension from the header (word 3 and following), if it is at most `most`.
    #[must_use]
    pub fn dimension(&self, index: usize, most: usize) -> Option<usize> {
        usize::try_from(self.get(3 + index)).ok().filter(|&dimension| dimension <= most)
    }

    /// A word that holds a moment; zero means never.
    #[must_use]
    pub fn moment(&self, index: usize) -> Option<Moment> {
        match self.get(index) {
            0 => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }
}

fn kind_and_version(kind: Kind) -> u64 {
    u64::from(kind as u32) << 32 | u64::from(LAYOUT_VERSION)
}
