//! The workers of one request type in one secondary, and the jobs that they serve.
//!
//! A job first collects its client's message, then waits for a worker, in turn by address, is
//! served, and its answer goes to the client. A worker serves one job at a time. One that dies is
//! replaced; one that keeps a job for too long, or breaks the rules, is killed. Its seat is free
//! again only when it was reaped.
//!
//! A worker that dies with a job is replaced at once: each such start costs a client a job. One
//! that dies without is replaced after the back-off of [`crate::core::restart`].

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::crowd::Network;
use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::restart::{Death, Restart, Verdict};
use crate::core::turns::Turns;

/// A job that so many workers left untouched when they ended fails with the last of them.
const MAX_TRIES: u8 = 3;
/// A worker that is dismissed gets SIGTERM after this time,
const TERMINATE_AFTER: Duration = Duration::from_millis(100);
/// and is killed after this.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// A worker, by its seat.
pub type Seat = usize;
/// A job, by the number that the shell has given it; used again once the job has ended.
pub type Place = usize;

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many workers there are.
    pub workers: usize,
    /// How long a worker may keep a job.
    pub time_limit: Option<Duration>,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a worker, and say what came of it.
    Start(Seat),
    /// Give a worker the message of a job.
    Hand {
        /// Which job.
        job: Place,
        /// To whom.
        seat: Seat,
    },
    /// Kill a worker and all its group.
    Kill(Seat),
    /// Close the input of a worker: it shall end.
    Dismiss(Seat),
    /// Send SIGTERM to a worker that was dismissed and is still there.
    Terminate(Seat),
    /// End a job.
    End {
        /// Which one.
        job: Place,
        /// How.
        end: End,
    },
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    /// There is none before that moment.
    Down { start_at: Moment },
    /// The shell is to start it.
    Starting,
    /// It waits for a message.
    Idle { since: Moment },
    /// It has a message; its client may have left.
    Busy { since: Moment, job: Option<Place>, until: Option<Moment> },
    /// It was killed. Where a job has paid for that it is replaced at once.
    Dying { since: Moment, paid: bool },
    /// It was dismissed.
    Leaving { terminated: bool },
    /// There is none, and none will come.
    Gone,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its message is not complete.
    Collecting,
    /// It waits for a worker.
    Waiting,
    /// A worker has it.
    Served(Seat),
    /// Its answer is on its way to the client.
    Answering { failed: bool },
}

#[derive(Clone, Copy, Debug)]
struct Job {
    network: Network,
    phase: Phase,
    /// Workers that have ended without reading its message.
    tries: u8,
}

/// The workers of a type with their jobs.
#[derive(Debug)]
pub struct Workers {
    settings: Settings,
    workers: Vec<Worker>,
    restarts: Vec<Restart>,
    /// By their places.
    jobs: Vec<Option<Job>>,
    queue: Turns<Place>,
    /// When it was told to end.
    ending_since: Option<Moment>,
    actions: VecDeque<Action>,
}

impl Workers {
    /// Workers that are all to be started now. The seed decides the jitter of their back-off.
    #[must_use]
    pub fn new(now: Moment, settings: Settings, seed: u64) -> Self {
        let seeds = (seed..).take(settings.workers);
        let mut workers = Self {
            settings,
            workers: vec![Worker::Down { start_at: now }; settings.workers],
            restarts: seeds.map(Restart::new).collect(),
            jobs: Vec::new(),
            queue: Turns::default(),
            ending_since: None,
            actions: VecDeque::new(),
        };
        workers.start_due(now);
        workers
    }

    /// A client has come for a job.
    pub fn handle_job(&mut self, job: Place, network: Network) {
        if self.jobs.len() <= job {
            self.jobs.resize(job + 1, None);
        }
        debug_assert!(self.jobs[job].is_none(), "the place of a job that goes on");
        self.jobs[job] = Some(Job { network, phase: Phase::Collecting, tries: 0 });
        self.check_invariants();
    }

    /// The message of a job is complete.
    pub fn handle_message(&mut self, now: Moment, job: Place) {
        if let Some(found) = self.jobs.get_mut(job).and_then(Option::as_mut)
            && found.phase == Phase::Collecting
        {
            found.phase = Phase::Waiting;
            self.queue.push(found.network, job);
            self.assign(now);
        }
        self.check_invariants();
    }

    /// A job ends, wherever it stands: its client has left, say. A worker that has it goes on, and
    /// what it answers is thrown away.
    pub fn handle_end(&mut self, job: Place, end: End) {
        let Some(Job { phase, network, .. }) = self.jobs.get(job).copied().flatten() else {
            return;
        };
        match phase {
            Phase::Collecting | Phase::Answering { .. } => {}
            Phase::Waiting => {
                self.queue.remove(network, |&queued| queued == job);
            }
            Phase::Served(seat) => {
                if let Worker::Busy { job, .. } = &mut self.workers[seat] {
                    *job = None;
                }
            }
        }
        let said_failed = phase == Phase::Answering { failed: true };
        self.end(job, if said_failed { End::Failed(Reason::HandlerError) } else { end });
        self.check_invariants();
    }

