//! Time limits of jobs whose handler does not come back.
//!
//! A secondary ends a job that takes too long by itself, by a timer of its loop. While a handler
//! blocks, its loop does not run: then its page says which job's handler is at work, and the principal
//! kills it. Of its jobs only that one has failed by its time limit; the others were lost with it.

use std::collections::HashMap;
use std::time::Duration;

use crate::core::job::{Incarnation, State, Table};
use crate::core::moment::Moment;
use crate::core::slots::{Action, Books, Slots, Timer};
use crate::core::timers::TimerId;
use crate::wire::client::TypeIndex;
use crate::wire::tube::JobRef;

/// So much longer than its limit a job may take before its secondary is killed: usually the
/// secondary ends it by itself.
pub const MARGIN: Duration = Duration::from_millis(100);

/// The call of a handler that is under way, as a secondary's page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handling {
    /// For which job.
    pub job: JobRef,
    /// Since when.
    pub since: Moment,
}

/// The jobs of a slot whose time is limited, by their entries.
#[derive(Debug, Default)]
pub(super) struct Limited {
    jobs: HashMap<u32, LimitedJob>,
}

/// A job that was claimed, and whose time is limited.
#[derive(Clone, Copy, Debug)]
struct LimitedJob {
    number: u64,
    limit: Duration,
    /// When to look, and the timer for that.
    look_at: Moment,
    timer: TimerId,
    /// The principal itself was late once.
    put_off: bool,
    /// Its secondary was killed for it.
    condemned: bool,
}

impl<B: Books> Slots<B> {
    /// Jobs of these types may take so long.
    #[must_use]
    pub fn with_limits(mut self, limits: impl IntoIterator<Item = Option<Duration>>) -> Self {
        self.limits = limits.into_iter().collect();
        // Nothing is looked up where no type has one.
        if self.limits.iter().all(Option::is_none) {
            self.limits.clear();
        }
        self
    }

    /// The job at an entry is claimed: looks after it when its time is over.
    pub(super) fn limit(&mut self, slot: usize, entry: u32) {
        if self.limits.is_empty() {
            return;
        }
        let table = self.books.table(slot);
        let number = self.slots[slot].given.get(entry).number;
        let kind: Option<TypeIndex> = table.job(entry).map(|job| job.kind);
        let limit = kind.and_then(|kind| *self.limits.get(kind)?);
        let (Some(limit), Some(claimed_at)) = (limit, table.claimed_at(entry)) else {
            return;
        };
        let look_at = claimed_at + limit + MARGIN;
        let jobs = &mut self.slots[slot].limited.jobs;
        if let Some(known) = jobs.get_mut(&entry) {
            // It was looked at while its secondary had not noted yet when it was claimed.
            if known.look_at != look_at && !known.put_off {
                known.look_at = look_at;
                self.timers.move_to(known.timer, look_at);
            }
            return;
        }
        let timer = self.timers.arm(look_at, Timer::Limit(slot, entry));
        let job = LimitedJob { number, limit, look_at, timer, put_off: false, condemned: false };
        jobs.insert(entry, job);
    }

    /// The job at an entry has ended. Returns whether its secondary was killed for it.
    pub(super) fn forget_limit(&mut self, slot: usize, entry: u32) -> bool {
        if self.limits.is_empty() {
            return false;
        }
        let Some(job) = self.slots[slot].limited.jobs.remove(&entry) else {
            return false;
        };
        self.timers.cancel(job.timer);
        job.condemned
    }

    /// The time of a job is over, and a bit more.
    pub(super) fn limit_is_over(&mut self, now: Moment, slot: usize, entry: u32) {
        let table = self.books.table(slot);
        let Some(job) = self.slots[slot].limited.jobs.get_mut(&entry) else {
            return;
        };
        let claimed =
            table.state(entry).ok().filter(|word| word.state == State::Claimed && word.number == job.number);
        let Some(word) = claimed else {
            // It has ended: the doorbell that says so is still under way.
            return;
        };
        let late = now.since(job.look_at) > MARGIN / 2;
        let due_at = table.claimed_at(entry).map_or(job.look_at, |at| at + job.limit + MARGIN);
        if due_at > now {
            job.look_at = due_at;
        } else if late && !job.put_off {
            // Perhaps all were stopped: the secondary gets its time, too.
            job.look_at = now + MARGIN;
            job.put_off = true;
        } else {
            let job = JobRef { index: entry, number: job.number };
            self.actions.push_back(Action::LookAtHandler { slot, incarnation: word.holder, job });
            return;
        }
        job.timer = self.timers.arm(job.look_at, Timer::Limit(slot, entry));
    }

