//! What is remembered of processes that died or were killed: a small ring in a page.
//!
//! | words | meaning |
//! |---|---|
//! | 0 | how many were written so far |
//! | 1.. | [`KEPT`] records of twelve words each, the oldest overwritten first |
//!
//! A record: sequence number (0: none, or being written), when (monotonic ns), name (as in
//! [`super::watchdog`]), pid, how it ended (kind in the high half: 1 exit code, 2 signal; 0: not
//! yet), reason it was killed for (low byte, 0: not by us) and state letter (next byte), its last
//! answer (monotonic ns, 0: none), jobs that it had, then the kernel function in which it waited
//! (up to 32 bytes).

use std::fmt;

use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::supervision::Reason;
use crate::os::pidfd::Exit;
use crate::page::Page;
use crate::page::watchdog::{pack, unpack};

/// Records that a ring holds.
pub const KEPT: usize = 32;
/// Words of a ring.
pub const WORDS: usize = 1 + KEPT * RECORD_WORDS;
const RECORD_WORDS: usize = 12;
const WCHAN_WORDS: usize = 4;

/// What is known of a death; of a kill, before the death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obituary {
    /// Who.
    pub name: Name,
    /// Its pid.
    pub pid: u32,
    /// When.
    pub at: Moment,
    /// How it ended; `None` while it was only sent SIGKILL.
    pub exit: Option<Exit>,
    /// What it was killed for, where it was killed by the watchdog or its principal.
    pub killed: Option<Condition>,
    /// Its last answer to a probe.
    pub answered_at: Option<Moment>,
    /// It left by itself, because it had served for long enough: no trouble, so no ring keeps it.
    pub recycled: bool,
    /// Jobs that it had: claimed by a secondary, open in the books of a principal.
    pub jobs: u64,
}

/// Why and in which condition a process was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Why.
    pub reason: Reason,
    /// The state letter of `/proc/<pid>/stat`, where it could be read.
    pub letter: Option<char>,
    /// The kernel function in which it waited (`/proc/<pid>/wchan`), where the kernel tells.
    pub wchan: String,
}

impl fmt::Display for Obituary {
    /// One line of `key=value` pairs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Name { role, slot, incarnation } = self.name;
        write!(f, "obituary role={} slot={slot} incarnation={incarnation} pid={}", role.as_str(), self.pid)?;
        if self.recycled {
            write!(f, " cause=\"recycled\"")?;
        } else if let Some(exit) = self.exit {
            write!(f, " cause=\"{exit}\"")?;
        }
        if let Some(Condition { reason, letter, wchan }) = &self.killed {
            write!(f, " killed=\"{}\"", reason.as_str())?;
            if let Some(letter) = letter {
                write!(f, " state={letter}")?;
            }
            if !wchan.is_empty() {
                write!(f, " wchan={wchan}")?;
            }
        }
        match self.answered_ms() {
            Some(millis) => write!(f, " answered_ms_before={millis}")?,
            None => write!(f, " answered_ms_before=never")?,
        }
        write!(f, " jobs={}", self.jobs)
    }
}

impl Obituary {
    /// Writes it to the log: one line, for programs with its fields by the names that `status` has for them.
    pub fn tell(&self, level: log::Level) {
        let killed = self.killed.as_ref();
        let cause =
            if self.recycled { Some("recycled".to_owned()) } else { self.exit.map(|exit| exit.to_string()) };
        log::log!(
            target: crate::os::log::OBITUARY,
            level,
            role = self.name.role.as_str(),
            slot = self.name.slot,
            incarnation = self.name.incarnation,
            pid = self.pid,
            cause = cause.as_deref(),
            killed = killed.map(|killed| killed.reason.as_str()),
            state = killed.and_then(|killed| killed.letter),
            wchan = killed.map(|killed| killed.wchan.as_str()).filter(|wchan| !wchan.is_empty()),
            answered_ms_before = self.answered_ms(),
            jobs = self.jobs;
            "{self}"
        );
    }

