//! Clients that mean harm: silent, slow, endless, deaf, lying, breaking off, and many. While they
//! are at it a well-behaved client of another address is served without a fault; afterwards all
//! servers live, nothing is leaked, memory is bounded, the log is short, the books are exact, and
//! `status` tells what happened.
//!
//! Each attack has a version of a few seconds; those that are larger by an order of magnitude are
//! ignored: `cargo test --test hostile -- --ignored`. The bench `hostile` takes the times.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod control;
mod data;
mod honest;
mod many;
mod resets;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{PATIENCE, REQUESTS, System, eventually, now, pause};
use honest::{HOSTILE, Honest, connect_from};
use serde_json::Value;

/// What servers may keep of an attack in all, beside what each of its connections costs.
const SLACK: u64 = 16 << 20;

/// To be kept by an attack that needs more than ten thousand descriptors at once. All tests here share one process and its limit,
/// often twenty thousand.
fn most_of_the_descriptors() -> MutexGuard<'static, ()> {
    static MOST: Mutex<()> = Mutex::new(());
    // Another that has failed keeps none.
    MOST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A loaded machine may stop the well-behaved client, or a server, for seconds: that is nobody's
/// fault.
const PATIENT: &str = "[watchdog]\nsuspect_after = \"20s\"\nkill_after = \"40s\"\n";

/// A system that is attacked, and how it was before.
struct Fortress {
    system: System,
    address: SocketAddr,
    /// Principal and secondaries.
    pids: Vec<u32>,
    peaks: Vec<u64>,
    descriptors: Vec<usize>,
    log_lines: usize,
    /// Data connections of the well-behaved client that were rejected, by its own fault.
    hesitations: AtomicU64,
}

/// What an attacker knows of the well-behaved client.
struct Siege<'a> {
    served: &'a AtomicU64,
}

impl Siege<'_> {
    /// Goes on until the well-behaved client was served so many times more.
    fn outlast(&self, exchanges: u64) {
        let until = self.served.load(Ordering::SeqCst) + exchanges;
        eventually("the well-behaved client is served", || {
            (self.served.load(Ordering::SeqCst) >= until).then_some(())
        });
    }
}

/// Ends a siege, also where the attack fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Fortress {
    /// Starts a system of two secondaries with these limits.
    fn new(limits: &str) -> Self {
        let claim = if limits.contains("claim_within") { "" } else { "claim_within = \"60s\"\n" };
        let top = format!("secondaries = 2\nqueue_within = \"60s\"\n{claim}{limits}");
        let system = System::start(&top, &format!("{PATIENT}{REQUESTS}"));
        let address = system.address();
        let mut honest = Honest::new(address);
        (0..8).for_each(|_| honest.work());
        let hesitations = honest.hesitations.into();
        drop(honest);
        let pids = system.pids()[1..].to_vec();
        system.until("it is quiet", |status| status["clients"]["connected"] == 0);
        system.books_are_exact();
        Self {
            peaks: pids.iter().map(|&pid| peak(pid)).collect(),
            descriptors: pids.iter().map(|&pid| descriptors(pid)).collect(),
            log_lines: system.log().lines().count(),
            hesitations,
            pids,
            address,
            system,
        }
    }

    /// Attacks while the well-behaved client is at work.
    fn besieged<T>(&self, attack: impl FnOnce(&Siege<'_>) -> T) -> T {
        let (served, over) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut honest = Honest::new(self.address);
                while !over.load(Ordering::SeqCst) {
                    honest.work();
                    served.fetch_add(1, Ordering::SeqCst);
                }
                self.hesitations.fetch_add(honest.hesitations, Ordering::SeqCst);
            });
            let _ends = Ends(&over);
            let siege = Siege { served: &served };
            siege.outlast(1);
            let result = attack(&siege);
            siege.outlast(4);
            result
        })
    }

    /// The attack is over: nobody died of it or keeps anything, but for so many bytes. Returns the
    /// status, where only enemies count as rejected.
    fn has_held(self, most_bytes: u64) -> Value {
        let quiet = |status: &Value| {
            let clients = &status["clients"];
            clients["connected"] == 0 && clients["parked"] == 0
        };
        self.system.until("all clients are gone", quiet);
        let mut status = self.system.books_are_exact();
        assert_eq!(self.system.pids()[1..], self.pids, "a server died");
        for (&pid, &before) in self.pids.iter().zip(&self.peaks) {
            let grown = peak(pid).saturating_sub(before);
            println!("process {pid} had {} KiB more at most", grown >> 10);
            assert!(grown < most_bytes, "process {pid} grew by {} KiB", grown >> 10);
        }
        for (&pid, &before) in self.pids.iter().zip(&self.descriptors) {
            eventually("connections are closed", || (descriptors(pid) <= before).then_some(()));
        }
        let log_lines = self.system.log().lines().count() - self.log_lines;
        assert!(log_lines <= 10, "the attack fills the log:\n{}", self.system.log());
        let refusals = status["refusals"].as_object().unwrap().values();
        let refused: u64 = refusals.map(|refused| refused.as_u64().unwrap()).sum();
        assert_eq!(status["ledger"]["refused"], refused);
        println!("{} {} {}", status["ledger"], status["refusals"], status["clients"]);
        let rejected = status["ledger"]["rejected"].as_u64().unwrap();
        status["ledger"]["rejected"] = (rejected - self.hesitations.into_inner()).into();
        status
    }

    /// A control connection of an attacker.
    fn connect(&self) -> TcpStream {
        connect_from(HOSTILE, self.address)
    }

    /// Where a secondary serves a request type.
    fn data_address(&self, slot: u64, kind: &str) -> SocketAddr {
        let port = System::server(&self.system.status(), slot)["ports"][kind].as_u64().unwrap();
        SocketAddr::new(self.address.ip(), u16::try_from(port).unwrap())
    }

    /// A number of the status.
    fn count(&self, object: &str, entry: &str) -> u64 {
        self.system.status()[object][entry].as_u64().unwrap()
    }

    /// Waits until a number of the status is at least that.
    fn counted(&self, object: &str, entry: &str, least: u64) {
        let what = format!("{object}.{entry} >= {least}");
        self.system.until(&what, |status| status[object][entry].as_u64() >= Some(least));
    }
}

/// The most memory that a process ever had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Sends as much as the peer takes without being read; returns how much that was.
fn stuff(stream: &mut TcpStream, mut bytes: &[u8]) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (before, mut patience) = (bytes.len(), now() + Duration::from_millis(200));
    while !bytes.is_empty() && now() < patience {
        match stream.write(bytes) {
            Ok(length) => {
                bytes = &bytes[length..];
                patience = now() + Duration::from_millis(200);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => pause(),
            Err(_) => break,
        }
    }
    stream.set_nonblocking(false).unwrap();
    before - bytes.len()
}

/// Sends all of it, unless the peer has had enough.
fn insist(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// What comes until the peer closes or breaks off.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
            panic!("not within {PATIENCE:?}: {error}")
        }
        Ok(_) | Err(_) => bytes,
    }
}
