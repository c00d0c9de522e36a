//! Files are removed under a running system, as a hand or a cleaner of old files does: it
//! serves on, and replaces its servers all the same.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::common::{PATIENCE, REQUESTS, System, ask, eventually, request, say};
use crate::{PATIENT, ends_well, lines, logged, patient, replaced};

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

/// A system with a Unix socket of each kind in its runtime directory, beside addresses over TCP.
fn with_sockets() -> System {
    let top =
        "secondaries = 1\nlisten = [\"127.0.0.1:0\", \"unix:RUNDIR/asked\"]\nobserve = \"unix:RUNDIR/seen\"";
    let system = System::start_by(top, &format!("{PATIENT}{REQUESTS}"), |command| {
        let file = PathBuf::from(command.get_args().last().unwrap());
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("RUNDIR", file.with_file_name("run").to_str().unwrap())).unwrap();
        command
    });
    system.all_ready();
    system.until("an observer", |status| status["observer"]["state"] == "ready");
    system
}

fn reload(system: &System) -> (bool, String) {
    let output = system.tool(&["reload"]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn connect_to(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_seen(path: &Path) {
    let mut visitor = connect_to(path);
    visitor.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn the_sockets_of_clients_and_visitors_are_missed_and_made_again_by_a_reload() {
    let system = with_sockets();
    let (asked, seen) = (system.rundir().join("asked"), system.rundir().join("seen"));
    let mut kept = connect_to(&asked);
    is_seen(&seen);
    for times in 1..3 {
        for path in [&asked, &seen] {
            fs::remove_file(path).unwrap();
            let told = format!("{}: somebody removed its file", path.display());
            eventually(&told, || (lines(&system, &told) == times).then_some(()));
        }
        // More looks do not tell it again.
        for _ in 0..3 {
            fs::remove_file(system.rundir().join("watchdog.pid")).unwrap();
            eventually("another look", || system.rundir().join("watchdog.pid").exists().then_some(()));
        }
        assert_eq!(lines(&system, "somebody removed its file"), 2 * times, "{}", system.log());
        assert!(ask(&mut kept, "echo").parse::<u16>().is_ok(), "who is connected stays so");
        let (done, said) = reload(&system);
        assert!(done, "{said}");
        assert!(ask(&mut kept, "echo").parse::<u16>().is_ok());
        assert!(ask(&mut connect_to(&asked), "echo").parse::<u16>().is_ok());
        is_seen(&seen);
    }
    drop(kept);
    system.until("no jobs", |status| status["ledger"]["open"] == 0);
    ends_well(system);
}

#[test]
fn who_took_the_place_of_a_socket_is_left_alone() {
    let system = with_sockets();
    let asked = system.rundir().join("asked");
    fs::remove_file(&asked).unwrap();
    let others = UnixListener::bind(&asked).unwrap();
    logged(&system, "asked: somebody removed its file");
    let before = system.pids();
    let (done, said) = reload(&system);
    assert!(!done && said.contains("another server listens there"), "{said}");
    assert_eq!(system.pids(), before);
    UnixStream::connect(&asked).unwrap();
    drop(others);
    // Its file is stale now.
    assert!(reload(&system).0);
    assert!(ask(&mut connect_to(&asked), "echo").parse::<u16>().is_ok());
    system.until("no jobs", |status| status["ledger"]["open"] == 0);
    ends_well(system);
}
