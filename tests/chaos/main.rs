//! The storm: clients at work while servers are killed, stopped, continued, blocked, starved
//! and lied to, at random. What the clients saw, what the log tells and what the books say must
//! fit together afterwards, and nothing may be left behind.
//!
//! A short storm is part of every `cargo test`. For another, see `docs/design.md`, "The storm".
#![allow(clippy::unwrap_used)]

mod clients;
#[path = "../common/mod.rs"]
mod common;
#[path = "../simulation/dice.rs"]
mod dice;
mod household;
mod journal;
mod lies;
mod orphans;
mod plan;
mod striker;
mod summary;
mod verdict;

use std::env;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use osps::core::mark::Tree;
use osps::os::{descendants, proc};
use serde_json::Value;

use clients::{Record, World, ask_and_ask, stall};
use common::{PATIENCE, REQUESTS, System, at_rest, request, say, together};
use dice::Dice;
use household::{Household, descriptors, members, own_memory_kib};
use journal::Journal;
use plan::{Frame, plan};
use striker::{Report, Striker};
use verdict::Trial;

const SECONDARIES: u16 = 4;
/// Clients that make the requests that block for too long.
const STALLERS: usize = 2;
/// A process for each job, and one that stays: a frame that `cat` is given, it gives back.
const COMMANDS: &str = r#"
[[request]]
name = "cat"
handler = "exec"
command = ["cat"]

[[request]]
name = "frames"
handler = "exec"
mode = "persistent"
command = ["cat"]
"#;
/// How much more memory of its own the watchdog may have at the end than after the first
/// quarter: less than one page for each process that it has seen.
const GROWTH_KIB: u64 = 512;

/// What kind of storm it is.
#[derive(Clone, Copy, Debug)]
struct Options {
    length: Duration,
    rate: f64,
    seed: u64,
    clients: usize,
    kill_after: Duration,
    /// `max_jobs_served`.
    jobs: u64,
    /// The short one: it shall be over soon.
    short: bool,
}

impl Options {
    fn from_environment() -> Self {
        let seconds = variable::<f64>("OSPS_CHAOS_SECONDS");
        let short = seconds.is_none();
        let seed = variable("OSPS_CHAOS_SEED").unwrap_or_else(|| common::now().as_nanos());
        Self {
            length: Duration::from_secs_f64(seconds.unwrap_or(4.0)),
            rate: variable("OSPS_CHAOS_RATE").unwrap_or(5.0),
            seed,
            // In every other short storm.
            jobs: variable("OSPS_CHAOS_JOBS").unwrap_or(if short { seed % 2 * 40 } else { 0 }),
            kill_after: Duration::from_millis(variable("OSPS_CHAOS_KILL_AFTER").unwrap_or(if short {
                500
            } else {
                2000
            })),
            clients: variable("OSPS_CHAOS_CLIENTS").unwrap_or(if short { 8 } else { 64 }),
            short,
        }
    }

    /// What brings the same storm again.
    fn replay(&self) -> String {
        let Self { length, rate, seed, clients, kill_after, jobs, short } = self;
        let (seconds, kill_after) = (length.as_secs_f64(), kill_after.as_millis());
        let length = if *short { String::new() } else { format!("OSPS_CHAOS_SECONDS={seconds} ") };
        format!(
            "OSPS_CHAOS_SEED={seed} {length}OSPS_CHAOS_RATE={rate} OSPS_CHAOS_CLIENTS={clients} \
             OSPS_CHAOS_KILL_AFTER={kill_after} OSPS_CHAOS_JOBS={jobs}"
        )
    }

    fn start(&self) -> System {
        let kill_after = self.kill_after.as_millis();
        let times = [
            ("period", kill_after / 8),
            ("suspect_after", kill_after / 4),
            ("kill_after", kill_after),
            ("start_within", kill_after * 5),
        ];
        let times = times.map(|(key, millis)| format!("{key} = \"{millis}ms\"\n")).concat();
        let mut top = format!("secondaries = {SECONDARIES}\nmax_jobs_served = {}\n", self.jobs);
        if self.short {
            top += "claim_within = \"3s\"\nqueue_within = \"10m\"\n";
        }
        let stall = kill_after * 2;
        let stall = format!("[[request]]\nname = \"stall\"\nhandler = \"block\"\ndelay = \"{stall}ms\"\n");
        System::start(&top, &format!("{REQUESTS}\n{stall}\n{COMMANDS}\n[watchdog]\n{times}"))
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} = {text:?} is no number")))
}

/// Says how to have the same storm again, however the test fails.
struct SaysHowToReplay(String);

impl Drop for SaysHowToReplay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the same faults again: {} cargo test --test chaos", self.0);
        }
    }
}

/// Tells the clients that the storm is over, also where it fails.
struct SaysOver<'a>(&'a AtomicBool);

impl Drop for SaysOver<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a thread of the storm brings back.
enum Brought {
    Records(Vec<Record>),
    Report(Report),
}

fn storm(options: &Options, system: &System) -> (Arc<World>, Vec<Record>, Report) {
    let household = Household::of(&system.rundir());
    let (types, slots) = household.ports();
    let world = Arc::new(World {
        principal: system.address(),
        types,
        slots,
        journal: Journal::open(&system.dir.path().join("stderr")),
        over: AtomicBool::new(false),
        stalls: AtomicUsize::new(0),
        longest_thought: Duration::from_millis(if options.short { 10 } else { 200 }),
    });
    let frame = Frame {
        length: options.length,
        rate: options.rate,
        secondaries: SECONDARIES,
        kill_after: options.kill_after,
    };
    let plan = plan(&mut Dice::new(options.seed), &frame);
    let (options, shared) = (*options, world.clone());
    let (rundir, watchdog) = (system.rundir(), system.watchdog.id());
    let brought = together(options.clients + STALLERS + 1, move |number| {
        let world = shared.clone();
        if number < options.clients {
            return Brought::Records(ask_and_ask(world, options.seed, number));
        }
        if number < options.clients + STALLERS {
            return Brought::Records(stall(world, options.seed, number, STALLERS));
        }
        let _over = SaysOver(&world.over);
        let household = Household::of(&rundir);
        let striker = Striker::new(household, watchdog, &world.journal, &world.stalls);
        Brought::Report(striker.carry_out(&plan, options.length))
    });
    let (mut records, mut report) = (Vec::new(), Report::default());
    for brought in brought {
        match brought {
            Brought::Records(more) => records.extend(more),
            Brought::Report(whole) => report = whole,
        }
    }
    (world, records, report)
}

