//! The secondary's side of its slot: which jobs it may take, and when it drains and ends.
//!
//! The shell says what it heard (`handle_*`), asks whose job a connection is
//! ([`Service::welcome`]), and does what [`Service::poll_action`] tells it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::admission::Admission;
use crate::core::job::{End, Ended, Incarnation, JobNumber, State, Table, Word};
use crate::core::moment::Moment;
use crate::core::recycling::{Recycling, Wear, Worn};
use crate::core::slots::GROUP_SIGNAL_WITHIN;
use crate::wire::client::TypeIndex;
use crate::wire::jeton::Jeton;
use crate::wire::tube::{Command, JobRef};

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say it to the principal.
    Tell(Command),
    /// Accept nothing more.
    StopAccepting,
    /// Let the record and the watchdog know that this one leaves.
    Declare(Departure),
    /// Cut off the exchanges under way: grace is over, or the order is to end at once.
    CutAll,
    /// End.
    End,
}

/// How a secondary leaves its place to a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It drains: what is under way may go on for `grace`.
    Drains,
    /// It has served for long enough: what is under way may go on as long as it takes.
    Recycles(Worn),
}

/// Where a secondary stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It takes jobs.
    Serving,
    /// SIGTERM came a moment ago: for this process alone, or for the whole group?
    Told {
        /// When that is decided.
        decide_at: Moment,
    },
    /// It is worn out and accepts nothing more, but still hears of jobs that it has asked for.
    Closing {
        /// Why it leaves.
        worn: Worn,
    },
    /// It has told that it is worn out, and ends with its last exchange, whenever that is.
    Recycling,
    /// It takes nothing new, and ends with its last exchange.
    Draining {
        /// When exchanges are cut off.
        cut_at: Moment,
    },
    Ended,
}

/// What a secondary can see of its surroundings when it was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Its principal or the watchdog has died.
    pub is_orphan: bool,
    /// The watchdog's page says that the whole system stops.
    pub is_stopping: bool,
}

/// What is to become of a data connection that has just come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// It is served: this is its job.
    Admitted(JobRef),
    /// A tracked job waits on its port: its first bytes tell whose it is.
    Undecided,
    /// Nobody waits for it.
    Uninvited,
}

/// What the configuration says to a secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long exchanges may go on when it is to end.
    pub grace: Duration,
    /// How many request types there are.
    pub types: usize,
    /// Anybody is let in, whatever his address.
    pub open: bool,
    /// When it is to be replaced by a new one.
    pub recycling: Recycling,
}

/// Connections that have no job yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undecided {
    /// All of them.
    pub all: usize,
    /// Those for which the principal was asked for a job.
    pub asked_for: usize,
}

/// The jobs and the life of a secondary.
#[derive(Debug)]
pub struct Service<T> {
    table: T,
    incarnation: Incarnation,
    settings: Settings,
    waiting: Admission,
    /// The job that was published last when the whole table was last looked through.
    looked_at: JobNumber,
    /// The job that was announced last.
    heard: JobNumber,
    /// Tracked jobs that are known, since the table was made; where a doorbell was lost, too few.
    tracked: u64,
    /// Jobs up to that number are in that count, as far as they are known.
    counted_to: JobNumber,
    /// Jobs that it has claimed and not ended.
    open: u32,
    phase: Phase,
    wear: Wear,
    actions: VecDeque<Action>,
}

impl<T: Table> Service<T> {
    /// Takes note of what waits in the table: jobs that were given out while a predecessor
    /// was here, or nobody.
    #[must_use]
    pub fn new(table: T, incarnation: Incarnation, settings: Settings) -> Self {
        let mut service = Self {
            waiting: Admission::new(table.capacity(), settings.types),
            table,
            incarnation,
            settings,
            looked_at: 0,
            heard: 0,
            tracked: 0,
            counted_to: 0,
            open: 0,
            phase: Phase::Serving,
            wear: Wear::new(settings.recycling),
            actions: VecDeque::new(),
        };
        service.look_through();
        service
    }

    /// The principal says that a job waits.
    pub fn handle_job(&mut self, job: JobRef) {
        self.heard = job.number;
        if self.note(job) && job.number > self.counted_to {
            self.counted_to = job.number;
            self.tracked += 1;
        }
    }

    /// Takes note of every waiting job in the table, oldest first.
    pub fn look_through(&mut self) {
        // In this order: a job that is published meanwhile is counted once at most.
        self.tracked = self.table.tracked_jobs();
        self.looked_at = self.table.last_published();
        (self.heard, self.counted_to) = (self.looked_at, self.looked_at);
        let mut found: Vec<JobRef> = self
            .table
            .indices()
            .filter_map(|index| {
                let word = self.table.state(index).ok()?;
                (word.state == State::Waiting).then_some(JobRef { index, number: word.number })
            })
            .collect();
        found.sort_by_key(|job| job.number);
        for job in found {
            self.note(job);
        }
    }

