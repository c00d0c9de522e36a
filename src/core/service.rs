//! The secondary's side of its slot: which jobs it may take, and when it drains and ends.
//!
//! The shell says what it heard (`handle_*`), asks whose job a connection is
//! ([`Service::claim`]), and does what [`Service::poll_action`] tells it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::admission::Admission;
use crate::core::job::{Incarnation, State, Table, Word};
use crate::core::moment::Moment;
use crate::core::slots::GROUP_SIGNAL_WITHIN;
use crate::wire::client::TypeIndex;
use crate::wire::tube::{Command, JobRef};

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say it to the principal.
    Tell(Command),
    /// Accept nothing more, and let the record and the watchdog know that this one drains.
    StopAccepting,
    /// Cut off the exchanges under way: grace is over, or the order is to end at once.
    CutAll,
    /// End.
    End,
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

/// The jobs and the life of a secondary.
#[derive(Debug)]
pub struct Service<T> {
    table: T,
    incarnation: Incarnation,
    grace: Duration,
    waiting: Admission,
    /// How many jobs were published when the whole table was last looked through.
    looked_at: u64,
    /// Jobs that it has claimed and not ended.
    open: u32,
    phase: Phase,
    actions: VecDeque<Action>,
}

impl<T: Table> Service<T> {
    /// Takes note of what waits in the table: jobs that were given out while a predecessor
    /// was here, or nobody.
    #[must_use]
    pub fn new(table: T, incarnation: Incarnation, grace: Duration) -> Self {
        let mut service = Self {
            waiting: Admission::new(table.capacity()),
            table,
            incarnation,
            grace,
            looked_at: 0,
            open: 0,
            phase: Phase::Serving,
            actions: VecDeque::new(),
        };
        service.look_through();
        service
    }

    /// The principal says that a job waits.
    pub fn handle_job(&mut self, job: JobRef) {
        let word = self.table.state(job.index);
        if word.is_ok_and(|word| word.state == State::Waiting && word.number == job.number)
            && let Some(found) = self.table.job(job.index)
        {
            self.waiting.add(job, found.kind, found.client);
        }
    }

    /// Takes note of every waiting job in the table, oldest first.
    pub fn look_through(&mut self) {
        self.looked_at = self.table.published();
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
            self.handle_job(job);
        }
    }

    /// Claims the oldest job that waits for that type and address, and tells the principal.
    pub fn claim(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Option<JobRef> {
        loop {
            let job = self.waiting.take(kind, client)?;
            let waiting = Word::waiting(job.number);
            // It may have expired meanwhile, and its entry may hold another job.
            if self.table.swap(job.index, waiting, waiting.claimed_by(self.incarnation)) {
                self.table.note_claim(job.index, now);
                self.open += 1;
                self.actions.push_back(Action::Tell(Command::Debut(job)));
                return Some(job);
            }
        }
    }

    /// As [`Service::claim`], after a look at the table itself: a doorbell may be late or
    /// lost, the table is the truth.
    pub fn claim_after_look(&mut self, kind: TypeIndex, client: IpAddr, now: Moment) -> Option<JobRef> {
        if let Some(job) = self.claim(kind, client, now) {
            return Some(job);
        }
        if self.table.published() == self.looked_at {
            return None;
        }
        self.look_through();
        self.claim(kind, client, now)
    }

    /// The exchange of a job is over: ends the job, and tells the principal.
    pub fn handle_end(&mut self, job: JobRef, end: State) {
        self.open = self.open.saturating_sub(1);
        let claimed = Word::waiting(job.number).claimed_by(self.incarnation);
        // Where the swap fails, somebody else has ended it, and has told.
        if self.table.swap(job.index, claimed, claimed.in_state(end)) {
            let command = if end == State::Done { Command::Fin(job) } else { Command::Err(job) };
            self.actions.push_back(Action::Tell(command));
        }
    }

    /// Jobs that it has claimed and not ended.
    #[must_use]
    pub fn open(&self) -> u32 {
        self.open
    }

    /// SIGTERM: the kernel sends it when the principal dies; others may send it to this
    /// process alone, or to the whole group.
    pub fn handle_term(&mut self, now: Moment, surroundings: Surroundings) {
        if surroundings.is_orphan {
            self.handle_drain(now);
        } else if self.phase == Phase::Serving {
            self.phase = Phase::Told { decide_at: now + GROUP_SIGNAL_WITHIN };
        }
    }

    /// It is to take nothing new, finish what it has, then end.
    pub fn handle_drain(&mut self, now: Moment) {
        match self.phase {
            Phase::Serving | Phase::Told { .. } => {
                self.phase = Phase::Draining { cut_at: now + self.grace };
                self.actions.push_back(Action::StopAccepting);
                self.actions.push_back(Action::Tell(Command::Draining));
            }
            Phase::Draining { .. } | Phase::Ended => {}
        }
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
            Phase::Serving | Phase::Told { .. } | Phase::Draining { .. } | Phase::Ended => {}
        }
    }

    /// The end of a turn.
    pub fn finish_turn(&mut self) {
        if matches!(self.phase, Phase::Draining { .. }) && self.open == 0 {
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
            Phase::Serving | Phase::Ended => None,
        }
    }
}
