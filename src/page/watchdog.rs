//! `watchdog.page`: probe numbers and verdicts, and the directory of names and ports.
//!
//! | words | meaning |
//! |---|---|
//! | 3, 4, 5 | slots, for how many of them there is room, words of the directory |
//! | 8 | the watchdog's pid |
//! | 9 | its start time |
//! | 10 | when it started (monotonic ns) |
//! | 11 | how often the principal was started again |
//! | 12 | 1 once a stop was asked for |
//! | 13 | at which level all log (low byte: 0 as they were started, 1 off, 2 error ... 6 trace), and how (next byte: 0 as they were started, else [`crate::wire::logline::Logging::pack`]) |
//! | 14 | the pid of the principal that hands over, or has handed over last, to a successor |
//! | 15 | kills of observers |
//! | 16.. | kills by slot: word 0 the principal, word n secondary n |
//! | then | records of eight words, one for each supervised process |
//! | then | the last processes that were sent SIGKILL, and why ([`super::obituary`]) |
//! | then | obituaries of those whom the watchdog reaped ([`super::obituary`]) |
//! | then | the directory: its length in bytes (0 while it is written), then UTF-8 JSON ([`Directory`]) |
//!
//! A record: name (role, slot, incarnation; 0: unused), pid, start time, probe number,
//! when it was sent, verdict, round trip of the last answer in ns, spare.

mod log;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::core::job::Incarnation;
use crate::core::mark::Tree;
use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::page::obituary::{self, Ring};
use crate::page::principal::{MAX_SLOTS, Room};
use crate::page::{Access, HEADER_WORDS, Kind, Page, PageError, Source};
use crate::wire::client::MAX_NAME_BYTES;

const SELF_AT: usize = HEADER_WORDS;
const KILLS_AT: usize = 16;
const RECORD_WORDS: usize = 8;
/// Where the header says how many slots there are.
const SLOTS: usize = 3;
/// Processes of one slot, and principals, that may be watched at once, on average.
const RECORDS_PER_SLOT: usize = 8;
const MAX_DIRECTORY_WORDS: usize = 1 << 21;
/// How often a reader looks that meets the directory while it is written.
const DIRECTORY_LOOKS: usize = 1000;

/// What a reader must know that is no number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The version of the running binary.
    pub version: String,
    /// The addresses of the control listeners: `IP:PORT`, `[IPv6]:PORT`, `unix:/path`.
    pub listen: Vec<String>,
    /// Request types in the order of their index.
    pub requests: Vec<String>,
    /// Ports: first index slot minus 1, second the request type; zero where there is none any more.
    pub ports: Vec<Vec<u16>>,
    /// So many secondaries are wanted; slots beyond have been taken out of service.
    pub secondaries: u16,
    /// The addresses of the observer, in the same form as `listen`.
    pub observe: Vec<String>,
}

/// What the watchdog thinks of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ready yet.
    Starting,
    /// It answers.
    Healthy,
    /// It does not answer: no jobs for it.
    Suspect,
    /// It was ordered to finish and end.
    Draining,
    /// It ends by itself, in its own time: no order stands behind this.
    Recycling,
}

/// What the watchdog writes of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Which process.
    pub name: Name,
    /// Its pid.
    pub pid: u32,
    /// Its start time.
    pub start_time: u64,
    /// The number it should copy back.
    pub probe: u64,
    /// What is thought of it.
    pub verdict: Verdict,
    /// How long its last answer took, in ns.
    pub round_trip_ns: u64,
}

/// Names a record of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordIndex(usize);

/// The page of the watchdog.
#[derive(Debug)]
pub struct WatchdogPage {
    page: Page,
    /// For so many slots there is room.
    room: usize,
}

impl WatchdogPage {
    /// Creates the page.
    ///
    /// # Errors
    /// [`PageError::Io`].
    pub fn create(path: &Path, slots: usize, directory: &Directory) -> Result<Self, PageError> {
        let mismatch = |what: String| PageError::Mismatch { path: path.to_owned(), what };
        let room = Room::of(slots, directory.requests.len());
        let json = serde_json::to_vec(directory).map_err(|error| mismatch(error.to_string()))?;
        // A port and its comma take six bytes, a name and its quotes at most this many.
        let most_bytes = 2 * json.len() + 6 * room.slots * room.types + (MAX_NAME_BYTES + 3) * room.types;
        let directory_words = 1 + most_bytes.div_ceil(8).min(MAX_DIRECTORY_WORDS - 1);
        let words = words(room.slots, directory_words);
        let dimensions = [slots as u64, room.slots as u64, directory_words as u64];
        let page = Page::create(path, Kind::Watchdog, words, &dimensions)?;
        let page = Self { page, room: room.slots };
        if page.set_directory(directory) { Ok(page) } else { Err(mismatch("too many names".to_owned())) }
    }

