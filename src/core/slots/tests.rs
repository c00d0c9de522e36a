//! The slots of a principal over books in plain memory.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::*;
use crate::core::dispatch::NoSlot;
use crate::core::job::{End, Garbage, Reason, State};
use crate::wire::jeton::Jeton;
use crate::wire::tube::JobRef;

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CAPACITY: usize = 2;
pub(super) const SETTINGS: Settings =
    Settings { max_jobs: 2, claim_within: Duration::from_secs(5), grace: Duration::from_secs(10) };

/// A job table in plain memory.
#[derive(Default)]
pub(super) struct PlainTable {
    words: [Cell<Option<u64>>; CAPACITY],
    jobs: [Cell<Option<Job>>; CAPACITY],
    reasons: [Cell<Option<Reason>>; CAPACITY],
    groups: [Cell<u32>; CAPACITY],
    claims: [Cell<Option<Moment>>; CAPACITY],
}

impl Table for PlainTable {
    fn capacity(&self) -> u32 {
        2
    }

    fn state(&self, index: u32) -> Result<Word, Garbage> {
        let word = self.words.get(index as usize).ok_or(Garbage(0))?;
        Word::unpack(word.get().unwrap_or(Word::FREE.pack()))
    }

    fn job(&self, index: u32) -> Option<Job> {
        self.jobs.get(index as usize)?.get()
    }

    fn swap(&self, index: u32, from: Word, to: Word) -> bool {
        let is_from = self.state(index) == Ok(from);
        if is_from {
            self.overwrite(index, to);
        }
        is_from
    }

    fn overwrite(&self, index: u32, word: Word) {
        self.words[index as usize].set(Some(word.pack()));
    }

    fn note_claim(&self, index: u32, now: Moment) {
        self.claims[index as usize].set(Some(now));
    }

    fn claimed_at(&self, index: u32) -> Option<Moment> {
        self.claims[index as usize].get()
    }

    fn note_end(&self, _index: u32, _now: Moment) {}

    fn note_reason(&self, index: u32, reason: Reason) {
        self.reasons[index as usize].set(Some(reason));
    }

    fn reason(&self, index: u32) -> Option<Reason> {
        self.reasons[index as usize].get()
    }

    fn note_group(&self, index: u32, group: u32) {
        self.groups[index as usize].set(group);
    }

    fn group(&self, index: u32) -> u32 {
        self.groups[index as usize].get()
    }

    fn last_published(&self) -> JobNumber {
        0
    }

    fn tracked_jobs(&self) -> u64 {
        0
    }
}

/// Books in plain memory, which two principals may keep one after the other.
#[derive(Default)]
pub(super) struct PlainBooks {
    pub(super) tables: [PlainTable; 2],
    accepted: Cell<u64>,
    ends: RefCell<Vec<(JobNumber, State)>>,
    incarnations: [Cell<Incarnation>; 2],
    occupied: [Cell<Option<Occupied>>; 2],
}

impl Books for &PlainBooks {
    type Table = PlainTable;

    fn table(&self, slot: usize) -> &PlainTable {
        &self.tables[slot]
    }

    fn give(&self, slot: usize, entry: u32, job: Job) -> JobNumber {
        let number = self.accepted.get() + 1;
        self.accepted.set(number);
        self.tables[slot].jobs[entry as usize].set(Some(job));
        self.tables[slot].overwrite(entry, Word::given(number, &job));
        number
    }

    fn settle(&self, slot: usize, entry: u32, word: Word) -> bool {
        self.ends.borrow_mut().push((word.number, word.state));
        self.tables[slot].swap(entry, word, word.in_state(State::Free))
    }

    fn redo(&self) {}

    fn set_open(&self, _: usize, _: u32) {}

    fn set_occupied(&self, slot: usize, occupied: Occupied) {
        self.occupied[slot].set(Some(occupied));
    }

    fn last_incarnation(&self, slot: usize) -> Incarnation {
        self.incarnations[slot].get()
    }

    fn reserve(&self, slot: usize, incarnation: Incarnation) {
        self.incarnations[slot].set(incarnation);
    }
}

pub(super) fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

