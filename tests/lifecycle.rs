//! Starting, stopping, crashing: what a system leaves behind and what the next one finds.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use common::ports::own_address;
use common::{REQUESTS, System, ask, breaks, connect, eventually, job, recv, request, say};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// `slow` takes long enough to be interrupted, `endless` is never answered.
const SLOW: &str = r#"
[[request]]
name = "slow"
handler = "delay"
delay = "300ms"

[[request]]
name = "endless"
handler = "delay"
delay = "10m"

[watchdog]
grace = "10m"
"#;

fn at_port(system: &System, port: u16) -> TcpStream {
    connect(SocketAddr::new(system.address().ip(), port))
}

/// An exchange of `slow` whose second answer is still to come.
fn slow_exchange(system: &System) -> TcpStream {
    let mut data = request(system.address(), "slow");
    assert!(say(&mut data, "one").starts_with("ok message 1 "));
    data.write_all(b"two").unwrap();
    data
}

/// The system has ended as it should: nothing runs, nothing is left but the lock.
fn is_gone(system: &System) {
    assert!(!system.has_processes());
    assert_eq!(system.files(), ["lock"]);
}

/// Waits until a system that was asked to stop gives no more jobs; who got a port until
/// then makes nothing of it.
fn until_stopping(control: &mut TcpStream) {
    eventually("-1 stopping", || {
        let answer = ask(control, "echo");
        let Ok(port) = answer.parse::<u16>() else {
            assert_eq!(answer, "-1 stopping");
            return Some(());
        };
        drop(connect(SocketAddr::new(control.peer_addr().unwrap().ip(), port)));
        None
    });
}

#[test]
fn ctrl_c_ends_everything_and_leaves_only_the_lock() {
    let mut system = System::start("secondaries = 3", REQUESTS);
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    assert_eq!(system.stop().code(), Some(0));
    is_gone(&system);
}

