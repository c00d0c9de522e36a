//! The cores of all three roles in made-up worlds: virtual time, a modelled machine, seeded
//! chance.
//!
//! The real [`osps::core::tree::Tree`], [`osps::core::slots::Slots`] over the real
//! [`osps::page::books::Books`], and [`osps::core::service::Service`] are driven as the shells
//! of the roles drive them, while processes freeze, starve, spin, die between any two stores or
//! system calls, are stopped, drained and started again, and clients come and go. What they do
//! is checked against the world. One seed is one world: `OSPS_SEED=42 cargo test --test
//! simulation one -- --nocapture` lives through it again and prints what happened.
#![allow(clippy::unwrap_used)]

mod arrivals;
mod audit;
mod books;
mod boot;
mod clients;
mod control;
mod crash;
mod dice;
mod faults;
mod fifo;
mod kernel;
mod leaving;
mod liveness;
mod machine;
mod meeting;
mod net;
mod observer;
mod observing;
mod plan;
mod principal;
mod promotion;
mod reload;
mod sabotage;
mod secondary;
mod servers;
mod succession;
mod talks;
mod trace;
mod watchdog;

use std::panic::{AssertUnwindSafe, catch_unwind};

use osps::os::rundir::Rundir;

use audit::{Coverage, Rule, Violation};
use dice::Dice;
use machine::Machine;
use plan::Plan;
use sabotage::Sabotage;
use trace::Trace;

/// What became of a world.
struct Run {
    coverage: Coverage,
    trace: Trace,
    violation: Option<Violation>,
}

/// Where the pages of a world are.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        Self(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap())
    }

    /// Lives through the world of a seed.
    fn run(&self, seed: u64, sabotage: Sabotage, traced: bool) -> Run {
        let rundir = Rundir::at(self.0.path());
        rundir.clean().unwrap();
        let mut dice = Dice::new(seed);
        let mut plan = Plan::draw(&mut dice);
        plan.tilt(sabotage);
        let mut machine = Machine::new(plan, dice, sabotage, traced, rundir);
        let lived = catch_unwind(AssertUnwindSafe(|| machine.live()));
        if let Err(panic) = lived {
            machine.complain(Rule::Assertion, crash::words(&*panic));
        }
        Run { coverage: machine.audit.coverage, trace: machine.trace, violation: machine.audit.violation }
    }
}

