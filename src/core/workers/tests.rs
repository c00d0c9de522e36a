//! The workers against stories, and against a model of the shell under random events.

use super::*;
use std::net::IpAddr;

use proptest::prelude::*;

fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

fn network(last: u8) -> Network {
    IpAddr::from([127, 0, 0, last]).into()
}

/// Workers that were all started at once.
fn started(workers: usize, time_limit: Option<u64>) -> Workers {
    let settings = Settings { workers, time_limit: time_limit.map(Duration::from_millis) };
    let mut pool = Workers::new(at(0), settings, 7);
    for seat in 0..workers {
        assert_eq!(pool.poll_action(), Some(Action::Start(seat)));
        pool.handle_started(at(0), seat);
    }
    assert_eq!(pool.poll_action(), None);
    pool
}

/// A job whose message is complete.
fn ask(pool: &mut Workers, now: u64, job: Place) {
    pool.handle_job(job, network(1));
    pool.handle_message(at(now), job);
}

fn actions(pool: &mut Workers) -> Vec<Action> {
    std::iter::from_fn(|| pool.poll_action()).collect()
}

fn failed(job: Place, reason: Reason) -> Action {
    Action::End { job, end: End::Failed(reason) }
}

#[test]
fn jobs_go_one_after_another_to_one_worker() {
    let mut pool = started(1, None);
    ask(&mut pool, 1, 0);
    ask(&mut pool, 2, 1);
    assert_eq!(actions(&mut pool), [Action::Hand { job: 0, seat: 0 }]);
    assert_eq!(pool.handle_answer(at(3), 0, false), Some(0));
    assert_eq!(actions(&mut pool), [Action::Hand { job: 1, seat: 0 }]);
    pool.handle_taken(0);
    assert_eq!(actions(&mut pool), [Action::End { job: 0, end: End::Done }]);
    assert_eq!(pool.handle_answer(at(4), 0, true), Some(1));
    pool.handle_taken(1);
    assert_eq!(actions(&mut pool), [failed(1, Reason::HandlerError)]);
    assert_eq!(pool.poll_timeout(), None);
}

#[test]
fn addresses_take_turns() {
    let mut pool = started(1, None);
    for (job, of) in [(0, 1), (1, 1), (2, 1), (3, 2)] {
        pool.handle_job(job, network(of));
        pool.handle_message(at(1), job);
    }
    let mut order = Vec::new();
    while let Some(action) = pool.poll_action() {
        if let Action::Hand { job, seat } = action {
            order.push(job);
            pool.handle_answer(at(2), seat, false);
        }
    }
    assert_eq!(order, [0, 1, 3, 2]);
}

#[test]
fn a_hung_worker_is_killed_and_replaced_once_it_was_reaped() {
    let mut pool = started(1, Some(100));
    ask(&mut pool, 10, 0);
    ask(&mut pool, 11, 1);
    assert_eq!(actions(&mut pool), [Action::Hand { job: 0, seat: 0 }]);
    assert_eq!(pool.poll_timeout(), Some(at(110)));
    pool.handle_timeout(at(110));
    assert_eq!(actions(&mut pool), [Action::Kill(0), failed(0, Reason::TimeLimit)]);
    pool.handle_ended(at(111), 0, Reason::Signal(9), false);
    assert_eq!(actions(&mut pool), [Action::Start(0)]);
    pool.handle_started(at(112), 0);
    assert_eq!(actions(&mut pool), [Action::Hand { job: 1, seat: 0 }]);
    assert_eq!(pool.poll_timeout(), Some(at(212)), "its time begins when a worker gets it");
}

#[test]
fn who_does_not_end_of_sigkill_loses_its_seat() {
    let mut pool = started(1, Some(100));
    ask(&mut pool, 10, 0);
    ask(&mut pool, 10, 1);
    pool.handle_timeout(at(110));
    actions(&mut pool);
    assert_eq!(pool.poll_timeout(), Some(at(1110)));
    pool.handle_timeout(at(1110));
    assert_eq!(actions(&mut pool), [Action::Abandon(0), Action::Start(0)]);
    pool.handle_started(at(1110), 0);
    assert_eq!(actions(&mut pool), [Action::Hand { job: 1, seat: 0 }]);
    pool.handle_stop(at(1111));
    assert_eq!(actions(&mut pool), [failed(1, Reason::Stopping), Action::Kill(0)]);
    pool.handle_timeout(at(2111));
    assert_eq!(actions(&mut pool), [Action::Abandon(0)]);
    assert!(pool.has_ended());
}

