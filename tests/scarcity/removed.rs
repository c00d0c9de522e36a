//! Files are removed under a running system, as a hand or a cleaner of old files does: it
//! serves on, and replaces its servers all the same.

use std::fs;
use std::net::SocketAddr;

use nix::sys::signal::Signal;

use crate::common::{REQUESTS, System, eventually, request, say};
use crate::{ends_well, patient, replaced};

/// A whole exchange, with a client that was told the address before.
fn echo(address: SocketAddr) {
    assert_eq!(say(&mut request(address, "echo"), "x"), "x");
}

fn kill(system: &System, slot: u64, pid: u32) {
    system.signal(pid, Signal::SIGKILL);
    replaced(system, slot, pid);
}

/// Removes something under a running system, which must not be hurt.
fn survives(remove: impl FnOnce(&System)) {
    let mut system = patient(2);
    let address = system.address();
    let (principal, first, second) = (system.pid(0), system.pid(1), system.pid(2));
    echo(address);
    let mut held = request(address, "echo");
    assert_eq!(say(&mut held, "x"), "x");
    remove(&system);
    echo(address);
    assert_eq!(say(&mut held, "y"), "y", "exchanges under way go on");
    kill(&system, 1, first);
    for _ in 0..4 {
        echo(address);
    }
    kill(&system, 0, principal);
    system.all_ready();
    for _ in 0..4 {
        echo(address);
    }
    drop(held);
    let pid = system.pid(2);
    assert_ne!(pid, second);
    kill(&system, 2, pid);
    echo(address);
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["accepted"], 12);
    assert!(system.tool(&["stop"]).status().unwrap().success());
    assert!(system.ended().success());
    assert_eq!(system.files(), ["lock"]);
    assert!(!system.has_processes());
}

fn survives_without(names: &[&str]) {
    survives(|system| {
        for name in names {
            fs::remove_file(system.rundir().join(name)).unwrap();
        }
    });
}

#[test]
fn what_only_people_read_is_not_missed() {
    survives_without(&["watchdog.pid"]);
}

#[test]
fn the_fifos_of_a_secondary_are_made_again_for_its_successor() {
    survives_without(&["dwtube1", "wdtube1", "orders.1"]);
}

#[test]
fn the_orders_of_the_principal_are_made_again_for_its_successor() {
    survives_without(&["orders.principal"]);
}

#[test]
fn all_fifos_are_made_again_for_successors() {
    survives_without(&[
        "dwtube1",
        "wdtube1",
        "orders.1",
        "dwtube2",
        "wdtube2",
        "orders.2",
        "orders.principal",
    ]);
}

#[test]
fn the_page_of_a_secondary_is_made_again_for_its_successor() {
    survives_without(&["secondary1.page"]);
}

#[test]
fn a_secondary_whose_files_are_gone_before_the_watchdog_knows_it_is_replaced() {
    let rest = format!("[watchdog]\nperiod = \"50ms\"\nstart_within = \"1s\"\n{REQUESTS}");
    let system = System::start("secondaries = 2", &rest);
    let (first, watchdog) = (system.pid(1), system.watchdog.id());
    system.signal(watchdog, Signal::SIGSTOP);
    system.signal(first, Signal::SIGKILL);
    let unknown = system.until("a successor that nobody watches", |status| {
        let pid = &System::server(status, 1)["pid"];
        pid.is_u64() && *pid != first
    });
    for name in ["orders.1", "secondary1.page"] {
        fs::remove_file(system.rundir().join(name)).unwrap();
    }
    system.signal(watchdog, Signal::SIGCONT);
    system.until("one that is probed", |status| {
        let server = System::server(status, 1);
        server["pid"] != System::server(&unknown, 1)["pid"] && server["answered_ms_ago"].is_u64()
    });
    ends_well(system);
}

#[test]
fn a_job_table_is_found_by_successors() {
    survives_without(&["secondary1.jobs"]);
}

#[test]
fn the_books_are_found_by_successors() {
    survives_without(&["principal.page"]);
}

#[test]
fn the_page_of_the_watchdog_is_found_by_successors() {
    survives_without(&["watchdog.page"]);
}

#[test]
fn the_socket_of_the_tools_is_there_again() {
    survives_without(&["control"]);
}

#[test]
fn the_lock_is_there_again() {
    survives_without(&["lock"]);
}

#[test]
fn an_emptied_directory_is_filled_again() {
    survives(|system| {
        for name in system.files() {
            fs::remove_file(system.rundir().join(name)).unwrap();
        }
    });
}

#[test]
fn a_removed_directory_is_made_again() {
    // The watchdog may make again what was removed first before the last is gone.
    survives(|system| eventually("its removal", || fs::remove_dir_all(system.rundir()).ok()));
}