pub(super) fn job(now: Moment) -> Job {
    Job { kind: 0, client: HOME, given_at: now, jeton: None }
}

/// All but what is told of jobs that have ended: that is `super::jobs`' own.
pub(super) fn actions(slots: &mut Slots<&PlainBooks>) -> Vec<Action> {
    let all = std::iter::from_fn(|| slots.poll_action());
    all.filter(|action| !matches!(action, Action::Ended { .. })).collect()
}

/// Two slots whose first secondaries are ready.
pub(super) fn serving(books: &PlainBooks) -> Slots<&PlainBooks> {
    let mut slots = Slots::new(books, 2, SETTINGS, 1);
    slots.handle_takeover(at(0), vec![vec![], vec![]]);
    let starts = [0, 1].map(|slot| Action::Start { slot, incarnation: 1 });
    assert_eq!(actions(&mut slots), starts);
    slots.handle_ready(at(1), 0, 1);
    slots.handle_ready(at(1), 1, 1);
    slots
}

/// What a secondary does with a job that waits.
pub(super) fn claim(books: &PlainBooks, slot: usize, entry: u32, holder: Incarnation) {
    let word = books.tables[slot].state(entry).unwrap();
    assert!(books.tables[slot].swap(entry, word, word.claimed_by(holder)));
}

#[test]
fn a_claimed_job_fails_with_its_server_and_a_waiting_one_outlives_it() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_suspicion(at(2), 1, 1, true);
    for number in 1..=2 {
        assert_eq!(slots.give(job(at(2)), None), Ok(Placed { slot: 0, number }));
    }
    assert_eq!(slots.give(job(at(2)), None), Err(NoSlot::AllFull));
    let told: Vec<_> = actions(&mut slots);
    assert!(matches!(told[..], [Action::Tell { slot: 0, .. }, Action::Tell { slot: 0, .. }]), "{told:?}");
    let entry = (0..2).find(|&entry| books.tables[0].state(entry).unwrap().number == 1).unwrap();
    claim(&books, 0, entry, 1);
    let loss = slots.handle_exited(at(2000), 0, 1, false);
    assert_eq!(loss, Some(Loss { failed: 1, expected: false }));
    assert_eq!(*books.ends.borrow(), [(1, State::Failed)]);
    assert_eq!(actions(&mut slots), [Action::Start { slot: 0, incarnation: 2 }]);
    // Nobody could accept meanwhile: its time begins anew with the successor.
    slots.handle_timeout(at(5002));
    slots.handle_ready(at(6000), 0, 2);
    slots.handle_timeout(at(10_999));
    assert_eq!(books.ends.borrow().len(), 1);
    slots.handle_timeout(at(11_000));
    assert_eq!(books.ends.borrow()[1..], [(2, State::Expired)]);
    assert_eq!(slots.dispatch().open(), 0);
    assert_eq!(slots.handle_exited(at(2000), 0, 1, false), None, "it is dead already");
}

#[test]
fn a_young_death_waits_and_who_cannot_start_stays_down() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_exited(at(5), 0, 1, false);
    slots.handle_exited(at(5), 1, 1, false);
    let waits = actions(&mut slots);
    assert!(matches!(waits[..], [Action::BackOff { deaths: 1, .. }, Action::BackOff { .. }]), "{waits:?}");
    slots.handle_timeout(at(20));
    slots.handle_start_failed(at(20), 0, 2);
    slots.handle_exited(at(21), 1, 2, true);
    let next = actions(&mut slots);
    assert_eq!(next[..2], [0, 1].map(|slot| Action::Start { slot, incarnation: 2 }), "{next:?}");
    assert!(matches!(next[2], Action::BackOff { slot: 0, deaths: 2, .. }), "{next:?}");
    assert_eq!(next[3..], [Action::GiveUp { slot: 1 }]);
    assert_eq!(books.occupied[1].get(), Some(Occupied::GivenUp));
    let at_last = slots.poll_timeout().unwrap();
    slots.handle_timeout(at_last);
    assert_eq!(actions(&mut slots), [Action::Start { slot: 0, incarnation: 3 }], "only that one");
}

