//! Servers that die while somebody traces them (gdb, strace): the kernel tells the tracer first,
//! and their parents can reap them only when it has asked.
#![allow(clippy::unwrap_used)]

mod common;

use common::{REQUESTS, System, eventually, request, say, worker};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use osps::os::proc;

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

/// Kills a server under an idle tracer: it is replaced, serves, and leaves its obituary and no
/// zombie once the tracer has asked for its end.
fn dies_traced(slot: u64) {
    let mut system = System::start("secondaries = 2", REQUESTS);
    let pid = system.pid(slot);
    ptrace::seize(raw(pid), Options::empty()).unwrap();
    system.signal(pid, Signal::SIGKILL);
    system.until("a replacement", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"] != pid
    });
    assert_eq!(proc::stat(pid).unwrap().letter, 'Z', "nobody but the tracer may reap it yet");
    assert_eq!(say(&mut request(system.address(), "echo"), "on"), "on");
    eventually("the tracer asks", || {
        let asked = waitpid(raw(pid), Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        asked.ok().filter(|status| status.pid().is_some())
    });
    eventually("it is reaped", || proc::stat(pid).is_err().then_some(()));
    let status = system.until("its obituary", |status| {
        let obituaries = status["obituaries"].as_array().unwrap();
        obituaries.iter().any(|obituary| obituary["pid"] == pid)
    });
    let obituaries = status["obituaries"].as_array().unwrap().iter();
    let of_pid: Vec<_> = obituaries.filter(|obituary| obituary["pid"] == pid).collect();
    assert_eq!(of_pid.len(), 1, "{status}");
    assert_eq!(of_pid[0]["cause"], "signal 9");
    let _ = system.books_are_exact();
    assert!(system.stop().success());
    assert!(!system.has_processes());
}

#[test]
fn a_worker_that_dies_under_a_tracer_holds_up_nobody() {
    let mut system = System::start("secondaries = 1", &worker::request("upper", &[], "time_limit = \"2s\""));
    let first: u32 = worker::done(&system, "upper", "pid").parse().unwrap();
    ptrace::seize(raw(first), Options::empty()).unwrap();
    assert_eq!(worker::job(&system, "upper", "hang"), (String::new(), "time limit".to_owned()));
    assert_eq!(worker::done(&system, "upper", "on"), "ON");
    assert_eq!(proc::stat(first).unwrap().letter, 'Z', "nobody but the tracer may reap it yet");
    eventually("the tracer asks", || {
        let asked = waitpid(raw(first), Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        asked.ok().filter(|status| status.pid().is_some())
    });
    eventually("it is reaped", || proc::stat(first).is_err().then_some(()));
    let _ = system.books_are_exact();
    assert!(system.stop().success());
    assert!(!system.has_processes());
}

#[test]
fn a_principal_that_dies_under_a_tracer_is_replaced_at_once() {
    dies_traced(0);
}

#[test]
fn a_secondary_that_dies_under_a_tracer_is_replaced_at_once_and_reaped_later() {
    dies_traced(1);
}
