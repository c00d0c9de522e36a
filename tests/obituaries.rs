//! Each death leaves one line in the log and one record in `status`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{REQUESTS, System, request, say};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Quick to judge, but not so quick that a loaded machine looks like a hang.
const TIMES: &str = "[watchdog]\nperiod = \"100ms\"\nsuspect_after = \"300ms\"\nkill_after = \"1s\"\n";

fn system() -> System {
    System::start("secondaries = 2\nclient_idle = \"10m\"", &format!("{REQUESTS}\n{TIMES}"))
}

/// Waits for the one obituary of a pid in `status`, and checks that the log has one line of it.
fn obituary(system: &System, pid: u32) -> Value {
    let of_pid = |status: &Value| -> Vec<Value> {
        let obituaries = status["obituaries"].as_array().unwrap().iter();
        obituaries.filter(|obituary| obituary["pid"] == pid).cloned().collect()
    };
    let status = system.until("an obituary", |status| !of_pid(status).is_empty());
    let [obituary] = &of_pid(&status)[..] else {
        panic!("more than one obituary of {pid}: {status}");
    };
    let line = format!(" pid={pid} cause=");
    let log = common::eventually("its line", || Some(system.log()).filter(|log| log.contains(&line)));
    let lines: Vec<&str> = log.lines().filter(|text| text.contains(&line)).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&format!("cause={}", obituary["cause"])), "{lines:?}");
    obituary.clone()
}

/// An exchange of `echo` that is under way, and the pid of the secondary that holds it.
fn exchange(system: &System) -> (std::net::TcpStream, u32) {
    let mut exchange = request(system.address(), "echo");
    assert_eq!(say(&mut exchange, "here"), "here");
    let port = exchange.peer_addr().unwrap().port();
    let status = system.status();
    let slot = (1..=2).find(|&slot| System::server(&status, slot)["ports"]["echo"] == port).unwrap();
    (exchange, system.pid(slot))
}

#[test]
fn a_secondary_that_is_killed_from_outside_leaves_its_signal_and_its_jobs() {
    let system = system();
    let (_exchange, pid) = exchange(&system);
    system.signal(pid, Signal::SIGKILL);
    let obituary = obituary(&system, pid);
    assert_eq!(obituary["role"], "secondary");
    assert_eq!(obituary["cause"], "signal 9");
    assert_eq!(obituary["killed"], Value::Null, "not by us");
    assert_eq!(obituary["jobs"], 1);
    assert_eq!(obituary["incarnation"], 1);
}

#[test]
fn a_frozen_one_leaves_why_it_was_killed_and_in_which_state() {
    let system = system();
    let (_exchange, pid) = exchange(&system);
    system.signal(pid, Signal::SIGSTOP);
    let obituary = obituary(&system, pid);
    assert_eq!(obituary["cause"], "signal 9");
    assert_eq!(obituary["killed"], "stopped, no answer within kill_after");
    assert_eq!(obituary["state"], "T");
    assert_eq!(obituary["jobs"], 1);
    let answered = &obituary["answered_ms_before"];
    assert!(answered.is_null() || answered.as_u64() >= Some(1000), "{obituary}");
}

#[test]
fn one_that_is_killed_beside_a_stopped_principal_keeps_why_when_both_are_dead() {
    let system = system();
    let (_exchange, secondary) = exchange(&system);
    let principal = system.pid(0);
    system.signal(secondary, Signal::SIGSTOP);
    system.until("it is suspect", |status| {
        let servers = status["servers"].as_array().unwrap();
        servers.iter().any(|server| server["pid"] == secondary && server["state"] == "suspect")
    });
    // It does not hear of the other's death, and dies a little later.
    system.signal(principal, Signal::SIGSTOP);
    for pid in [secondary, principal] {
        let obituary = obituary(&system, pid);
        assert_eq!(obituary["killed"], "stopped, no answer within kill_after", "{obituary}");
        assert_eq!((&obituary["state"], &obituary["jobs"]), (&json!("T"), &json!(1)), "{obituary}");
    }
}

#[test]
fn a_principal_and_the_secondaries_that_outlive_it_leave_theirs_too() {
    let system = system();
    let (held, secondary) = exchange(&system);
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGKILL);
    let of_principal = obituary(&system, principal);
    assert_eq!((&of_principal["role"], &of_principal["slot"]), (&json!("principal"), &json!(0)));
    assert_eq!(of_principal["cause"], "signal 9");
    // It drains as an orphan now, and the watchdog reaps it.
    drop(held);
    let of_secondary = obituary(&system, secondary);
    assert_eq!((&of_secondary["cause"], &of_secondary["jobs"]), (&json!("exit 0"), &json!(0)));
    let (_held, serving) = exchange(&system);
    system.until("a new principal", |status| System::server(status, 0)["state"] == "ready");
    let next = system.pid(0);
    system.signal(next, Signal::SIGKILL);
    let _ = obituary(&system, next);
    system.strike(serving, Signal::SIGKILL);
    let of_serving = obituary(&system, serving);
    assert_eq!((&of_serving["cause"], &of_serving["jobs"]), (&json!("signal 9"), &json!(1)));
    let _ = system.books_are_exact();
    let text = system.tool(&["status"]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("DEATHS") && text.contains("signal 9"), "{text}");
}

#[test]
fn a_graceful_stop_leaves_lines_that_alarm_nobody() {
    let mut system = system();
    assert!(system.stop().success());
    let log = system.log();
    let obituaries: Vec<&str> = log.lines().filter(|line| line.contains("obituary ")).collect();
    assert!(
        obituaries.iter().all(|line| line.contains("INFO") && line.contains("cause=\"exit 0\"")),
        "{log}"
    );
    assert_eq!(obituaries.len(), 3, "one for each server: {log}");
}
