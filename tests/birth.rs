//! Children between clone and exec: stopped there, they harm nobody but themselves.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;

use common::{REQUESTS, System, connect, eventually, recv, request, say};
use nix::libc::PTRACE_EVENT_FORK;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use osps::os::proc;

/// Who is stopped is found so at `kill_after`; a start on a loaded machine may take longer.
const START_WITHIN: &str = "[watchdog]\nstart_within = \"4s\"\n";

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

/// The next thing that a traced process does or suffers.
fn next_stop(pid: Pid) -> WaitStatus {
    eventually("a stop of a traced process", || {
        match waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => None,
            status => Some(status),
        }
    })
}

/// Holds the next child of `parent` back before it has executed one instruction of its own, as a
/// debugger does, and lets go of the parent: the pid of the child, which is traced.
fn hold_next_child(parent: u32, provoke: impl FnOnce()) -> u32 {
    let child = hold_next_birth(parent, provoke);
    ptrace::detach(raw(parent), None).unwrap();
    child
}

/// The same, and holds the parent, too.
fn hold_next_birth(parent: u32, provoke: impl FnOnce()) -> u32 {
    let parent = raw(parent);
    ptrace::seize(parent, Options::PTRACE_O_TRACEFORK).unwrap();
    provoke();
    loop {
        match next_stop(parent) {
            WaitStatus::PtraceEvent(_, _, PTRACE_EVENT_FORK) => break,
            // A signal on its way to it: a probe, an answer.
            WaitStatus::Stopped(_, signal) => ptrace::cont(parent, signal).unwrap(),
            WaitStatus::PtraceEvent(..) => ptrace::cont(parent, None).unwrap(),
            other => panic!("the parent: {other:?}"),
        }
    }
    let child = u32::try_from(ptrace::getevent(parent).unwrap()).unwrap();
    next_stop(raw(child));
    child
}

/// As [`hold_next_child`], with a child that nobody traces any more, in state T.
fn stop_next_child(parent: u32, provoke: impl FnOnce()) -> u32 {
    let child = hold_next_child(parent, provoke);
    kill(raw(child), Signal::SIGSTOP).unwrap();
    ptrace::detach(raw(child), None).unwrap();
    eventually("a stopped child", || (proc::stat(child).unwrap().letter == 'T').then_some(()));
    child
}

/// Waits until a server is ready in that slot, and nothing is left of the child, no zombie either.
fn replaced(system: &System, slot: u64, child: u32) {
    system.until("a replacement", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"] != child
    });
    eventually("the end of the child", || proc::stat(child).is_err().then_some(()));
}

#[test]
fn a_secondary_that_is_stopped_before_exec_is_replaced_while_the_others_serve() {
    let mut system = System::start("secondaries = 2", &format!("{START_WITHIN}{REQUESTS}"));
    let (principal, secondary) = (system.pid(0), system.pid(1));
    let child = stop_next_child(principal, || system.signal(secondary, Signal::SIGKILL));
    for _ in 0..20 {
        assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    }
    replaced(&system, 1, child);
    let status = system.status();
    assert_eq!(System::server(&status, 0)["pid"], principal, "{status}");
    assert_eq!(System::server(&status, 0)["kills"], 0, "{status}");
    assert_eq!(System::server(&status, 1)["kills"], 1, "{status}");
    assert_eq!(System::server(&status, 2)["kills"], 0, "{status}");
    assert_eq!(system.stop().code(), Some(0));
}

#[test]
fn a_principal_that_is_stopped_before_exec_is_replaced_and_its_clients_wait() {
    let mut system = System::start("secondaries = 2", &format!("{START_WITHIN}{REQUESTS}"));
    let (principal, address) = (system.pid(0), system.address());
    let watchdog = system.watchdog.id();
    let child = stop_next_child(watchdog, || system.signal(principal, Signal::SIGKILL));
    let mut client = connect(address);
    client.write_all(b"echo\n").unwrap();
    let port: u16 = recv(&mut client).trim_end().parse().unwrap();
    assert_eq!(say(&mut connect((address.ip(), port).into()), "x"), "x");
    replaced(&system, 0, child);
    assert_eq!(system.stop().code(), Some(0));
    assert!(!system.has_processes());
}

