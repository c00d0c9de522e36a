//! Who is killed, and why; who is forgiven: a judgement over processes that are really stopped, spinning,
//! blocked or starved.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::{SocketAddr, TcpStream};

use common::blows::{Blow, Hogs, give_jobs_at, while_busy};
use common::{REQUESTS, System, connect, eventually, job, now, request, say};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Quick to judge, but not so quick that a loaded machine looks like a hang.
const TIMES: &str = "[watchdog]\nperiod = \"100ms\"\nsuspect_after = \"300ms\"\nkill_after = \"1s\"\n";

fn system(secondaries: u16) -> System {
    let top = format!("secondaries = {secondaries}\nclaim_within = \"10m\"\nclient_idle = \"10m\"");
    System::start(&top, &format!("{REQUESTS}{TIMES}"))
}

/// Waits for the obituary of a process: what it was killed for, and its state then.
fn verdict(system: &System, pid: u32) -> (String, String) {
    let obituary = eventually("an obituary", || {
        let obituaries = system.try_status()?["obituaries"].as_array().unwrap().clone();
        obituaries.into_iter().find(|obituary| obituary["pid"] == pid)
    });
    let text = |field: &str| obituary[field].as_str().unwrap_or("none").to_owned();
    (text("killed"), text("state"))
}

/// Waits until somebody else than `before` is ready in a slot.
fn replaced(system: &System, slot: u64, before: u32) -> Value {
    system.until("a replacement that is ready", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"] != before && server["pid"].is_u64()
    })
}

/// Where a slot serves `echo`.
fn echo_of(system: &System, slot: u64) -> SocketAddr {
    let port = System::server(&system.status(), slot)["ports"]["echo"].as_u64().unwrap();
    SocketAddr::new(system.address().ip(), u16::try_from(port).unwrap())
}

/// Clients whose exchanges with a slot have yet to begin.
fn clients_of(system: &System, slot: u64, clients: usize) -> Vec<TcpStream> {
    let address = echo_of(system, slot);
    give_jobs_at(&mut system.connect(), "echo", address.port(), clients);
    (0..clients).map(|_| connect(address)).collect()
}

/// Whether the server in a slot is the one that it was, and was never killed.
fn is_untouched(status: &Value, slot: u64, pid: u32) -> bool {
    let server = System::server(status, slot);
    server["pid"] == pid && server["kills"] == 0 && server["restarts"] == 0
}

/// Strikes secondary 1, kept busy by as many clients, and checks why it was killed. Its neighbour
/// serves meanwhile, and is left alone.
fn strike_secondary(blow: Blow, clients: usize, expected: (&str, &str)) {
    if !blow.is_possible() {
        eprintln!("not on this machine");
        return;
    }
    let system = system(2);
    let (pid, neighbour) = (system.pid(1), system.pid(2));
    let [mut beside] = <[TcpStream; 1]>::try_from(clients_of(&system, 2, 1)).unwrap();
    while_busy(clients_of(&system, 1, clients), || {
        blow.strike(pid);
        assert_eq!(say(&mut beside, "meanwhile"), "meanwhile");
        let (killed, state) = verdict(&system, pid);
        assert_eq!((killed.as_str(), state.as_str()), expected);
    });
    let status = replaced(&system, 1, pid);
    assert_eq!(System::server(&status, 1)["kills"], 1);
    assert!(is_untouched(&status, 2, neighbour), "{status}");
    assert_eq!(say(&mut beside, "still"), "still");
    assert_eq!(say(&mut request(system.address(), "echo"), "on"), "on");
}

const SPINNING: (&str, &str) = ("spinning, no answer within kill_after", "R");
const STOPPED: (&str, &str) = ("stopped, no answer within kill_after", "T");

#[test]
fn an_idle_secondary_that_begins_to_spin_is_killed_for_it() {
    strike_secondary(Blow::Spin, 0, SPINNING);
}

#[test]
fn a_busy_secondary_that_begins_to_spin_is_killed_for_it() {
    strike_secondary(Blow::Spin, 3, SPINNING);
}

#[test]
fn an_idle_secondary_that_is_stopped_is_killed_for_it() {
    strike_secondary(Blow::Stop, 0, STOPPED);
}

#[test]
fn a_busy_secondary_that_is_stopped_is_killed_for_it() {
    strike_secondary(Blow::Stop, 3, STOPPED);
}