    /// What a secondary's handler is doing, of which a job's time is over.
    pub fn handle_handling(
        &mut self,
        now: Moment,
        slot: usize,
        incarnation: Incarnation,
        job: JobRef,
        handling: Option<Handling>,
    ) {
        let known = self.slots[slot].limited.jobs.get_mut(&job.index);
        let Some(known) = known.filter(|known| known.number == job.number && !known.condemned) else {
            return;
        };
        match handling {
            Some(handling) if handling.job == job && handling.since + MARGIN > now => {
                known.look_at = handling.since + MARGIN;
                known.timer = self.timers.arm(known.look_at, Timer::Limit(slot, job.index));
            }
            Some(handling) if handling.job == job => {
                known.condemned = true;
                let (since, limit) = (handling.since, known.limit);
                self.actions.push_back(Action::KillForTime { slot, incarnation, job, since, limit });
            }
            // Its loop runs, or another's handler blocks it: it ends the job when it comes to it, and calls
            // no handler for it any more.
            Some(_) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::following::News;
    use crate::core::job::{ClientId, End, Reason};
    use crate::core::slots::tests::{PlainBooks, actions, at, claim, job, serving};

    /// A job of a second that was claimed at 100 ms, and whose start is known at 110 ms.
    fn begun(books: &PlainBooks) -> (Slots<&PlainBooks>, JobRef) {
        let mut slots = serving(books).with_limits([Some(Duration::from_secs(1))]);
        slots.handle_suspicion(at(2), 1, 1, true);
        let client = ClientId { place: 1, serial: 1 };
        let jeton = crate::wire::jeton::Jeton::from_bytes([1; 16]);
        let placed =
            slots.give(crate::core::job::Job { jeton: Some(jeton), ..job(at(2)) }, Some(client)).unwrap();
        let entry =
            (0..2).find(|&entry| books.tables[0].state(entry).unwrap().number == placed.number).unwrap();
        let job = JobRef { index: entry, number: placed.number };
        claim(books, 0, entry, 1);
        books.tables[0].note_claim(entry, at(100));
        slots.handle_debut(0, job);
        actions(&mut slots);
        (slots, job)
    }

    fn looks(job: JobRef) -> [Action; 1] {
        [Action::LookAtHandler { slot: 0, incarnation: 1, job }]
    }

    fn ends(slots: &mut Slots<&PlainBooks>) -> Vec<End> {
        let ended = |action| match action {
            Action::Report { news: News::Ended { end, .. }, .. } => Some(end),
            _ => None,
        };
        actions(slots).into_iter().filter_map(ended).collect()
    }

    #[test]
    fn who_blocks_beyond_the_time_of_its_job_is_killed_and_that_job_has_failed_by_it() {
        let books = PlainBooks::default();
        let (mut slots, job) = begun(&books);
        // Another job of the same secondary.
        slots.give(self::job(at(110)), Some(ClientId { place: 2, serial: 2 })).unwrap();
        claim(&books, 0, 1 - job.index, 1);
        actions(&mut slots);
        slots.handle_timeout(at(1199));
        assert_eq!(actions(&mut slots), []);
        slots.handle_timeout(at(1200));
        assert_eq!(actions(&mut slots), looks(job));
        let handling = Some(Handling { job, since: at(150) });
        slots.handle_handling(at(1200), 0, 1, job, handling);
        let limit = Duration::from_secs(1);
        let kill = Action::KillForTime { slot: 0, incarnation: 1, job, since: at(150), limit };
        assert_eq!(actions(&mut slots), [kill]);
        slots.handle_handling(at(1201), 0, 1, job, handling);
        assert_eq!(actions(&mut slots), [], "it is killed once");
        slots.handle_exited(at(1210), 0, 1, false);
        let ends = ends(&mut slots);
        assert!(ends.contains(&End::Failed(Reason::TimeLimit)), "{ends:?}");
        assert!(slots.limits_are_forgotten());
    }

    #[test]
    fn who_is_at_work_for_another_or_at_nothing_ends_the_job_by_itself() {
        let books = PlainBooks::default();
        let (mut slots, job) = begun(&books);
        slots.handle_timeout(at(1200));
        assert_eq!(actions(&mut slots), looks(job));
        slots.handle_handling(at(1200), 0, 1, job, None);
        let other = JobRef { number: job.number + 1, ..job };
        slots.handle_handling(at(1200), 0, 1, job, Some(Handling { job: other, since: at(150) }));
        slots.handle_timeout(at(5000));
        assert_eq!(actions(&mut slots), []);
        let word = books.tables[0].state(job.index).unwrap();
        books.tables[0].note_reason(job.index, Reason::TimeLimit);
        books.tables[0].overwrite(job.index, word.in_state(State::Failed));
        slots.handle_end(0, job);
        assert_eq!(ends(&mut slots), [End::Failed(Reason::TimeLimit)]);
        assert!(slots.limits_are_forgotten());
    }

    #[test]
    fn a_call_that_began_a_moment_ago_gets_its_moment() {
        let books = PlainBooks::default();
        let (mut slots, job) = begun(&books);
        slots.handle_timeout(at(1200));
        let handling = Some(Handling { job, since: at(1150) });
        slots.handle_handling(at(1200), 0, 1, job, handling);
        assert_eq!(actions(&mut slots), looks(job));
        slots.handle_timeout(at(1249));
        assert_eq!(actions(&mut slots), []);
        slots.handle_timeout(at(1250));
        assert_eq!(actions(&mut slots), looks(job));
        slots.handle_handling(at(1250), 0, 1, job, handling);
        assert!(matches!(actions(&mut slots)[..], [Action::KillForTime { .. }]));
    }

    #[test]
    fn a_principal_that_was_late_itself_gives_the_secondary_its_time_once() {
        let books = PlainBooks::default();
        let (mut slots, job) = begun(&books);
        slots.handle_timeout(at(9000));
        assert_eq!(actions(&mut slots), []);
        slots.handle_timeout(at(9300));
        assert_eq!(actions(&mut slots), looks(job), "who is always late must still look");
    }

    #[test]
    fn when_a_job_was_claimed_is_read_again_when_its_time_seems_to_be_over() {
        let books = PlainBooks::default();
        let (mut slots, job) = begun(&books);
        // What had stood there was of an earlier job.
        books.tables[0].note_claim(job.index, at(500));
        slots.handle_timeout(at(1200));
        assert_eq!(actions(&mut slots), []);
        slots.handle_timeout(at(1600));
        assert_eq!(actions(&mut slots), looks(job));
    }

    #[test]
    fn the_next_principal_looks_after_the_jobs_of_those_who_drain() {
        let books = PlainBooks::default();
        let (first, job) = begun(&books);
        drop(first);
        let settings = crate::core::slots::Settings {
            max_jobs: 2,
            claim_within: Duration::from_secs(5),
            grace: Duration::from_secs(10),
        };
        let mut second = Slots::new(&books, 2, settings, 2).with_limits([Some(Duration::from_secs(1))]);
        second.handle_takeover(at(200), vec![vec![1], vec![]]);
        second.handle_timeout(at(1200));
        assert!(actions(&mut second).contains(&looks(job)[0]));
    }

    #[test]
    fn a_job_that_has_ended_leaves_no_timer() {
        let books = PlainBooks::default();
        let (mut slots, job) = begun(&books);
        let word = books.tables[0].state(job.index).unwrap();
        books.tables[0].overwrite(job.index, word.in_state(State::Done));
        slots.handle_end(0, job);
        assert_eq!(ends(&mut slots), [End::Done]);
        assert!(slots.limits_are_forgotten());
        slots.handle_timeout(at(1200));
        assert_eq!(actions(&mut slots), []);
    }

    impl Slots<&PlainBooks> {
        fn limits_are_forgotten(&self) -> bool {
            self.slots.iter().all(|slot| slot.limited.jobs.is_empty())
        }
    }
}
