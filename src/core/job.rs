//! The state word of a job: the one field in shared memory with several writers.
//!
//! ```text
//!  63            20 19           4   3       2..0
//! +----------------+--------------+---------+-------+
//! | number (44)    | holder (16)  | tracked | state |
//! +----------------+--------------+---------+-------+
//! ```
//!
//! All of it changes in one compare-and-swap. Because the word carries the job's
//! number and the incarnation that holds it, a swap by a process that was frozen
//! while the slot went to another job cannot succeed.

use std::fmt;
use std::net::IpAddr;

use crate::core::moment::Moment;
use crate::wire::client::TypeIndex;
use crate::wire::jeton::Jeton;

/// How often a server was started in its seat: unique among the living.
///
/// It wraps after 65,535 restarts and skips zero, which means "nobody".
pub type Incarnation = u16;

/// Numbers jobs across all tables, from 1; 44 bits last 5 years at 100,000 a second.
pub type JobNumber = u64;

/// The highest job number that a state word can carry.
pub const MAX_NUMBER: JobNumber = (1 << 44) - 1;

/// What is known of a job when it is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The request type.
    pub kind: TypeIndex,
    /// Who asked for it.
    pub client: IpAddr,
    /// When.
    pub given_at: Moment,
    /// By what its client follows it, where it does.
    pub jeton: Option<Jeton>,
}

/// Names a control connection of one principal: its place, and how many were there before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientId {
    /// Which place among the connections.
    pub place: u32,
    /// Which connection, from 1: a place is used again.
    pub serial: u32,
}

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Served to its end.
    Done,
    /// Claimed, but its end was not a good one.
    Failed(Reason),
    /// Nobody came for it in time.
    Expired,
}

impl End {
    /// The state of a job that has ended so.
    #[must_use]
    pub fn state(self) -> State {
        match self {
            Self::Done => State::Done,
            Self::Failed(_) => State::Failed,
            Self::Expired => State::Expired,
        }
    }
}

/// A job that has ended, as whoever learns of its end knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub number: JobNumber,
    /// The request type; it may be none, where somebody has written over it.
    pub kind: TypeIndex,
    /// Who asked for it.
    pub client: IpAddr,
    /// When it was given.
    pub given_at: Moment,
    /// When it was claimed, if that is known.
    pub claimed_at: Option<Moment>,
    /// Who claimed it; zero where nobody has.
    pub holder: Incarnation,
    /// How it ended.
    pub end: End,
}

impl Ended {
    /// The job at an entry, while that is still its own; `None` where there is no such entry.
    #[must_use]
    pub fn at(table: &impl Table, index: u32, word: Word, end: End) -> Option<Self> {
        let Job { kind, client, given_at, .. } = table.job(index)?;
        let claimed_at = table.claimed_at(index).filter(|_| word.holder != 0);
        Some(Self { number: word.number, kind, client, given_at, claimed_at, holder: word.holder, end })
    }
}

/// Why a job has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The process that served it has died.
    SecondaryLost,
    /// It was cut off: the system stops, or its secondary had to end.
    Stopping,
    /// The data connection was reset.
    ConnectionLost,
    /// The client took nothing of what was sent to it, for too long.
    ConnectionTimedOut,
    /// It took longer than its type allows.
    TimeLimit,
    /// Its command could not be started.
    CannotStart,
    /// Its command ended with this code.
    Exit(u8),
    /// This signal ended its command.
    Signal(u8),
    /// Its command used up its CPU time.
    CpuLimit,
    /// Its command wrote a file larger than it may.
    FileSizeLimit,
    /// Its handler said so.
    HandlerError,
    /// The client's message was longer than its type allows.
    MessageTooLong,
}

impl Reason {
    /// As it stands in memory: the kind in the low byte, never zero; what belongs to it in the next.
    #[must_use]
    pub fn pack(self) -> u32 {
        match self {
            Self::SecondaryLost => 1,
            Self::Stopping => 2,
            Self::ConnectionLost => 3,
            Self::ConnectionTimedOut => 4,
            Self::TimeLimit => 5,
            Self::CannotStart => 6,
            Self::Exit(code) => u32::from(code) << 8 | 7,
            Self::Signal(signal) => u32::from(signal) << 8 | 8,
            Self::CpuLimit => 9,
            Self::FileSizeLimit => 10,
            Self::HandlerError => 11,
            Self::MessageTooLong => 12,
        }
    }

