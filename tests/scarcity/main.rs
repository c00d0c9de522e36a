//! What a process needs runs out, or is taken away from under it: descriptors, processes,
//! memory, room in files and FIFOs, the files themselves. Who is short goes on with what it has
//! or dies alone; the others serve, and all is well again, by itself, when the scarcity is over.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod limits;
mod memory;
mod privileged;
mod processes;
mod removed;
mod room;

use common::{REQUESTS, System, eventually, request, say};

/// Nobody is judged for being silent, however long a test holds it.
const PATIENT: &str =
    "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"100s\"\nkill_after = \"200s\"\ngrace = \"100s\"\n";
/// Jobs wait as long as a test lets them.
const LONG: &str = "claim_within = \"100s\"\nqueue_within = \"100s\"\n";

fn patient(secondaries: u16) -> System {
    System::start(&format!("secondaries = {secondaries}\n{LONG}"), &format!("{PATIENT}{REQUESTS}"))
}

/// Lines of the log that contain a text.
fn lines(system: &System, text: &str) -> usize {
    system.log().lines().filter(|line| line.contains(text)).count()
}

fn logged(system: &System, text: &str) {
    eventually(text, || (lines(system, text) > 0).then_some(()));
}

/// Takes away what was made for secondaries to come: it needs no room any more.
fn remove_spares(system: &System) {
    for name in system.files().iter().filter(|name| name.starts_with(".spare")) {
        let _ = std::fs::remove_file(system.rundir().join(name));
    }
}

/// A whole exchange.
fn echo(system: &System) {
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}

/// Waits for another process in a slot, ready.
fn replaced(system: &System, slot: u64, before: u32) {
    system.until("a replacement", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"].is_u64() && server["pid"] != before
    });
}

/// A whole exchange, then the end, with nothing left.
fn ends_well(mut system: System) {
    echo(&system);
    system.books_are_exact();
    assert!(system.stop().success());
    assert!(system.files().iter().all(|name| ["lock", "filler"].contains(&name.as_str())));
    assert!(!system.has_processes());
}
