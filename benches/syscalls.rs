//! The system calls of a request, by role: `strace -c` on every process while 64 clients have 10,000 `echo`
//! requests served, control connections kept; beside OSPS the bare loop, and the bare dispatcher with four
//! workers, of `requests`.
//!
//! `cargo bench --bench syscalls`. It needs strace(1), and may trace other processes of its user. What a role
//! calls for its probes is in it, too: a hundred calls a second of the watchdog, a dozen of a server.

#![allow(clippy::unwrap_used)]

#[path = "requests/bare.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bare::{Bare, ROLE};
use common::System;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use osps::os::descendants;

const REQUESTS: u32 = 10_000;
const SMOKE_REQUESTS: u32 = 100;
/// Calls that are rarer than this for each request are left out.
const RARE: f64 = 0.005;

/// How often each call was made.
type Calls = BTreeMap<String, u64>;

fn main() {
    if let Ok(role) = env::var(ROLE) {
        if let Err(error) = bare::run(&role) {
            eprintln!("bare {role}: {error}");
        }
        return;
    }
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("strace is not installed: nothing is counted");
        return;
    }
    let is_bench = env::args().any(|argument| argument == "--bench");
    let requests = if is_bench { REQUESTS } else { SMOKE_REQUESTS };
    let (one, dispatcher) = (Bare::start("loop").unwrap(), Bare::start("dispatcher").unwrap());
    let workers: Vec<u32> = descendants::below(dispatcher.pid()).into_iter().map(|(pid, _)| pid).collect();
    let system = System::start_on_core(0, "secondaries = 4", common::REQUESTS);
    system.all_ready();
    let pids = system.pids();
    let runs = [
        (one.address, vec![("bare loop", vec![one.pid()])]),
        (dispatcher.address, vec![("dispatcher", vec![dispatcher.pid()]), ("4 workers", workers)]),
        (
            system.address(),
            vec![
                ("principal", vec![pids[1]]),
                ("4 secondaries", pids[2..].to_vec()),
                ("watchdog", vec![pids[0]]),
            ],
        ),
    ];
    let mut columns = Vec::new();
    for (address, roles) in runs {
        columns.extend(count(address, roles, requests));
    }
    table(&columns, requests);
    system.books_are_exact();
}

/// What each role has called while so many requests were served.
fn count(address: SocketAddr, roles: Vec<(&str, Vec<u32>)>, requests: u32) -> Vec<(String, Calls)> {
    let mut traced: Vec<(&str, Vec<Trace>)> = Vec::new();
    for (role, pids) in roles {
        traced.push((role, pids.into_iter().map(Trace::attach).collect()));
    }
    let mut load = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    load.args(["--at", &address.to_string(), "--count", &requests.to_string(), "--clients", "64"]).args([
        "--expect",
        "echo",
        "--quiet",
        "--timeout",
        "60s",
    ]);
    assert!(load.stdout(Stdio::null()).status().unwrap().success());
    traced
        .into_iter()
        .map(|(role, traces)| {
            let mut calls = Calls::new();
            for (name, number) in traces.into_iter().flat_map(Trace::end) {
                *calls.entry(name).or_default() += number;
            }
            (role.to_owned(), calls)
        })
        .collect()
}

fn table(columns: &[(String, Calls)], requests: u32) {
    let each = |calls: &Calls, name: &str| {
        calls.get(name).map_or(0.0, |&number| number as f64 / f64::from(requests))
    };
    print!("{:<22}", "calls for each request");
    columns.iter().for_each(|(role, _)| print!("{role:>15}"));
    let names: std::collections::BTreeSet<&String> =
        columns.iter().flat_map(|(_, calls)| calls.keys()).collect();
    for name in names {
        if columns.iter().all(|(_, calls)| each(calls, name) < RARE) {
            continue;
        }
        print!("\n{name:<22}");
        for (_, calls) in columns {
            match each(calls, name) {
                ..RARE => print!("{:>15}", ""),
                number => print!("{number:>15.2}"),
            }
        }
    }
    print!("\n{:<22}", "all");
    for (_, calls) in columns {
        print!("{:>15.2}", calls.values().sum::<u64>() as f64 / f64::from(requests));
    }
    println!();
}

/// A process whose calls are counted.
struct Trace {
    strace: Child,
    summary: PathBuf,
    _directory: tempfile::TempDir,
}

impl Trace {
    fn attach(pid: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let summary = directory.path().join("summary");
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-p", &pid.to_string(), "-o"]).arg(&summary);
        let mut strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(strace.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "strace: {said}");
        Self { strace, summary, _directory: directory }
    }

    /// Ends the trace and reads its table: share, seconds, µs a call, calls, perhaps errors, name.
    fn end(mut self) -> Calls {
        kill(Pid::from_raw(i32::try_from(self.strace.id()).unwrap()), Signal::SIGINT).unwrap();
        self.strace.wait().unwrap();
        let text = fs::read_to_string(&self.summary).unwrap();
        let row = |line: &str| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let name = *fields.last()?;
            let number = fields.get(3)?.parse().ok()?;
            (name != "total").then(|| (name.to_owned(), number))
        };
        text.lines().filter_map(row).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
