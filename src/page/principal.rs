//! `principal.page`: the principal's liveness record, the ledger, and the slots.
//!
//! The file outlives the principal: its successor takes over the books.
//!
//! | words | meaning |
//! |---|---|
//! | 3, 4 | slots, request types |
//! | 5, 6 | for how many of them there is room |
//! | 8..16 | liveness record ([`super::record`]) |
//! | 16 | jobs accepted: ports given out |
//! | 17 | the incarnation of the principal that has handed over its clients to a successor |
//! | 18 | the last job number given |
//! | 19 | changes: grows whenever the table of slots changes |
//! | 20..24 | requests refused: unknown type, malformed, busy, stopping |
//! | 24..29 | the intent ([`crate::core::ledger`]) |
//! | 32..48 | control connections: see [`Connections`] |
//! | 48.. | per request type: done, failed, expired, spare |
//! | then | per slot, eight words: see [`Slot`] |
//! | then | obituaries of the secondaries that a principal reaped ([`super::obituary`]) |
//! | then | per request type, two histograms: how long jobs waited to be claimed, how long they were served ([`Times`]) |
//!
//! A histogram: how many fell in each bucket ([`latency::BOUNDS_US`]), the sum in microseconds. Each job that its secondary
//! has ended is counted once, but for those that a principal was about to count when it was killed.
//!
//! A slot: incarnation, pid, start time, condition, restarts, done, failed, open.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::core::job::{Incarnation, MAX_NUMBER, State};
use crate::core::latency::{self, BUCKETS, Histogram};
use crate::core::ledger::{Intent, Place};
use crate::core::refused::Refused;
use crate::core::slots::Occupied;
use crate::page::obituary::{self, Ring};
use crate::page::record::{AFTER_RECORD, Record};
use crate::page::{Access, Kind, Page, PageError, Source, record};
use crate::wire::client::TypeIndex;

/// The most secondaries a tree may have.
pub const MAX_SLOTS: usize = 1024;
/// The most request types.
pub const MAX_TYPES: usize = 4096;

/// There is room for so many secondaries, and types, at least.
const LEAST_ROOM: usize = 64;
/// Where the header says how many slots and types there are.
const SLOTS: usize = 3;
const TYPES: usize = 4;

const ACCEPTED: usize = AFTER_RECORD;
const HANDED_OVER: usize = AFTER_RECORD + 1;
const LAST_NUMBER: usize = AFTER_RECORD + 2;
const CHANGES: usize = AFTER_RECORD + 3;
const REFUSED_AT: usize = AFTER_RECORD + 4;
const INTENT_AT: usize = 24;
const CONNECTIONS_AT: usize = 32;
const TYPES_AT: usize = 48;
const TYPE_WORDS: usize = 4;
const SLOT_WORDS: usize = 8;
const HISTOGRAM_WORDS: usize = BUCKETS + 1;
/// Histograms of a request type.
const TIMES_OF_TYPE: usize = 2;

/// One row of the table of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The incarnation in it (or that was last in it).
    pub incarnation: Incarnation,
    /// Its pid, zero where there is no process.
    pub pid: u32,
    /// Its start time.
    pub start_time: u64,
    /// What the slot is doing.
    pub occupied: Occupied,
    /// How often a successor was started.
    pub restarts: u64,
    /// Jobs done here.
    pub done: u64,
    /// Jobs failed here.
    pub failed: u64,
    /// Jobs open here.
    pub open: u64,
}

/// Jobs that ended, by how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Served to their end.
    pub done: u64,
    /// Ended badly.
    pub failed: u64,
    /// Never claimed.
    pub expired: u64,
}

/// How long jobs of a type took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// From the answer with a port until somebody came for the job.
    pub wait: Histogram,
    /// From then on until it ended.
    pub service: Histogram,
}

/// Control connections, in the order of their words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// Open now, and heard.
    pub connected: u64,
    /// Accepted, but not heard before another leaves: `max_clients` are connected.
    pub parked: u64,
    /// Accepted so far.
    pub accepted: u64,
    /// Told that there are too many from their address.
    pub turned_away: u64,
    /// Closed in favour of an address that had fewer.
    pub evicted: u64,
    /// Closed because they were silent for `client_idle`.
    pub idle: u64,
    /// Broken off by the client or the network.
    pub broken: u64,
}