    /// Reads a reason from memory; `None` where none was written, or garbage.
    #[must_use]
    pub fn unpack(bits: u32) -> Option<Self> {
        let [kind, argument, ..] = bits.to_le_bytes();
        let reason = match kind {
            1 => Self::SecondaryLost,
            2 => Self::Stopping,
            3 => Self::ConnectionLost,
            4 => Self::ConnectionTimedOut,
            5 => Self::TimeLimit,
            6 => Self::CannotStart,
            7 => Self::Exit(argument),
            8 => Self::Signal(argument),
            9 => Self::CpuLimit,
            10 => Self::FileSizeLimit,
            11 => Self::HandlerError,
            12 => Self::MessageTooLong,
            _ => return None,
        };
        (reason.pack() == bits).then_some(reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SecondaryLost => "secondary lost",
            Self::Stopping => "stopping",
            Self::ConnectionLost => "connection lost",
            Self::ConnectionTimedOut => "connection timed out",
            Self::TimeLimit => "time limit",
            Self::CannotStart => "cannot start",
            Self::Exit(code) => return write!(f, "exit {code}"),
            Self::Signal(signal) => return write!(f, "signal {signal}"),
            Self::CpuLimit => "cpu limit",
            Self::FileSizeLimit => "file size limit",
            Self::HandlerError => "handler error",
            Self::MessageTooLong => "message too long",
        })
    }
}

/// The job table of a slot, as both its sides see it. An index out of bounds is as good as
/// garbage: it may come from a doorbell.
pub trait Table {
    /// How many jobs it can hold.
    fn capacity(&self) -> u32;

    /// The state word of an entry.
    ///
    /// # Errors
    /// [`Garbage`], where somebody wrote nonsense there or the index is out of bounds.
    fn state(&self, index: u32) -> Result<Word, Garbage>;

    /// What was written of the job at that index.
    fn job(&self, index: u32) -> Option<Job>;

    /// Changes a state word if it still is what it was. Returns whether it was.
    fn swap(&self, index: u32, from: Word, to: Word) -> bool;

    /// Overwrites a state word, whatever stands there. For the principal only.
    fn overwrite(&self, index: u32, word: Word);

    /// Notes when a job was claimed. For the secondary only.
    fn note_claim(&self, index: u32, now: Moment);

    /// When the job at that index was claimed, as its secondary has noted; `None` where it had waited
    /// for longer than can be noted.
    fn claimed_at(&self, index: u32) -> Option<Moment>;

    /// Notes how long a job was served, now that it is about to end. For the secondary that has claimed it only.
    fn note_end(&self, index: u32, now: Moment);

    /// Notes why a job is about to fail. For the secondary that has claimed it only.
    fn note_reason(&self, index: u32, reason: Reason);

    /// What was noted last of why the job at that index failed.
    fn reason(&self, index: u32) -> Option<Reason>;

    /// Notes which process group serves a job. For the secondary that has claimed it only.
    fn note_group(&self, index: u32, group: u32);

    /// The process group that serves the job at that index; zero where none does.
    fn group(&self, index: u32) -> u32;

    /// The number of the job that was published last; zero before the first.
    fn last_published(&self) -> JobNumber;

    /// How many tracked jobs were published so far.
    fn tracked_jobs(&self) -> u64;

    /// Whether a job of that type has not come to its end, or waits to be claimed where only those are `waiting`.
    fn has_job(&self, kind: TypeIndex, waiting: bool) -> bool {
        self.indices().any(|index| {
            let state = self.state(index).map_or(State::Free, |word| word.state);
            let counts = if waiting { state == State::Waiting } else { state != State::Free };
            counts && self.job(index).is_some_and(|job| job.kind == kind)
        })
    }

    /// The indices of its entries.
    fn indices(&self) -> std::ops::Range<u32> {
        0..self.capacity()
    }
}