#[test]
fn sigterm_to_the_watchdog_ends_everything() {
    let mut system = System::start("secondaries = 3", REQUESTS);
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

#[test]
fn osps_stop_returns_when_everything_has_ended() {
    let mut system = System::start("secondaries = 3", REQUESTS);
    // Nobody reaps the watchdog while the tool waits for it.
    let output = system.tool(&["stop"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(system.files(), ["lock"]);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

/// Asks a busy system to stop: what runs is finished, what was given is served.
fn stops_gracefully(ask_to_stop: impl FnOnce(&System)) {
    let top = "secondaries = 2\nclaim_within = \"10m\"";
    let mut system = System::start(top, &format!("{REQUESTS}{SLOW}"));
    let mut running = slow_exchange(&system);
    let mut control = system.connect();
    let given = job(&mut control, "echo");
    let address = system.address();
    ask_to_stop(&system);
    until_stopping(&mut control);
    assert!(recv(&mut running).starts_with("ok message 2 "));
    drop(running);
    let mut claimed = connect(SocketAddr::new(address.ip(), given));
    assert_eq!(say(&mut claimed, "claimed"), "claimed");
    assert_eq!(ask(&mut control, "echo"), "-1 stopping");
    drop(claimed);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

#[test]
fn a_graceful_stop_finishes_exchanges_and_serves_jobs_that_were_given() {
    stops_gracefully(|system| system.signal(system.watchdog.id(), Signal::SIGTERM));
}

/// What `timeout(1)`, a service manager or `kill -- -pgid` send: every process gets it.
#[test]
fn sigterm_to_the_whole_group_is_a_graceful_stop_too() {
    stops_gracefully(|system| {
        let group = Pid::from_raw(i32::try_from(system.watchdog.id()).unwrap());
        killpg(group, Signal::SIGTERM).unwrap();
    });
}

/// `timeout(1)` signals the process and then its group: that is one wish, for a graceful stop.
#[test]
fn two_signals_in_the_same_breath_are_one_wish() {
    stops_gracefully(|system| {
        let watchdog = system.watchdog.id();
        system.strike(watchdog, Signal::SIGSTOP);
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCONT] {
            system.signal(watchdog, signal);
        }
    });
}

#[test]
fn a_secondary_killed_during_a_stop_does_not_keep_it_from_ending() {
    let top = "secondaries = 2\nclaim_within = \"10m\"";
    let mut system = System::start(top, &format!("{REQUESTS}{SLOW}"));
    let mut control = system.connect();
    let mut cut = at_port(&system, job(&mut control, "endless"));
    cut.write_all(b"go").unwrap();
    let status = system.status();
    let given = job(&mut control, "echo");
    let slot = if System::server(&status, 1)["ports"]["echo"] == given { 1 } else { 2 };
    let pids = [system.pid(1), system.pid(2)];
    let address = system.address();
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    until_stopping(&mut control);
    system.signal(pids[slot - 1], Signal::SIGKILL);
    let mut claimed = connect(SocketAddr::new(address.ip(), given));
    assert_eq!(say(&mut claimed, "by the replacement"), "by the replacement");
    drop(claimed);
    system.signal(pids[2 - slot], Signal::SIGKILL);
    breaks(&mut cut);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

#[test]
fn a_principal_killed_during_a_stop_does_not_keep_it_from_ending() {
    let mut system = System::start("secondaries = 2", &format!("{REQUESTS}{SLOW}"));
    let mut running = slow_exchange(&system);
    let mut control = system.connect();
    let principal = system.pid(0);
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    until_stopping(&mut control);
    system.signal(principal, Signal::SIGKILL);
    assert!(recv(&mut running).starts_with("ok message 2 "));
    drop(running);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

#[test]
fn servers_that_freeze_during_a_stop_do_not_keep_it_from_ending() {
    let slow = format!("{SLOW}period = \"50ms\"\nsuspect_after = \"150ms\"\nkill_after = \"500ms\"\n");
    for slots in [[0, 0], [1, 2], [0, 1]] {
        let mut system = System::start("secondaries = 2", &format!("{REQUESTS}{slow}"));
        let pids = slots.map(|slot| system.pid(slot));
        // It stays open until its client closes it, or its server is killed.
        let running = slow_exchange(&system);
        let mut control = system.connect();
        system.signal(system.watchdog.id(), Signal::SIGTERM);
        until_stopping(&mut control);
        for pid in pids {
            system.strike(pid, Signal::SIGSTOP);
        }
        let held_open = (slots == [1, 2]).then_some(running);
        assert_eq!(system.ended().code(), Some(0), "{slots:?}");
        is_gone(&system);
        drop(held_open);
    }
}

#[test]
fn asked_twice_it_stops_at_once() {
    let mut system = System::start("secondaries = 2", &format!("{REQUESTS}{SLOW}"));
    let mut endless = request(system.address(), "endless");
    endless.write_all(b"go").unwrap();
    let mut control = system.connect();
    system.until("the exchange is open", |status| status["ledger"]["open"] == 1);
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    until_stopping(&mut control);
    let output = system.tool(&["stop"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    breaks(&mut endless);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

#[test]
fn a_stop_during_the_start_ends_everything() {
    let mut system = System::start_unready("secondaries = 4", REQUESTS);
    eventually("a principal", || system.try_status());
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    assert_eq!(system.ended().code(), Some(0));
    is_gone(&system);
}

#[test]
fn without_its_watchdog_everything_finishes_what_it_has_and_ends() {
    let mut system = System::start("secondaries = 3", &format!("{REQUESTS}{SLOW}"));
    let mut running = slow_exchange(&system);
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    system.ended();
    assert!(recv(&mut running).starts_with("ok message 2 "));
    drop(running);
    eventually("the end of all", || (!system.has_processes()).then_some(()));
}

#[test]
fn a_start_right_after_a_crash_finds_nothing_in_its_way() {
    let top = format!("secondaries = 3\nlisten = \"{}\"", own_address());
    let mut system = System::start(&top, &format!("{REQUESTS}{SLOW}"));
    let address = system.address();
    let mut endless = request(address, "endless");
    endless.write_all(b"go").unwrap();
    system.signal(system.pid(2), Signal::SIGSTOP);
    let old = system.pids();
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    system.start_again();
    eventually("the end of the old", || (!system.has_survivors()).then_some(()));
    breaks(&mut endless);
    assert_eq!(system.address(), address);
    assert!(system.pids().iter().all(|pid| !old.contains(pid)));
    for _ in 0..6 {
        assert_eq!(say(&mut request(address, "echo"), "new"), "new");
    }
    assert_eq!(system.books_are_exact()["ledger"]["accepted"], 6);
    assert_eq!(system.stop().code(), Some(0));
    is_gone(&system);
}

#[test]
fn when_all_are_killed_the_next_start_works_at_once() {
    let mut system = System::start("secondaries = 4", REQUESTS);
    for _ in 0..10 {
        let mut pids = system.pids();
        // The watchdog last: it is the one whose lock and ports are in the way.
        pids.reverse();
        for pid in pids {
            system.signal(pid, Signal::SIGKILL);
        }
        system.start_again_at_once();
        assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    }
    assert!(system.stop().success());
}

#[test]
fn a_watchdog_may_crash_again_and_again_at_any_moment_of_its_start() {
    let top = format!("secondaries = 2\nlisten = \"{}\"", own_address());
    let mut system = System::start(&top, REQUESTS);
    for _ in 0..5 {
        system.signal(system.watchdog.id(), Signal::SIGKILL);
        system.start_again_unready();
        eventually("a principal", || system.try_status());
    }
    system.all_ready();
    eventually("the end of the old", || (!system.has_survivors()).then_some(()));
    assert_eq!(say(&mut request(system.address(), "echo"), "new"), "new");
    assert_eq!(system.stop().code(), Some(0));
    is_gone(&system);
}

#[test]
fn a_second_watchdog_names_the_first_and_leaves_it_alone() {
    let system = System::start("secondaries = 2", REQUESTS);
    let pids = system.pids();
    let output = system.tool(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("pid {}", pids[0])), "{said}");
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    assert_eq!(system.pids(), pids);
}

#[test]
fn a_listen_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut system = System::start_unready(&format!("listen = \"{address}\""), REQUESTS);
    assert_eq!(system.ended().code(), Some(69));
    assert!(system.log().contains(&address.to_string()), "{}", system.log());
    is_gone(&system);
}

#[test]
fn data_ports_that_are_taken_are_passed_over() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = taken.local_addr().unwrap().port();
    let echo = "[[request]]\nname = \"echo\"\nhandler = \"echo\"\n";
    let last = first.saturating_add(50);
    let system = System::start(&format!("secondaries = 2\ndata_ports = \"{first}-{last}\""), echo);
    let status = system.status();
    for slot in [1, 2] {
        let port = System::server(&status, slot)["ports"]["echo"].as_u64().unwrap();
        assert!(u64::from(first) < port && port <= u64::from(last), "{port} of {first}-{last}");
    }
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    let mut none = System::start_unready(&format!("secondaries = 1\ndata_ports = \"{first}-{first}\""), echo);
    assert_eq!(none.ended().code(), Some(69));
    assert!(none.log().contains("data_ports"), "{}", none.log());
    is_gone(&none);
}

#[test]
fn the_runtime_directory_is_private_and_holds_what_is_documented() {
    let system = System::start("secondaries = 2", REQUESTS);
    let expected = [
        "control",
        "dwtube1",
        "dwtube2",
        "lock",
        "orders.1",
        "orders.2",
        "orders.principal",
        "principal.page",
        "secondary1.jobs",
        "secondary1.page",
        "secondary2.jobs",
        "secondary2.page",
        "watchdog.page",
        "watchdog.pid",
        "wdtube1",
        "wdtube2",
    ];
    let mut files = system.files();
    // Those of servers to come are made one set after the other.
    files.retain(|name| !name.starts_with(".spare"));
    assert_eq!(files, expected);
    let mode = |path: std::path::PathBuf| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(system.rundir()), 0o700);
    for name in expected {
        assert_eq!(mode(system.rundir().join(name)), 0o600, "{name}");
    }
    let pid = std::fs::read_to_string(system.rundir().join("watchdog.pid")).unwrap();
    assert_eq!(pid.trim().parse(), Ok(system.watchdog.id()));
}
