//! What a service manager hears.

use std::fs;

use nix::sys::signal::Signal;
use osps::os::proc;

use crate::common::{self, System, eventually, now, request, say};
use crate::{Launch, Manager, fails, rewrite, runs};

/// Nobody is judged for being silent.
const PATIENT: &str = "[watchdog]\nsuspect_after = \"100s\"\nkill_after = \"200s\"\n";

/// The first line of each message that has another one than `STATUS` or `WATCHDOG`.
fn changes(messages: &[String]) -> Vec<&str> {
    let lines = messages.iter().filter_map(|message| message.lines().next());
    lines.filter(|line| !line.starts_with("STATUS=") && !line.starts_with("WATCHDOG=")).collect()
}

/// The time in a message that tells of a reload, in microseconds.
fn reload_time(messages: &[String]) -> u64 {
    let message = messages.iter().find(|message| message.starts_with("RELOADING=1\n")).unwrap();
    let time = message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    time.parse().unwrap()
}

fn micros() -> u64 {
    now().as_nanos() / 1000
}

#[test]
fn a_manager_hears_when_it_is_ready_how_it_is_and_when_it_stops() {
    let manager = Manager::new();
    let times = "[watchdog]\nkill_after = \"100s\"\n";
    let mut system = manager.start(&format!("secondaries = 2\n{times}"), &[]);
    let heard = manager.until(&["READY=1"]);
    assert_eq!(changes(&heard), ["READY=1"]);
    let listen = format!("STATUS=2 of 2 secondaries ready, listening on {}\n", system.address());
    if !heard.last().unwrap().contains(&listen) {
        // Somebody was late.
        manager.until(&[&listen]);
    }
    assert!(heard.iter().rev().skip(1).all(|message| message.starts_with("STATUS=starting: ")), "{heard:?}");
    let secondary = system.pid(2);
    system.signal(secondary, Signal::SIGSTOP);
    let heard = manager.until(&["STATUS=1 of 2 secondaries ready, listening on"]);
    system.signal(secondary, Signal::SIGCONT);
    let trusted = manager.until(&["STATUS=2 of 2 secondaries ready, listening on"]);
    assert_eq!((changes(&heard).len(), changes(&trusted).len()), (0, 0));
    runs(&system, &["drain", "2"]);
    manager.until(&["STATUS=1 of 1 secondaries ready, 1 drained, listening on"]);
    runs(&system, &["restart", "2"]);
    manager.until(&["STATUS=2 of 2 secondaries ready, listening on"]);
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    let heard = manager.until(&["STOPPING=1"]);
    // `grace` and `claim_within`, and a margin.
    assert_eq!(heard.last().unwrap(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000\nSTATUS=stopping\n");
    assert_eq!(system.ended().code(), Some(0));
    assert_eq!(manager.waiting(), [""; 0]);
}

#[test]
fn who_watches_hears_nothing_while_the_watchdog_is_stopped_and_something_again_after() {
    let manager = Manager::under_abstract_name();
    let system = manager.start(&format!("secondaries = 1\n{PATIENT}"), &[("WATCHDOG_USEC", "100000")]);
    manager.until(&["READY=1"]);
    for _ in 0..3 {
        assert_eq!(manager.until(&["WATCHDOG=1"]).last().unwrap(), "WATCHDOG=1\n");
    }
    let watchdog = system.watchdog.id();
    system.signal(watchdog, Signal::SIGSTOP);
    eventually("the stop", || (proc::stat(watchdog).unwrap().letter == 'T').then_some(()));
    manager.waiting();
    let give_up_at = now() + std::time::Duration::from_millis(300);
    while now() < give_up_at {
        assert_eq!(manager.waiting(), [""; 0]);
        common::pause();
    }
    system.signal(watchdog, Signal::SIGCONT);
    manager.until(&["WATCHDOG=1"]);
}

#[test]
fn who_watches_another_process_hears_no_signs_of_life() {
    let manager = Manager::new();
    for (usec, pid) in [("1000", "1"), ("soon", ""), ("0", "")] {
        let variables = [("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)];
        let variables = if pid.is_empty() { &variables[..1] } else { &variables };
        let mut system = manager.start("secondaries = 1", variables);
        let mut heard = manager.until(&["READY=1"]);
        runs(&system, &["reload"]);
        heard.extend(manager.until(&["READY=1"]));
        assert!(!heard.concat().contains("WATCHDOG=1"), "{heard:?}");
        let is_told = system.log().contains("WATCHDOG_USEC = ");
        assert_eq!(is_told, pid.is_empty(), "{}", system.log());
        system.stop();
        manager.until(&["STOPPING=1"]);
    }
}

/// The messages until it is ready, waited for. The last secondary may be told of just after that.
fn ready_with(manager: &Manager, status: &str) -> Vec<String> {
    let heard = manager.until(&["READY=1"]);
    if !heard.last().unwrap().contains(status) {
        manager.until(&[status]);
    }
    heard
}

#[test]
fn a_manager_hears_of_each_reload_when_it_begins_and_how_it_ends() {
    let manager = Manager::new();
    let mut system = manager.start("secondaries = 2", &[]);
    ready_with(&manager, "STATUS=2 of 2 secondaries ready");
    let before = micros();
    runs(&system, &["reload"]);
    let heard = ready_with(&manager, "STATUS=2 of 2 secondaries ready");
    assert_eq!(changes(&heard), ["RELOADING=1", "READY=1"]);
    assert!(heard[0].contains("STATUS=reloading: "), "{heard:?}");
    assert!((before..=micros()).contains(&reload_time(&heard)));
    runs(&system, &["scale", "1"]);
    let heard = ready_with(&manager, "STATUS=1 of 1 secondaries ready");
    assert_eq!(changes(&heard), ["RELOADING=1", "READY=1"]);
    // Whoever sent the signal waits for a time that is not before it.
    let before = micros();
    system.signal(system.watchdog.id(), Signal::SIGHUP);
    let heard = ready_with(&manager, "STATUS=2 of 2 secondaries ready");
    assert!(reload_time(&heard) >= before);
    rewrite(&system, "secondaries = 2", "secondaries = 0");
    let why = fails(&system, &["reload"]);
    assert!(why.contains("nothing was changed"), "{why}");
    let heard = manager.until(&["READY=1"]);
    assert_eq!(changes(&heard), ["RELOADING=1", "READY=1"]);
    let status = "STATUS=2 of 2 secondaries ready, listening on ";
    let last = heard.last().unwrap();
    assert!(
        last.contains(status) && last.contains("; the last reload failed: nothing was changed: "),
        "{last}"
    );
    assert!(last.contains("secondaries = 0"), "{last}");
    // The next one that succeeds lets it be forgotten.
    rewrite(&system, "secondaries = 0", "secondaries = 2");
    system.signal(system.watchdog.id(), Signal::SIGHUP);
    let heard = manager.until(&["READY=1"]);
    assert!(!heard.last().unwrap().contains("failed"), "{heard:?}");
    runs(&system, &["stop"]);
    assert_eq!(changes(&manager.until(&["STOPPING=1"])), ["STOPPING=1"]);
    assert_eq!(system.ended().code(), Some(0));
}

#[test]
fn a_reload_whose_new_principal_dies_ends_for_the_manager_too() {
    let manager = Manager::new();
    // The second principal dies before its first store.
    let system = manager.start("secondaries = 2", &[("OSPS_FUSE", "principal.2:0")]);
    manager.until(&["READY=1"]);
    let why = fails(&system, &["reload"]);
    let reason = why.split_once("what was in force before is again: ").unwrap().1.trim_end();
    let heard = manager.until(&["READY=1"]);
    assert_eq!(changes(&heard), ["RELOADING=1", "READY=1"]);
    let told = format!("; the last reload failed: what was in force before is again: {reason}\n");
    assert!(heard.last().unwrap().contains(&told), "{heard:?}");
}

/// Starts a system of which some secondaries never get ready.
fn start_reluctant(manager: &Manager, secondaries: u16, settings: &str) -> System {
    let top = format!("secondaries = {secondaries}");
    let request = "[[request]]\nname = \"echo\"\nhandler = \"reluctant\"\nsettings";
    System::start_example_by("reluctant", &top, &format!("{request} = {settings}"), |mut command| {
        command.env("NOTIFY_SOCKET", &manager.address);
        command
    })
}

#[test]
fn secondaries_that_cannot_start_do_not_hold_up_the_ready() {
    let manager = Manager::new();
    for (settings, status) in [
        ("{ fails = [2] }", "STATUS=2 of 3 secondaries ready, listening on"),
        ("{ gives_up = [2] }", "STATUS=2 of 3 secondaries ready, 1 cannot start, listening on"),
        ("{ fails = [1], gives_up = [3] }", "STATUS=1 of 3 secondaries ready, 1 cannot start, listening on"),
    ] {
        let mut system = start_reluctant(&manager, 3, settings);
        let mut heard = manager.until(&["READY=1"]);
        if !heard.last().unwrap().contains(status) {
            heard.extend(manager.until(&[status]));
        }
        assert_eq!(changes(&heard), ["READY=1"]);
        assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
        assert_eq!(system.stop().code(), Some(0));
        manager.until(&["STOPPING=1"]);
    }
}

#[test]
fn with_nobody_to_serve_it_is_not_ready() {
    let manager = Manager::new();
    let mut system = start_reluctant(&manager, 2, "{ fails = [1], gives_up = [2] }");
    let several = |status: &serde_json::Value| System::server(status, 1)["restarts"].as_u64() >= Some(3);
    system.until("several deaths", several);
    assert_eq!(system.stop().code(), Some(0));
    let heard = manager.until(&["STOPPING=1"]);
    assert_eq!(changes(&heard), ["STOPPING=1"]);
    let last = heard.iter().rev().nth(1).unwrap();
    assert!(last.contains("STATUS=starting: 0 of 2 secondaries ready, 1 cannot start"), "{heard:?}");
}

#[test]
fn a_manager_that_does_not_read_holds_nothing_up_and_hears_all_that_matters_in_the_end() {
    let manager = Manager::new();
    manager.fill();
    let mut system = manager.start("secondaries = 2", &[("WATCHDOG_USEC", "2000")]);
    system.all_ready();
    let secondary = system.pid(1);
    system.signal(secondary, Signal::SIGKILL);
    system.until("a successor", |status| System::server(status, 1)["pid"] != secondary);
    system.all_ready();
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    runs(&system, &["reload"]);
    let before = micros();
    runs(&system, &["reload"]);
    assert!(system.log().contains("cannot notify the service manager"), "{}", system.log());
    let mut heard = manager.until(&["READY=1"]);
    heard.extend(ready_with(&manager, "STATUS=2 of 2 secondaries ready"));
    assert_eq!(changes(&heard), ["READY=1", "RELOADING=1", "READY=1"]);
    assert!(reload_time(&heard) >= before, "the last one is meant");
    manager.until(&["WATCHDOG=1"]);
    assert_eq!(system.stop().code(), Some(0));
}

#[test]
fn a_manager_that_is_gone_or_has_no_address_is_done_without() {
    let manager = Manager::new();
    fs::remove_file(&manager.address).unwrap();
    let mut system = manager.start("secondaries = 1", &[]);
    system.all_ready();
    assert!(system.log().contains("cannot notify the service manager"), "{}", system.log());
    assert_eq!(system.stop().code(), Some(0));
    let variables = [("NOTIFY_SOCKET", "vsock:2:99")];
    let mut system = Launch { variables: &variables, ..Launch::default() }.start("secondaries = 1");
    system.all_ready();
    assert!(system.log().contains("vsock:2:99"), "{}", system.log());
    assert_eq!(system.stop().code(), Some(0));
}
