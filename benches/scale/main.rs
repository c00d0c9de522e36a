//! How cost grows: with clients, with secondaries, with request types, one at a time.
//!
//! `echo` in a closed loop, control connections kept. All servers have the first core, `osps-stress` has the last.
//! Every point is a system of its own, started once and loaded a few times; shown are medians.
//!
//! - *rate* and *CPU* of all processes of the system for each request (clock_getcpuclockid(3)), probes included;
//! - *p50*, *p99*: latency, as `osps-stress` tells it;
//! - *start*: until all servers are ready;
//! - *PSS* of all processes together, when they have served (`/proc/<pid>/smaps_rollup`).
//!
//! `cargo bench --bench scale`; arguments are the axes wanted (`clients`, `secondaries`, `types`); with
//! `--plots DIR` it draws `DIR/scale-AXIS.svg`.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod plot;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{System, now};
use osps::os::descendants;
use osps::os::proc::CpuClock;
use osps::stress::report::Report;
use plot::Panel;

const ROUNDS: usize = 3;
/// Requests of a round, and for each client where there are many: its control connection is to pay off.
const REQUESTS: usize = 20_000;
const REQUESTS_OF_CLIENT: usize = 8;
const USUAL_CLIENTS: usize = 64;
const USUAL_SECONDARIES: usize = 4;
/// More clients than one process has descriptors for, one for control and one for data.
const MOST_OF_PROCESS: usize = 9000;

/// One thing that grows.
struct Axis {
    name: &'static str,
    sizes: &'static [usize],
}

const AXES: [Axis; 3] = [
    Axis { name: "clients", sizes: &[1, 2, 4, 8, 16, 64, 250, 1000, 4000, 9000, 15_000] },
    Axis { name: "secondaries", sizes: &[1, 2, 4, 10, 30, 100, 300, 1000] },
    Axis { name: "types", sizes: &[1, 3, 10, 30, 100, 300, 1000] },
];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let plots = arguments.iter().position(|argument| argument == "--plots");
    let plots = plots.and_then(|at| arguments.get(at + 1)).map(PathBuf::from);
    let is_wanted = |axis: &&Axis| arguments.iter().any(|argument| argument == axis.name);
    let all = !AXES.iter().any(|axis| is_wanted(&axis));
    for axis in AXES.iter().filter(|axis| all || is_wanted(axis)) {
        // Without `--bench` it is `cargo test`, which wants to know only whether it works.
        let (sizes, rounds) = if is_bench { (axis.sizes, ROUNDS) } else { (&axis.sizes[..2], 1) };
        println!(
            "\n{:<14}{:>12}{:>14}{:>10}{:>10}{:>10}{:>10}",
            axis.name, "requests/s", "CPU µs each", "p50 ms", "p99 ms", "start ms", "PSS MiB"
        );
        let points: Vec<Point> = sizes.iter().map(|&size| measure(axis.name, size, rounds)).collect();
        if let Some(directory) = &plots {
            fs::create_dir_all(directory).unwrap();
            let path = directory.join(format!("scale-{}.svg", axis.name));
            draw(&path, axis.name, &points);
            println!("{}", path.display());
        }
    }
}

/// What was measured at one size.
#[derive(Clone, Copy, Default)]
struct Point {
    size: usize,
    rate: f64,
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
    start_ms: f64,
    pss_mib: f64,
}

