//! The principal's slots: which secondary is in each, which jobs it has, when one is started
//! again, and how all of them end.
//!
//! The shell says what it heard (`handle_*`), asks for ports ([`Slots::give`]), and does what
//! [`Slots::poll_action`] tells it, in that order: what a turn produced for a secondary is
//! told before a client is answered. Slots are counted from 0 in here; names, files and the
//! books count them from 1.

mod given;
mod jobs;
mod limits;
mod servers;
mod stop;
mod succession;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::dispatch::Dispatch;
use crate::core::following::News;
use crate::core::job::{ClientId, Ended, Incarnation, Job, JobNumber, Table, Word};
use crate::core::list::{Ends, Links};
use crate::core::moment::Moment;
use crate::core::restart::Restart;
use crate::core::shares::Shares;
use crate::core::timers::{TimerId, Timers};
use crate::wire::tube::{Command, JobRef};

use given::GivenJobs;
use limits::Limited;
pub use limits::{Handling, MARGIN};
pub use stop::GROUP_SIGNAL_WITHIN;
use stop::Phase;
pub use succession::{Followed, Household};

/// The books in shared memory, as their keeper sees them. Slots are counted from 0.
pub trait Books {
    /// The job table of a slot.
    type Table: Table;

    /// The job table of a slot.
    fn table(&self, slot: usize) -> &Self::Table;

    /// Enters a new job in the books and publishes it as waiting at a free entry.
    fn give(&self, slot: usize, entry: u32, job: Job) -> JobNumber;

    /// Enters the end of a job that has ended and frees its entry. Returns whether it is free.
    fn settle(&self, slot: usize, entry: u32, word: Word) -> bool;

    /// Finishes the step at which a predecessor was interrupted.
    fn redo(&self);

    /// Tells how many jobs are open in a slot.
    fn set_open(&self, slot: usize, open: u32);

    /// Tells what a slot is doing.
    fn set_occupied(&self, slot: usize, occupied: Occupied);

    /// The incarnation that was last started in a slot.
    fn last_incarnation(&self, slot: usize) -> Incarnation;

    /// Uses up an incarnation before its process is started: should this principal die in
    /// between, its successor will not give the same name to another.
    fn reserve(&self, slot: usize, incarnation: Incarnation);
}

/// What a slot is doing, as the principal knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// No process; it will be started when its back-off is over.
    Down,
    /// A process was started.
    Starting,
    /// Its loop runs.
    Ready,
    /// It said that it cannot start, and is left down.
    GivenUp,
    /// No process, and none is wanted.
    Resting,
}

/// What the configuration says about slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Claimed or waiting jobs, per slot.
    pub max_jobs: u32,
    /// How long a job waits to be claimed.
    pub claim_within: Duration,
    /// How long exchanges may go on when all is to stop.
    pub grace: Duration,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start this incarnation in an empty slot, or say [`Slots::handle_start_failed`].
    Start {
        /// Where.
        slot: usize,
        /// Which.
        incarnation: Incarnation,
    },
    /// Say it through the slot's tube.
    Tell {
        /// To whom.
        slot: usize,
        /// What.
        command: Command,
    },
    /// The slot's secondary drains: a successor needs its names.
    Retire {
        /// Where.
        slot: usize,
        /// Which.
        incarnation: Incarnation,
    },
    /// A start waits.
    BackOff {
        /// Where.
        slot: usize,
        /// Whether a process has died; else none could be started, which the shell knows.
        died: bool,
        /// Young deaths in a row.
        deaths: u32,
        /// How long.
        wait: Duration,
    },
    /// The slot's secondary says that it cannot start: it stays down.
    GiveUp {
        /// Where.
        slot: usize,
    },
    /// Somebody wrote into the job table who should not: the entry was put right.
    Mended {
        /// Where.
        slot: usize,
        /// The entry.
        entry: u32,
    },
    /// A process group served a job whose secondary has died: end it, with all that came of it.
    EndFamily {
        /// The process group.
        group: u32,
    },
    /// Something has become of a job that this client was given.
    Report {
        /// To whom: it may have gone.
        client: ClientId,
        /// Of which job.
        number: JobNumber,
        /// What.
        news: News,
    },
    /// A job has ended of which no secondary can tell: nobody came for it, or it was lost with its own.
    Ended {
        /// Where it was given.
        slot: usize,
        /// The job.
        job: Ended,
    },
    /// Refuse the requests that wait for a secondary.
    RefuseWaiting,
    /// Close the control listener and forget the data listeners.
    StopAccepting,
    /// Kill a predecessor that should have ended: the watchdog may never have met it.
    Kill {
        /// Where.
        slot: usize,
        /// Which.
        incarnation: Incarnation,
    },
    /// The time of a job is over that this incarnation has claimed: see what its handler does, and say
    /// it by [`Slots::handle_handling`].
    LookAtHandler {
        /// Where.
        slot: usize,
        /// Which.
        incarnation: Incarnation,
        /// Which job.
        job: JobRef,
    },
    /// Kill a secondary whose handler has not come back although the time of its job is over.
    KillForTime {
        /// Where.
        slot: usize,
        /// Which.
        incarnation: Incarnation,
        /// Which job.
        job: JobRef,
        /// Since when its handler is at work.
        since: Moment,
        /// How long the job might take.
        limit: Duration,
    },
    /// Kill all that live.
    KillAll,
    /// Leave the place to a successor.
    HandOver,
    /// Nobody is left: end. The files go where they are ours.
    End {
        /// Whether nothing will ever be done with the files again.
        remove_files: bool,
    },
}

