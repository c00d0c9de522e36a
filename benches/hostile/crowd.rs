//! A crowd of idle clients beside some that are active.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{ask, now, together};
use crate::honest::{Honest, connect_from};
use crate::{at, micros, sleep_until, start};

const IDLE: usize = 15_000;
const ACTIVE: usize = 64;
/// Idle clients come from so many addresses.
const ADDRESSES: usize = 5;
/// Between two exchanges of one active client.
const EVERY: Duration = Duration::from_millis(200);

pub fn measure(is_full: bool) {
    let idle = if is_full { IDLE } else { 1000 };
    let exchanges = if is_full { 40 } else { 5 };
    let system = start("max_clients = 16000\nclient_idle = \"600s\"");
    let (address, principal) = (system.address(), system.pid(0));
    // What a principal needs for any clients at all is not the idle ones' share.
    active(address, 5);
    println!(
        "{:<34}{:>10}{:>9}{:>9}{:>12}{:>9}",
        "64 active clients", "exchanges", "p50 us", "p99 us", "KiB", "B/client"
    );
    let alone = private(principal);
    let mut before = active(address, exchanges);
    line("alone", &mut before, alone, None);
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["attack", "crowd", &address.to_string()]).env("OSPS_CROWD", idle.to_string());
    let mut crowd = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(crowd.stdout.take().unwrap());
    for what in ["silent", "asked once", "asked 64 times at once"] {
        let mut ready = String::new();
        said.read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        let memory = private(principal);
        let mut times = active(address, exchanges);
        let each = (memory.saturating_sub(alone)) as f64 / idle as f64;
        line(&format!("beside {idle}, {what}"), &mut times, memory, Some(each));
        crowd.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
    assert!(crowd.wait().unwrap().success());
    system.until("the crowd is gone", |status| status["clients"]["connected"] == 0);
    let mut after = active(address, exchanges);
    line("alone again", &mut after, private(principal), None);
    system.books_are_exact();
}

/// The idle ones: goes on at each newline.
pub fn run(address: SocketAddr) {
    let _ = rustix::process::setpriority_process(None, 19);
    let idle: usize = env::var("OSPS_CROWD").unwrap().parse().unwrap();
    let from = |number: usize| Ipv4Addr::new(127, 0, 77, u8::try_from(number % ADDRESSES + 1).unwrap());
    let mut held: Vec<TcpStream> = (0..idle).map(|number| connect_from(from(number), address)).collect();
    let ready = || {
        // What was said last is dealt with by then: one more is answered after it.
        ask(&mut connect_from(from(0), address), "nonsense");
        println!("ready");
        let _ = std::io::stdin().read(&mut [0]);
    };
    ready();
    for control in &mut held {
        assert!(ask(control, "nonsense").starts_with("-1"));
    }
    ready();
    for control in &mut held {
        control.write_all(&b"nonsense\n".repeat(64)).unwrap();
        let mut answers = BufReader::new(control);
        for _ in 0..64 {
            answers.read_line(&mut String::new()).unwrap();
        }
    }
    ready();
}

/// The times of exchanges of all the active ones.
fn active(address: SocketAddr, exchanges: u32) -> Vec<Duration> {
    let begin = now();
    let times = together(ACTIVE, move |number| {
        let mut honest = Honest::new(address);
        let share = u32::try_from(number).unwrap() * EVERY / u32::try_from(ACTIVE).unwrap();
        let first = begin + Duration::from_millis(100) + share;
        let exchange = |times| {
            let due = first + EVERY * times;
            sleep_until(due);
            let began = if now().since(due) < EVERY { now() } else { due };
            honest.plain();
            now().since(began)
        };
        (0..exchanges).map(exchange).collect::<Vec<_>>()
    });
    times.concat()
}

/// Private memory in bytes.
fn private(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    rollup.lines().filter(|line| line.starts_with("Private_")).filter_map(kib).sum::<u64>() << 10
}

fn line(what: &str, times: &mut [Duration], memory: u64, each: Option<f64>) {
    times.sort_unstable();
    let [p50, p99] = [0.5, 0.99].map(|part| micros(at(times, part)));
    let each = each.map_or(String::new(), |each| format!("{each:.0}"));
    println!("{what:<34}{:>10}{p50:>9.0}{p99:>9.0}{:>12}{each:>9}", times.len(), memory >> 10);
}
