//! What a probe costs: a number in shared memory, SIGUSR1 there, the number copied back, SIGUSR2 here.
//!
//! The time from the write of the number to the reading of the answer, of
//! - `sigwait`: two processes that block in sigwait(3) and do nothing else: the floor,
//! - `mio`: two bare mio loops with signal-hook,
//! - `osps`: the watchdog and its principal, as the watchdog's page tells (`rtt_us` in `osps status`).
//!
//! All on one core, then on two. A probe comes every few milliseconds, for so it is in a system that has
//! little to do: both processes have slept. The kinds take turns, round by round.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
mod ratio;

use std::env;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{System, eventually, now, pause};
use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use osps::core::name::Role;
use osps::os::segment::Segment;
use osps::page::Access;
use osps::page::watchdog::WatchdogPage;
use ratio::{Limit, Ratio};
use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook_mio::v1_0::Signals;

const CHILD: &str = "OSPS_BENCH_CHILD";
const SEGMENT: &str = "OSPS_BENCH_SEGMENT";
const ROUNDS: usize = 9;
const PROBES: usize = 100;
const BETWEEN: Duration = Duration::from_millis(4);
const PERIOD: &str = "[watchdog]\nperiod = \"8ms\"\nsuspect_after = \"500ms\"\nkill_after = \"2s\"\n";

fn main() {
    if let Ok(kind) = env::var(CHILD) {
        let file = File::options().read(true).write(true).open(env::var_os(SEGMENT).unwrap()).unwrap();
        let segment = Segment::map(&file).unwrap();
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
        return if kind == "sigwait" {
            wait_and_answer(&segment)
        } else {
            loop_and_answer(&segment).unwrap()
        };
    }
    let is_bench = env::args().any(|argument| argument == "--bench");
    let rounds = if is_bench { ROUNDS } else { 1 };
    let probes = if is_bench { PROBES } else { 5 };
    SigSet::from(Signal::SIGUSR2).thread_block().unwrap();
    let placements = [("one core", [0, 0], 3.0), ("two cores", [0, 1], 1.75)];
    let ratios = placements.map(|(title, cores, limit)| measure(title, cores, limit, rounds, probes));
    if is_bench {
        ratio::keep("signals", &ratios);
    }
}

/// All kinds in turn, with the asking process on the first of these cores and the answering one on the second.
fn measure(title: &str, cores: [usize; 2], limit: f64, rounds: usize, probes: usize) -> Ratio {
    let dir = tempfile::tempdir().unwrap();
    let mut waiting = Pair::start("sigwait", dir.path(), cores[1]);
    let mut looping = Pair::start("mio", dir.path(), cores[1]);
    // Here probes go to one process only.
    let system = System::start_on_core(cores[0], "secondaries = 1", &format!("{}{PERIOD}", common::REQUESTS));
    system.all_ready();
    pin(Some(system.pid(0)), cores[1]);
    pin(None, cores[0]);
    let page = WatchdogPage::attach(&system.rundir().join("watchdog.page"), Access::ReadOnly).unwrap();
    let mut times: [Vec<f64>; 3] = Default::default();
    let mut ratios: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        let round =
            [waiting.by_waiting(probes), looping.by_looping(probes).unwrap(), of_system(&page, probes)];
        let medians = round.map(median);
        for (index, time) in medians.into_iter().enumerate() {
            times[index].push(time);
            ratios[index].push(time / medians[0]);
        }
    }
    pin(None, 0);
    println!("{title:<12}{:>14}", "median µs");
    let mut last = None;
    for (name, (times, ratios)) in ["sigwait", "mio", "osps"].iter().zip(times.into_iter().zip(ratios)) {
        let what = format!("a probe by {name}, {title}");
        let ratio = Ratio::of(&what, "sigwait", Limit::AtMost(limit), ratios);
        println!("{name:<12}{:>14.1}   {}", median(times), ratio.line());
        last = Some(ratio);
    }
    last.unwrap()
}