    /// Whether there is room for these names and ports.
    #[must_use]
    pub fn has_room_for(&self, directory: &Directory) -> bool {
        let json = serde_json::to_vec(directory).unwrap_or_default();
        !json.is_empty() && json.len().div_ceil(8) < self.page.len() - words(self.room, 0)
    }

    /// Writes the names and ports. Returns whether there is room for them; if not, nothing has changed.
    #[must_use]
    pub fn set_directory(&self, directory: &Directory) -> bool {
        let at = words(self.room, 0);
        let json = serde_json::to_vec(directory).unwrap_or_default();
        if !self.has_room_for(directory) {
            return false;
        }
        self.page.set(at, 0);
        for (index, chunk) in json.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            self.page.set(at + 1 + index, u64::from_le_bytes(bytes));
        }
        self.page.set(at, json.len() as u64);
        true
    }

    /// Maps an existing page.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn attach<'a>(source: impl Into<Source<'a>>, access: Access) -> Result<Self, PageError> {
        let (page, room) = Page::attach(source.into(), Kind::Watchdog, access, |page| {
            let directory_words = page.dimension(2, MAX_DIRECTORY_WORDS).filter(|&words| words > 0)?;
            let room = page.dimension(1, MAX_SLOTS)?;
            page.dimension(0, room)?;
            Some((room, words(room, directory_words)))
        })?;
        Ok(Self { page, room })
    }

    /// Writes the header again, over whatever stands there: so many slots are in use.
    pub fn restore_header(&self, slots: usize) {
        let directory_words = self.page.len() - words(self.room, 0);
        let dimensions = [slots as u64, self.room as u64, directory_words as u64];
        self.page.write_header(Kind::Watchdog, &dimensions);
    }

    /// Tells that there are more slots from now on.
    pub fn grow(&self, slots: usize) {
        debug_assert!(slots <= self.room);
        self.page.set(SLOTS, slots as u64);
    }

    /// How many processes can be watched at once: each slot's, and predecessors that still drain.
    fn records(&self) -> usize {
        let slots = usize::try_from(self.page.get(SLOTS)).unwrap_or(usize::MAX);
        RECORDS_PER_SLOT * (slots.min(self.room) + 1)
    }

    /// Introduces the watchdog itself.
    pub fn introduce(&self, pid: u32, start_time: u64, now: Moment) {
        self.page.set(SELF_AT + 1, start_time);
        self.page.set(SELF_AT + 2, now.as_nanos());
        self.page.set(SELF_AT, u64::from(pid));
    }

    /// The watchdog's pid and start time.
    #[must_use]
    pub fn watchdog(&self) -> (u32, u64) {
        (u32::try_from(self.page.get(SELF_AT)).unwrap_or(0), self.page.get(SELF_AT + 1))
    }

    /// The tree, which marks the processes of its commands.
    #[must_use]
    pub fn tree(&self) -> Tree {
        let (pid, start_time) = self.watchdog();
        Tree { pid, start_time }
    }

    /// When the watchdog started.
    #[must_use]
    pub fn started_at(&self) -> Moment {
        Moment::from_nanos(self.page.get(SELF_AT + 2))
    }

    /// How often the principal was started again.
    #[must_use]
    pub fn principal_restarts(&self) -> u64 {
        self.page.get(SELF_AT + 3)
    }

    /// Counts a restart of the principal.
    pub fn count_principal_restart(&self) {
        self.page.add(SELF_AT + 3, 1);
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.page.get(SELF_AT + 4) != 0
    }

    /// Tells everybody whether a stop was asked for.
    pub fn set_stopping(&self, stopping: bool) {
        self.page.set(SELF_AT + 4, u64::from(stopping));
    }

    /// Whether that principal hands over, or has handed over, to a successor: its end is no loss.
    #[must_use]
    pub fn is_handing_over(&self, principal: u32) -> bool {
        principal != 0 && self.page.get(SELF_AT + 6) == u64::from(principal)
    }

    /// Tells everybody which principal hands over; `None` where it has not, and goes on.
    pub fn set_handing_over(&self, principal: Option<u32>) {
        self.page.set(SELF_AT + 6, principal.map_or(0, u64::from));
    }

    /// Kills of processes with that role and slot.
    #[must_use]
    pub fn kills(&self, role: Role, slot: u16) -> u64 {
        self.page.get(self.kills_at(role, slot))
    }

    /// Counts a kill.
    pub fn count_kill(&self, role: Role, slot: u16) {
        self.page.add(self.kills_at(role, slot), 1);
    }

    fn kills_at(&self, role: Role, slot: u16) -> usize {
        match role {
            Role::Principal | Role::Secondary => KILLS_AT + usize::from(slot).min(self.room),
            Role::Observer => SELF_AT + 7,
        }
    }

    /// Who was sent SIGKILL last, and why: written before the signal is sent.
    #[must_use]
    pub fn killed(&self) -> Ring<'_> {
        Ring::new(&self.page, self.record_at(self.all_records()))
    }

    /// The obituaries of principals, and of secondaries whose principal died before them.
    #[must_use]
    pub fn obituaries(&self) -> Ring<'_> {
        Ring::new(&self.page, self.record_at(self.all_records()) + obituary::WORDS)
    }

    /// Begins to watch a process; `None` where all records are taken.
    #[must_use]
    pub fn watch(&self, name: Name, pid: u32, start_time: u64) -> Option<RecordIndex> {
        let index = (0..self.records()).find(|&index| self.page.get(self.record_at(index)) == 0)?;
        let at = self.record_at(index);
        self.page.set(at + 1, u64::from(pid));
        self.page.set(at + 2, start_time);
        for word in 3..RECORD_WORDS {
            self.page.set(at + word, 0);
        }
        self.page.set(at, pack(name));
        Some(RecordIndex(index))
    }

    /// Ends watching a process.
    pub fn forget(&self, RecordIndex(index): RecordIndex) {
        self.page.set(self.record_at(index), 0);
    }

    /// Writes the number of a probe.
    pub fn set_probe(&self, RecordIndex(index): RecordIndex, number: u64, now: Moment) {
        let at = self.record_at(index);
        self.page.set(at + 4, now.as_nanos());
        self.page.set(at + 3, number);
    }

    /// When the last probe was sent.
    #[must_use]
    pub fn probe_sent_at(&self, RecordIndex(index): RecordIndex) -> Moment {
        Moment::from_nanos(self.page.get(self.record_at(index) + 4))
    }

    /// Writes what is thought of a process.
    pub fn set_verdict(&self, RecordIndex(index): RecordIndex, verdict: Verdict) {
        let word = match verdict {
            Verdict::Starting => 0,
            Verdict::Healthy => 1,
            Verdict::Suspect => 2,
            Verdict::Draining => 3,
            Verdict::Recycling => 4,
        };
        self.page.set(self.record_at(index) + 5, word);
    }

    /// Writes how long an answer took.
    pub fn set_round_trip(&self, RecordIndex(index): RecordIndex, nanos: u64) {
        self.page.set(self.record_at(index) + 6, nanos);
    }

    /// The record of a process, to remember.
    #[must_use]
    pub fn find(&self, name: Name) -> Option<RecordIndex> {
        (0..self.records()).find(|&index| self.page.get(self.record_at(index)) == pack(name)).map(RecordIndex)
    }

    /// Loads a record.
    #[must_use]
    pub fn load(&self, RecordIndex(index): RecordIndex) -> Option<Watched> {
        let at = self.record_at(index);
        let word = |field| self.page.get(at + field);
        Some(Watched {
            name: unpack(word(0))?,
            pid: u32::try_from(word(1)).unwrap_or(0),
            start_time: word(2),
            probe: word(3),
            verdict: match word(5) {
                1 => Verdict::Healthy,
                2 => Verdict::Suspect,
                3 => Verdict::Draining,
                4 => Verdict::Recycling,
                _ => Verdict::Starting,
            },
            round_trip_ns: word(6),
        })
    }

    /// All processes that are watched.
    pub fn watched(&self) -> impl Iterator<Item = Watched> + '_ {
        (0..self.records()).filter_map(|index| self.load(RecordIndex(index)))
    }

    /// Whether a process of that pid is supervised as a principal, and was there before that time.
    #[must_use]
    pub fn is_principal(&self, pid: u32, before: u64) -> bool {
        self.watched()
            .any(|known| known.name.role == Role::Principal && known.pid == pid && known.start_time <= before)
    }

    /// Whether less than half of the records are used: as many more can be supervised.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.watched().count() * 2 < self.records()
    }

    /// The names and ports.
    #[must_use]
    pub fn directory(&self) -> Option<Directory> {
        let at = words(self.room, 0);
        for _ in 0..DIRECTORY_LOOKS {
            let length = usize::try_from(self.page.get(at)).ok()?;
            let words = length.div_ceil(8).min(self.page.len() - at - 1);
            let mut json: Vec<u8> =
                (1..=words).flat_map(|index| self.page.get(at + index).to_le_bytes()).collect();
            json.truncate(length);
            // It may have been written meanwhile.
            if length > 0
                && self.page.get(at) == length as u64
                && let Ok(directory) = serde_json::from_slice(&json)
            {
                return Some(directory);
            }
        }
        None
    }

    fn all_records(&self) -> usize {
        RECORDS_PER_SLOT * (self.room + 1)
    }

    fn record_at(&self, index: usize) -> usize {
        KILLS_AT + self.room + 1 + index * RECORD_WORDS
    }
}

