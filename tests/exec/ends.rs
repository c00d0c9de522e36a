//! How jobs of commands end, and that their processes do.

use std::io::Write;
use std::net::Shutdown;

use nix::sys::signal::Signal;
use osps::core::mark::{Mark, Start};
use osps::os::descendants;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::common::{System, eventually};
use crate::{Control, processes, rest, start, tree, until_processes};

#[test]
fn a_job_ends_as_its_command_does() {
    let system = start(
        "secondaries = 1",
        &[
            ("good", "echo well", ""),
            ("bad", "echo so far; exit 3", ""),
            ("high", "exit 255", ""),
            ("killed", "kill -9 $$", ""),
            ("aborted", "kill -ABRT $$", ""),
            ("pipe", "trap - PIPE; kill -PIPE $$", ""),
        ],
    );
    let mut control = Control::new(&system);
    for (kind, said, end) in [
        ("good", "well\n", "fintraitement"),
        ("bad", "so far\n", "errtraitement exit 3"),
        ("high", "", "errtraitement exit 255"),
        ("killed", "", "errtraitement signal 9"),
        ("aborted", "", "errtraitement signal 6"),
        ("pipe", "", "errtraitement signal 13"),
    ] {
        assert_eq!(control.run(kind), (said.to_owned(), end.to_owned()), "{kind}");
    }
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["done"], &status["ledger"]["failed"]), (&1.into(), &5.into()));
}

#[test]
fn who_takes_too_long_is_gone_with_its_whole_family() {
    let limit = "time_limit = \"300ms\"";
    let program = crate::common::worker::program().display();
    let moves = format!("exec {program} elsewhere 0");
    let deaf = format!("trap '' TERM; {moves}");
    let commands = [
        ("sleeps", "exec sleep 1000", limit),
        ("spins", "while :; do :; done", limit),
        ("deaf", "trap '' TERM; while :; do sleep 1000; done", limit),
        ("leaves", "setsid sleep 1000 & exec sleep 1001", limit),
        (
            "scatters",
            "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1001' &); sleep 1002",
            limit,
        ),
        ("vanishes", "(env -i setsid sleep 1000 &); sleep 1001", limit),
        ("moves", &moves, limit),
        ("moves_deaf", &deaf, limit),
    ];
    let system = start("secondaries = 2", &commands);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    for (kind, _, _) in commands {
        let (mut data, jeton) = control.begin(kind);
        assert_eq!(control.end(&jeton), "errtraitement time limit", "{kind}");
        assert_eq!(rest(&mut data), "");
        assert_eq!(processes(tree), [0_u32; 0], "{kind}");
        assert_eq!(strays(&system), [0_u32; 0], "{kind}");
    }
    system.books_are_exact();
    assert_eq!(system.zombies(), [0_u32; 0]);
}

/// Children of secondaries, marked or not.
fn strays(system: &System) -> Vec<u32> {
    let servers = system.pids();
    let below = descendants::below(servers[1]).into_iter();
    below.map(|(pid, _)| pid).filter(|pid| !servers.contains(pid)).collect()
}