fn pin(pid: Option<u32>, core: usize) {
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()));
    let mut set = CpuSet::new();
    set.set(core);
    // Where there is one core only, all is on that.
    let _ = sched_setaffinity(pid, &set);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A child that answers, and the words that both share: 0 the probe, 1 the answer, 2 ready.
struct Pair {
    child: Child,
    segment: Segment,
    number: u64,
}

impl Pair {
    fn start(kind: &str, dir: &Path, core: usize) -> Self {
        let path = dir.join(kind);
        let segment = Segment::create(&path, 3).unwrap();
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).arg(env::current_exe().unwrap());
        let child = command.env(CHILD, kind).env(SEGMENT, &path).stdin(Stdio::null()).spawn().unwrap();
        eventually("the child is ready", || (segment[2].load(Ordering::Acquire) == 1).then_some(()));
        Self { child, segment, number: 0 }
    }

    /// Writes the next number and says so.
    fn probe(&mut self) -> u64 {
        self.number += 1;
        self.segment[0].store(self.number, Ordering::Release);
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGUSR1).unwrap();
        self.number
    }

    fn is_answered(&self) -> bool {
        self.segment[1].load(Ordering::Acquire) == self.number
    }

    /// Round trips in µs.
    fn by_waiting(&mut self, probes: usize) -> Vec<f64> {
        let signals = SigSet::from(Signal::SIGUSR2);
        let round_trip = |_| {
            rest();
            let start = now();
            self.probe();
            while !self.is_answered() {
                signals.wait().unwrap();
            }
            now().since(start).as_secs_f64() * 1e6
        };
        (0..probes).map(round_trip).collect()
    }

    fn by_looping(&mut self, probes: usize) -> io::Result<Vec<f64>> {
        let mut signals = Signals::new([Signal::SIGUSR2 as i32])?;
        SigSet::from(Signal::SIGUSR2).thread_unblock()?;
        let mut poll = Poll::new()?;
        poll.registry().register(&mut signals, Token(0), Interest::READABLE)?;
        let mut events = Events::with_capacity(16);
        let mut times = Vec::new();
        for _ in 0..probes {
            rest();
            let start = now();
            self.probe();
            while !self.is_answered() {
                wait(&mut poll, &mut events)?;
                signals.pending().for_each(drop);
            }
            times.push(now().since(start).as_secs_f64() * 1e6);
        }
        SigSet::from(Signal::SIGUSR2).thread_block()?;
        Ok(times)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "between two probes both processes sleep")]
fn rest() {
    std::thread::sleep(BETWEEN);
}

fn wait(poll: &mut Poll, events: &mut Events) -> io::Result<()> {
    match poll.poll(events, None) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

fn wait_and_answer(segment: &Segment) {
    let signals = SigSet::from(Signal::SIGUSR1);
    signals.thread_block().unwrap();
    segment[2].store(1, Ordering::Release);
    loop {
        signals.wait().unwrap();
        answer(segment);
    }
}

fn loop_and_answer(segment: &Segment) -> io::Result<()> {
    let mut signals = Signals::new([Signal::SIGUSR1 as i32])?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut signals, Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(16);
    segment[2].store(1, Ordering::Release);
    loop {
        wait(&mut poll, &mut events)?;
        if signals.pending().count() > 0 {
            answer(segment);
        }
    }
}

fn answer(segment: &Segment) {
    segment[1].store(segment[0].load(Ordering::Acquire), Ordering::Release);
    kill(Pid::parent(), Signal::SIGUSR2).unwrap();
}

/// Round trips to the principal, as the watchdog has measured them, in µs.
fn of_system(page: &WatchdogPage, probes: usize) -> Vec<f64> {
    let mut times = Vec::new();
    let mut last = 0;
    while times.len() < probes {
        let principal = page.watched().find(|watched| watched.name.role == Role::Principal);
        if let Some(principal) = principal.filter(|principal| principal.probe != last) {
            // The last answer: perhaps that to the probe before.
            if last != 0 {
                times.push(principal.round_trip_ns as f64 / 1e3);
            }
            last = principal.probe;
        }
        pause();
    }
    times
}