#[test]
fn a_stop_does_not_wait_for_a_child_that_is_stopped_before_exec() {
    for slot in [0, 1] {
        let mut system = System::start("secondaries = 2", &format!("{START_WITHIN}{REQUESTS}"));
        let parent = if slot == 0 { system.watchdog.id() } else { system.pid(0) };
        let victim = system.pid(slot);
        stop_next_child(parent, || system.signal(victim, Signal::SIGKILL));
        assert_eq!(system.stop().code(), Some(0), "slot {slot}");
        assert!(!system.has_processes(), "slot {slot}");
    }
}

#[test]
fn a_principal_that_dies_beside_a_child_that_is_stopped_before_exec_leaves_nothing() {
    let mut system = System::start("secondaries = 2", &format!("{START_WITHIN}{REQUESTS}"));
    let (principal, secondary) = (system.pid(0), system.pid(1));
    let child = stop_next_child(principal, || system.signal(secondary, Signal::SIGKILL));
    system.signal(principal, Signal::SIGKILL);
    replaced(&system, 0, principal);
    replaced(&system, 1, child);
    assert_eq!(system.stop().code(), Some(0));
    assert!(!system.has_processes());
}

#[test]
fn a_start_after_a_crash_is_not_hindered_by_a_child_that_was_held_back_before_exec() {
    for slot in [0, 1] {
        let mut system = System::start("secondaries = 2", &format!("{START_WITHIN}{REQUESTS}"));
        let parent = if slot == 0 { system.watchdog.id() } else { system.pid(0) };
        let victim = system.pid(slot);
        // Traced, for the kernel continues what is merely stopped when its group loses its parents.
        let child = hold_next_child(parent, || system.signal(victim, Signal::SIGKILL));
        system.signal(system.watchdog.id(), Signal::SIGKILL);
        system.start_again();
        assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
        // Killed by the new start, which knows it from a page; or else it finds its parent dead.
        if ptrace::detach(raw(child), None).is_err() {
            next_stop(raw(child));
        }
        eventually("that nobody survives", || (!system.has_survivors()).then_some(()));
        assert_eq!(system.stop().code(), Some(0), "slot {slot}");
    }
}

#[test]
fn a_secondary_that_was_not_told_yet_who_it_is_ends_with_its_principal() {
    let mut system = System::start("secondaries = 2", &format!("{START_WITHIN}{REQUESTS}"));
    let (principal, secondary) = (system.pid(0), system.pid(1));
    let child = hold_next_birth(principal, || system.signal(secondary, Signal::SIGKILL));
    ptrace::detach(raw(child), None).unwrap();
    eventually("a secondary that waits", || {
        let arguments = fs::read(format!("/proc/{child}/cmdline")).unwrap();
        (arguments.starts_with(b"osps\0secondary") && proc::stat(child).unwrap().letter == 'S').then_some(())
    });
    system.signal(principal, Signal::SIGKILL);
    assert!(matches!(next_stop(raw(principal)), WaitStatus::Signaled(..)));
    replaced(&system, 0, principal);
    replaced(&system, 1, child);
    assert_eq!(system.stop().code(), Some(0));
    assert!(!system.has_processes());
}

#[test]
fn a_secondary_whose_files_cannot_be_made_was_never_anybody() {
    let mut system = System::start("secondaries = 2", REQUESTS);
    let (principal, secondary) = (system.pid(0), system.pid(1));
    let tube = system.rundir().join("wdtube1");
    fs::remove_file(&tube).unwrap();
    fs::create_dir(&tube).unwrap();
    system.signal(secondary, Signal::SIGKILL);
    let failures = || system.log().matches("cannot start secondary 1.").count();
    eventually("a start that fails", || (failures() > 0).then_some(()));
    let children = || fs::read_to_string(format!("/proc/{principal}/task/{principal}/children")).unwrap();
    eventually("the end of who was started", || (children().split_whitespace().count() == 1).then_some(()));
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x", "the other serves");
    fs::remove_dir(&tube).unwrap();
    replaced(&system, 1, secondary);
    system.books_are_exact();
    assert_eq!(system.stop().code(), Some(0));
}