/// What must have happened in some world, or the worlds are too tame.
#[cfg(debug_assertions)]
const MUST_HAPPEN: &[&str] = &[
    "Observer restarted",
    "Observer said that it cannot start",
    "Principal restarted",
    "Principal said that it cannot start",
    "SIGTERM to a principal",
    "SIGTERM to a secondary",
    "SIGTERM to an observer",
    "SIGTERM to the group",
    "Secondary restarted",
    "Secondary said that it cannot start",
    "Suspect",
    "Trust",
    "a FIFO was full",
    "a forged signal",
    "a frame of connections was handed over",
    "a job ended while nobody kept the books",
    "a job was claimed while nobody kept the books",
    "a place among the connections was used again",
    "a reload was refused",
    "a report came for who has gone",
    "a request that waited was handed over",
    "a request waited for a secondary",
    "a request waited for too long",
    "a slot was told to rest",
    "a slot was told to start again",
    "a slot's server was retired",
    "a successor adopted a predecessor's secondary",
    "a word came too late",
    "a writer overflowed",
    "all ended without a watchdog",
    "all was reported before the end",
    "an exchange was cut off",
    "an idle control connection was closed",
    "answered while it handed over",
    "backed off",
    "blocked in a handler",
    "came again with its jeton",
    "came uninvited and was let in",
    "claimed for an undecided connection while draining",
    "client: Broken",
    "client: Left",
    "client: Refused",
    "client: Rejected",
    "client: Served",
    "client: TooLate",
    "closed the books",
    "died after a job was published",
    "died before it was ready",
    "died before its last word, but after its connections were handed over",
    "died between two turns",
    "died in the middle of a turn",
    "doorbells stolen",
    "drained by itself",
    "ended its input, and followed on",
    "ended without a principal",
    "finished",
    "forgiven",
    "garbage in a FIFO",
    "gave a slot up",
    "gave up",
    "handed over while a secondary was starting",
    "handed over with a job that waited",
    "handed over with a job under way",
    "hung before it was ready",
    "hung up on a tracked job",
    "job: Done",
    "job: Expired",
    "job: Failed with its server",
    "job: Failed",
    "kept: SIGTERM",
    "kept: another order has come",
    "kept: its successor has ended",
    "kept: its successor was silent",
    "killed, but does not end",
    "killed: GraceOver",
    "killed: NoAnswer",
    "killed: Orphaned",
    "killed: SlowStart",
    "killed: Spinning",
    "killed: Stopped",
    "killed: Stopping",
    "killed: TimeLimit",
    "no room for who came uninvited",
    "observer: brought by a reload",
    "observer: died before it was ready",
    "observer: died between two turns",
    "observer: died during a stop",
    "observer: died in the middle of a turn",
    "observer: given up",
    "observer: hung before it was ready",
    "observer: its order to go was stolen",
    "observer: killed: GraceOver",
    "observer: killed: NoAnswer",
    "observer: killed: SlowStart",
    "observer: killed: Spinning",
    "observer: killed: Stopped",
    "observer: killed: Stopping",
    "observer: left without a watchdog",
    "observer: not there at the end",
    "observer: renewed by a reload",
    "observer: served at the end",
    "observer: slow to start",
    "observer: spawn failed",
    "observer: stayed down at the end",
    "observer: stuck: Spinning",
    "observer: stuck: Starved",
    "observer: stuck: Stopped",
    "observer: stuck: Waiting",
    "observer: taken away by a reload",
    "observer: told to go last",
    "observer: wanted from the start",
    "ordered to drain",
    "recorded: Done",
    "recorded: Expired",
    "recorded: Failed",
    "recovered",
    "recycled",
    "recycled, and took longer than grace",
    "reload: kept",
    "reload: nobody was started",
    "reload: refused",
    "reload: succeeded",
    "reload: succeeded, and nobody disturbed it",
    "reload: the new principal ended before it served",
    "reload: the new principal ended",
    "reload: the old principal ended before it had handed over",
    "reload: the system stops",
    "replaced during a stop",
    "reported: debuttraitement",
    "reported: errtraitement connection lost",
    "reported: errtraitement expired",
    "reported: errtraitement secondary lost",
    "reported: errtraitement stopping",
    "reported: errtraitement time limit",
    "reported: fintraitement",
    "served: plain",
    "served: tracked",
    "something was postponed while all was handed over",
    "spawn failed",
    "stalled",
    "stop at once",
    "stop",
    "stopped before it was ready",
    "stopped in two void rounds",
    "stuck: Spinning",
    "stuck: Starved",
    "stuck: Stopped",
    "stuck: Waiting",
    "the machine stood still",
    "the watchdog died",
    "turned away: a jeton of no job",
    "turned away: broken",
    "turned away: crowded",
    "turned away: no jeton",
    "turned away: plain",
    "turned away: waited in vain",
    "undecided: plain by silence",
    "undecided: plain",
    "undecided: tracked",
    "went on when its principal had handed over",
    "who has a jeton was let in as plain",
    "who was to take over died",
    "who was to take over hung",
];
/// Without debug assertions there is no fuse.
#[cfg(not(debug_assertions))]
const MUST_HAPPEN: &[&str] = &[];

/// Lives through many worlds; at the first broken rule, once more and aloud.
fn live_through(seeds: impl Iterator<Item = u64>) -> Coverage {
    let place = Place::new();
    let mut coverage = Coverage::default();
    for seed in seeds {
        let run = place.run(seed, Sabotage::None, false);
        if let Some(violation) = run.violation {
            let trace = place.run(seed, Sabotage::None, true).trace.tail(100);
            panic!("OSPS_SEED={seed}: {violation:?}\n{trace}\n{violation:?}\nreplay with OSPS_SEED={seed}");
        }
        coverage += run.coverage;
    }
    coverage
}

#[test]
fn hundreds_of_worlds() {
    let coverage = live_through(0..384);
    for what in MUST_HAPPEN {
        assert!(coverage.0.contains_key(*what), "never happened: {what}; {coverage:#?}");
    }
}

#[test]
#[ignore = "a wide sweep; minutes: cargo test --profile sweep --test simulation -- --ignored --nocapture"]
fn a_hundred_thousand_worlds() {
    let worlds = std::env::var("OSPS_WORLDS").map_or(100_000, |worlds| worlds.parse().expect("a number"));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let coverage = std::thread::scope(|scope| {
        let part = |first| scope.spawn(move || live_through((first..worlds).step_by(threads)));
        let parts: Vec<_> = (0..).take(threads).map(part).collect();
        parts.into_iter().map(|part| part.join().unwrap()).fold(Coverage::default(), |mut sum, part| {
            sum += part;
            sum
        })
    });
    println!("{coverage:#?}");
}

#[test]
fn one_world_by_its_seed() {
    let seed = std::env::var("OSPS_SEED").map_or(0, |seed| seed.parse().expect("OSPS_SEED is a number"));
    let run = Place::new().run(seed, Sabotage::None, true);
    println!("{}\n{:#?}", run.trace, run.coverage);
    assert_eq!(run.violation, None);
}

