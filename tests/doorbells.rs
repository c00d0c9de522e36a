//! Doorbells that are lost, stolen or spoilt: shared memory is the truth, so nothing is
//! lost with them. `cat wdtube1` is what a curious student does.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use common::{REQUESTS, System, connect, eventually, read_to_end, recv, request, together};
use nix::sys::signal::Signal;
use osps::os::fifo;

/// Ready and served although no probe comes for a minute.
const RARELY_PROBED: &str = "[watchdog]\nperiod = \"60s\"\n";
/// Probed often, for those who look at the truth when they are.
const OFTEN_PROBED: &str = "[watchdog]\nperiod = \"20ms\"\n";

fn one_echo(system: &System) {
    let mut data = request(system.address(), "echo");
    data.write_all(b"x").unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut data), "x");
}

#[test]
fn a_server_is_ready_as_soon_as_its_loop_runs_not_when_it_is_first_probed() {
    let system = System::start("secondaries = 1", &format!("{RARELY_PROBED}{REQUESTS}"));
    one_echo(&system);
    let pid = system.pid(1);
    system.signal(pid, Signal::SIGKILL);
    system.until("a successor", |status| {
        let server = System::server(status, 1);
        server["state"] == "ready" && server["pid"] != pid
    });
    one_echo(&system);
}

#[test]
fn many_blocking_messages_in_one_read_are_no_reason_to_miss_a_probe() {
    let rest =
        format!("[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"500ms\"\nkill_after = \"1s\"\n{REQUESTS}");
    let system = System::start("secondaries = 1", &rest);
    let mut data = request(system.address(), "block");
    data.write_all(&[b'\n'; 100]).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    one_echo(&system);
    assert_eq!(read_to_end(&mut data).lines().count(), 100);
    assert_eq!(system.books_are_exact()["ledger"]["done"], 2);
}

#[test]
fn stolen_doorbells_are_made_up_for() {
    let mut system = System::start("secondaries = 1", &format!("{OFTEN_PROBED}{REQUESTS}"));
    let address = system.address();
    let path = system.rundir().join("wdtube1");
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (thief_done, jobs) = (done.clone(), 40);
    let outcomes = together(2, move |number| {
        if number == 0 {
            let mut thief = fifo::open_end(&path).unwrap();
            while !thief_done.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = thief.read(&mut [0; 512]);
                common::pause();
            }
            return 0;
        }
        for _ in 0..jobs {
            let mut data = request(address, "echo");
            data.write_all(b"x").unwrap();
            data.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut data), "x");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        jobs
    });
    assert_eq!(outcomes, [0, 40]);
    assert_eq!(system.books_are_exact()["ledger"]["done"], 40);
    assert!(system.stop().success());
}

#[test]
fn what_a_stranger_writes_into_a_fifo_spoils_no_line_of_ours() {
    let mut system = System::start("secondaries = 1", &format!("{OFTEN_PROBED}{REQUESTS}"));
    for name in ["wdtube1", "dwtube1", "orders.principal", "orders.1"] {
        let mut stranger = fifo::open_end(&system.rundir().join(name)).unwrap();
        stranger.write_all(b"fintraitement 0 1\njob 4294967295 7\njob 7 99\n\xff\xfe\nxxx").unwrap();
        one_echo(&system);
        stranger.write_all(&[b'y'; 4000]).unwrap();
        one_echo(&system);
    }
    assert_eq!(system.books_are_exact()["ledger"]["done"], 8);
    let mut control = system.connect();
    control.write_all(b"echo\n").unwrap();
    assert!(recv(&mut control).trim().parse::<u16>().is_ok());
    drop(control);
    assert!(system.stop().success());
}

#[test]
fn what_a_slot_has_counted_outlives_its_processes() {
    let system = System::start("secondaries = 1", REQUESTS);
    let port = System::server(&system.status(), 1)["ports"]["echo"].as_u64().unwrap();
    let port = SocketAddr::new(system.address().ip(), u16::try_from(port).unwrap());
    let mut rejected = 0;
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        assert_eq!(read_to_end(&mut connect(port)), "");
        rejected += 1;
        system.until("the uninvited is counted", |status| status["ledger"]["rejected"] == rejected);
        let pid = system.pid(1);
        system.signal(pid, signal);
        system.until("a successor", |status| {
            let server = System::server(status, 1);
            server["state"] == "ready" && server["pid"] != pid
        });
        assert_eq!(system.status()["ledger"]["rejected"], rejected, "after {signal}");
    }
}

#[test]
fn predecessors_that_drain_do_not_keep_their_successors_from_serving() {
    let rest = format!("[watchdog]\ngrace = \"600s\"\n{REQUESTS}");
    let system = System::start("secondaries = 1", &rest);
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut data = request(system.address(), "echo");
        data.write_all(b"x").unwrap();
        assert_eq!(recv(&mut data), "x");
        held.push(data);
        let pid = system.pid(1);
        system.signal(pid, Signal::SIGTERM);
        eventually("a successor", || (system.pid(1) != pid).then_some(()));
    }
    one_echo(&system);
}

#[test]
fn a_stray_doorbell_keeps_no_job_from_expiring() {
    let system = System::start("secondaries = 1\nclaim_within = \"1s\"", REQUESTS);
    let mut control = system.connect();
    control.write_all(b"echo\n").unwrap();
    recv(&mut control);
    let mut stranger = fifo::open_end(&system.rundir().join("wdtube1")).unwrap();
    stranger.write_all(b"\ndebuttraitement 0 1\n").unwrap();
    assert_eq!(system.books_are_exact()["ledger"]["expired"], 1);
}
