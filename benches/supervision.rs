//! What supervision costs: how long the whole tree takes to start, and what it uses while it has nothing to
//! do, with 1 to 1,000 secondaries.
//!
//! - *start*: from the start of `osps` until all servers are ready, beside starting and reaping `/bin/true`
//!   as often as there are processes, one after another;
//! - *idle*: CPU time, context switches and memory (PSS, `/proc/<pid>/smaps_rollup`) of all processes, with the usual
//!   `period` of 250 ms, beside a bare watchdog: one loop around epoll and a signalfd that sends the same
//!   probes to as many bare servers.
//!
//! `cargo bench --bench supervision`; numbers as arguments are the secondaries to try. With `idle` it looks at each
//! process for a minute instead.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
mod ratio;

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{System, now};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use osps::core::moment::Moment;
use osps::os::descendants;
use osps::os::proc::CpuClock;
use ratio::{Limit, Ratio};

/// Tells this program that it is a bare process, and of which kind.
const CHILD: &str = "OSPS_BENCH_CHILD";
const SERVERS: &str = "OSPS_BENCH_SERVERS";
const PERIOD: Duration = Duration::from_millis(250);
const SIZES: [usize; 5] = [1, 4, 10, 100, 1000];
/// The size for which figures are promised.
const USUAL: usize = 4;
const WINDOW: Duration = Duration::from_secs(10);

fn main() {
    match env::var(CHILD).as_deref() {
        Ok("watchdog") => return bare_watchdog().unwrap(),
        Ok(_) => return bare_server().unwrap(),
        Err(_) => {}
    }
    let is_bench = env::args().any(|argument| argument == "--bench");
    let given: Vec<usize> = env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (sizes, window) = match (given.is_empty(), is_bench) {
        (false, _) => (given, WINDOW),
        (true, true) => (SIZES.to_vec(), WINDOW),
        (true, false) => (vec![1], PERIOD * 2),
    };
    if env::args().any(|argument| argument == "idle") {
        return each_process(if is_bench { Duration::from_secs(60) } else { PERIOD * 2 });
    }
    println!(
        "{:<12}{:>12}{:>16}{:>10}   {:<6}{:>11}{:>12}{:>12}{:>11}{:>9}",
        "secondaries",
        "start ms",
        "/bin/true ms",
        "ratio",
        "idle",
        "CPU %",
        "watchdog %",
        "switches/s",
        "PSS KiB",
        "ratio"
    );
    for secondaries in sizes {
        let ratios = measure(secondaries, window);
        if is_bench && secondaries == USUAL {
            ratio::keep("supervision", &ratios);
        }
    }
}

fn measure(secondaries: usize, window: Duration) -> [Ratio; 2] {
    let start = now();
    let system = System::start(&format!("secondaries = {secondaries}"), common::REQUESTS);
    let started = now().since(start);
    let true_time = spawn_and_reap(secondaries + 2);
    let ratio = started.as_secs_f64() / true_time.as_secs_f64();
    println!(
        "{secondaries:<12}{:>12.1}{:>16.1}{ratio:>10.2}",
        started.as_secs_f64() * 1e3,
        true_time.as_secs_f64() * 1e3
    );
    // All of it has come to rest; the two are looked at one after another, in halves.
    let bare = Bare::start(secondaries + 1);
    let mut uses = [Use::default(); 2];
    for _ in 0..2 {
        for (pid, used) in [(bare.0.id(), 0), (system.watchdog.id(), 1)] {
            uses[used].add(&Use::over(pid, window / 2));
        }
    }
    for (name, used) in ["bare", "osps"].iter().zip(uses) {
        let part = |time: Duration| 100.0 * time.as_secs_f64() / window.as_secs_f64();
        println!(
            "{:<53}{name:<6}{:>11.3}{:>12.3}{:>12.1}{:>11}{:>9.2}",
            "",
            part(used.cpu),
            part(used.cpu_of_first),
            used.switches as f64 / window.as_secs_f64(),
            used.pss_kib,
            used.cpu.as_secs_f64() / uses[0].cpu.as_secs_f64()
        );
    }
    let cpu = uses[1].cpu.as_secs_f64() / uses[0].cpu.as_secs_f64();
    [
        Ratio::of("idle CPU, 4 secondaries", "bare watchdog", Limit::AtMost(1.5), [cpu]),
        Ratio::of("memory of the tree (PSS)", "6 MiB", Limit::AtMost(1.0), [uses[1].pss_kib as f64 / 6144.0]),
    ]
}

