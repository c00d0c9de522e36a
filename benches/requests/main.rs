//! What a request costs: `echo`, asked for over a control connection and exchanged over a data connection.
//!
//! Beside OSPS with four secondaries stand two bare servers of the same protocol (`bare.rs`): one process with one loop, and a
//! dispatcher with four workers that are joined by pipes. All servers have the first core, `osps-stress`
//! has the second. They are measured in turn, round by round, so that the machine's moods hit all;
//! ratios are taken within a round.
//!
//! - *rate*, and *CPU* of all processes of the server for each request (clock_getcpuclockid(3)), with 64 clients;
//! - the median *latency* of a client alone.
//!
//! `cargo bench --bench requests`; a number as argument is the rounds.

#![allow(clippy::unwrap_used)]

mod bare;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../ratio/mod.rs"]
mod ratio;

use std::env;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bare::{Bare, ROLE};
use common::System;
use osps::os::descendants;
use osps::os::proc::CpuClock;
use osps::stress::report::Report;
use ratio::{Limit, Ratio};

const ROUNDS: usize = 7;
const REQUESTS: &str = "20000";
const REQUESTS_ALONE: &str = "4000";
/// Without `--bench` it is `cargo test`, which wants to know only whether it works.
const SMOKE_REQUESTS: &str = "64";

/// What is promised of the ratios to the dispatcher and to the loop.
const MOST_CPU: f64 = 1.15;
const LEAST_RATE: f64 = 0.95;
const MOST_LATENCY: f64 = 1.2;

fn main() {
    if let Ok(role) = env::var(ROLE) {
        if let Err(error) = bare::run(&role) {
            eprintln!("bare {role}: {error}");
        }
        return;
    }
    let is_bench = env::args().any(|argument| argument == "--bench");
    let rounds = env::args().find_map(|argument| argument.parse().ok());
    let rounds = rounds.unwrap_or(if is_bench { ROUNDS } else { 1 });
    let (many, alone) = if is_bench { (REQUESTS, REQUESTS_ALONE) } else { (SMOKE_REQUESTS, SMOKE_REQUESTS) };
    let (one, dispatcher) = (Bare::start("loop").unwrap(), Bare::start("dispatcher").unwrap());
    let system = System::start_on_core(0, "secondaries = 4", common::REQUESTS);
    system.all_ready();
    let servers = [
        Server { name: "bare loop", pid: one.pid(), address: one.address },
        Server { name: "bare dispatcher", pid: dispatcher.pid(), address: dispatcher.address },
        Server { name: "osps", pid: system.pids()[0], address: system.address() },
    ];
    let mut ratios = Vec::new();
    for (title, arguments) in [
        ("64 clients, control kept", vec!["--clients", "64", "--count", many]),
        ("64 clients, control renewed", vec!["--clients", "64", "--count", many, "--renew"]),
    ] {
        let samples = measure(&servers, rounds, &arguments);
        println!("\n{title}");
        throughput(&servers, &samples);
        let of =
            |value: fn(&Sample) -> f64| samples.iter().map(move |round| value(&round[2]) / value(&round[1]));
        ratios.push(Ratio::of(
            &format!("rate, {title}"),
            "dispatcher, 4 workers",
            Limit::AtLeast(LEAST_RATE),
            of(|sample| sample.rate),
        ));
        ratios.push(Ratio::of(
            &format!("CPU of all, {title}"),
            "dispatcher, 4 workers",
            Limit::AtMost(MOST_CPU),
            of(|sample| sample.cpu_us),
        ));
    }
    let samples = measure(&servers, rounds, &["--clients", "1", "--count", alone]);
    println!("\none client alone, control kept");
    latency(&servers, &samples);
    let latencies = samples.iter().map(|round| round[2].p50_us / round[0].p50_us);
    ratios.push(Ratio::of("median latency, 1 client", "bare loop", Limit::AtMost(MOST_LATENCY), latencies));
    println!("\n{}", ratio::head());
    ratios.iter().for_each(|ratio| println!("{}", ratio.line()));
    if is_bench {
        ratio::keep("requests", &ratios);
    }
    system.books_are_exact();
}

struct Server {
    name: &'static str,
    /// The first process of the server.
    pid: u32,
    address: SocketAddr,
}

/// One run against one server.
#[derive(Clone, Copy)]
struct Sample {
    rate: f64,
    cpu_us: f64,
    p50_us: f64,
}

/// By round and server.
fn measure(servers: &[Server], rounds: usize, arguments: &[&str]) -> Vec<Vec<Sample>> {
    let round = |_| servers.iter().map(|server| server.sample(arguments)).collect();
    (0..rounds).map(round).collect()
}

impl Server {
    fn sample(&self, arguments: &[&str]) -> Sample {
        let before = self.cpu();
        let mut load = on_second_core(env!("CARGO_BIN_EXE_osps-stress"));
        load.args(["--at", &self.address.to_string(), "--expect", "echo", "--json", "--quiet"])
            .args(arguments);
        let output = load.output().unwrap();
        let report: Report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{}: {error}: {}", self.name, String::from_utf8_lossy(&output.stderr))
        });
        assert!(report.is_clean(), "{}: {:?}", self.name, report.errors);
        let cpu = self.cpu().saturating_sub(before);
        Sample {
            rate: report.rate,
            cpu_us: cpu.as_secs_f64() * 1e6 / report.ok as f64,
            p50_us: report.latency.p50_us,
        }
    }

    /// CPU time of all its processes so far.
    fn cpu(&self) -> Duration {
        let below = descendants::below(self.pid).into_iter().map(|(pid, _)| pid);
        below.chain([self.pid]).filter_map(|pid| CpuClock::of(pid).read()).sum()
    }
}

fn throughput(servers: &[Server], samples: &[Vec<Sample>]) {
    println!(
        "{:<18}{:>12}{:>14}{:>22}{:>22}",
        "", "requests/s", "CPU µs each", "rate, to dispatcher", "CPU, to dispatcher"
    );
    for (index, server) in servers.iter().enumerate() {
        let rate = spread(samples, |round| round[index].rate / round[1].rate);
        let cpu = spread(samples, |round| round[index].cpu_us / round[1].cpu_us);
        let [middle, ..] = spread(samples, |round| round[index].rate);
        let [middle_cpu, ..] = spread(samples, |round| round[index].cpu_us);
        println!("{:<18}{middle:>12.0}{middle_cpu:>14.1}{:>22}{:>22}", server.name, shown(rate), shown(cpu));
    }
}

fn latency(servers: &[Server], samples: &[Vec<Sample>]) {
    println!("{:<18}{:>12}{:>22}", "", "median µs", "to the loop");
    for (index, server) in servers.iter().enumerate() {
        let [middle, ..] = spread(samples, |round| round[index].p50_us);
        let ratio = spread(samples, |round| round[index].p50_us / round[0].p50_us);
        println!("{:<18}{middle:>12.1}{:>22}", server.name, shown(ratio));
    }
}

/// Median, minimum and maximum over the rounds.
fn spread(samples: &[Vec<Sample>], value: impl Fn(&[Sample]) -> f64) -> [f64; 3] {
    let mut values: Vec<f64> = samples.iter().map(|round| value(round)).collect();
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}

fn shown([middle, least, most]: [f64; 3]) -> String {
    format!("{middle:.2} ({least:.2}-{most:.2})")
}

fn on_second_core(program: &str) -> Command {
    let core =
        if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) { "1" } else { "0" };
    let mut pinned = Command::new("taskset");
    pinned.args(["-c", core, program]);
    pinned
}
