//! Long trials, ignored by default: a machine that has no CPU left for its servers, and a server that dies at
//! each start. `OSPS_TRIAL_SECONDS` makes them shorter or longer.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{REQUESTS, System, now, pause, read_once, request, say};
use nix::sys::signal::Signal;
use osps::core::moment::Moment;
use osps::os::proc::CpuClock;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

/// They take all that the machine has: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

const SECONDARIES: u16 = 3;
const CLIENTS: usize = 4;

/// How long a trial lasts.
fn length(default_seconds: u64) -> Duration {
    let seconds = std::env::var("OSPS_TRIAL_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(default_seconds))
}

fn wait_until(moment: Moment) {
    while now() < moment {
        pause();
    }
}

/// One burst of a real-time process on a core, nothing else of which runs meanwhile but what the kernel
/// keeps for others (`sched_rt_runtime_us`). The kernel kills it after a second of CPU (setrlimit(2)),
/// whatever becomes of us.
fn burst(core: usize) {
    let status = Command::new("taskset")
        .args(["-c", &core.to_string(), "chrt", "-f", "5", "sh", "-c", "ulimit -t 1; while :; do :; done"])
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let signals = [Signal::SIGKILL as i32, Signal::SIGXCPU as i32];
    assert!(status.signal().is_some_and(|signal| signals.contains(&signal)), "no real-time hog: {status}");
}

/// A request from beginning to end. Whether it was answered; not, where the connection broke.
fn one_request(address: SocketAddr) -> bool {
    let mut control = common::connect(address);
    std::io::Write::write_all(&mut control, b"echo").unwrap();
    let port = common::recv(&mut control);
    let port = port.parse().unwrap_or_else(|_| panic!("answered {port:?}"));
    let mut data = common::connect(SocketAddr::new(address.ip(), port));
    let mut buffer = [0; 64];
    std::io::Write::write_all(&mut data, b"hello").is_ok()
        && read_once(&mut data, &mut buffer).is_ok_and(|length| &buffer[..length] == b"hello")
}

/// Says that a trial is over, also where it fails.
struct SaysOver<'a>(&'a AtomicBool);

impl Drop for SaysOver<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `act` while real-time processes leave the machine to others for a third of the time only, and clients ask
/// all the while. Returns how many requests were answered, and how many connections broke.
fn while_starved(address: SocketAddr, act: impl FnOnce()) -> (usize, usize) {
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    let cores = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let is_over = &is_over;
        for core in 0..cores {
            scope.spawn(move || {
                while !is_over() {
                    burst(core);
                    wait_until(now() + Duration::from_millis(500));
                }
            });
        }
        let client = || {
            let mut counts = (0, 0);
            while !is_over() {
                if one_request(address) {
                    counts.0 += 1;
                } else {
                    counts.1 += 1;
                }
                wait_until(now() + Duration::from_millis(20));
            }
            counts
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        {
            let _over = SaysOver(&over);
            act();
        }
        let counts = clients.into_iter().map(|client| client.join().unwrap());
        counts.fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1))
    })
}

/// With the times that are in force by default. Requests may wait long for a server.
fn starving_system() -> System {
    let top = format!("secondaries = {SECONDARIES}\nclaim_within = \"10m\"\nqueue_within = \"10m\"");
    System::start(&top, REQUESTS)
}

/// Whether the server in a slot is the one that it was, and was never killed.
fn is_untouched(status: &Value, slot: u16, pids: &[u32]) -> bool {
    let server = System::server(status, u64::from(slot));
    server["pid"] == pids[usize::from(slot) + 1] && server["kills"] == 0 && server["restarts"] == 0
}

fn tell(system: &System, (answered, broken): (usize, usize)) {
    let log = system.log();
    let lines = |word: &str| log.lines().filter(|line| line.contains(word)).count();
    println!(
        "{answered} requests answered, {broken} connections broken; {} times suspect, {} times forgiven",
        lines("suspect"),
        lines("forgiven")
    );
}