#[test]
fn the_jobs_of_a_slot_that_stays_down_expire() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_suspicion(at(2), 1, 1, true);
    slots.give(job(at(2)), None).unwrap();
    slots.handle_exited(at(3), 0, 1, false);
    slots.handle_timeout(at(20));
    slots.handle_exited(at(21), 0, 2, true);
    assert_eq!(books.occupied[0].get(), Some(Occupied::GivenUp));
    slots.handle_timeout(at(5001));
    assert_eq!(*books.ends.borrow(), []);
    slots.handle_timeout(at(5002));
    assert_eq!(*books.ends.borrow(), [(1, State::Expired)]);
}

#[test]
fn a_predecessor_that_outstays_its_grace_is_killed_although_the_watchdog_may_not_know_it() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_draining(at(3), 0, 1);
    slots.handle_draining(at(3), 1, 1);
    slots.handle_exited(at(4), 1, 1, false);
    actions(&mut slots);
    slots.handle_timeout(at(12_002));
    assert_eq!(actions(&mut slots), []);
    slots.handle_timeout(at(12_003));
    assert_eq!(actions(&mut slots), [Action::Kill { slot: 0, incarnation: 1 }]);
}

#[test]
fn who_recycles_is_replaced_at_once_and_may_take_as_long_as_it_needs() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    // However young it is, and however often: this is no death.
    for incarnation in 1..=20 {
        slots.handle_recycling(at(3), 0, incarnation);
        slots.handle_recycling(at(3), 0, incarnation);
        let successor = Action::Start { slot: 0, incarnation: incarnation + 1 };
        assert_eq!(actions(&mut slots), [Action::Retire { slot: 0, incarnation }, successor]);
        slots.handle_ready(at(3), 0, incarnation + 1);
    }
    assert_eq!(slots.handle_exited(at(9), 0, 7, false), Some(Loss { failed: 0, expected: true }));
    slots.handle_timeout(at(3_600_000));
    assert_eq!(actions(&mut slots), [], "nobody is killed");
}

#[test]
fn a_number_that_comes_again_is_not_given_while_a_predecessor_has_it() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_recycling(at(3), 0, 1);
    actions(&mut slots);
    books.incarnations[0].set(Incarnation::MAX);
    slots.handle_recycling(at(4), 0, 2);
    assert_eq!(actions(&mut slots)[1], Action::Start { slot: 0, incarnation: 3 });
}

#[test]
fn a_successor_finds_what_became_of_each_job() {
    let books = PlainBooks::default();
    let mut first = serving(&books);
    for _ in 0..4 {
        first.give(job(at(2)), None).unwrap();
    }
    claim(&books, 0, 0, 1);
    claim(&books, 1, 0, 1);
    let word = books.tables[1].state(1).unwrap().claimed_by(1).in_state(State::Done);
    books.tables[1].overwrite(1, word);
    drop(first);
    let mut second = Slots::new(&books, 2, SETTINGS, 2);
    // The secondary of slot 0 has died, that of slot 1 finishes its exchange.
    second.handle_takeover(at(3), vec![vec![], vec![1]]);
    let ends: Vec<State> = books.ends.borrow().iter().map(|(_, end)| *end).collect();
    assert_eq!(ends, [State::Failed, State::Done]);
    assert_eq!(second.dispatch().open(), 2);
    let starts = [0, 1].map(|slot| Action::Start { slot, incarnation: 2 });
    assert_eq!(actions(&mut second), starts);
    second.handle_exited(at(9), 1, 1, false);
    assert_eq!(books.ends.borrow()[2].1, State::Failed);
    assert_eq!(actions(&mut second), [], "a predecessor is not replaced: its successor serves");
}

