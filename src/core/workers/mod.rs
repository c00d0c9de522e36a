//! The workers of one request type in one secondary, and the jobs that they serve.
//!
//! A job first collects its client's message, then waits for a worker, in turn by address, is
//! served, and its answer goes to the client. A worker serves one job at a time. One that dies is
//! replaced; one that keeps a job for too long, or breaks the rules, is killed. Its seat is free
//! again only when it was reaped.
//!
//! A worker that has answered, or dies of a job, is replaced at once: each such start costs a
//! client a job. One that dies without having been of use is replaced after the back-off of
//! [`crate::core::restart`].

mod ending;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::command::GIVE_UP_AFTER;
use crate::core::crowd::Network;
use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::restart::{Death, Restart, Verdict};
use crate::core::turns::Turns;

/// A job that so many workers left untouched when they ended fails with the last of them.
const MAX_TRIES: u8 = 3;
/// A worker that has closed its input or output is killed if it does not end within this time.
const END_WITHIN: Duration = Duration::from_millis(100);
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
    /// Forget a worker that was killed and does not end of it: another has its seat.
    Abandon(Seat),
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

/// What is known of a worker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    /// When it was started.
    since: Moment,
    /// It has answered once, or a job has paid for its end.
    useful: bool,
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worker {
    /// There is none before that moment.
    Down { start_at: Moment },
    /// The shell is to start it.
    Starting,
    /// It waits for a message.
    Idle { life: Life },
    /// It has a message; its client may have left.
    Busy { life: Life, job: Option<Place>, until: Option<Moment> },
    /// It has closed its input or output, so that it is of no more use; it may still have a job, whose
    /// message it may have left untouched.
    Closing { life: Life, job: Option<Place>, untouched: bool, until: Moment },
    /// It was killed; it is waited for until then.
    Dying { life: Life, until: Moment },
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
                if let Worker::Busy { job, .. } | Worker::Closing { job, .. } = &mut self.workers[seat] {
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
            self.workers[seat] = Worker::Idle { life: Life { since: now, useful: false } };
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
            self.free(now, seat, None);
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
        let answered = match &mut self.workers[seat] {
            worker @ Worker::Busy { .. } => {
                let Worker::Busy { life, job, .. } = *worker else { return None };
                *worker = Worker::Idle { life: Life { useful: true, ..life } };
                job
            }
            Worker::Closing { life, job: job @ Some(_), .. } => {
                life.useful = true;
                job.take()
            }
            Worker::Idle { .. } | Worker::Leaving { .. } | Worker::Closing { job: None, .. } => {
                self.handle_nonsense(now, seat, false);
                return None;
            }
            Worker::Dying { .. } | Worker::Down { .. } | Worker::Starting | Worker::Gone => return None,
        };
        if let Some(job) = answered
            && let Some(job) = &mut self.jobs[job]
        {
            job.phase = Phase::Answering { failed };
        }
        self.assign(now);
        self.check_invariants();
        answered
    }

    /// A worker has closed its input or output: most likely it is about to end, and how it ends is
    /// why its job fails, unless the message was left `untouched`. It gets no other.
    pub fn handle_closed(&mut self, now: Moment, seat: Seat, untouched: bool) {
        let until = now + END_WITHIN;
        match self.workers[seat] {
            Worker::Busy { life, job, .. } => {
                self.workers[seat] = Worker::Closing { life, job, untouched, until };
            }
            Worker::Idle { life } => {
                self.workers[seat] = Worker::Closing { life, job: None, untouched: false, until };
            }
            Worker::Closing { life, job, untouched: before, until } => {
                self.workers[seat] = Worker::Closing { life, job, untouched: before || untouched, until };
            }
            Worker::Leaving { .. }
            | Worker::Dying { .. }
            | Worker::Down { .. }
            | Worker::Starting
            | Worker::Gone => {}
        }
        self.check_invariants();
    }

    /// What a worker wrote cannot be understood, or was not asked for: it is killed, and its job
    /// fails, unless its message was `untouched`.
    pub fn handle_nonsense(&mut self, now: Moment, seat: Seat, untouched: bool) {
        let untouched = untouched || self.has_left_message(seat);
        match self.workers[seat] {
            Worker::Busy { life, job, .. } | Worker::Closing { life, job, .. } => {
                self.kill(now, seat, Life { useful: life.useful || job.is_some() && !untouched, ..life });
                if let Some(job) = job {
                    self.give_up(job, Reason::HandlerError, untouched);
                }
                self.assign(now);
            }
            Worker::Idle { life } => self.kill(now, seat, life),
            Worker::Leaving { .. } => self.kill(now, seat, Life { since: now, useful: false }),
            Worker::Dying { .. } | Worker::Down { .. } | Worker::Starting | Worker::Gone => {}
        }
        self.check_invariants();
    }

    /// A worker has ended and was reaped: its job, if it has one, fails with that reason, unless the
    /// worker has left the message `untouched`.
    pub fn handle_ended(&mut self, now: Moment, seat: Seat, reason: Reason, untouched: bool) {
        let untouched = untouched || self.has_left_message(seat);
        match self.workers[seat] {
            Worker::Busy { life, job, .. } | Worker::Closing { life, job, .. } => {
                if let Some(job) = job {
                    self.give_up(job, reason, untouched);
                }
                let useful = life.useful || job.is_some() && !untouched;
                self.free(now, seat, Some(Life { useful, ..life }));
            }
            Worker::Idle { life } | Worker::Dying { life, .. } => self.free(now, seat, Some(life)),
            Worker::Leaving { .. } => self.workers[seat] = Worker::Gone,
            Worker::Down { .. } | Worker::Starting | Worker::Gone => {}
        }
        self.fail_if_hopeless(now, reason);
        self.assign(now);
        self.check_invariants();
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        for seat in 0..self.workers.len() {
            match self.workers[seat] {
                Worker::Busy { life, job, until: Some(until) } if until <= now => {
                    self.kill(now, seat, Life { useful: true, ..life });
                    if let Some(job) = job {
                        self.end(job, End::Failed(Reason::TimeLimit));
                    }
                }
                Worker::Closing { until, .. } if until <= now => self.handle_nonsense(now, seat, false),
                Worker::Leaving { terminated } => self.press(now, seat, terminated),
                Worker::Dying { life, until } if until <= now => self.abandon(now, seat, life),
                Worker::Busy { .. }
                | Worker::Closing { .. }
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
            Worker::Down { start_at: at }
            | Worker::Closing { until: at, .. }
            | Worker::Dying { until: at, .. } => Some(at),
            Worker::Busy { until, .. } => until,
            Worker::Leaving { terminated: false } => self.ending_since.map(ending::terminate_at),
            Worker::Leaving { terminated: true } => self.ending_since.map(ending::kill_at),
            Worker::Starting | Worker::Idle { .. } | Worker::Gone => None,
        };
        self.workers.iter().filter_map(due).min()
    }

    /// Gives waiting jobs to idle workers.
    fn assign(&mut self, now: Moment) {
        while let Some((seat, life)) = self.idle()
            && let Some(job) = self.queue.pop()
        {
            let until = self.settings.time_limit.map(|limit| now + limit);
            self.workers[seat] = Worker::Busy { life, job: Some(job), until };
            if let Some(found) = &mut self.jobs[job] {
                found.phase = Phase::Served(seat);
            }
            self.actions.push_back(Action::Hand { job, seat });
        }
    }

    fn idle(&self) -> Option<(Seat, Life)> {
        self.workers.iter().enumerate().find_map(|(seat, worker)| match worker {
            Worker::Idle { life } => Some((seat, *life)),
            Worker::Down { .. }
            | Worker::Starting
            | Worker::Busy { .. }
            | Worker::Closing { .. }
            | Worker::Dying { .. }
            | Worker::Leaving { .. }
            | Worker::Gone => None,
        })
    }

    /// Whether it has closed its input before it has read anything of its message.
    fn has_left_message(&self, seat: Seat) -> bool {
        matches!(self.workers[seat], Worker::Closing { untouched: true, .. })
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

    fn kill(&mut self, now: Moment, seat: Seat, life: Life) {
        self.workers[seat] = Worker::Dying { life, until: now + GIVE_UP_AFTER };
        self.actions.push_back(Action::Kill(seat));
    }

    /// A seat has nobody any more.
    fn free(&mut self, now: Moment, seat: Seat, life: Option<Life>) {
        if self.ending_since.is_some() {
            self.workers[seat] = Worker::Gone;
            return;
        }
        let death = Death { ready_since: life.map(|life| life.since), cannot_start: false };
        let start_at = match life {
            Some(Life { useful: true, .. }) => {
                self.restarts[seat].forgive();
                now
            }
            Some(_) | None => match self.restarts[seat].after_death(now, death) {
                Verdict::StartAt(at) => at,
                Verdict::GiveUp => unreachable!("nobody said that it cannot start"),
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
                Worker::Busy { job, .. } | Worker::Closing { job, .. } => {
                    assert_eq!(served, Vec::from_iter(*job), "worker {seat}")
                }
                other => assert!(served.is_empty(), "worker {seat} is {other:?}"),
            }
        }
    }
}

/// Whether a worker is there, or about to be, that can serve a job.
fn works(worker: Worker) -> bool {
    match worker {
        Worker::Starting | Worker::Idle { .. } | Worker::Busy { .. } => true,
        Worker::Down { .. }
        | Worker::Closing { .. }
        | Worker::Dying { .. }
        | Worker::Leaving { .. }
        | Worker::Gone => false,
    }
}