    /// Returns whether it waits and is tracked.
    fn note(&mut self, job: JobRef) -> bool {
        if self.is_waiting(job)
            && let Some(found) = self.table.job(job.index)
        {
            self.waiting.add(job, &found);
            return found.jeton.is_some();
        }
        false
    }

    /// Whether a job of that type waits to be claimed.
    #[must_use]
    pub fn waits(&self, kind: TypeIndex) -> bool {
        self.table.has_job(kind, true)
    }

    /// Whether a job was published whose doorbell was not heard yet: it may be in the tube.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.heard != self.table.last_published()
    }

    /// A data connection has come, after all that the tube held was heard. Where that leaves
    /// it without a job, or a tracked job is not known that may be its own, the table itself is
    /// looked at: a doorbell may be late or lost, the table is the truth.
    pub fn welcome(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Welcome {
        if self.tracked != self.table.tracked_jobs() {
            self.look_through();
        }
        loop {
            if self.tracked_waits(kind) {
                return Welcome::Undecided;
            }
            if let Some(job) = self.claim(kind, client, now) {
                return Welcome::Admitted(job);
            }
            if !self.look_again() {
                return Welcome::Uninvited;
            }
        }
    }

    /// Claims a plain job for a connection whose bytes, or silence, tell that it has no jeton.
    pub fn claim_plain(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Option<JobRef> {
        loop {
            let claimed = self.claim(kind, client, now);
            if claimed.is_some() || !self.look_again() {
                return claimed;
            }
        }
    }

    /// Claims the job of a jeton.
    pub fn claim_tracked(&mut self, kind: TypeIndex, jeton: Jeton, now: Moment) -> Option<JobRef> {
        loop {
            while let Some(job) = self.waiting.take_tracked(kind, jeton) {
                if self.take(job, true, now) {
                    return Some(job);
                }
            }
            if !self.look_again() {
                return None;
            }
        }
    }

    /// Asks the principal for a job on behalf of a connection that has none, where all are let in.
    pub fn ask_for_job(&mut self, kind: TypeIndex, client: IpAddr) {
        if let Ok(kind) = u16::try_from(kind) {
            self.actions.push_back(Action::Tell(Command::Uninvited { kind, client }));
        }
    }

    /// Looks through the table if anything was published since the last look.
    fn look_again(&mut self) -> bool {
        let changed = self.table.last_published() != self.looked_at;
        if changed {
            self.look_through();
        }
        changed
    }

    /// Whether a tracked job waits on that port. Those that do no longer are forgotten.
    fn tracked_waits(&mut self, kind: TypeIndex) -> bool {
        while let Some(job) = self.waiting.oldest_tracked(kind) {
            if self.is_waiting(job) {
                return true;
            }
            self.waiting.forget_oldest_tracked(kind);
        }
        false
    }

    fn is_waiting(&self, job: JobRef) -> bool {
        let word = self.table.state(job.index);
        word.is_ok_and(|word| word.state == State::Waiting && word.number == job.number)
    }

    /// Claims the oldest plain job that waits for that type and address.
    fn claim(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Option<JobRef> {
        while let Some(job) = self.waiting.take(kind, client) {
            if self.take(job, false, now) {
                return Some(job);
            }
        }
        while self.settings.open
            && let Some(job) = self.waiting.take_any(kind)
        {
            if self.take(job, false, now) {
                return Some(job);
            }
        }
        None
    }

    /// Claims a job and tells the principal. It may have expired meanwhile, and its entry may
    /// hold another job: then it is not to be had.
    fn take(&mut self, job: JobRef, tracked: bool, now: Moment) -> bool {
        let waiting = Word { tracked, ..Word::waiting(job.number) };
        let claimed = self.table.swap(job.index, waiting, waiting.claimed_by(self.incarnation));
        if claimed {
            self.table.note_claim(job.index, now);
            self.open += 1;
            self.wear.count_job();
            self.actions.push_back(Action::Tell(Command::Debut(job)));
        }
        claimed
    }

    /// A process group serves a job from now on.
    pub fn note_group(&self, job: JobRef, group: u32) {
        self.table.note_group(job.index, group);
    }

    /// The exchange of a job is over: ends the job, and tells the principal. Returns what was known of it; `None`
    /// where somebody else has ended it.
    pub fn handle_end(&mut self, now: Moment, job: JobRef, end: End) -> Option<Ended> {
        self.open = self.open.saturating_sub(1);
        let word = self.table.state(job.index).ok().filter(|word| {
            word.state == State::Claimed && word.number == job.number && word.holder == self.incarnation
        });
        // Somebody else may have ended it, and has told.
        let word = word?;
        // The entry may be another job's as soon as this one has ended.
        let ended = Ended::at(&self.table, job.index, word, end)?;
        self.table.note_end(job.index, now);
        if let End::Failed(reason) = end {
            self.table.note_reason(job.index, reason);
        }
        if !self.table.swap(job.index, word, word.in_state(end.state())) {
            return None;
        }
        let command = if end == End::Done { Command::Fin(job) } else { Command::Err(job) };
        self.actions.push_back(Action::Tell(command));
        Some(ended)
    }

    /// Jobs that it has claimed and not ended.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open
    }

    /// SIGTERM: the kernel sends it when the principal dies; others may send it to this
    /// process alone, or to the whole group.
    pub fn handle_term(&mut self, now: Moment, surroundings: Surroundings) {
        match self.phase {
            Phase::Serving if !surroundings.is_orphan => {
                self.phase = Phase::Told { decide_at: now + GROUP_SIGNAL_WITHIN };
            }
            // Who leaves anyway need not find out who is meant: from now on there is a limit.
            Phase::Serving | Phase::Closing { .. } | Phase::Recycling => self.handle_drain(now),
            Phase::Told { .. } if surroundings.is_orphan => self.handle_drain(now),
            Phase::Told { .. } | Phase::Draining { .. } | Phase::Ended => {}
        }
    }

    /// It is to take nothing new, finish what it has, then end.
    pub fn handle_drain(&mut self, now: Moment) {
        match self.phase {
            Phase::Serving | Phase::Told { .. } | Phase::Closing { .. } | Phase::Recycling => {
                self.phase = Phase::Draining { cut_at: now + self.settings.grace };
                self.actions.push_back(Action::StopAccepting);
                self.actions.push_back(Action::Declare(Departure::Drains));
                self.actions.push_back(Action::Tell(Command::Draining));
            }
            Phase::Draining { .. } | Phase::Ended => {}
        }
    }

    /// It is to leave its place to a successor, and may take as long as it needs for what it has.
    pub fn handle_leave(&mut self) {
        self.wear.tell();
    }

    /// It is to end at once: what is open fails.
    pub fn handle_stop(&mut self) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.actions.extend([Action::CutAll, Action::End]);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment, surroundings: Surroundings) {
        match self.phase {
            Phase::Told { decide_at } if decide_at <= now => {
                // A stop is the principal's business: it says when no job is left here.
                if surroundings.is_orphan || !surroundings.is_stopping {
                    self.handle_drain(now);
                } else {
                    self.phase = Phase::Serving;
                }
            }
            Phase::Draining { cut_at } if cut_at <= now => self.handle_stop(),
            Phase::Serving
            | Phase::Told { .. }
            | Phase::Closing { .. }
            | Phase::Recycling
            | Phase::Draining { .. }
            | Phase::Ended => {}
        }
    }

    /// Whether there is any reason for which it might leave.
    #[must_use]
    pub fn can_wear_out(&self) -> bool {
        self.wear.can_wear_out()
    }

    /// The watchdog has probed this process, which has so much memory. `may_leave`: the watchdog
    /// knows it, and has room for one more beside it.
    pub fn handle_probe(&mut self, may_leave: bool, resident_bytes: u64) {
        self.wear.handle_probe(may_leave, resident_bytes);
    }

    /// Whether it leaves with the end of this turn: the connections that wait are its
    /// successor's.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.phase == Phase::Serving && self.wear.leaves().is_some()
    }

    /// The end of a turn, with so many connections still undecided.
    pub fn finish_turn(&mut self, undecided: Undecided) {
        if self.phase == Phase::Serving
            && let Some(worn) = self.wear.leaves()
        {
            self.phase = Phase::Closing { worn };
            self.actions.push_back(Action::StopAccepting);
        }
        // Of the jobs that were asked for, the principal tells whoever serves the slot.
        if let Phase::Closing { worn } = self.phase
            && undecided.asked_for == 0
        {
            self.phase = Phase::Recycling;
            self.actions.push_back(Action::Declare(Departure::Recycles(worn)));
            self.actions.push_back(Action::Tell(Command::Recycling));
        }
        let is_leaving = matches!(self.phase, Phase::Recycling | Phase::Draining { .. });
        if is_leaving && self.open == 0 && undecided.all == 0 {
            self.phase = Phase::Ended;
            self.actions.push_back(Action::End);
        }
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Service::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        match self.phase {
            Phase::Told { decide_at } => Some(decide_at),
            Phase::Draining { cut_at } => Some(cut_at),
            Phase::Serving | Phase::Closing { .. } | Phase::Recycling | Phase::Ended => None,
        }
    }
}