/// Where a job stands. `Waiting` may become `Claimed` or `Expired`; `Claimed` may
/// become `Done` or `Failed`; what has ended becomes `Free` once it is in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody's: the principal may put a job here.
    Free,
    /// Given out, not yet claimed by a data connection.
    Waiting,
    /// A secondary serves it.
    Claimed,
    /// Served to its end.
    Done,
    /// Claimed, but its end was not a good one.
    Failed,
    /// Nobody came for it in time.
    Expired,
}

/// The unpacked state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where the job stands.
    pub state: State,
    /// The job's number; zero only in a word that was never used.
    pub number: JobNumber,
    /// The incarnation that claimed it, zero while nobody has.
    pub holder: Incarnation,
    /// Whether the client follows this job by a jeton.
    pub tracked: bool,
}

/// A word that no version of this program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbage(pub u64);

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} is not a job's state word", self.0)
    }
}

impl Word {
    /// The word of an entry that holds no job.
    pub const FREE: Self = Self { state: State::Free, number: 0, holder: 0, tracked: false };

    /// The word of a job just given out.
    #[must_use]
    pub fn waiting(number: JobNumber) -> Self {
        Self { state: State::Waiting, number, ..Self::FREE }
    }

    /// The word of this job just given out.
    #[must_use]
    pub fn given(number: JobNumber, job: &Job) -> Self {
        Self { tracked: job.jeton.is_some(), ..Self::waiting(number) }
    }

    /// This job, claimed by an incarnation.
    #[must_use]
    pub fn claimed_by(self, holder: Incarnation) -> Self {
        debug_assert_eq!(self.state, State::Waiting);
        Self { state: State::Claimed, holder, ..self }
    }

    /// This job, in another state.
    #[must_use]
    pub fn in_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Whether the job has ended and waits to be entered in the books.
    #[must_use]
    pub fn has_ended(self) -> bool {
        match self.state {
            State::Done | State::Failed | State::Expired => true,
            State::Free | State::Waiting | State::Claimed => false,
        }
    }

    /// The word as it stands in memory.
    #[must_use]
    pub fn pack(self) -> u64 {
        debug_assert!(self.number <= MAX_NUMBER);
        let state = match self.state {
            State::Free => 0,
            State::Waiting => 1,
            State::Claimed => 2,
            State::Done => 3,
            State::Failed => 4,
            State::Expired => 5,
        };
        (self.number & MAX_NUMBER) << 20 | u64::from(self.holder) << 4 | u64::from(self.tracked) << 3 | state
    }

    /// Reads a word from memory.
    ///
    /// # Errors
    /// [`Garbage`], where the bits name no state.
    pub fn unpack(bits: u64) -> Result<Self, Garbage> {
        let state = match bits & 0b111 {
            0 => State::Free,
            1 => State::Waiting,
            2 => State::Claimed,
            3 => State::Done,
            4 => State::Failed,
            5 => State::Expired,
            _ => return Err(Garbage(bits)),
        };
        let [low, high, ..] = (bits >> 4).to_le_bytes();
        Ok(Self {
            state,
            number: bits >> 20,
            holder: u16::from_le_bytes([low, high]),
            tracked: bits >> 3 & 1 == 1,
        })
    }
}

/// The incarnation after this one; skips zero.
#[must_use]
pub fn next_incarnation(incarnation: Incarnation) -> Incarnation {
    incarnation.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_untouched_page_is_a_table_of_free_entries() {
        assert_eq!(Word::unpack(0), Ok(Word::FREE));
    }

    #[test]
    fn a_reason_that_is_written_is_read() {
        let found: Vec<Reason> = (0..1 << 16).filter_map(Reason::unpack).collect();
        assert_eq!(found.len(), 10 + 2 * 256);
        for reason in found {
            assert_eq!(Reason::unpack(reason.pack()), Some(reason));
        }
        assert_eq!((Reason::unpack(0), Reason::unpack(u32::MAX)), (None, None));
        assert_eq!(Reason::Exit(3).to_string(), "exit 3");
    }

    #[test]
    fn incarnations_wrap_past_zero() {
        assert_eq!(next_incarnation(u16::MAX), 1);
    }

    proptest! {
        #[test]
        fn any_bits_are_a_word_or_refused(bits: u64) {
            match Word::unpack(bits) {
                Ok(word) => prop_assert_eq!(word.pack(), bits),
                Err(Garbage(same)) => prop_assert!(same == bits && bits & 7 > 5),
            }
        }
    }
}