#[test]
fn who_writes_into_the_table_hurts_one_job_at_most() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.give(job(at(2)), None).unwrap();
    actions(&mut slots);
    let entry = (0..2).find(|&entry| books.tables[0].state(entry).unwrap().number == 1).unwrap();
    books.tables[0].words[entry as usize].set(Some(u64::MAX));
    books.tables[0].overwrite(1 - entry, Word::waiting(77).in_state(State::Done));
    books.tables[1].overwrite(0, Word::waiting(78));
    slots.look_through(0);
    slots.look_through(1);
    assert_eq!(*books.ends.borrow(), [(1, State::Failed)]);
    assert_eq!(actions(&mut slots).len(), 3, "each entry is mended");
    for (slot, entry) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert_eq!(books.tables[slot].state(entry).unwrap().state, State::Free);
    }
    for index in [2, u32::MAX] {
        slots.handle_debut(0, JobRef { index, number: 1 });
        slots.handle_end(0, JobRef { index, number: 1 });
    }
    assert_eq!(slots.dispatch().open(), 0);
}

/// What a client is told of its only job.
fn reports(slots: &mut Slots<&PlainBooks>) -> Vec<News> {
    let reports = actions(slots).into_iter().filter_map(|action| match action {
        Action::Report { client: ClientId { place: 7, serial: 1 }, number: 1, news } => Some(news),
        _ => None,
    });
    reports.collect()
}

/// Two slots, of which only the first is available, and a job there for a client that listens.
fn one_job(books: &PlainBooks) -> (Slots<&PlainBooks>, JobRef) {
    let mut slots = serving(books);
    slots.handle_suspicion(at(2), 1, 1, true);
    let tracked = Job { jeton: Some(Jeton::from_bytes([5; 16])), ..job(at(2)) };
    slots.give(tracked, Some(ClientId { place: 7, serial: 1 })).unwrap();
    assert_eq!(reports(&mut slots), []);
    let index = (0..2).find(|&entry| books.tables[0].state(entry).unwrap().number == 1).unwrap();
    (slots, JobRef { index, number: 1 })
}

fn ended(end: End, was_claimed: bool) -> News {
    News::Ended { end, was_claimed }
}

#[test]
fn a_table_that_is_looked_through_in_turn_is_mended_again_and_again() {
    let books = PlainBooks::default();
    let (mut slots, job) = one_job(&books);
    claim(&books, 0, job.index, 1);
    for _ in 0..3 {
        books.tables[0].overwrite(1 - job.index, Word::waiting(77));
        books.tables[1].overwrite(1, Word::waiting(78));
        for slot in [0, 1] {
            slots.look_through_in_turn(slot);
        }
        for (slot, entry) in [(0, 1 - job.index), (1, 1)] {
            assert_eq!(books.tables[slot].state(entry).unwrap().state, State::Free);
        }
        assert_eq!(books.tables[0].state(job.index).unwrap().state, State::Claimed);
    }
}

#[test]
fn a_client_is_told_once_that_its_job_was_claimed_and_once_how_it_ended() {
    let books = PlainBooks::default();
    let (mut slots, job) = one_job(&books);
    slots.handle_debut(0, job);
    assert_eq!(reports(&mut slots), [], "the table says otherwise");
    claim(&books, 0, job.index, 1);
    slots.handle_debut(0, job);
    slots.handle_debut(0, job);
    slots.look_through(0);
    assert_eq!(reports(&mut slots), [News::Claimed]);
    let word = books.tables[0].state(job.index).unwrap();
    books.tables[0].note_reason(job.index, Reason::ConnectionLost);
    books.tables[0].overwrite(job.index, word.in_state(State::Failed));
    slots.handle_end(0, job);
    slots.handle_end(0, job);
    slots.look_through(0);
    assert_eq!(reports(&mut slots), [ended(End::Failed(Reason::ConnectionLost), true)]);
}

#[test]
fn a_followed_job_whose_entry_was_overwritten_ends_all_the_same() {
    let books = PlainBooks::default();
    let (mut slots, job) = one_job(&books);
    claim(&books, 0, job.index, 1);
    slots.handle_debut(0, job);
    books.tables[0].words[job.index as usize].set(Some(u64::MAX));
    slots.look_through(0);
    let lost = ended(End::Failed(Reason::SecondaryLost), true);
    assert_eq!(reports(&mut slots), [News::Claimed, lost]);
}