fn words(room: usize, directory_words: usize) -> usize {
    let records = RECORDS_PER_SLOT * (room + 1) * RECORD_WORDS;
    KILLS_AT + room + 1 + records + 2 * obituary::WORDS + directory_words
}

/// A name in one word: role, slot, incarnation.
pub(super) fn pack(name: Name) -> u64 {
    let role: u64 = match name.role {
        Role::Principal => 1,
        Role::Secondary => 2,
        Role::Observer => 3,
    };
    role << 32 | u64::from(name.slot) << 16 | u64::from(name.incarnation)
}

/// The name in a word.
pub(super) fn unpack(word: u64) -> Option<Name> {
    let [a, b, c, d, ..] = word.to_le_bytes();
    let incarnation: Incarnation = u16::from_le_bytes([a, b]);
    let slot = u16::from_le_bytes([c, d]);
    match word >> 32 {
        1 => Some(Name::principal(incarnation)),
        2 => Some(Name::secondary(slot, incarnation)),
        3 => Some(Name::observer(incarnation)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_survives_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watchdog.page");
        let directory = Directory {
            version: "1".into(),
            listen: vec!["127.0.0.1:2222".into(), "unix:/x".into()],
            requests: vec!["é".into(), "echo".into()],
            ports: vec![vec![2223, 2224]],
            secondaries: 1,
            observe: vec!["127.0.0.1:2221".into()],
        };
        let page = WatchdogPage::create(&path, 1, &directory).unwrap();
        let name = Name::secondary(1, 65535);
        let record = page.watch(name, 7, 8).unwrap();
        page.set_probe(record, 99, Moment::from_nanos(1));
        page.set_verdict(record, Verdict::Suspect);
        let reader = WatchdogPage::attach(&path, Access::ReadOnly).unwrap();
        assert_eq!(reader.directory(), Some(directory));
        let watched = reader.load(reader.find(name).unwrap()).unwrap();
        assert_eq!((watched.name, watched.probe, watched.verdict), (name, 99, Verdict::Suspect));
        page.watch(Name::principal(2), 9, 50).unwrap();
        assert!(reader.is_principal(9, 50) && !reader.is_principal(9, 49), "it came later");
        assert!(!reader.is_principal(7, 50), "a secondary");
        page.forget(record);
        assert_eq!(reader.watched().count(), 1);
    }

    #[test]
    fn what_grows_is_seen_by_who_has_the_page_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watchdog.page");
        let ports = |slots: usize| vec![vec![65535; 3]; slots];
        let requests = vec!["x".repeat(MAX_NAME_BYTES); 3];
        let (version, secondaries, ports_of_one) = ("1".into(), 1, ports(1));
        let mut directory =
            Directory { version, requests, ports: ports_of_one, secondaries, ..Directory::default() };
        let page = WatchdogPage::create(&path, 1, &directory).unwrap();
        let reader = WatchdogPage::attach(&path, Access::ReadOnly).unwrap();
        let watch = |name| page.watch(name, 7, 8).is_some();
        let first = (1..=16).filter(|&incarnation| watch(Name::secondary(1, incarnation))).count();
        assert_eq!(first, 16, "two times eight");
        assert!(!watch(Name::secondary(2, 1)) && !reader.has_room());
        page.grow(64);
        (directory.ports, directory.secondaries) = (ports(64), 64);
        assert!(page.set_directory(&directory));
        assert!(watch(Name::secondary(64, 1)) && reader.has_room());
        assert!(reader.find(Name::secondary(64, 1)).is_some());
        assert_eq!(reader.directory(), Some(directory.clone()));
        directory.ports = ports(10_000);
        assert!(!page.set_directory(&directory));
        assert_eq!(reader.directory().unwrap().ports.len(), 64);
    }
}