#[test]
#[ignore = "needs root (real-time priority) and a minute"]
fn nobody_is_killed_because_the_machine_is_busy() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let system = starving_system();
    let pids = system.pids();
    let until = now() + length(60);
    let counts = while_starved(system.address(), || wait_until(until));
    tell(&system, counts);
    let status = system.all_ready();
    for slot in 0..=SECONDARIES {
        assert!(is_untouched(&status, slot, &pids), "{status}\n{}", system.log());
    }
    assert!(counts.0 > 0 && counts.1 == 0, "{counts:?}");
    system.books_are_exact();
}

#[test]
#[ignore = "needs root (real-time priority) and a minute"]
fn who_is_stopped_is_killed_also_on_a_busy_machine_and_nobody_else() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let system = starving_system();
    let pids = system.pids();
    let start = now();
    let counts = while_starved(system.address(), || {
        wait_until(start + length(60) / 4);
        system.signal(pids[2], Signal::SIGSTOP);
        let stopped_at = now();
        system.until("a replacement", |status| {
            let server = System::server(status, 1);
            server["state"] == "ready" && server["pid"] != pids[2]
        });
        println!("replaced after {:?}", now().since(stopped_at));
        wait_until(start + length(60));
    });
    tell(&system, counts);
    let status = system.all_ready();
    assert_eq!(System::server(&status, 1)["kills"], 1, "{status}");
    assert_eq!(System::server(&status, 1)["restarts"], 1, "{status}");
    for slot in [0, 2, 3] {
        assert!(is_untouched(&status, slot, &pids), "{status}\n{}", system.log());
    }
    assert!(counts.0 > 0 && counts.1 <= CLIENTS, "{counts:?}");
    system.books_are_exact();
}

/// CPU that these processes have used so far (clock_getcpuclockid(3)), and the children that they have
/// reaped (fields 16 and 17 of `/proc/<pid>/stat`, in ticks of 10 ms).
fn cpu(pids: &[u32]) -> Duration {
    let children = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields = text.rsplit(')').next().unwrap().split_ascii_whitespace().skip(16 - 3).take(2);
        Duration::from_millis(10) * fields.map(|field| field.parse::<u32>().unwrap()).sum()
    };
    pids.iter().map(|&pid| CpuClock::of(pid).read().unwrap() + children(pid)).sum()
}

/// Sets how far the stacks of this process may grow, and of the children that it will have (setrlimit(2)).
/// What has grown is left alone.
fn limit_stack(pid: u32, bytes: u64) {
    let limit = Rlimit { current: Some(bytes), maximum: None };
    prlimit(Pid::from_raw(i32::try_from(pid).unwrap()), Resource::Stack, limit).unwrap();
}

/// Enough for a secondary to begin, too little for it to become ready.
const TINY_STACK: u64 = 16 << 10;
const USUAL_STACK: u64 = 8 << 20;

#[test]
#[ignore = "needs a minute"]
fn a_secondary_that_dies_at_each_start_costs_next_to_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let length = length(60) / 2;
    let system = System::start(&format!("secondaries = {SECONDARIES}"), REQUESTS);
    let pids = system.pids();
    let others = [pids[0], pids[1], pids[3], pids[4]];
    let used = |what: &str| {
        let before = cpu(&others);
        wait_until(now() + length);
        let share = 100.0 * (cpu(&others) - before).as_secs_f64() / length.as_secs_f64();
        println!("{what}: {share:.3} % of a core");
    };
    used("one server less, idle");
    limit_stack(pids[1], TINY_STACK);
    // It has proven itself, so that its successor is the first to die young.
    system.signal(pids[2], Signal::SIGKILL);
    used("secondary 1 dies at each start");
    let status = system.status();
    let starts = System::server(&status, 1)["restarts"].as_u64().unwrap();
    println!("{starts} starts in {length:?}");
    // 10 ms doubled until it is 8 to 10 s long, then once in that time.
    let most = 14 + length.as_secs() / 8;
    assert!((2..=most).contains(&starts), "{status}");
    for slot in [0, 2, 3] {
        assert!(is_untouched(&status, slot, &pids), "{status}");
    }
    for _ in 0..10 {
        assert_eq!(say(&mut request(system.address(), "echo"), "on"), "on");
    }
    limit_stack(pids[1], USUAL_STACK);
    system.all_ready();
}
