//! What a well-behaved client notices of attacks, and what a crowd of idle clients costs.
//!
//! One tree with four secondaries. A well-behaved client asks for a job and exchanges a word, one
//! exchange at a time, 200 a second. It is timed while all is quiet and while an attack goes on, in
//! turn, so that the machine's moods hit both. The figure of the issue: its p99 under attack is at
//! most twice that of quiet.
//!
//! The servers have one core, the clients the other. An attack is a process of its own, on the clients'
//! core: it must not take the servers' time by itself, only by what it makes them do. There it is
//! as nice as can be, so that the well-behaved client does not wait for its turn behind the attacker's.
//! It is bounded in rate, in what it holds, and in time (`attack.rs`).
//!
//! Then 15,000 idle clients, from several addresses, join 64 active ones: the private memory of the principal for each
//! of them, and the times of the active ones before and after.
//!
//! `cargo bench --bench hostile` takes a few minutes; `-- --quick` less than one, with figures that say
//! little; a name of an attack (or `crowd`) does only that.
#![allow(clippy::unwrap_used)]

mod attack;
#[path = "../../tests/common/mod.rs"]
mod common;
mod crowd;
#[path = "../../tests/hostile/honest.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod honest;

use std::env;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use attack::{ATTACKS, Attack};
use common::{REQUESTS, System, now};
use honest::Honest;
use osps::core::moment::Moment;
use rustix::thread::{CpuSet, sched_setaffinity};

const SECONDARIES: u16 = 4;
/// One core each.
const SERVERS: usize = 0;
const CLIENTS: usize = 1;
/// Between two exchanges of the well-behaved client.
const EVERY: Duration = Duration::from_millis(5);
/// Until an attack is in full swing.
const RAMP: Duration = Duration::from_millis(700);

/// How long things are measured.
#[derive(Clone, Copy)]
struct Plan {
    rounds: usize,
    quiet: Duration,
    attack: Duration,
}

const FULL: Plan =
    Plan { rounds: 4, quiet: Duration::from_millis(1500), attack: Duration::from_millis(2000) };
const QUICK: Plan = Plan { rounds: 1, quiet: Duration::from_millis(300), attack: Duration::from_millis(500) };

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [word, name, addresses @ ..] = &arguments[..]
        && word == "attack"
    {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        match name.as_str() {
            "crowd" => crowd::run(addresses[0]),
            name => attack::run(name, &addresses),
        }
        return;
    }
    let is_full =
        arguments.iter().any(|word| word == "--bench") && !arguments.iter().any(|word| word == "--quick");
    let plan = if is_full { FULL } else { QUICK };
    let wanted: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(&name);
    let attacks: Vec<&Attack> = ATTACKS.iter().filter(|attack| is_wanted(attack.name)).collect();
    if !attacks.is_empty() {
        siege(plan, &attacks);
    }
    if is_wanted("crowd") {
        crowd::measure(is_full);
    }
}

/// Puts the calling thread, and whom it starts, on one core, where there is more than one.
fn pin(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    let _ = sched_setaffinity(None, &cores);
}

/// A system on the servers' core; the caller goes to the clients'.
fn start(limits: &str) -> System {
    pin(SERVERS);
    let system = System::start(&format!("secondaries = {SECONDARIES}\n{limits}"), REQUESTS);
    pin(CLIENTS);
    system
}

/// Times of exchanges, without and with an attack.
#[derive(Default)]
struct Times {
    quiet: Vec<Duration>,
    attacked: Vec<Duration>,
    acts: u64,
    lasted: Duration,
}