#[test]
fn a_principal_that_spins_is_killed_for_it_while_its_secondaries_finish() {
    if !Blow::Spin.is_possible() {
        return;
    }
    let system = system(2);
    let address = system.address();
    let mut running = request(address, "echo");
    assert_eq!(say(&mut running, "before"), "before");
    let pid = system.pid(0);
    Blow::Spin.strike(pid);
    assert_eq!(say(&mut running, "meanwhile"), "meanwhile");
    // It waits in the backlog for the next principal.
    assert_eq!(say(&mut request(address, "echo"), "waited"), "waited");
    let (killed, state) = verdict(&system, pid);
    assert_eq!((killed.as_str(), state.as_str()), SPINNING);
    let status = replaced(&system, 0, pid);
    assert_eq!(System::server(&status, 0)["kills"], 1);
}

#[test]
fn a_handler_that_blocks_is_killed_for_its_silence_and_for_nothing_else() {
    let requests = REQUESTS.replace("\"block\"\ndelay = \"20ms\"", "\"block\"\ndelay = \"10m\"");
    let system = System::start("secondaries = 1\nclient_idle = \"10m\"", &format!("{requests}{TIMES}"));
    let pid = system.pid(1);
    let port = job(&mut system.connect(), "block");
    let mut block = connect(SocketAddr::new(system.address().ip(), port));
    std::io::Write::write_all(&mut block, b"go").unwrap();
    let (killed, state) = verdict(&system, pid);
    assert_eq!((killed.as_str(), state.as_str()), ("no answer within kill_after", "S"));
    common::breaks(&mut block);
    assert_eq!(System::server(&replaced(&system, 1, pid), 1)["kills"], 1);
}

#[test]
fn a_watchdog_that_was_stopped_for_three_seconds_kills_nobody() {
    // With the times that are in force by default: `kill_after` is two seconds.
    let system = System::start("secondaries = 2\nclient_idle = \"10m\"", REQUESTS);
    let pids = system.pids();
    let answered = |status: &Value, slot| System::server(status, slot)["answered_ms_ago"].as_u64();
    system.until("answers of all", |status| (0..=2).all(|slot| answered(status, slot).is_some()));
    system.signal(pids[0], Signal::SIGSTOP);
    system.until("a silence of three seconds", |status| {
        (0..=2).all(|slot| answered(status, slot).is_some_and(|ago| ago > 3000))
    });
    assert_eq!(say(&mut request(system.address(), "echo"), "meanwhile"), "meanwhile");
    system.signal(pids[0], Signal::SIGCONT);
    let continued_at = now();
    let status = system.until("all have answered since", |status| {
        let since = u64::try_from(now().since(continued_at).as_millis()).unwrap();
        (0..=2).all(|slot| answered(status, slot).is_some_and(|ago| ago < since))
    });
    for slot in 0..=2 {
        assert!(is_untouched(&status, slot, pids[usize::try_from(slot).unwrap() + 1]), "{status}");
    }
}

#[test]
fn a_server_that_the_machine_starves_is_forgiven_until_it_is_stopped() {
    // Shorter than the time for which so many others keep it from its core.
    let times = "[watchdog]\nperiod = \"40ms\"\nsuspect_after = \"40ms\"\nkill_after = \"60ms\"\n";
    let top = "secondaries = 2\nclaim_within = \"10m\"\nclient_idle = \"10m\"";
    let system = System::start(top, &format!("{REQUESTS}{times}"));
    let pid = system.pid(1);
    let kills = System::server(&system.status(), 1)["kills"].as_u64().unwrap();
    let hogs = Hogs::around(pid, 16);
    let forgiven =
        || system.log().lines().any(|line| line.contains("secondary 1") && line.contains("forgiven"));
    eventually("forgiveness", || forgiven().then_some(()));
    let status = system.status();
    let server = System::server(&status, 1);
    assert_eq!((&server["pid"], &server["kills"]), (&pid.into(), &kills.into()), "{status}");
    system.signal(pid, Signal::SIGSTOP);
    let (killed, state) = verdict(&system, pid);
    assert_eq!((killed.as_str(), state.as_str()), STOPPED);
    drop(hogs);
    replaced(&system, 1, pid);
    assert_eq!(say(&mut request(system.address(), "echo"), "on"), "on");
}