#[test]
fn a_worker_that_dies_takes_its_own_job_with_it() {
    let mut pool = started(2, None);
    for job in 0..3 {
        ask(&mut pool, 1, job);
    }
    actions(&mut pool);
    pool.handle_ended(at(2), 0, Reason::Exit(3), false);
    assert_eq!(actions(&mut pool), [failed(0, Reason::Exit(3)), Action::Start(0)]);
    pool.handle_started(at(3), 0);
    assert_eq!(actions(&mut pool), [Action::Hand { job: 2, seat: 0 }]);
}

#[test]
fn a_message_that_nobody_has_read_goes_to_the_next_worker_but_not_for_ever() {
    let mut pool = started(1, None);
    ask(&mut pool, 1, 0);
    ask(&mut pool, 1, 1);
    let mut now = 2;
    for _ in 0..2 {
        assert_eq!(actions(&mut pool), [Action::Hand { job: 0, seat: 0 }]);
        pool.handle_ended(at(now), 0, Reason::Exit(0), true);
        assert_eq!(actions(&mut pool), []);
        now += 100;
        pool.handle_timeout(at(now));
        assert_eq!(actions(&mut pool), [Action::Start(0)]);
        pool.handle_started(at(now), 0);
    }
    assert_eq!(actions(&mut pool), [Action::Hand { job: 0, seat: 0 }]);
    pool.handle_ended(at(now), 0, Reason::Exit(0), true);
    assert_eq!(actions(&mut pool), [failed(0, Reason::Exit(0))]);
}

#[test]
fn who_dies_without_a_job_waits_longer_each_time() {
    let mut pool = started(1, None);
    let mut waited = Vec::new();
    let mut now = at(1);
    for _ in 0..6 {
        pool.handle_ended(now, 0, Reason::Exit(1), false);
        let start_at = pool.poll_timeout().unwrap();
        waited.push(start_at.since(now).as_millis());
        pool.handle_timeout(start_at);
        assert_eq!(actions(&mut pool), [Action::Start(0)]);
        pool.handle_started(start_at, 0);
        now = start_at;
    }
    assert!(waited.is_sorted() && waited[0] >= 8 && waited[5] >= 256, "{waited:?}");
}

#[test]
fn a_client_that_leaves_gives_its_turn_to_the_next() {
    let mut pool = started(1, None);
    for job in 0..3 {
        ask(&mut pool, 1, job);
    }
    pool.handle_end(1, End::Failed(Reason::ConnectionLost));
    pool.handle_end(0, End::Failed(Reason::ConnectionLost));
    let lost = |job| failed(job, Reason::ConnectionLost);
    assert_eq!(actions(&mut pool), [Action::Hand { job: 0, seat: 0 }, lost(1), lost(0)]);
    assert_eq!(pool.handle_answer(at(3), 0, false), None, "nobody is there to hear it");
    assert_eq!(actions(&mut pool), [Action::Hand { job: 2, seat: 0 }]);
}

#[test]
fn a_worker_that_speaks_unasked_is_killed() {
    let mut pool = started(1, None);
    assert_eq!(pool.handle_answer(at(1), 0, false), None);
    assert_eq!(actions(&mut pool), [Action::Kill(0)]);
    ask(&mut pool, 2, 0);
    assert_eq!(actions(&mut pool), []);
    pool.handle_ended(at(3), 0, Reason::Signal(9), false);
    assert_eq!(actions(&mut pool), [], "it waits: no job has paid for it");
    pool.handle_timeout(at(100));
    pool.handle_started(at(100), 0);
    assert_eq!(actions(&mut pool), [Action::Start(0), Action::Hand { job: 0, seat: 0 }]);
    pool.handle_nonsense(at(101), 0, false);
    assert_eq!(actions(&mut pool), [Action::Kill(0), failed(0, Reason::HandlerError)]);
}