/// Waits until `condition` gives something; fails the test with what it said last if it never does.
fn settles<T>(what: &str, condition: impl Fn() -> Result<T, String>) -> T {
    let give_up_at = common::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(last) => assert!(common::now() < give_up_at, "not within {PATIENCE:?}: {what}; {last}"),
        }
        common::pause();
    }
}

/// Waits until every slot has its server, nobody drains and no job is open.
fn quiet(system: &System) -> Value {
    settles("quiet", || {
        let status = system.status();
        let servers = status["servers"].as_array().unwrap();
        let all_ready = servers.iter().all(|server| server["state"] == "ready");
        if status["ledger"]["open"] == 0 && all_ready { Ok(status) } else { Err(status.to_string()) }
    })
}

/// Waits until the processes of the group are the tree and nothing else: the watchdog, its
/// principal, the principal's secondaries, none of them ended, each with one thread.
fn only_the_tree_lives(system: &System) {
    let watchdog = system.watchdog.id();
    settles("the tree and nothing else", || {
        let pids = system.pids();
        let members = members(watchdog);
        let belongs = |member: &household::Member| {
            let its_parent = match pids.iter().position(|&pid| pid == member.pid) {
                Some(0) => member.parent,
                Some(1) => watchdog,
                Some(_) => pids[1],
                None => return false,
            };
            member.parent == its_parent && member.threads == 1 && member.letter != 'Z'
        };
        let is_the_tree = members.len() == pids.len() && members.iter().all(belongs);
        is_the_tree.then_some(()).ok_or_else(|| format!("the status says {pids:?}, there are {members:?}"))
    });
}

/// Waits until of commands there is the one worker of each secondary and nobody else.
fn only_workers_live(system: &System) {
    settles("a worker in each secondary and no other command", || {
        let servers = system.pids();
        let below = descendants::below(system.watchdog.id()).into_iter();
        let left: Vec<_> = below.filter(|(pid, _)| !servers.contains(pid)).collect();
        let each_has_one = servers[2..]
            .iter()
            .all(|&server| left.iter().filter(|&&(_, parent)| parent == server).count() == 1);
        let is_all = each_has_one && left.len() == usize::from(SECONDARIES);
        is_all.then_some(()).ok_or_else(|| format!("the status says {servers:?}, commands are {left:?}"))
    });
}

/// What watchdog and principal hold when nobody is connected.
fn holdings(system: &System) -> [Vec<String>; 2] {
    [system.watchdog.id(), system.pid(0)].map(descriptors)
}

/// Waits until watchdog and principal hold again what they held before.
fn hold_what_they_held(system: &System, before: &[Vec<String>; 2]) {
    settles("the descriptors of before", || {
        let after = holdings(system);
        if after == *before { Ok(()) } else { Err(format!("before {before:#?}, after {after:#?}")) }
    });
}

#[test]
fn a_storm_breaks_nothing_but_what_it_strikes() {
    let options = Options::from_environment();
    let _replay = SaysHowToReplay(options.replay());
    let mut system = options.start();
    let before = at_rest(|| holdings(&system));
    let memory_before = own_memory_kib(system.pid(0));

    let (world, records, report) = storm(&options, &system);

    let status = quiet(&system);
    only_the_tree_lives(&system);
    only_workers_live(&system);
    hold_what_they_held(&system, &before);
    let memory_after = own_memory_kib(system.pid(0));
    for _ in 0..20 {
        assert_eq!(say(&mut request(system.address(), "echo"), "calm"), "calm");
    }
    system.books_are_exact();
    let pid = system.watchdog.id();
    let tree = Tree { pid, start_time: proc::stat(pid).unwrap().start_time };
    system.signal(pid, Signal::SIGINT);
    let exit = system.ended();
    settles("the end of all commands", || {
        let left = descendants::of_tree(tree).unwrap();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are left")) }
    });

    let chronicle = world.journal.read();
    let trial = Trial {
        types: &world.types,
        records: &records,
        report: &report,
        chronicle: &chronicle,
        status: &status,
        never_busy: options.short,
    };
    let mut wrongs = trial.wrongs();
    if !exit.success() || system.files() != ["lock"] || system.has_processes() {
        let (files, left) = (system.files(), members(system.watchdog.id()));
        wrongs.push(format!("the end: {exit}, files {files:?}, processes {left:?}"));
    }
    wrongs.extend(grows(&report.memory_kib));
    println!("{}", summary::of(&trial, &options.replay(), memory_before.zip(memory_after)));
    assert!(wrongs.is_empty(), "{} wrongs in a storm:\n{}", wrongs.len(), wrongs.join("\n"));
}

/// Whether the watchdog, which lives all along, keeps something of each death.
fn grows(memory_kib: &[u64]) -> Option<String> {
    let (warm, end) = (memory_kib.get(memory_kib.len() / 4)?, memory_kib.last()?);
    (*end > warm + GROWTH_KIB).then(|| format!("the watchdog grows: {memory_kib:?} KiB"))
}