    /// The client has all of the answer.
    pub fn handle_taken(&mut self, job: Place) {
        self.handle_end(job, End::Done);
    }

    /// A worker was started.
    pub fn handle_started(&mut self, now: Moment, seat: Seat) {
        if self.workers[seat] == Worker::Starting {
            self.workers[seat] = Worker::Idle { since: now };
            if self.ending_since.is_some() {
                self.dismiss(seat);
            }
            self.assign(now);
        }
        self.check_invariants();
    }

    /// A worker could not be started. Where no other is there, the next job fails for it.
    pub fn handle_not_started(&mut self, now: Moment, seat: Seat) {
        if self.workers[seat] == Worker::Starting {
            self.free(now, seat, None, false);
            if !self.workers.iter().any(|&worker| works(worker))
                && let Some(job) = self.queue.pop()
            {
                self.end(job, End::Failed(Reason::CannotStart));
            }
        }
        self.check_invariants();
    }

    /// A worker has answered. Returns the job whose client gets the answer, if it is still there.
    pub fn handle_answer(&mut self, now: Moment, seat: Seat, failed: bool) -> Option<Place> {
        match self.workers[seat] {
            Worker::Busy { since, job, .. } => {
                self.workers[seat] = Worker::Idle { since };
                if let Some(job) = job
                    && let Some(job) = &mut self.jobs[job]
                {
                    job.phase = Phase::Answering { failed };
                }
                self.assign(now);
                self.check_invariants();
                job
            }
            Worker::Idle { .. } | Worker::Leaving { .. } => {
                self.handle_nonsense(now, seat, false);
                None
            }
            Worker::Dying { .. } | Worker::Down { .. } | Worker::Starting | Worker::Gone => None,
        }
    }

    /// What a worker wrote cannot be understood, or was not asked for: it is killed, and its job
    /// fails, unless its message was `untouched`.
    pub fn handle_nonsense(&mut self, now: Moment, seat: Seat, untouched: bool) {
        match self.workers[seat] {
            Worker::Busy { since, job, .. } => {
                self.kill(seat, since, !untouched);
                if let Some(job) = job {
                    self.give_up(job, Reason::HandlerError, untouched);
                }
                self.assign(now);
            }
            Worker::Idle { since } => self.kill(seat, since, false),
            Worker::Leaving { .. } => self.kill(seat, now, false),
            Worker::Dying { .. } | Worker::Down { .. } | Worker::Starting | Worker::Gone => {}
        }
        self.check_invariants();
    }

    /// A worker has ended and was reaped: its job, if it has one, fails with that reason, unless the
    /// worker has left the message `untouched`.
    pub fn handle_ended(&mut self, now: Moment, seat: Seat, reason: Reason, untouched: bool) {
        match self.workers[seat] {
            Worker::Busy { since, job, .. } => {
                if let Some(job) = job {
                    self.give_up(job, reason, untouched);
                }
                self.free(now, seat, Some(since), !untouched);
            }
            Worker::Idle { since } => self.free(now, seat, Some(since), false),
            Worker::Dying { since, paid } => self.free(now, seat, Some(since), paid),
            Worker::Leaving { .. } => self.workers[seat] = Worker::Gone,
            Worker::Down { .. } | Worker::Starting | Worker::Gone => {}
        }
        self.assign(now);
        self.check_invariants();
    }

    /// All is to end: jobs fail, workers are dismissed, those that have a job are killed.
    pub fn handle_stop(&mut self, now: Moment) {
        if self.ending_since.is_some() {
            return;
        }
        self.ending_since = Some(now);
        for job in 0..self.jobs.len() {
            self.handle_end(job, End::Failed(Reason::Stopping));
        }
        for seat in 0..self.workers.len() {
            match self.workers[seat] {
                Worker::Down { .. } => self.workers[seat] = Worker::Gone,
                Worker::Idle { .. } => self.dismiss(seat),
                Worker::Busy { since, .. } => self.kill(seat, since, true),
                Worker::Starting | Worker::Dying { .. } | Worker::Leaving { .. } | Worker::Gone => {}
            }
        }
        self.check_invariants();
    }