/// The page of the principal.
#[derive(Debug)]
pub struct PrincipalPage {
    page: Page,
    room: Room,
}

/// For how much a page has room: it cannot grow while others have it mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Slots.
    pub slots: usize,
    /// Request types.
    pub types: usize,
}

impl Room {
    /// What a system that begins with so many may grow to.
    #[must_use]
    pub fn of(slots: usize, types: usize) -> Self {
        let twice = |count: usize| (2 * count).max(LEAST_ROOM);
        Self { slots: twice(slots).min(MAX_SLOTS), types: twice(types).min(MAX_TYPES) }
    }
}

impl PrincipalPage {
    /// Creates the page with empty books, and with room for more slots and types.
    ///
    /// # Errors
    /// [`PageError::Io`].
    pub fn create(path: &Path, slots: usize, types: usize) -> Result<Self, PageError> {
        let room = Room::of(slots, types);
        let dimensions = [slots, types, room.slots, room.types].map(|dimension| dimension as u64);
        let page = Page::create(path, Kind::Principal, words(room), &dimensions)?;
        Ok(Self { page, room })
    }

    /// Maps an existing page.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn attach<'a>(source: impl Into<Source<'a>>, access: Access) -> Result<Self, PageError> {
        let (page, room) = Page::attach(source.into(), Kind::Principal, access, |page| {
            let room = Room { slots: page.dimension(2, MAX_SLOTS)?, types: page.dimension(3, MAX_TYPES)? };
            page.dimension(0, room.slots)?;
            page.dimension(1, room.types)?;
            Some((room, words(room)))
        })?;
        Ok(Self { page, room })
    }

    /// Writes the header again, over whatever stands there. For its creator, while no
    /// principal lives. So many slots and types are in use from now on.
    pub fn restore_header(&self, slots: usize, types: usize) {
        let dimensions = [slots, types, self.room.slots, self.room.types];
        self.page.write_header(Kind::Principal, &dimensions.map(|dimension| dimension as u64));
    }

    /// Tells that there are more slots, and more types, from now on; their words are zero.
    pub fn grow(&self, slots: usize, types: usize) {
        debug_assert!(slots <= self.room.slots && types <= self.room.types);
        self.page.set(SLOTS, slots as u64);
        self.page.set(TYPES, types as u64);
    }

    /// For how much there is room.
    #[must_use]
    pub fn room(&self) -> Room {
        self.room
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

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u16 {
        let slots = usize::try_from(self.page.get(SLOTS)).unwrap_or(usize::MAX).min(self.room.slots);
        u16::try_from(slots).unwrap_or(u16::MAX)
    }

    /// How many request types there are.
    #[must_use]
    pub fn types(&self) -> usize {
        usize::try_from(self.page.get(TYPES)).unwrap_or(usize::MAX).min(self.room.types)
    }

    /// Ports given out so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.page.get(ACCEPTED)
    }

    /// Requests answered -1 so far, by why.
    #[must_use]
    pub fn refused(&self) -> Refused {
        let [unknown, malformed, busy, stopping] =
            std::array::from_fn(|index| self.page.get(REFUSED_AT + index));
        Refused { unknown, malformed, busy, stopping }
    }

    /// Counts requests answered -1.
    pub fn count_refused(&self, Refused { unknown, malformed, busy, stopping }: Refused) {
        for (at, requests) in (REFUSED_AT..).zip([unknown, malformed, busy, stopping]) {
            if requests > 0 {
                self.page.add(at, requests);
            }
        }
    }

    /// What is known of the control connections.
    #[must_use]
    pub fn connections(&self) -> Connections {
        let [connected, parked, accepted, turned_away, evicted, idle, broken] =
            std::array::from_fn(|index| self.page.get(CONNECTIONS_AT + index));
        Connections { connected, parked, accepted, turned_away, evicted, idle, broken }
    }

    /// Tells what is known of the control connections.
    pub fn set_connections(&self, connections: Connections) {
        let Connections { connected, parked, accepted, turned_away, evicted, idle, broken } = connections;
        let words = [connected, parked, accepted, turned_away, evicted, idle, broken];
        for (at, word) in (CONNECTIONS_AT..).zip(words) {
            self.page.set(at, word);
        }
    }

    /// Writes down that a job will be given out, under a new number, at that entry.
    pub(super) fn intend_to_give(&self, slot: u16, entry: u32) -> Intent {
        // Zero means "no job".
        let number = (self.page.get(LAST_NUMBER).wrapping_add(1) & MAX_NUMBER).max(1);
        let place = Place { slot, entry, number };
        self.write_intent(Intent::Give { place, accepted: self.accepted().wrapping_add(1) })
    }

    /// Writes down that the end of a job will be entered.
    pub(super) fn intend_to_end(&self, place: Place, kind: TypeIndex, end: State) -> Intent {
        let next = |counter| self.page.get(counter).wrapping_add(1);
        let of_type = next(self.type_counter(kind, end));
        let of_slot = self.slot_counter(place.slot, end).map_or(0, next);
        self.write_intent(Intent::End { place, end, kind, of_type, of_slot })
    }

    fn write_intent(&self, intent: Intent) -> Intent {
        let [first, rest @ ..] = intent.pack();
        self.page.set(INTENT_AT, 0);
        for (index, word) in rest.into_iter().enumerate() {
            self.page.set(INTENT_AT + 1 + index, word);
        }
        self.page.set(INTENT_AT, first);
        intent
    }

    /// What the principal was about to do last. One that names what there is not counts as none.
    pub(super) fn intent(&self) -> Option<Intent> {
        let intent = Intent::unpack(std::array::from_fn(|index| self.page.get(INTENT_AT + index)))?;
        let slot = usize::from(intent.place().slot);
        let known_type = match intent {
            Intent::Give { .. } => true,
            Intent::End { kind, .. } => kind < self.room.types,
        };
        ((1..=self.room.slots).contains(&slot) && known_type).then_some(intent)
    }

    /// Sets the counters to what an intent says; doing it twice is as good as once.
    pub(super) fn enter(&self, intent: Intent) {
        match intent {
            Intent::Give { place, accepted } => {
                self.page.set(LAST_NUMBER, place.number);
                self.page.set(ACCEPTED, accepted);
            }
            Intent::End { place, end, kind, of_type, of_slot } => {
                self.page.set(self.type_counter(kind, end), of_type);
                if let Some(counter) = self.slot_counter(place.slot, end) {
                    self.page.set(counter, of_slot);
                }
            }
        }
    }

    fn type_counter(&self, kind: TypeIndex, end: State) -> usize {
        self.type_at(kind)
            + match end {
                State::Done => 0,
                State::Failed => 1,
                State::Expired => 2,
                State::Free | State::Waiting | State::Claimed => unreachable!("{end:?} is no end"),
            }
    }

    fn slot_counter(&self, slot: u16, end: State) -> Option<usize> {
        match end {
            State::Done => Some(self.slot_at(slot) + 5),
            State::Failed => Some(self.slot_at(slot) + 6),
            State::Expired | State::Free | State::Waiting | State::Claimed => None,
        }
    }

    /// How jobs of a type ended so far.
    #[must_use]
    pub fn ends(&self, kind: TypeIndex) -> Ends {
        let at = self.type_at(kind);
        Ends { done: self.page.get(at), failed: self.page.get(at + 1), expired: self.page.get(at + 2) }
    }

    /// Counts how long a job of a type took.
    pub(super) fn count_times(&self, kind: TypeIndex, waited: Duration, served: Duration) {
        let at = self.times_at(kind);
        for (at, time) in [(at, waited), (at + HISTOGRAM_WORDS, served)] {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            self.page.add(at + latency::bucket(micros), 1);
            self.page.add(at + BUCKETS, micros);
        }
    }

    /// How long jobs of a type took so far.
    #[must_use]
    pub fn times(&self, kind: TypeIndex) -> Times {
        let at = self.times_at(kind);
        let histogram = |at| Histogram {
            buckets: std::array::from_fn(|bucket| self.page.get(at + bucket)),
            sum_us: self.page.get(at + BUCKETS),
        };
        Times { wait: histogram(at), service: histogram(at + HISTOGRAM_WORDS) }
    }

    /// Grows whenever the table of slots changes, so that a look at it can be spared.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.page.get(CHANGES)
    }

    /// Whether that principal has handed over its clients to a successor. Nothing else is written after that.
    #[must_use]
    pub fn has_handed_over(&self, incarnation: Incarnation) -> bool {
        incarnation != 0 && self.page.get(HANDED_OVER) == u64::from(incarnation)
    }

    /// Tells that this principal has handed over its clients; zero: that no predecessor has.
    pub fn set_handed_over(&self, incarnation: Incarnation) {
        self.page.set(HANDED_OVER, u64::from(incarnation));
    }

    /// A row of the table of slots; slots count from 1.
    #[must_use]
    pub fn slot(&self, slot: u16) -> Slot {
        let at = self.slot_at(slot);
        let word = |index| self.page.get(at + index);
        Slot {
            incarnation: u16::try_from(word(0)).unwrap_or(0),
            pid: u32::try_from(word(1)).unwrap_or(0),
            start_time: word(2),
            occupied: match word(3) {
                1 => Occupied::Starting,
                2 => Occupied::Ready,
                3 => Occupied::GivenUp,
                4 => Occupied::Resting,
                _ => Occupied::Down,
            },
            restarts: word(4),
            done: word(5),
            failed: word(6),
            open: word(7),
        }
    }

    /// Uses up an incarnation before its process is started: should this process die in
    /// between, its successor will not give the same name to another.
    pub fn reserve(&self, slot: u16, incarnation: Incarnation) {
        self.set_occupied(slot, Occupied::Down);
        self.page.set(self.slot_at(slot), u64::from(incarnation));
    }

    /// Tells that a process was started in a slot.
    pub fn occupy(&self, slot: u16, incarnation: Incarnation, pid: u32, start_time: u64) {
        let at = self.slot_at(slot);
        self.page.set(at + 3, 0);
        self.page.set(at, u64::from(incarnation));
        self.page.set(at + 1, u64::from(pid));
        self.page.set(at + 2, start_time);
        self.set_occupied(slot, Occupied::Starting);
    }

    /// Tells what a slot is doing now.
    pub fn set_occupied(&self, slot: u16, occupied: Occupied) {
        let word = match occupied {
            Occupied::Down => 0,
            Occupied::Starting => 1,
            Occupied::Ready => 2,
            Occupied::GivenUp => 3,
            Occupied::Resting => 4,
        };
        let at = self.slot_at(slot);
        if matches!(occupied, Occupied::Down | Occupied::GivenUp | Occupied::Resting) {
            self.page.set(at + 1, 0);
        }
        self.page.set(at + 3, word);
        self.page.add(CHANGES, 1);
    }

    /// Counts a restart in a slot.
    pub fn count_restart(&self, slot: u16) {
        self.page.add(self.slot_at(slot) + 4, 1);
    }

    /// Tells how many jobs are open in a slot.
    pub fn set_open(&self, slot: u16, open: u32) {
        self.page.set(self.slot_at(slot) + 7, u64::from(open));
    }

    /// The obituaries of secondaries that were reaped by their principal.
    #[must_use]
    pub fn obituaries(&self) -> Ring<'_> {
        Ring::new(&self.page, TYPES_AT + self.room.types * TYPE_WORDS + self.room.slots * SLOT_WORDS)
    }

    fn type_at(&self, kind: TypeIndex) -> usize {
        assert!(kind < self.room.types, "request type {kind} of {}", self.room.types);
        TYPES_AT + kind * TYPE_WORDS
    }

    fn times_at(&self, kind: TypeIndex) -> usize {
        assert!(kind < self.room.types, "request type {kind} of {}", self.room.types);
        words(Room { types: 0, ..self.room })
            + self.room.types * TYPE_WORDS
            + kind * TIMES_OF_TYPE * HISTOGRAM_WORDS
    }

    fn slot_at(&self, slot: u16) -> usize {
        let slot = usize::from(slot);
        assert!((1..=self.room.slots).contains(&slot), "slot {slot} of {}", self.room.slots);
        TYPES_AT + self.room.types * TYPE_WORDS + (slot - 1) * SLOT_WORDS
    }
}

fn words(room: Room) -> usize {
    let times = room.types * TIMES_OF_TYPE * HISTOGRAM_WORDS;
    TYPES_AT + room.types * TYPE_WORDS + room.slots * SLOT_WORDS + obituary::WORDS + times
}