#[test]
fn a_seed_has_one_world() {
    let mut lines = 0;
    for seed in 0..32 {
        let (first, second) =
            (Place::new().run(seed, Sabotage::None, true), Place::new().run(seed, Sabotage::None, true));
        assert!(first.trace == second.trace, "seed {seed} has two worlds");
        lines += first.trace.len();
        let silent = Place::new().run(seed, Sabotage::None, false);
        assert_eq!(first.coverage, silent.coverage, "listening changes the world of seed {seed}");
    }
    assert!(lines > 10_000, "nothing happens");
}

#[test]
fn who_is_wrong_is_found_out() {
    use Rule as R;
    let wrongs: [(Sabotage, &[Rule]); 49] = [
        (Sabotage::DropAnswers, &[R::AnswersProtect]),
        (Sabotage::ForgetExits, &[R::NobodyForgotten, R::NothingToTheDead]),
        (Sabotage::TrustTooEarly, &[R::ProbeOnlyTheReady]),
        (Sabotage::ForgetTimeouts, &[R::NoBusyLoop]),
        (Sabotage::IgnoreStops, &[R::StopEnds]),
        (Sabotage::StartTwice, &[R::OnePerSlot, R::NamesAreUnique]),
        (Sabotage::KillTwice, &[R::KillOnce]),
        (Sabotage::HalvePatience, &[R::Suspicion, R::AnswersProtect]),
        (Sabotage::RushKills, &[R::OneKillAPeriod]),
        (Sabotage::SignalByPid, &[R::SignalOnlyWhoIsMeant]),
        (Sabotage::MeetByPid, &[R::SignalOnlyWhoIsMeant]),
        (Sabotage::HurryTheWorn, &[R::HealthyLiveOn]),
        (Sabotage::LimitTheWorn, &[R::KillsHaveCause]),
        (Sabotage::MistakeObserver, &[R::HealthyLiveOn]),
        (Sabotage::ForgetObserver, &[R::Recovers]),
        (Sabotage::KeepObserver, &[R::ObserverAsWanted]),
        (Sabotage::TrustObserver, &[R::ObserverAsWanted]),
        (Sabotage::NeedObserver, &[R::HealthyLiveOn, R::StopEnds]),
        (Sabotage::HurryObserver, &[R::HealthyLiveOn]),
        (Sabotage::LeaveObserver, &[R::StopEnds]),
        (Sabotage::BelieveOrders, &[R::HealthyLiveOn]),
        (Sabotage::ForgetRedo, &[R::BooksExact]),
        (Sabotage::SettleTwice, &[R::BooksExact]),
        (Sabotage::KeepDeadClaims, &[R::BooksExact, R::Recovers]),
        (Sabotage::NoIntent, &[R::BooksExact]),
        (Sabotage::ReuseNames, &[R::NamesAreUnique]),
        (Sabotage::ForgetLiving, &[R::EndsAsItHappened]),
        (Sabotage::NeverReconcile, &[R::Recovers]),
        (Sabotage::ForgetWaiting, &[R::NobodyRejected]),
        (Sabotage::ClaimWithoutSwap, &[R::ServedOnce]),
        (Sabotage::NeverLook, &[R::NobodyRejected]),
        (Sabotage::KeepListeners, &[R::OneServes]),
        (Sabotage::ReportByPlace, &[R::ReportsAreTrue]),
        (Sabotage::ReportTwice, &[R::ReportsAreTrue]),
        (Sabotage::ForgetStarts, &[R::ReportsAreTrue, R::UnclaimedExact]),
        (Sabotage::ForgetExpiries, &[R::Reported, R::UnclaimedExact]),
        (Sabotage::ForgetRecords, &[R::RecordedOnce]),
        (Sabotage::ForgetReasons, &[R::ReportsAreTrue]),
        (Sabotage::ForgetUninvited, &[R::Recovers]),
        (Sabotage::ForgetTracked, &[R::ItsOwnJob]),
        (Sabotage::IgnoreJetons, &[R::ItsOwnJob]),
        (Sabotage::LetInBlindly, &[R::ItsOwnJob]),
        (Sabotage::NeverWait, &[R::Recovers]),
        (Sabotage::DrainAtPromotion, &[R::HealthyLiveOn]),
        (Sabotage::PromoteUnasked, &[R::OneKeeper]),
        (Sabotage::TakeOverEarly, &[R::OneKeeper]),
        (Sabotage::ForgetFollowed, &[R::Reported, R::UnclaimedExact]),
        (Sabotage::ServeAfterAll, &[R::OneKeeper]),
        (Sabotage::DrainAtHandover, &[R::HealthyLiveOn]),
    ];
    let place = Place::new();
    for (sabotage, rules) in wrongs {
        let found = (0..4_000).filter_map(|seed| place.run(seed, sabotage, false).violation);
        assert!(found.map(|violation| violation.rule).any(|rule| rules.contains(&rule)), "{sabotage:?}");
    }
}