    /// Whether no worker is left, nor will come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.workers.iter().all(|&worker| worker == Worker::Gone)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        for seat in 0..self.workers.len() {
            match self.workers[seat] {
                Worker::Busy { since, job, until: Some(until) } if until <= now => {
                    self.kill(seat, since, true);
                    if let Some(job) = job {
                        self.end(job, End::Failed(Reason::TimeLimit));
                    }
                }
                Worker::Leaving { terminated } => self.press(now, seat, terminated),
                Worker::Busy { .. }
                | Worker::Down { .. }
                | Worker::Starting
                | Worker::Idle { .. }
                | Worker::Dying { .. }
                | Worker::Gone => {}
            }
        }
        self.start_due(now);
        self.check_invariants();
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Workers::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let due = |&worker: &Worker| match worker {
            Worker::Down { start_at } => Some(start_at),
            Worker::Busy { until, .. } => until,
            Worker::Leaving { terminated: false } => self.ending_since.map(|since| since + TERMINATE_AFTER),
            Worker::Leaving { terminated: true } => self.ending_since.map(|since| since + KILL_AFTER),
            Worker::Starting | Worker::Idle { .. } | Worker::Dying { .. } | Worker::Gone => None,
        };
        self.workers.iter().filter_map(due).min()
    }

    /// Gives waiting jobs to idle workers.
    fn assign(&mut self, now: Moment) {
        while let Some((seat, since)) = self.idle()
            && let Some(job) = self.queue.pop()
        {
            let until = self.settings.time_limit.map(|limit| now + limit);
            self.workers[seat] = Worker::Busy { since, job: Some(job), until };
            if let Some(found) = &mut self.jobs[job] {
                found.phase = Phase::Served(seat);
            }
            self.actions.push_back(Action::Hand { job, seat });
        }
    }

    fn idle(&self) -> Option<(Seat, Moment)> {
        self.workers.iter().enumerate().find_map(|(seat, worker)| match worker {
            Worker::Idle { since } => Some((seat, *since)),
            Worker::Down { .. }
            | Worker::Starting
            | Worker::Busy { .. }
            | Worker::Dying { .. }
            | Worker::Leaving { .. }
            | Worker::Gone => None,
        })
    }

    /// The worker that had a job has it no more.
    fn give_up(&mut self, job: Place, reason: Reason, untouched: bool) {
        let Some(found) = &mut self.jobs[job] else {
            return;
        };
        found.tries += 1;
        if untouched && found.tries < MAX_TRIES {
            found.phase = Phase::Waiting;
            self.queue.push_first(found.network, job);
        } else {
            self.end(job, End::Failed(reason));
        }
    }

    fn end(&mut self, job: Place, end: End) {
        self.jobs[job] = None;
        self.actions.push_back(Action::End { job, end });
    }

    fn kill(&mut self, seat: Seat, since: Moment, paid: bool) {
        self.workers[seat] = Worker::Dying { since, paid };
        self.actions.push_back(Action::Kill(seat));
    }

    fn dismiss(&mut self, seat: Seat) {
        self.workers[seat] = Worker::Leaving { terminated: false };
        self.actions.push_back(Action::Dismiss(seat));
    }

    /// A worker that was dismissed is still there.
    fn press(&mut self, now: Moment, seat: Seat, terminated: bool) {
        let Some(since) = self.ending_since else {
            return;
        };
        if since + KILL_AFTER <= now {
            self.kill(seat, since, false);
        } else if !terminated && since + TERMINATE_AFTER <= now {
            self.workers[seat] = Worker::Leaving { terminated: true };
            self.actions.push_back(Action::Terminate(seat));
        }
    }

    /// A seat has nobody any more.
    fn free(&mut self, now: Moment, seat: Seat, since: Option<Moment>, paid: bool) {
        if self.ending_since.is_some() {
            self.workers[seat] = Worker::Gone;
            return;
        }
        let death = Death { ready_since: since, cannot_start: false };
        let start_at = match paid {
            true => now,
            false => match self.restarts[seat].after_death(now, death) {
                Verdict::StartAt(at) => at,
                Verdict::GiveUp => now + KILL_AFTER,
            },
        };
        self.workers[seat] = Worker::Down { start_at };
        self.start_due(now);
    }

    fn start_due(&mut self, now: Moment) {
        for (seat, worker) in self.workers.iter_mut().enumerate() {
            if matches!(worker, Worker::Down { start_at } if *start_at <= now) {
                *worker = Worker::Starting;
                self.actions.push_back(Action::Start(seat));
            }
        }
    }

    /// What holds between any two calls.
    fn check_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let waits = |job: &Option<Job>| job.is_some_and(|job| job.phase == Phase::Waiting);
        let idle = self.idle().is_some();
        assert!(!idle || !self.jobs.iter().any(waits), "a job waits though a worker is idle");
        for (seat, worker) in self.workers.iter().enumerate() {
            let served: Vec<Place> = self
                .jobs
                .iter()
                .enumerate()
                .filter(|(_, job)| job.is_some_and(|job| job.phase == Phase::Served(seat)))
                .map(|(place, _)| place)
                .collect();
            match worker {
                Worker::Busy { job, .. } => assert_eq!(served, Vec::from_iter(*job), "worker {seat}"),
                other => assert!(served.is_empty(), "worker {seat} is {other:?}"),
            }
        }
    }
}

/// Whether a worker is there, or about to be, that can serve a job.
fn works(worker: Worker) -> bool {
    match worker {
        Worker::Starting | Worker::Idle { .. } | Worker::Busy { .. } => true,
        Worker::Down { .. } | Worker::Dying { .. } | Worker::Leaving { .. } | Worker::Gone => false,
    }
}
