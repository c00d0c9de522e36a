//! The liveness record: how a server tells the watchdog who it is and that it lives.
//!
//! Eight words at index 8 of `principal.page` and `secondary<n>.page`, written by
//! the server alone:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | incarnation |
//! | 1 | pid |
//! | 2 | start time, field 22 of `/proc/<pid>/stat` |
//! | 3 | state: 0 none, 1 starting, 2 ready, 3 draining, 4 recycling |
//! | 4 | when it became ready (monotonic ns) |
//! | 5 | the probe number it answered last |
//! | 6 | when (monotonic ns) |
//! | 7 | spare |

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::page::{HEADER_WORDS, Page};

/// Words of a record.
pub const RECORD_WORDS: usize = 8;
/// Where a record begins in its page.
pub const RECORD_AT: usize = HEADER_WORDS;
/// Where a page goes on after its record.
pub const AFTER_RECORD: usize = RECORD_AT + RECORD_WORDS;

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing yet.
    None,
    /// It is alive and sets itself up.
    Starting,
    /// Its loop runs.
    Ready,
    /// It takes nothing new and will end.
    Draining,
    /// So it does, but because it has served for long enough: it may take as long as it needs.
    Recycling,
}

/// A server's record, loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which process in its slot.
    pub incarnation: Incarnation,
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks after boot.
    pub start_time: u64,
    /// What it says of itself.
    pub condition: Condition,
    /// When it became ready.
    pub ready_at: Option<Moment>,
    /// The last probe number it copied back.
    pub answered: u64,
    /// When it did.
    pub answered_at: Option<Moment>,
}

/// Loads the record of a page.
#[must_use]
pub fn load(page: &Page) -> Record {
    let word = |index| page.get(RECORD_AT + index);
    Record {
        // Loaded first, stored last: who finds a new incarnation finds all of its record.
        incarnation: u16::try_from(word(0)).unwrap_or(0),
        pid: u32::try_from(word(1)).unwrap_or(0),
        start_time: word(2),
        condition: match word(3) {
            1 => Condition::Starting,
            2 => Condition::Ready,
            3 => Condition::Draining,
            4 => Condition::Recycling,
            _ => Condition::None,
        },
        ready_at: page.moment(RECORD_AT + 4),
        answered: word(5),
        answered_at: page.moment(RECORD_AT + 6),
    }
}

/// What tells whether a record has changed: incarnation, condition, and the number that was answered last.
#[must_use]
pub fn glance(page: &Page) -> [u64; 3] {
    // The incarnation first, as in `load`: the others are not older.
    [0, 3, 5].map(|word| page.get(RECORD_AT + word))
}

/// Introduces a new process in its page.
pub fn introduce(page: &Page, incarnation: Incarnation, pid: u32, start_time: u64) {
    let set = |index, value| page.set(RECORD_AT + index, value);
    set(0, 0);
    set(1, u64::from(pid));
    set(2, start_time);
    set(3, 1);
    set(4, 0);
    set(5, 0);
    set(6, 0);
    set(0, u64::from(incarnation));
}

/// Declares the server ready.
pub fn declare_ready(page: &Page, now: Moment) {
    page.set(RECORD_AT + 4, now.as_nanos());
    page.set(RECORD_AT + 3, 2);
}

/// Declares that the server takes nothing new.
pub fn declare_draining(page: &Page) {
    page.set(RECORD_AT + 3, 3);
}

/// Declares that the server takes nothing new, and may take as long as it needs.
pub fn declare_recycling(page: &Page) {
    page.set(RECORD_AT + 3, 4);
}

/// Copies a probe number back.
pub fn answer(page: &Page, number: u64, now: Moment) {
    page.set(RECORD_AT + 6, now.as_nanos());
    page.set(RECORD_AT + 5, number);
}