fn measure(axis: &str, size: usize, rounds: usize) -> Point {
    let of_axis = |name: &str, usual: usize| if axis == name { size } else { usual };
    let clients = of_axis("clients", USUAL_CLIENTS);
    let (secondaries, types) = (of_axis("secondaries", USUAL_SECONDARIES), of_axis("types", 1));
    let top = format!("secondaries = {secondaries}\nmax_clients = 16000");
    let requests: String = (1..=types)
        .map(|number| format!("[[request]]\nname = \"echo{number}\"\nhandler = \"echo\"\n"))
        .collect();
    let begin = now();
    let system = System::start_on_core(0, &top, &requests);
    system.all_ready();
    let start_ms = now().since(begin).as_secs_f64() * 1e3;
    // The last type is the longest way through every list of them.
    let mut samples: Vec<Point> = (0..rounds).map(|_| sample(&system, clients, types)).collect();
    let mut median = |value: fn(&Point) -> f64| {
        samples.sort_by(|one, other| value(one).total_cmp(&value(other)));
        value(&samples[samples.len() / 2])
    };
    let point = Point {
        size,
        rate: median(|point| point.rate),
        cpu_us: median(|point| point.cpu_us),
        p50_ms: median(|point| point.p50_ms),
        p99_ms: median(|point| point.p99_ms),
        start_ms,
        pss_mib: median(|point| point.pss_mib),
    };
    println!(
        "{size:<14}{:>12.0}{:>14.1}{:>10.2}{:>10.2}{start_ms:>10.1}{:>10.1}",
        point.rate, point.cpu_us, point.p50_ms, point.p99_ms, point.pss_mib
    );
    system.books_are_exact();
    point
}

fn sample(system: &System, clients: usize, types: usize) -> Point {
    let before = cpu(system);
    let count = REQUESTS.max(clients * REQUESTS_OF_CLIENT);
    let processes = 1 + clients / MOST_OF_PROCESS;
    let mut load = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    load.args(["--at", &system.address().to_string(), "--type", &format!("echo{types}")])
        .args(["--clients", &clients.to_string(), "--count", &count.to_string()])
        .args(["--processes", &processes.to_string(), "--expect", "echo", "--json", "--quiet"])
        .args(["--timeout", "60s"]);
    let output = on_last_core(&load).output().unwrap();
    let report: Report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert!(report.is_clean(), "{:?}", report.errors);
    let used = cpu(system).saturating_sub(before);
    Point {
        rate: report.rate,
        cpu_us: used.as_secs_f64() * 1e6 / report.ok as f64,
        p50_ms: report.latency.p50_us / 1e3,
        p99_ms: report.latency.p99_us / 1e3,
        pss_mib: pids(system).map(pss_kib).sum::<u64>() as f64 / 1024.0,
        ..Point::default()
    }
}

fn pids(system: &System) -> impl Iterator<Item = u32> {
    let first = system.watchdog.id();
    descendants::below(first).into_iter().map(|(pid, _)| pid).chain([first])
}

fn cpu(system: &System) -> Duration {
    pids(system).filter_map(|pid| CpuClock::of(pid).read()).sum()
}

fn pss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The same command on another core than the servers, if there is one.
fn on_last_core(command: &Command) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", &(cores - 1).to_string()]).arg(command.get_program()).args(command.get_args());
    pinned
}

fn draw(path: &std::path::Path, axis: &str, points: &[Point]) {
    let line = |value: fn(&Point) -> f64| -> Vec<(f64, f64)> {
        points.iter().map(|point| (point.size as f64, value(point))).collect()
    };
    let mut panels = vec![
        Panel {
            title: "requests in a second",
            lines: vec![("rate", line(|point| point.rate))],
            is_log: false,
        },
        Panel {
            title: "CPU of all servers for each request, µs",
            lines: vec![("CPU", line(|point| point.cpu_us))],
            is_log: false,
        },
        Panel {
            title: "latency, ms",
            lines: vec![("p50", line(|point| point.p50_ms)), ("p99", line(|point| point.p99_ms))],
            is_log: true,
        },
    ];
    if axis != "clients" {
        panels.push(Panel {
            title: "start of the whole tree, ms",
            lines: vec![("start", line(|point| point.start_ms))],
            is_log: true,
        });
    }
    panels.push(Panel {
        title: "memory of all processes (PSS), MiB",
        lines: vec![("PSS", line(|point| point.pss_mib))],
        is_log: true,
    });
    plot::draw(path, axis, &panels).unwrap();
}