/// What each process of the usual tree uses at rest, and each of the bare one.
fn each_process(window: Duration) {
    let system = System::start(&format!("secondaries = {USUAL}"), common::REQUESTS);
    let bare = Bare::start(USUAL + 1);
    let trees = [("bare", bare.0.id()), ("osps", system.watchdog.id())];
    let mut watched: Vec<(&str, u32)> = Vec::new();
    for (name, first) in trees {
        let mut pids: Vec<u32> = descendants::below(first).into_iter().map(|(pid, _)| pid).collect();
        pids.push(first);
        pids.sort_unstable();
        watched.extend(pids.into_iter().map(|pid| (name, pid)));
    }
    let look = |&(_, pid): &(&str, u32)| (CpuClock::of(pid).read().unwrap(), switches(pid));
    let before: Vec<(Duration, u64)> = watched.iter().map(look).collect();
    sleep(window);
    let after: Vec<(Duration, u64)> = watched.iter().map(look).collect();
    println!("{:<24}{:>9}{:>12}{:>11}{:>13}", "process", "CPU %", "switches/s", "PSS KiB", "private KiB");
    let mut sums = [(0.0, 0.0, 0, 0); 2];
    for ((&(tree, pid), before), after) in watched.iter().zip(before).zip(after) {
        let cpu = 100.0 * (after.0 - before.0).as_secs_f64() / window.as_secs_f64();
        let switches = (after.1 - before.1) as f64 / window.as_secs_f64();
        let of_rollup = |field_name| field(pid, "smaps_rollup", field_name);
        let pss = of_rollup("Pss:");
        let private = of_rollup("Private_Clean:") + of_rollup("Private_Dirty:");
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let name = format!("{tree} {}", name.trim_end());
        println!("{name:<24}{cpu:>9.3}{switches:>12.1}{pss:>11}{private:>13}");
        let sum = &mut sums[usize::from(tree == "osps")];
        *sum = (sum.0 + cpu, sum.1 + switches, sum.2 + pss, sum.3 + private);
    }
    for ((tree, _), (cpu, switches, pss, private)) in trees.iter().zip(sums) {
        println!("{:<24}{cpu:>9.3}{switches:>12.1}{pss:>11}{private:>13}", format!("{tree}, all"));
    }
    println!("CPU of osps to bare: {:.2}", sums[1].0 / sums[0].0);
}

fn spawn_and_reap(processes: usize) -> Duration {
    let start = now();
    for _ in 0..processes {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
    now().since(start)
}

/// What all processes of a tree have used.
#[derive(Clone, Copy, Default)]
struct Use {
    cpu: Duration,
    cpu_of_first: Duration,
    switches: u64,
    pss_kib: u64,
}

impl Use {
    fn over(first: u32, window: Duration) -> Self {
        let pids: Vec<u32> =
            descendants::below(first).into_iter().map(|(pid, _)| pid).chain([first]).collect();
        let look = || {
            let cpu = pids.iter().filter_map(|&pid| CpuClock::of(pid).read()).sum::<Duration>();
            let of_first = CpuClock::of(first).read().unwrap_or_default();
            (cpu, of_first, pids.iter().map(|&pid| switches(pid)).sum::<u64>())
        };
        let (cpu, of_first, before) = look();
        sleep(window);
        let (cpu_after, of_first_after, after) = look();
        Self {
            cpu: cpu_after.saturating_sub(cpu),
            cpu_of_first: of_first_after.saturating_sub(of_first),
            switches: after - before,
            pss_kib: pids.iter().map(|&pid| field(pid, "smaps_rollup", "Pss:")).sum(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.cpu_of_first += other.cpu_of_first;
        self.switches += other.switches;
        self.pss_kib = other.pss_kib;
    }
}

fn switches(pid: u32) -> u64 {
    field(pid, "status", "voluntary_ctxt_switches:") + field(pid, "status", "nonvoluntary_ctxt_switches:")
}

fn field(pid: u32, file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is measured is a stretch of time in which nothing happens"
)]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// A bare watchdog with its servers, which end with it.
struct Bare(Child);

impl Bare {
    fn start(servers: usize) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(CHILD, "watchdog").env(SERVERS, servers.to_string()).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        // It says so when all are there.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A loop around epoll and a signalfd, for these signals.
struct Loop {
    poll: Poll,
    events: Events,
    signals: SignalFd,
}

impl Loop {
    fn new(signals: SigSet) -> io::Result<Self> {
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let poll = Poll::new()?;
        poll.registry().register(&mut SourceFd(&signals.as_raw_fd()), Token(0), Interest::READABLE)?;
        Ok(Self { poll, events: Events::with_capacity(16), signals })
    }

    /// Waits; returns how many signals have come.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        let mut came = 0;
        while let Ok(Some(_)) = self.signals.read_signal() {
            came += 1;
        }
        Ok(came)
    }
}

/// Sends a probe to each server in turn, spread over the period.
fn bare_watchdog() -> io::Result<()> {
    let count: usize = env::var(SERVERS).unwrap().parse().unwrap();
    let mut of_servers = Loop::new(SigSet::from(Signal::SIGUSR2))?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let start = || {
        let mut command = Command::new(env::current_exe()?);
        command.env(CHILD, "server").stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    };
    let servers: Vec<Pid> = (0..count)
        .map(|_| start().map(|child| Pid::from_raw(i32::try_from(child.id()).unwrap())))
        .collect::<io::Result<_>>()?;
    while !servers.iter().all(|&pid| is_waiting(pid)) {
        of_servers.turn(Some(Duration::from_millis(10)))?;
    }
    io::stdout().write_all(b".")?;
    io::stdout().flush()?;
    let each = PERIOD / u32::try_from(count).unwrap();
    let (mut at, mut next): (Moment, usize) = (now() + each, 0);
    loop {
        of_servers.turn(Some(at.since(now())))?;
        while at <= now() {
            kill(servers[next], Signal::SIGUSR1)?;
            next = (next + 1) % count;
            at = at + each;
        }
    }
}

/// Whether a process has blocked SIGUSR1: from then on it can be probed.
fn is_waiting(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (Signal::SIGUSR1 as i32 - 1) != 0
}

fn bare_server() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut probes = Loop::new(SigSet::from(Signal::SIGUSR1))?;
    loop {
        if probes.turn(None)? > 0 {
            kill(Pid::parent(), Signal::SIGUSR2)?;
        }
    }
}