#[test]
fn a_worker_that_closes_its_output_is_waited_for_but_not_long() {
    let mut pool = started(1, None);
    ask(&mut pool, 1, 0);
    actions(&mut pool);
    pool.handle_closed(at(2), 0, false);
    ask(&mut pool, 3, 1);
    assert_eq!(actions(&mut pool), [], "it gets nothing more");
    pool.handle_ended(at(3), 0, Reason::Exit(4), false);
    assert_eq!(actions(&mut pool), [failed(0, Reason::Exit(4)), Action::Start(0)]);
    pool.handle_started(at(4), 0);
    actions(&mut pool);
    pool.handle_closed(at(5), 0, false);
    pool.handle_timeout(pool.poll_timeout().unwrap());
    assert_eq!(actions(&mut pool), [Action::Kill(0), failed(1, Reason::HandlerError)]);
}

#[test]
fn a_worker_that_ends_after_each_job_is_replaced_at_once() {
    let mut pool = started(1, None);
    for job in 0..9 {
        ask(&mut pool, 1, job);
        assert_eq!(actions(&mut pool), [Action::Hand { job, seat: 0 }]);
        assert_eq!(pool.handle_answer(at(1), 0, false), Some(job));
        pool.handle_ended(at(1), 0, Reason::Exit(0), false);
        assert_eq!(actions(&mut pool), [Action::Start(0)]);
        pool.handle_started(at(1), 0);
    }
}

#[test]
fn where_nothing_can_be_started_one_job_fails_for_each_attempt() {
    let settings = Settings { workers: 1, time_limit: None };
    let mut pool = Workers::new(at(0), settings, 7);
    ask(&mut pool, 0, 0);
    ask(&mut pool, 0, 1);
    assert_eq!(actions(&mut pool), [Action::Start(0)]);
    pool.handle_not_started(at(0), 0);
    assert_eq!(actions(&mut pool), [failed(0, Reason::CannotStart)]);
    assert!(pool.poll_timeout().unwrap() > at(0));
}

#[test]
fn at_the_end_workers_are_asked_then_told_then_killed() {
    let mut pool = started(2, None);
    ask(&mut pool, 1, 0);
    actions(&mut pool);
    pool.handle_stop(at(10));
    assert_eq!(actions(&mut pool), [failed(0, Reason::Stopping), Action::Kill(0), Action::Dismiss(1)]);
    pool.handle_ended(at(11), 0, Reason::Signal(9), false);
    assert_eq!(pool.poll_timeout(), Some(at(110)));
    pool.handle_timeout(at(110));
    assert_eq!(actions(&mut pool), [Action::Terminate(1)]);
    pool.handle_timeout(at(1010));
    assert_eq!(actions(&mut pool), [Action::Kill(1)]);
    assert!(!pool.has_ended());
    pool.handle_ended(at(1011), 1, Reason::Signal(9), false);
    assert!(pool.has_ended());
    assert_eq!((actions(&mut pool), pool.poll_timeout()), (vec![], None));
}

/// What the shell and the world know, and what must hold whatever happens.
struct World {
    pool: Workers,
    now: u64,
    /// Workers that live; what they have.
    living: Vec<Option<Option<Place>>>,
    killed: Vec<bool>,
    /// Jobs that have not ended: how often each was handed out.
    open: std::collections::BTreeMap<Place, u32>,
    answering: Vec<Place>,
    ended: usize,
    begun: usize,
}

impl World {
    fn new(workers: usize, time_limit: Option<u64>) -> Self {
        let settings = Settings { workers, time_limit: time_limit.map(Duration::from_millis) };
        Self {
            pool: Workers::new(at(0), settings, 3),
            now: 0,
            living: vec![None; workers],
            killed: vec![false; workers],
            open: std::collections::BTreeMap::new(),
            answering: Vec::new(),
            ended: 0,
            begun: 0,
        }
    }

