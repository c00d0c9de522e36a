//! Ends: of all workers (their input is closed, then they are told, then they are killed), of one that
//! does not end, and of jobs that have nobody to hope for.

use std::time::Duration;

use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::workers::{Action, Life, Seat, Worker, Workers};

/// A worker that is dismissed gets SIGTERM after this time,
const TERMINATE_AFTER: Duration = Duration::from_millis(100);
/// and is killed after this.
const KILL_AFTER: Duration = Duration::from_secs(1);

/// So long jobs wait for the next attempt to start a worker, where there is no other.
const SOON: Duration = Duration::from_secs(1);

pub(super) fn terminate_at(ending_since: Moment) -> Moment {
    ending_since + TERMINATE_AFTER
}

pub(super) fn kill_at(ending_since: Moment) -> Moment {
    ending_since + KILL_AFTER
}

impl Workers {
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
                Worker::Busy { life, .. } | Worker::Closing { life, .. } => self.kill(now, seat, life),
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

    /// A worker is to end by itself.
    pub(super) fn dismiss(&mut self, seat: Seat) {
        self.workers[seat] = Worker::Leaving { terminated: false };
        self.actions.push_back(Action::Dismiss(seat));
    }

    /// Where no worker is there and none comes soon, those who wait are told why: one broken command
    /// must not fill the job table.
    pub(super) fn fail_if_hopeless(&mut self, now: Moment, reason: Reason) {
        let comes_soon = |worker: &Worker| match worker {
            Worker::Down { start_at } => *start_at <= now + SOON,
            Worker::Gone => false,
            Worker::Starting
            | Worker::Idle { .. }
            | Worker::Busy { .. }
            | Worker::Closing { .. }
            | Worker::Dying { .. }
            | Worker::Leaving { .. } => true,
        };
        if !self.workers.iter().any(comes_soon) {
            while let Some(job) = self.queue.pop() {
                self.end(job, End::Failed(reason));
            }
        }
    }

    /// A worker was killed and does not end.
    pub(super) fn abandon(&mut self, now: Moment, seat: Seat, life: Life) {
        self.actions.push_back(Action::Abandon(seat));
        self.free(now, seat, Some(life));
        self.fail_if_hopeless(now, Reason::Signal(9));
    }

    /// A worker that was dismissed is still there.
    pub(super) fn press(&mut self, now: Moment, seat: Seat, terminated: bool) {
        let Some(since) = self.ending_since else {
            return;
        };
        if kill_at(since) <= now {
            self.kill(now, seat, Life { since, useful: false });
        } else if !terminated && terminate_at(since) <= now {
            self.workers[seat] = Worker::Leaving { terminated: true };
            self.actions.push_back(Action::Terminate(seat));
        }
    }
}