fn siege(plan: Plan, attacks: &[&Attack]) {
    let system = start("max_clients = 4000\nclient_idle = \"20s\"");
    let mut times: Vec<Times> = attacks.iter().map(|_| Times::default()).collect();
    for _ in 0..plan.rounds {
        for (attack, times) in attacks.iter().zip(&mut times) {
            // A connection of its own, for it may be idle for long between two rounds.
            let mut honest = Honest::new(system.address());
            at_work(&mut honest, plan.quiet, &mut times.quiet);
            let (child, began) = (begin(attack, &system), now());
            at_work(&mut honest, RAMP, &mut Vec::new());
            at_work(&mut honest, plan.attack, &mut times.attacked);
            times.lasted += now().since(began);
            times.acts += end(child);
            drop(honest);
            system.until("all are gone", |status| {
                status["clients"]["connected"] == 0
                    && status["clients"]["parked"] == 0
                    && status["ledger"]["open"] == 0
            });
        }
    }
    report(attacks, times);
    let status = system.books_are_exact();
    println!("{}\n{} {}", status["ledger"], status["refusals"], status["clients"]);
    let warnings = system.log().lines().filter(|line| !line.contains(" INFO ")).count();
    println!("{warnings} lines of the log are warnings");
}

/// The attack, in a process of its own.
fn begin(attack: &Attack, system: &System) -> Child {
    let status = system.status();
    let data = |slot: u16| {
        let port = System::server(&status, slot.into())["ports"]["echo"].as_u64().unwrap();
        SocketAddr::new(system.address().ip(), u16::try_from(port).unwrap())
    };
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["attack", attack.name]).arg(system.address().to_string());
    command.args((1..=SECONDARIES).map(|slot| data(slot).to_string()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Ends an attack; how often it has struck.
fn end(mut child: Child) -> u64 {
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the attacker failed");
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Lets the well-behaved client work for that long. It keeps its rate as far as it can.
fn at_work(honest: &mut Honest, within: Duration, times: &mut Vec<Duration>) {
    let until = now() + within;
    let mut due = now();
    while due < until {
        sleep_until(due);
        let began = now();
        honest.plain();
        let ended = now();
        times.push(ended.since(began));
        due = (due + EVERY).max(ended);
    }
}

#[expect(clippy::disallowed_methods, reason = "a client that keeps a rate")]
fn sleep_until(moment: Moment) {
    let left = moment.since(now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

fn report(attacks: &[&Attack], times: Vec<Times>) {
    println!("{:<18}{:>7}{:>24}{:>24}{:>18}", "us", "", "quiet", "under attack", "ratio");
    let parts = format!("{:>8}{:>8}{:>8}", "p50", "p90", "p99").repeat(2);
    println!("{:<18}{:>7}{parts}{:>6}{:>6}{:>6}  p99 within 2", "", "acts/s", "p50", "p90", "p99");
    let (mut all, mut all_attacked) = (Vec::new(), Vec::new());
    for (attack, Times { mut quiet, mut attacked, acts, lasted }) in attacks.iter().zip(times) {
        let rate = acts as f64 / lasted.as_secs_f64();
        line(attack.name, Some(rate), &mut quiet, &mut attacked);
        all.append(&mut quiet);
        all_attacked.append(&mut attacked);
    }
    line("all together", None, &mut all, &mut all_attacked);
}

fn line(name: &str, rate: Option<f64>, quiet: &mut [Duration], attacked: &mut [Duration]) {
    quiet.sort_unstable();
    attacked.sort_unstable();
    let parts = [0.5, 0.9, 0.99];
    let before = parts.map(|part| micros(at(quiet, part)));
    let during = parts.map(|part| micros(at(attacked, part)));
    let rate = rate.map_or(String::new(), |rate| format!("{rate:.0}"));
    let times: String = before.iter().chain(&during).map(|time| format!("{time:>8.0}")).collect();
    let ratios: Vec<f64> = before.iter().zip(during).map(|(before, during)| during / before).collect();
    let holds = if ratios[2] <= 2.0 { "yes" } else { "no" };
    let ratios: String = ratios.iter().map(|ratio| format!("{ratio:>6.2}")).collect();
    println!("{name:<18}{rate:>7}{times}{ratios}  {holds}");
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The value below which that part of sorted times lies.
fn at(sorted: &[Duration], part: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted[index]
}