    fn act(&mut self, starts: bool) {
        while let Some(action) = self.pool.poll_action() {
            match action {
                Action::Start(seat) => {
                    assert!(self.living[seat].is_none(), "started while its predecessor lives");
                    if starts {
                        self.living[seat] = Some(None);
                        self.pool.handle_started(at(self.now), seat);
                    } else {
                        self.pool.handle_not_started(at(self.now), seat);
                    }
                }
                Action::Hand { job, seat } => {
                    assert!(!self.killed[seat], "a job for a worker that was killed");
                    let has = self.living[seat].as_mut().unwrap();
                    assert_eq!(*has, None, "a worker with two jobs");
                    *has = Some(job);
                    // Its client may have left before the shell came to it.
                    if let Some(handed) = self.open.get_mut(&job) {
                        *handed += 1;
                        assert!(*handed <= u32::from(MAX_TRIES));
                    }
                }
                Action::Kill(seat) => {
                    assert!(self.living[seat].is_some(), "killed though it is not there");
                    self.killed[seat] = true;
                }
                Action::Abandon(seat) => {
                    assert!(std::mem::take(&mut self.killed[seat]), "abandoned though it was not killed");
                    self.living[seat] = None;
                }
                Action::Dismiss(seat) | Action::Terminate(seat) => assert!(self.living[seat].is_some()),
                Action::End { job, .. } => {
                    assert!(self.open.remove(&job).is_some(), "job {job} has ended twice");
                    self.answering.retain(|&other| other != job);
                    self.ended += 1;
                }
            }
        }
    }

    fn die(&mut self, seat: usize, untouched: bool) {
        if self.living[seat].take().is_some() {
            self.killed[seat] = false;
            self.pool.handle_ended(at(self.now), seat, Reason::Exit(1), untouched);
        }
    }

    fn step(&mut self, what: u8, which: usize, starts: bool) {
        let seat = which % self.living.len();
        match what {
            0 | 1 => {
                let place = (0..).find(|place| !self.open.contains_key(place)).unwrap();
                self.open.insert(place, 0);
                self.begun += 1;
                self.pool.handle_job(place, network(which.to_le_bytes()[0] % 3));
                if what == 0 {
                    self.pool.handle_message(at(self.now), place);
                }
            }
            2 => self.pool.handle_message(at(self.now), which),
            3 => self.pool.handle_end(which, End::Failed(Reason::ConnectionLost)),
            4 | 5 => {
                if let Some(has) = &mut self.living[seat] {
                    let has = has.take();
                    let told = self.pool.handle_answer(at(self.now), seat, which.is_multiple_of(2));
                    assert!(told.is_none() || told == has, "an answer for another job");
                    self.answering.extend(told);
                }
            }
            6 => {
                if let Some(job) = self.answering.pop() {
                    self.pool.handle_taken(job);
                }
            }
            7 => self.die(seat, which % 2 == 1),
            11 if self.living[seat].is_some() => self.pool.handle_closed(at(self.now), seat, which % 2 == 1),
            8 if self.living[seat].is_some() => {
                self.pool.handle_nonsense(at(self.now), seat, which % 2 == 1);
            }
            _ => {
                // Now and then so long that who was killed should have ended.
                self.now += which as u64 * if what == 10 { 40 } else { 1 };
                self.pool.handle_timeout(at(self.now));
            }
        }
        self.act(starts);
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_job_ends_once_and_no_worker_has_two(
        workers in 1usize..4,
        time_limit in prop::option::of(5u64..200),
        steps in prop::collection::vec((0u8..12, 0usize..60, prop::bool::weighted(0.9)), 1..200),
    ) {
        let mut world = World::new(workers, time_limit);
        world.act(true);
        for (what, which, starts) in steps {
            world.step(what, which, starts);
        }
        prop_assert_eq!(world.begun, world.ended + world.open.len());
        // Who is there and works gets everything done.
        for _ in 0..400 {
            for job in world.open.keys().copied().collect::<Vec<_>>() {
                world.pool.handle_message(at(world.now), job);
            }
            for seat in 0..workers {
                if world.killed[seat] {
                    world.die(seat, false);
                }
                if matches!(world.living[seat], Some(Some(_))) {
                    world.step(4, seat, true);
                }
            }
            world.step(6, 0, true);
            world.step(9, 50, true);
        }
        prop_assert_eq!(world.open.len(), 0);
        prop_assert_eq!(world.begun, world.ended);
        world.pool.handle_stop(at(world.now));
        world.act(true);
        for seat in 0..workers {
            world.die(seat, false);
        }
        world.act(true);
        prop_assert!(world.pool.has_ended());
        prop_assert_eq!(world.pool.poll_timeout(), None);
    }
}
