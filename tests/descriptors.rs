//! What each process holds open: what it should, nothing of anybody else, and no more as time goes by.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use common::{PATIENCE, REQUESTS, System, eventually, now, pause, request, say};
use nix::sys::signal::Signal;
use osps::os::proc;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// Request types in [`REQUESTS`], each with a data port in every slot.
const TYPES: usize = 4;

/// Starts a system that inherits nothing from whoever runs this test but what `stage` opens.
fn start(top: &str, stage: &str) -> System {
    let close = "for n in {3..255}; do eval \"exec $n>&-\"; done";
    let script = format!("{close}; {stage}\nexec \"$@\" >>stdout 2>>stderr");
    let system = System::start_by(top, REQUESTS, |command| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &script, "bash"]).arg(command.get_program()).args(command.get_args());
        shell
    });
    system.all_ready();
    system
}

/// What a process holds open, by number, in the kernel's words (proc_pid_fd(5)).
fn open_in(pid: u32) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let named = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, link.to_str()?.to_owned()))
    };
    entries.filter_map(|entry| named(entry.unwrap())).collect()
}

/// How many there are of each kind; sockets lose their number, files of the runtime directory their
/// directory.
fn kinds(system: &System, pid: u32) -> BTreeMap<String, usize> {
    let rundir = format!("{}/", system.rundir().display());
    let mut kinds = BTreeMap::new();
    for (number, link) in open_in(pid) {
        let kind = match link.strip_prefix(&rundir) {
            _ if number <= 2 => "standard".to_owned(),
            Some(file) => file.to_owned(),
            None if link.starts_with("socket:") => "socket".to_owned(),
            None => link,
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn expected(common: &[(&str, usize)], files: &[&str]) -> BTreeMap<String, usize> {
    let files = files.iter().map(|file| (*file, 1));
    let standard = [("standard", 3), ("anon_inode:[eventpoll]", 1), ("anon_inode:[signalfd]", 1)];
    let mut all = BTreeMap::new();
    for (kind, number) in standard.into_iter().chain(common.iter().copied()).chain(files) {
        *all.entry(kind.to_owned()).or_default() += number;
    }
    all
}

/// Waits until a process holds exactly that.
fn holds(system: &System, pid: u32, expected: &BTreeMap<String, usize>) {
    let give_up_at = now() + PATIENCE;
    while kinds(system, pid) != *expected && now() < give_up_at {
        pause();
    }
    assert_eq!(kinds(system, pid), *expected);
}

/// Sockets that two processes share: listeners.
fn shared(one: u32, other: u32) -> usize {
    let sockets = |pid| -> BTreeSet<String> {
        open_in(pid).into_values().filter(|link| link.starts_with("socket:")).collect()
    };
    sockets(one).intersection(&sockets(other)).count()
}

/// Two secondaries and nobody else's descriptors; `strange` is what only the watchdog was given.
fn everybody_holds_what_it_should(system: &System, strange: &[(&str, usize)]) {
    everybody_holds(system, (1, 1), strange);
}

/// The same, with so many control listeners, on so many hosts.
fn everybody_holds(system: &System, (control, hosts): (usize, usize), strange: &[(&str, usize)]) {
    system.all_ready();
    let pids = system.pids();
    let (watchdog, principal, secondaries) = (pids[0], pids[1], &pids[2..]);
    let of_slot = TYPES * hosts;
    let listeners = control + 2 * of_slot;
    // Sockets besides listeners: the channel; the socket of the tools.
    // The pages that outlive a principal are held to hand them down.
    let tables = ["secondary1.jobs", "secondary2.jobs", "watchdog.page"];
    let files =
        [&["lock", "orders.principal", "orders.1", "orders.2", "principal.page"], &tables[..]].concat();
    // Both start others: this program, and what is their standard input.
    let program = env!("CARGO_BIN_EXE_osps");
    let mut of_watchdog =
        vec![("socket", listeners + 1 + 1), ("anon_inode:[pidfd]", 4), (program, 1), ("/dev/null", 1)];
    of_watchdog.extend_from_slice(strange);
    holds(system, watchdog, &expected(&of_watchdog, &files));
    let tubes = ["dwtube1", "wdtube1", "dwtube2", "wdtube2"];
    let files = [&["orders.principal"], &tubes[..], &tables[..]].concat();
    // In reserve for looks for processes.
    let reserve = ("/dev/null", 4);
    let of_principal =
        [("socket", listeners + 1), ("anon_inode:[pidfd]", 3), reserve, (program, 1), ("/dev/null", 1)];
    holds(system, principal, &expected(&of_principal, &files));
    for (pid, number) in secondaries.iter().zip(1..) {
        // Its page, for the next principal.
        let files = ["dwtube{}", "wdtube{}", "orders.{}", "secondary{}.page"]
            .map(|name| name.replace("{}", &number.to_string()));
        let of_secondary = [("socket", of_slot), ("anon_inode:[pidfd]", 1), reserve];
        holds(system, *pid, &expected(&of_secondary, &files.each_ref().map(String::as_str)));
        assert_eq!((shared(*pid, watchdog), shared(*pid, principal)), (of_slot, of_slot));
    }
    assert_eq!(shared(principal, watchdog), listeners);
    assert_eq!(shared(secondaries[0], secondaries[1]), 0);
}

/// Kills servers and waits until each has a successor and nothing is left of it, no zombie either.
fn kill_and_wait(system: &System, slots: std::ops::RangeInclusive<u64>) {
    let status = system.all_ready();
    let victims: Vec<(u64, u32)> = slots
        .map(|slot| (slot, u32::try_from(System::server(&status, slot)["pid"].as_u64().unwrap()).unwrap()))
        .collect();
    for (_, pid) in &victims {
        system.signal(*pid, Signal::SIGKILL);
    }
    system.until("successors", |status| {
        let succeeded = |&(slot, pid): &(u64, u32)| {
            let server = System::server(status, slot);
            server["state"] == "ready" && server["pid"] != pid
        };
        victims.iter().all(succeeded)
    });
    eventually("the end of the killed", || {
        victims.iter().all(|(_, pid)| proc::stat(*pid).is_err()).then_some(())
    });
}

#[test]
fn each_process_holds_what_it_needs_and_its_successors_too() {
    let system = start("secondaries = 2", "");
    everybody_holds_what_it_should(&system, &[]);
    kill_and_wait(&system, 1..=2);
    everybody_holds_what_it_should(&system, &[]);
    kill_and_wait(&system, 0..=0);
    everybody_holds_what_it_should(&system, &[]);
}

#[test]
fn every_listener_on_every_host_is_held_by_whom_it_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", dir.path().join("principal").display());
    let listen = ["127.0.0.1:0", &socket, "127.0.0.2:0", "127.0.0.3:0"];
    let system = start(&format!("secondaries = 2\nlisten = {listen:?}"), "");
    everybody_holds(&system, (4, 3), &[]);
    kill_and_wait(&system, 1..=2);
    kill_and_wait(&system, 0..=0);
    everybody_holds(&system, (4, 3), &[]);
}

#[test]
fn descriptors_that_the_watchdog_was_started_with_reach_no_server() {
    let system = start("secondaries = 2", "for n in {3..20}; do eval \"exec $n</dev/zero\"; done");
    everybody_holds_what_it_should(&system, &[("/dev/zero", 18)]);
    kill_and_wait(&system, 1..=2);
    kill_and_wait(&system, 0..=0);
    everybody_holds_what_it_should(&system, &[("/dev/zero", 18)]);
}

#[test]
fn standard_descriptors_that_are_closed_are_no_sockets() {
    let system = System::start_by("secondaries = 2", REQUESTS, |command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    });
    system.all_ready();
    kill_and_wait(&system, 1..=1);
    for pid in system.pids() {
        let open = open_in(pid);
        let standard = [0, 1, 2].map(|number| open.get(&number).map(String::as_str));
        assert_eq!(standard, [Some("/dev/null"); 3]);
    }
}

#[test]
fn a_service_manager_costs_the_watchdog_a_socket_and_nobody_else_any() {
    let system = start("secondaries = 2", "export NOTIFY_SOCKET=@osps-nobody-$$ WATCHDOG_USEC=2000");
    everybody_holds_what_it_should(&system, &[("socket", 1)]);
    kill_and_wait(&system, 0..=0);
    everybody_holds_what_it_should(&system, &[("socket", 1)]);
}

#[test]
fn thirty_dead_secondaries_and_ten_dead_principals_leave_no_descriptor_and_no_zombie() {
    let mut system = start("secondaries = 6", "");
    let (watchdog, principal) = (system.watchdog.id(), system.pid(0));
    let before = (kinds(&system, watchdog), kinds(&system, principal));
    for _ in 0..5 {
        kill_and_wait(&system, 1..=6);
    }
    assert_eq!(system.pid(0), principal);
    holds(&system, watchdog, &before.0);
    holds(&system, principal, &before.1);
    for _ in 0..10 {
        kill_and_wait(&system, 0..=0);
    }
    system.until("that all predecessors have ended", |status| {
        status["servers"].as_array().unwrap().iter().all(|server| server["state"] == "ready")
    });
    holds(&system, watchdog, &before.0);
    holds(&system, system.pid(0), &before.1);
    eventually("that all the dead are reaped", || system.zombies().is_empty().then_some(()));
    assert_eq!(system.stop().code(), Some(0));
    assert!(!system.has_processes());
}

/// Sets the soft limit of a process, the hard one where there is none.
fn limit_descriptors(pid: u32, limit: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: limit.or(maximum), maximum };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    prlimit(Some(pid), Resource::Nofile, limit).unwrap();
}

