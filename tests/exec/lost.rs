//! Commands whose servers die.

use nix::sys::signal::Signal;
use osps::core::mark::{Mark, Start};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::common::eventually;
use crate::{Control, start, tree, until_processes};

/// One in the leader's group, one in a session of its own with an empty environment, and the leader.
const FAMILY: &str = "sleep 1000 & env -i setsid sleep 1001 & exec sleep 1003";

/// Whether a secondary has a job.
fn serves(system: &crate::System, slot: u64) -> bool {
    crate::System::server(&system.status(), slot)["open"] == 1
}

#[test]
fn a_secondary_that_dies_leaves_no_command() {
    let system = start("secondaries = 2", &[("family", FAMILY, "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (_data, jeton) = control.begin("family");
    let family = until_processes(tree, 3);
    // They claim to be of the secondary that lives on.
    let (slot, other) = if serves(&system, 1) { (1, 2) } else { (2, 1) };
    let secondary = system.pid(slot);
    let forged = Mark { slot: other, incarnation: 1, start: Start::new(1) }.soft_limit();
    for pid in family {
        let (_, hard) = osps::os::proc::lock_limits(pid).unwrap();
        let forged = Rlimit { current: Some(forged), maximum: Some(hard) };
        let _ = prlimit(Some(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()), Resource::Locks, forged);
    }
    system.signal(secondary, Signal::SIGKILL);
    assert_eq!(control.end(&jeton), "errtraitement secondary lost");
    until_processes(tree, 0);
    system.books_are_exact();
    eventually("nobody's child is left", || system.zombies().is_empty().then_some(()));
}

#[test]
fn who_has_an_empty_environment_dies_with_its_secondary_and_with_the_system() {
    let script = "env -i setsid sleep 1000 & env -i setsid sleep 1001 & exec sleep 1003";
    let mut system = start("secondaries = 1", &[("family", script, "")]);
    let sleeps = |system: &crate::System| {
        let watchdog = u32::try_from(system.status()["pid"].as_u64().unwrap()).unwrap();
        let below = osps::os::descendants::below(watchdog).into_iter().map(|(pid, _)| pid);
        let is_sleep = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        };
        below.filter(is_sleep).collect::<Vec<u32>>()
    };
    let begin = |system: &crate::System| {
        let mut control = Control::new(system);
        let jobs = [control.begin("family"), control.begin("family")];
        let pids = eventually("six sleep", || Some(sleeps(system)).filter(|pids| pids.len() == 6));
        (control, jobs, pids)
    };
    let (_control, _jobs, _) = begin(&system);
    system.signal(system.pid(1), Signal::SIGKILL);
    eventually("nobody sleeps", || sleeps(&system).is_empty().then_some(()));
    system.all_ready();
    let (_control, _jobs, pids) = begin(&system);
    let watchdog = u32::try_from(system.status()["pid"].as_u64().unwrap()).unwrap();
    system.signal(watchdog, Signal::SIGTERM);
    eventually("it stops", || system.log().contains("stopping gracefully").then_some(()));
    system.signal(watchdog, Signal::SIGTERM);
    assert!(system.ended().success());
    let lives = |pid: &u32| osps::os::proc::stat(*pid).is_ok_and(|stat| stat.letter != 'Z');
    eventually("nobody sleeps", || (!pids.iter().any(lives)).then_some(()));
}

#[test]
fn principal_and_secondary_that_die_together_leave_no_command() {
    let system = start("secondaries = 2", &[("family", FAMILY, "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (_first, _) = control.begin("family");
    let (_second, _) = control.begin("family");
    until_processes(tree, 6);
    let pids = system.pids();
    for pid in &pids[1..] {
        system.strike(*pid, Signal::SIGKILL);
    }
    until_processes(tree, 0);
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["failed"], 2);
}

#[test]
fn the_next_start_ends_what_a_crash_has_left() {
    let mut system = start("secondaries = 1", &[("family", FAMILY, "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (_data, _) = control.begin("family");
    until_processes(tree, 3);
    for pid in system.pids() {
        system.strike(pid, Signal::SIGKILL);
    }
    system.start_again();
    until_processes(tree, 0);
}

#[test]
fn the_next_start_ends_also_who_is_born_again_and_again() {
    // Each starts the next one and ends, longer than anybody waits here.
    let dir = tempfile::tempdir().unwrap();
    let chain = dir.path().join("chain");
    let script = "#!/bin/sh\n[ $1 -gt 0 ] || exit\nsleep 0.002\nsetsid \"$0\" $(($1 - 1)) &\n";
    std::fs::write(&chain, script).unwrap();
    std::fs::set_permissions(&chain, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = format!("setsid {0} 20000 & setsid {0} 20000 & exec sleep 1000", chain.display());
    let mut system = start("secondaries = 1", &[("chains", &script, "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (_data, _) = control.begin("chains");
    eventually("the chains", || (crate::processes(tree).len() >= 3).then_some(()));
    for pid in system.pids() {
        system.strike(pid, Signal::SIGKILL);
    }
    system.start_again();
    until_processes(tree, 0);
}

#[test]
fn what_an_idle_worker_has_started_dies_with_the_secondary_too() {
    let more = "mode = \"persistent\"";
    let script = "setsid sleep 1000 & sleep 1001 & exec cat >/dev/null";
    let system = start("secondaries = 2", &[("worker", script, more)]);
    let tree = tree(&system);
    until_processes(tree, 6);
    let first = system.pid(1);
    system.signal(first, Signal::SIGKILL);
    system.until("another serves", |status| {
        let server = crate::System::server(status, 1);
        server["pid"] != first && server["state"] == "ready"
    });
    // Those of the other secondary, and of the successor.
    until_processes(tree, 6);
    for pid in &system.pids()[1..] {
        system.strike(*pid, Signal::SIGKILL);
    }
    system.all_ready();
    until_processes(tree, 6);
}