    /// How long before its death it answered last, in ms.
    #[must_use]
    pub fn answered_ms(&self) -> Option<u64> {
        let since = self.at.since(self.answered_at?);
        Some(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A ring that begins at a word of a page. One process writes it.
#[derive(Clone, Copy, Debug)]
pub struct Ring<'a> {
    page: &'a Page,
    at: usize,
}

impl<'a> Ring<'a> {
    /// The ring at that word.
    #[must_use]
    pub(super) fn new(page: &'a Page, at: usize) -> Self {
        Self { page, at }
    }

    /// Writes a record over the oldest.
    pub fn push(&self, obituary: &Obituary) {
        let sequence = self.page.get(self.at).wrapping_add(1);
        let at = self.record_at(usize::try_from(sequence).unwrap_or(0) % KEPT);
        let set = |index, value| self.page.set(at + index, value);
        let killed = obituary.killed.as_ref();
        set(0, 0);
        set(1, obituary.at.as_nanos());
        set(2, pack(obituary.name));
        set(3, u64::from(obituary.pid));
        set(4, obituary.exit.map_or(0, pack_exit));
        set(5, killed.map_or(0, |killed| pack_reason(killed.reason) | letter_bits(killed.letter)));
        set(6, obituary.answered_at.map_or(0, Moment::as_nanos));
        set(7, obituary.jobs);
        let wchan = killed.map_or(&[][..], |killed| killed.wchan.as_bytes());
        for word in 0..WCHAN_WORDS {
            let mut bytes = [0; 8];
            for (byte, &of_wchan) in bytes.iter_mut().zip(wchan.iter().skip(8 * word)) {
                *byte = of_wchan;
            }
            set(8 + word, u64::from_le_bytes(bytes));
        }
        set(0, sequence);
        self.page.set(self.at, sequence);
    }

    /// The records, in no order; what is being written just now is left out.
    pub fn records(self) -> impl Iterator<Item = Obituary> + 'a {
        (0..KEPT).filter_map(move |record| {
            let at = self.record_at(record);
            let sequence = self.page.get(at);
            let obituary = self.load(at)?;
            (sequence != 0 && self.page.get(at) == sequence).then_some(obituary)
        })
    }

    /// The last record of a process.
    #[must_use]
    pub fn find(self, name: Name) -> Option<Obituary> {
        self.records().filter(|obituary| obituary.name == name).max_by_key(|obituary| obituary.at)
    }

    fn load(self, at: usize) -> Option<Obituary> {
        let word = |index| self.page.get(at + index);
        let wchan: Vec<u8> = (0..WCHAN_WORDS).flat_map(|index| word(8 + index).to_le_bytes()).collect();
        // What stands there may be anything: it goes to a terminal.
        let wchan = wchan.into_iter().filter(u8::is_ascii_graphic).map(char::from).collect();
        let [reason, letter, ..] = word(5).to_le_bytes();
        let letter = Some(char::from(letter)).filter(char::is_ascii_alphabetic);
        Some(Obituary {
            at: Moment::from_nanos(word(1)),
            name: unpack(word(2))?,
            pid: u32::try_from(word(3)).ok()?,
            exit: unpack_exit(word(4)),
            killed: unpack_reason(reason).map(|reason| Condition { reason, letter, wchan }),
            answered_at: self.page.moment(at + 6),
            recycled: false,
            jobs: word(7),
        })
    }

    fn record_at(self, record: usize) -> usize {
        self.at + 1 + record * RECORD_WORDS
    }
}

fn letter_bits(letter: Option<char>) -> u64 {
    letter.and_then(|letter| u8::try_from(letter).ok()).map_or(0, |letter| u64::from(letter) << 8)
}

fn pack_exit(exit: Exit) -> u64 {
    let value = |value: i32| u64::from(u32::try_from(value).unwrap_or(0));
    match exit {
        Exit::Code(code) => 1 << 32 | value(code),
        Exit::Signal(signal) => 2 << 32 | value(signal),
        Exit::Unknown => 3 << 32,
    }
}

fn unpack_exit(word: u64) -> Option<Exit> {
    let value = i32::try_from(word & 0xffff_ffff).ok()?;
    match word >> 32 {
        1 => Some(Exit::Code(value)),
        2 => Some(Exit::Signal(value)),
        3 => Some(Exit::Unknown),
        _ => None,
    }
}

/// All reasons; a reason's number is its place here, from 1.
const REASONS: [Reason; 10] = [
    Reason::SlowStart,
    Reason::NoAnswer,
    Reason::Stopped,
    Reason::Spinning,
    Reason::GraceOver,
    Reason::Orphaned,
    Reason::Crowded,
    Reason::Stopping,
    Reason::TimeLimit,
    Reason::Dismissed,
];

fn pack_reason(reason: Reason) -> u64 {
    REASONS.iter().position(|&known| known == reason).map_or(0, |place| place as u64 + 1)
}

fn unpack_reason(number: u8) -> Option<Reason> {
    REASONS.get(usize::from(number).checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Kind;

    fn obituary(incarnation: u16) -> Obituary {
        Obituary {
            name: Name::secondary(3, incarnation),
            pid: 4711,
            at: Moment::from_nanos(5_000_000_000 + u64::from(incarnation)),
            exit: Some(Exit::Signal(9)),
            killed: Some(Condition {
                reason: Reason::Stopped,
                letter: Some('T'),
                wchan: "do_signal_stop".to_owned(),
            }),
            answered_at: Some(Moment::from_nanos(3_000_000_000)),
            recycled: false,
            jobs: 2,
        }
    }

    fn page(dir: &tempfile::TempDir) -> Page {
        Page::create(&dir.path().join("page"), Kind::Watchdog, 8 + WORDS, &[]).unwrap()
    }

    #[test]
    fn the_last_deaths_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let page = page(&dir);
        let ring = Ring::new(&page, 8);
        assert_eq!(ring.records().count(), 0);
        (1..=100).for_each(|incarnation| ring.push(&obituary(incarnation)));
        assert_eq!(ring.records().count(), KEPT);
        assert_eq!(ring.find(Name::secondary(3, 100)), Some(obituary(100)));
        assert_eq!(ring.find(Name::secondary(3, 68)), None);
        let unknown = Obituary { exit: None, killed: None, answered_at: None, ..obituary(7) };
        ring.push(&unknown);
        assert_eq!(ring.find(Name::secondary(3, 7)), Some(unknown));
    }

    #[test]
    fn an_obituary_is_one_line_of_pairs() {
        assert_eq!(
            obituary(1).to_string(),
            "obituary role=secondary slot=3 incarnation=1 pid=4711 cause=\"signal 9\" \
             killed=\"stopped, no answer within kill_after\" state=T wchan=do_signal_stop \
             answered_ms_before=2000 jobs=2"
        );
    }

    #[test]
    fn garbage_in_a_ring_misleads_but_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let page = page(&dir);
        let mut bits = 1u64;
        for word in 8..8 + WORDS {
            bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            page.set(word, bits);
        }
        let ring = Ring::new(&page, 8);
        for obituary in ring.records() {
            assert!(obituary.to_string().chars().all(|character| !character.is_control()));
        }
        ring.push(&obituary(9));
        assert_eq!(ring.find(Name::secondary(3, 9)), Some(obituary(9)));
    }
}