#[test]
fn lost_doorbells_cost_a_client_no_news() {
    let books = PlainBooks::default();
    let (mut slots, job) = one_job(&books);
    claim(&books, 0, job.index, 1);
    slots.look_through(0);
    assert_eq!(reports(&mut slots), [News::Claimed]);

    let books = PlainBooks::default();
    let (mut slots, job) = one_job(&books);
    claim(&books, 0, job.index, 1);
    let word = books.tables[0].state(job.index).unwrap();
    books.tables[0].overwrite(job.index, word.in_state(State::Done));
    slots.look_through(0);
    assert_eq!(reports(&mut slots), [News::Claimed, ended(End::Done, true)]);
}

#[test]
fn a_client_is_told_of_the_death_of_its_secondary_whatever_that_had_noted() {
    let books = PlainBooks::default();
    let (mut slots, job) = one_job(&books);
    claim(&books, 0, job.index, 1);
    books.tables[0].note_reason(job.index, Reason::ConnectionLost);
    slots.handle_exited(at(9), 0, 1, false);
    assert_eq!(reports(&mut slots), [News::Claimed, ended(End::Failed(Reason::SecondaryLost), true)]);
}

#[test]
fn who_does_not_follow_his_job_hears_of_it_until_it_is_claimed() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_suspicion(at(2), 1, 1, true);
    slots.give(job(at(2)), Some(ClientId { place: 7, serial: 1 })).unwrap();
    let entry = (0..2).find(|&entry| books.tables[0].state(entry).unwrap().number == 1).unwrap();
    claim(&books, 0, entry, 1);
    let done = books.tables[0].state(entry).unwrap().in_state(State::Done);
    books.tables[0].overwrite(entry, done);
    slots.look_through(0);
    assert_eq!(reports(&mut slots), [News::Claimed]);
}

#[test]
fn a_client_is_told_that_nobody_came_for_its_job() {
    let books = PlainBooks::default();
    let (mut slots, _) = one_job(&books);
    slots.handle_timeout(at(5002));
    assert_eq!(reports(&mut slots), [ended(End::Expired, false)]);
}

#[test]
fn whoever_comes_uninvited_takes_room_like_any_other() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    for number in 1..=2 {
        assert_eq!(slots.give_uninvited(1, job(at(2))), Ok(Placed { slot: 1, number }));
    }
    assert_eq!(slots.give_uninvited(1, job(at(2))), Err(NoSlot::AllFull));
    assert_eq!(slots.dispatch().load(1).open, 2);
}

#[test]
fn a_stop_ends_the_secondaries_first() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.give(job(at(2)), None).unwrap();
    actions(&mut slots);
    slots.handle_stop(at(3));
    assert!(slots.refuses_requests());
    slots.finish_turn(at(3));
    let stop = |slot| Action::Tell { slot, command: Command::Stop };
    assert_eq!(actions(&mut slots), [Action::RefuseWaiting, stop(1)]);
    assert_eq!(slots.handle_exited(at(4), 1, 1, false), Some(Loss { failed: 0, expected: true }));
    slots.handle_timeout(at(5002));
    slots.finish_turn(at(5002));
    assert_eq!(actions(&mut slots), [stop(0)], "its job has expired");
    slots.handle_exited(at(5003), 0, 1, false);
    slots.finish_turn(at(5003));
    assert_eq!(actions(&mut slots), [Action::End { remove_files: true }]);
}

#[test]
fn without_a_watchdog_nothing_is_accepted_and_all_ends() {
    let books = PlainBooks::default();
    let mut slots = serving(&books);
    slots.handle_watchdog_died(at(3));
    slots.finish_turn(at(3));
    let stop = |slot| Action::Tell { slot, command: Command::Stop };
    assert_eq!(actions(&mut slots), [Action::StopAccepting, Action::RefuseWaiting, stop(0), stop(1)]);
    slots.handle_timeout(at(10_003));
    slots.finish_turn(at(10_003));
    slots.handle_timeout(at(10_400));
    assert_eq!(actions(&mut slots), [Action::KillAll]);
    slots.handle_exited(at(10_401), 0, 1, false);
    slots.handle_exited(at(10_401), 1, 1, false);
    slots.finish_turn(at(10_401));
    assert_eq!(actions(&mut slots), [Action::End { remove_files: false }]);
}