/// The children of a process (proc_pid_task_children(5)).
fn children(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_principal_that_is_short_of_descriptors_starts_a_secondary_or_none_but_loses_no_child() {
    let echo = "[[request]]\nname = \"echo\"\nhandler = \"echo\"";
    let system = System::start("secondaries = 16", echo);
    let principal = system.pid(0);
    let highest = u64::from(*open_in(principal).last_key_value().unwrap().0);
    // With none to spare the first step of a start fails, with one more the second, and so on. Each
    // time another slot, whose next start is soon.
    for slot in 1..=16 {
        let victim = system.pid(slot);
        let failed = || system.log().contains(&format!("cannot start secondary {slot}."));
        limit_descriptors(principal, Some(highest + slot));
        system.signal(victim, Signal::SIGKILL);
        system.until("another secondary, or none for want of descriptors", |status| {
            let server = System::server(status, slot);
            server["pid"].is_u64() && server["pid"] != victim || failed()
        });
        limit_descriptors(principal, None);
        system.until("a replacement", |status| {
            let server = System::server(status, slot);
            server["state"] == "ready" && server["pid"] != victim
        });
        let servers = system.pids()[2..].iter().map(u32::to_string).collect::<BTreeSet<_>>();
        eventually("that only those of the table live", || {
            (children(principal).into_iter().collect::<BTreeSet<_>>() == servers).then_some(())
        });
    }
    assert!(system.log().contains("cannot start secondary 1."), "the first had all it needed");
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    assert_eq!(system.pid(0), principal);
}