/// What is known about a death once it is in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Claimed jobs that failed with it.
    pub failed: u32,
    /// Whether it was told to end or drained.
    pub expected: bool,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// The oldest waiting job of a slot expires.
    Expire(usize),
    /// The back-off of a slot is over.
    Start(usize),
    /// A predecessor has drained for longer than its grace.
    Overdue(usize, Incarnation),
    /// The job at an entry of a slot has taken as long as it may.
    Limit(usize, u32),
    /// A stop has lasted as long as it may.
    Stop,
    /// SIGTERM came a moment ago, and no stop was ordered since.
    HandOver,
}

/// Where a job was given, and under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The slot.
    pub slot: usize,
    /// The job's number.
    pub number: JobNumber,
}

/// The secondary that serves a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Server {
    incarnation: Incarnation,
    /// When it said that its loop runs.
    ready_since: Option<Moment>,
    /// The watchdog says that it does not answer.
    suspect: bool,
    /// It was told to end.
    stop_sent: bool,
    /// It is to leave: another is wanted in its place.
    leave_wanted: bool,
    /// It was told to leave.
    leave_sent: bool,
}

#[derive(Debug)]
struct Slot {
    current: Option<Server>,
    /// Those before it that still finish their exchanges.
    predecessors: Vec<Incarnation>,
    /// Entries of the table that hold no job.
    free: Vec<u32>,
    /// The jobs that were given at its entries.
    given: GivenJobs,
    /// Up to which entry the table was looked through last.
    inspected: u32,
    /// Jobs that wait to be claimed, oldest first.
    waiting: Ends,
    links: Links,
    /// Claimed jobs whose time is limited.
    limited: Limited,
    /// Armed while jobs wait to be claimed.
    expire_timer: Option<TimerId>,
    /// Armed while a back-off lasts.
    start_timer: Option<TimerId>,
    restart: Restart,
    /// No secondary is wanted here.
    rests: bool,
    /// Since when it has had a server that can accept; jobs expire only while it has.
    serving_since: Option<Moment>,
}

impl Slot {
    /// Whether that incarnation lives in it, as far as is known.
    fn is_home_of(&self, incarnation: Incarnation) -> bool {
        self.current.is_some_and(|server| server.incarnation == incarnation)
            || self.predecessors.contains(&incarnation)
    }
}

/// All slots of a principal.
#[derive(Debug)]
pub struct Slots<B> {
    books: B,
    settings: Settings,
    /// How long jobs may take, by their types; empty where none is limited.
    limits: Vec<Option<Duration>>,
    slots: Vec<Slot>,
    dispatch: Dispatch,
    shares: Shares,
    timers: Timers<Timer>,
    phase: Phase,
    stop_timer: Option<TimerId>,
    /// Slots whose secondary may have to be told to leave.
    attended: Vec<usize>,
    /// Secondaries that a predecessor has started and that are still to be replaced, in their order.
    inherited: VecDeque<(usize, Incarnation)>,
    /// The watchdog has died: nobody would accept in our stead, so nothing is accepted.
    orphaned: bool,
    actions: VecDeque<Action>,
}

impl<B: Books> Slots<B> {
    /// So many slots, with nobody known to be in them. The seed decides jitter.
    #[must_use]
    pub fn new(books: B, slots: usize, settings: Settings, seed: u64) -> Self {
        let slot = |slot: usize| Slot {
            current: None,
            predecessors: Vec::new(),
            free: Vec::new(),
            given: GivenJobs::new(books.table(slot).capacity()),
            inspected: 0,
            waiting: Ends::default(),
            links: Links::new(books.table(slot).capacity() as usize),
            limited: Limited::default(),
            expire_timer: None,
            start_timer: None,
            restart: Restart::new(seed << 16 | slot as u64),
            rests: false,
            serving_since: None,
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            dispatch: Dispatch::new(slots, settings.max_jobs),
            books,
            settings,
            limits: Vec::new(),
            shares: Shares::new(u64::from(settings.max_jobs) * slots as u64),
            timers: Timers::default(),
            phase: Phase::Serving,
            stop_timer: None,
            attended: Vec::new(),
            inherited: VecDeque::new(),
            orphaned: false,
            actions: VecDeque::new(),
        }
    }

    /// The books.
    pub fn books(&self) -> &B {
        &self.books
    }

    /// Which secondaries can take jobs, and how many each has.
    #[must_use]
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// How many slots there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        // One that is armed again at once waits for the next turn: others come in between.
        for _ in 0..self.timers.len() {
            let Some(timer) = self.timers.pop_due(now) else {
                break;
            };
            match timer {
                Timer::Expire(slot) => self.expire(now, slot),
                Timer::Start(slot) => {
                    self.slots[slot].start_timer = None;
                    self.start(slot);
                }
                Timer::Limit(slot, entry) => self.limit_is_over(now, slot, entry),
                Timer::Overdue(slot, incarnation) => self.overdue(slot, incarnation),
                Timer::Stop => self.stop_is_over(now),
                Timer::HandOver => self.hand_over(),
            }
        }
        self.check_invariants();
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Slots::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// What must hold after each entry into the core.
    fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            for (index, slot) in self.slots.iter().enumerate() {
                let open = slot.given.open().count();
                assert_eq!(self.dispatch.load(index).open as usize, open, "open jobs of slot {index}");
                assert_eq!(slot.free.len() + open, slot.given.entries() as usize, "entries of slot {index}");
                assert!(
                    slot.current.is_none() || slot.start_timer.is_none(),
                    "slot {index} is started twice"
                );
                assert!(
                    slot.waiting.is_empty() || slot.expire_timer.is_some(),
                    "slot {index} waits for ever"
                );
            }
        }
    }
}