#[test]
fn what_a_command_leaves_behind_ends_with_its_job() {
    let script = "setsid sleep 1000 >/dev/null 2>&1 & (sleep 1001 &) ; echo done";
    let system = start("secondaries = 1", &[("daemon", script, ""), ("cat", "exec cat", "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (mut other, other_jeton) = control.begin("cat");
    let (said, end) = control.run("daemon");
    assert_eq!((said.as_str(), end.as_str()), ("done\n", "fintraitement"));
    assert_eq!(processes(tree).len(), 1, "only the other job's");
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!((rest(&mut other), control.end(&other_jeton)), (String::new(), "fintraitement".to_owned()));
}

/// The command of a job that has just begun, once it bears its mark: who follows the job hears of it before that.
fn started(system: &System, before: &[u32]) -> u32 {
    eventually("its command", || {
        let is_it = |pid: &u32| !before.contains(pid) && descendants::mark_of(*pid).is_some();
        strays(system).into_iter().find(is_it)
    })
}

/// Leaves group, session and environment; the substitution ends when it has, and is executed.
const DAEMON: &str = "x=$(env -i setsid sh -c 'exec sleep 1000 <&- >&- 2>&-' &)";

#[test]
fn who_says_that_he_is_anothers_is_spared_as_long_as_that_one_lives_and_no_longer() {
    let script = format!("read go; {DAEMON}");
    let system = start("secondaries = 1", &[("daemon", &script, ""), ("cat", "exec cat", "")]);
    let mut control = Control::new(&system);
    let (mut other, other_jeton) = control.begin("cat");
    let cat = started(&system, &[]);
    let claims = Mark { start: Start::new(1), ..descendants::mark_of(cat).unwrap() };
    assert_eq!(descendants::mark_of(cat), Some(claims), "it is the first command");
    let foreign = Mark { incarnation: claims.incarnation + 7, ..claims };
    for mark in [claims, foreign] {
        let before = strays(&system);
        let (mut data, jeton) = control.begin("daemon");
        let pid = started(&system, &before);
        let (_, hard) = osps::os::proc::lock_limits(pid).unwrap();
        let forged = Rlimit { current: Some(mark.soft_limit()), maximum: Some(hard) };
        prlimit(Some(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()), Resource::Locks, forged).unwrap();
        data.write_all(b"go\n").unwrap();
        assert_eq!(control.end(&jeton), "fintraitement");
        assert!(strays(&system).len() > before.len());
    }
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!((rest(&mut other), control.end(&other_jeton)), (String::new(), "fintraitement".to_owned()));
    assert_eq!(control.run("cat").1, "fintraitement");
    assert_eq!(strays(&system), [0_u32; 0]);
}

#[test]
fn who_sheds_group_session_and_environment_ends_with_his_own_job() {
    // The marks tell of which job it is, also while older ones run.
    let script = format!("{DAEMON}; echo done");
    let system = start("secondaries = 1", &[("daemon", &script, ""), ("cat", "exec cat", "")]);
    let mut control = Control::new(&system);
    let (mut other, other_jeton) = control.begin("cat");
    let cat = [started(&system, &[])];
    for _ in 0..3 {
        assert_eq!(control.run("daemon"), ("done\n".to_owned(), "fintraitement".to_owned()));
        assert_eq!(strays(&system), cat);
    }
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!((rest(&mut other), control.end(&other_jeton)), (String::new(), "fintraitement".to_owned()));
}

#[test]
fn who_has_spoilt_even_his_mark_ends_with_the_last_who_may_have_started_him() {
    let script = format!("read go; {DAEMON}");
    let system = start("secondaries = 1", &[("daemon", &script, ""), ("cat", "exec cat", "")]);
    let mut control = Control::new(&system);
    let (mut other, other_jeton) = control.begin("cat");
    let cat = started(&system, &[]);
    let (mut data, jeton) = control.begin("daemon");
    for pid in [cat, started(&system, &[cat])] {
        let spoilt = Rlimit { current: Some(1), maximum: Some(2) };
        prlimit(Some(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()), Resource::Locks, spoilt).unwrap();
    }
    data.write_all(b"go\n").unwrap();
    assert_eq!(control.end(&jeton), "fintraitement");
    assert_eq!(strays(&system).len(), 2, "the other job's, and the daemon");
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!((rest(&mut other), control.end(&other_jeton)), (String::new(), "fintraitement".to_owned()));
    assert_eq!(strays(&system), [0_u32; 0]);
}

#[test]
fn a_fork_bomb_is_put_out() {
    // Bounded by itself as well: each generation starts two, for ten generations.
    let script =
        "bomb() { if [ $1 -gt 0 ]; then bomb $(($1 - 1)) & bomb $(($1 - 1)) & fi; sleep 1000; }; bomb 6";
    let system = start("secondaries = 1", &[("bomb", script, "time_limit = \"500ms\"")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (_data, jeton) = control.begin("bomb");
    assert_eq!(control.end(&jeton), "errtraitement time limit");
    until_processes(tree, 0);
    assert_eq!(system.status()["servers"][1]["restarts"], 0);
    system.books_are_exact();
}

#[test]
fn clients_that_do_not_read_and_commands_that_do_not_read_disturb_nobody() {
    let system = start(
        "secondaries = 1",
        &[
            ("floods", "exec cat /dev/zero", "time_limit = \"1s\""),
            ("ignores", "exec sleep 1000", "time_limit = \"1s\""),
            ("closes", "exec >&-; cat >/dev/null; exit 4", ""),
            ("cat", "exec cat", ""),
        ],
    );
    let mut control = Control::new(&system);
    let (flood, flood_jeton) = control.begin("floods");
    let (mut ignored, ignored_jeton) = control.begin("ignores");
    ignored.set_nonblocking(true).unwrap();
    while Write::write(&mut ignored, &[0; 4096]).is_ok() {}
    let (mut closed, closed_jeton) = control.begin("closes");
    // Its standard input is the same connection: that is not closed before it ends.
    closed.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut closed), "");
    let mut other = Control::new(&system);
    assert_eq!(other.run("cat").1, "fintraitement");
    let mut ends = [(); 3].map(|()| control.line());
    ends.sort();
    let mut expected = [(flood_jeton, "time limit"), (ignored_jeton, "time limit"), (closed_jeton, "exit 4")]
        .map(|(jeton, reason)| format!("errtraitement {jeton} {reason}"));
    expected.sort();
    assert_eq!(ends, expected);
    drop(flood);
    system.books_are_exact();
}

#[test]
fn a_graceful_stop_lets_a_command_finish_and_a_stop_at_once_does_not() {
    let script = "cat; echo finished";
    let mut system = start("secondaries = 1", &[("work", script, "")]);
    let tree_name = tree(&system);
    let mut control = Control::new(&system);
    let (mut data, jeton) = control.begin("work");
    let watchdog = u32::try_from(system.status()["pid"].as_u64().unwrap()).unwrap();
    system.signal(watchdog, Signal::SIGTERM);
    eventually("it stops", || system.log().contains("stopping gracefully").then_some(()));
    data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut data), "finished\n");
    assert_eq!(control.end(&jeton), "fintraitement");
    assert!(system.ended().success());
    until_processes(tree_name, 0);

    system.start_again();
    let tree_name = tree(&system);
    let mut control = Control::new(&system);
    let (_data, jeton) = control.begin("work");
    let watchdog = u32::try_from(system.status()["pid"].as_u64().unwrap()).unwrap();
    system.signal(watchdog, Signal::SIGTERM);
    eventually("it stops", || (system.log().matches("stopping gracefully").count() == 2).then_some(()));
    system.signal(watchdog, Signal::SIGTERM);
    assert_eq!(control.end(&jeton), "errtraitement stopping");
    assert!(system.ended().success());
    until_processes(tree_name, 0);
}

#[test]
fn nobody_is_missed_who_loses_his_parent_at_the_last_moment() {
    let script = "(setsid sleep 1000 >/dev/null 2>&1 & wait) & sleep 0.02; exit 0";
    let system = start("secondaries = 1", &[("leaves", script, "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    for _ in 0..20 {
        let (_data, jeton) = control.begin("leaves");
        assert_eq!(control.end(&jeton), "fintraitement");
        assert_eq!(processes(tree), [0_u32; 0]);
    }
}

#[test]
fn more_children_than_are_reaped_at_once_are_reaped_all_the_same() {
    let script = "n=0; while [ $n -lt 1100 ]; do sleep 1000 & n=$((n + 1)); done; exit 0";
    let system = start("secondaries = 1", &[("litters", script, ""), ("cat", "exec cat", "")]);
    let tree = tree(&system);
    let mut control = Control::new(&system);
    let (_data, jeton) = control.begin("litters");
    assert_eq!(control.end(&jeton), "fintraitement");
    assert_eq!(control.run("cat").1, "fintraitement");
    until_processes(tree, 0);
    eventually("no zombie", || system.zombies().is_empty().then_some(()));
}
