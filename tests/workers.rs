//! `exec` with `mode = "persistent"`: workers that stay, and what becomes of their jobs whatever
//! they and their clients do.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::Shutdown;

use common::worker::{Followed, done, job, request};
use common::{System, eventually, read_to_end, together};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use osps::os::proc;

/// One secondary, with a type whose worker has these arguments and keys.
fn system(arguments: &[&str], keys: &str) -> System {
    System::start("secondaries = 1", &request("upper", arguments, keys))
}

/// The pid of the worker that serves the next job.
fn worker(system: &System) -> u32 {
    done(system, "upper", "pid").parse().unwrap()
}

fn is_there(pid: u32) -> bool {
    proc::stat(pid).is_ok_and(|stat| !matches!(stat.letter, 'Z' | 'X'))
}

fn is_gone(pid: u32) {
    eventually("the end of a worker", || (!is_there(pid)).then_some(()));
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn ends(of: (&str, &str)) -> (String, String) {
    (of.0.to_owned(), of.1.to_owned())
}

#[test]
fn one_process_serves_one_job_after_another() {
    let system = system(&[], "");
    let first = worker(&system);
    for number in 0..50 {
        assert_eq!(done(&system, "upper", &format!("hello {number}")), format!("HELLO {number}"));
    }
    assert_eq!(worker(&system), first);
    assert_eq!(system.books_are_exact()["ledger"]["done"], 52);
}

#[test]
fn many_clients_at_once_get_each_his_own_answer() {
    let system = system(&[], "max_parallel = 2");
    let address = system.address();
    let answers = together(16, move |client| {
        let all = (0..20).map(|number| {
            let mut data = common::request(address, "upper");
            data.write_all(format!("client {client} number {number}").as_bytes()).unwrap();
            data.shutdown(Shutdown::Write).unwrap();
            (read_to_end(&mut data), format!("CLIENT {client} NUMBER {number}"))
        });
        all.collect::<Vec<_>>()
    });
    for (answer, wanted) in answers.into_iter().flatten() {
        assert_eq!(answer, wanted);
    }
    assert_eq!(system.books_are_exact()["ledger"]["done"], 320);
}

#[test]
fn an_empty_message_and_an_empty_answer_are_a_job() {
    let system = system(&[], "");
    assert_eq!(done(&system, "upper", ""), "");
    assert_eq!(done(&system, "upper", "length "), "0");
    assert_eq!(done(&system, "upper", "bytes 0"), "");
}

#[test]
fn a_worker_that_dies_fails_its_own_job_and_is_replaced() {
    let system = system(&[], "");
    let first = worker(&system);
    let crash = Followed::ask(&system, "upper", "crash");
    let after = Followed::ask(&system, "upper", "after");
    assert_eq!(crash.outcome(), ends(("", "signal 6")));
    assert_eq!(after.outcome(), ends(("AFTER", "")));
    assert_ne!(worker(&system), first);
    for (message, reason) in [("exit 3", "exit 3"), ("exit 0", "exit 0"), ("half", "exit 5")] {
        assert_eq!(job(&system, "upper", message), ends(("", reason)), "{message}");
    }
    assert_eq!(done(&system, "upper", "again"), "AGAIN");
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 4);
    assert!(system.log().contains("has ended: exit 3"), "the log tells of it");
}

#[test]
fn a_worker_that_hangs_or_spins_is_killed_at_the_time_limit() {
    let system = system(&[], "time_limit = \"200ms\"");
    for message in ["hang", "spin"] {
        let first = worker(&system);
        let hung = Followed::ask(&system, "upper", message);
        let after = Followed::ask(&system, "upper", "after");
        assert_eq!(hung.outcome(), ends(("", "time limit")), "{message}");
        assert_eq!(after.outcome(), ends(("AFTER", "")), "{message}");
        is_gone(first);
    }
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 2);
}

#[test]
fn a_worker_that_is_stopped_is_replaced_at_the_time_limit() {
    let system = system(&[], "time_limit = \"300ms\"");
    let first = worker(&system);
    signal(first, Signal::SIGSTOP);
    assert_eq!(job(&system, "upper", "hello"), ends(("", "time limit")));
    assert_eq!(done(&system, "upper", "hello"), "HELLO");
    is_gone(first);
    system.books_are_exact();
}

#[test]
fn an_idle_worker_that_is_killed_is_replaced_and_no_job_fails() {
    let system = system(&[], "");
    for _ in 0..5 {
        let first = worker(&system);
        signal(first, Signal::SIGKILL);
        // It may read the next message still: the kernel looks for bytes first, for signals then. Once it
        // has ended its secondary may not know yet.
        is_gone(first);
        assert_eq!(done(&system, "upper", "hello"), "HELLO");
    }
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 0);
}

#[test]
fn what_a_worker_must_not_write_fails_its_job_and_no_other() {
    let system = system(&[], "max_message = \"64KiB\"");
    for message in ["huge", "garbage", "both", "close", "bytes 65537"] {
        let first = worker(&system);
        let wrong = Followed::ask(&system, "upper", message);
        let after = Followed::ask(&system, "upper", "after");
        assert_eq!(wrong.outcome(), ends(("", "handler error")), "{message}");
        assert_eq!(after.outcome(), ends(("AFTER", "")), "{message}");
        is_gone(first);
    }
    assert_eq!(done(&system, "upper", "bytes 65536").len(), 65536, "as long as may be");
    system.books_are_exact();
}

#[test]
fn a_second_answer_is_no_answer_to_the_next_job() {
    let system = system(&[], "");
    for _ in 0..10 {
        let first = worker(&system);
        let twice = Followed::ask(&system, "upper", "twice");
        let (answer, _) = twice.outcome();
        // Where both come at once it is clear that none can be trusted.
        assert!(["once", ""].contains(&answer.as_str()), "{answer}");
        is_gone(first);
        assert_eq!(done(&system, "upper", "next"), "NEXT");
    }
    system.books_are_exact();
}

#[test]
fn an_answer_that_comes_before_its_message_was_read_is_not_believed() {
    let system = system(&[], "");
    let first = worker(&system);
    let ahead = Followed::ask(&system, "upper", "ahead");
    let next = Followed::ask(&system, "upper", "next");
    assert_eq!(ahead.outcome(), ends(("now", "")));
    assert_eq!(next.outcome(), ends(("NEXT", "")), "nobody had begun it: another worker has served it");
    is_gone(first);
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 0);
}

#[test]
fn a_worker_that_closes_its_input_is_replaced_before_the_next_job() {
    let system = system(&[], "");
    let first = worker(&system);
    assert_eq!(done(&system, "upper", "deaf"), "what?");
    is_gone(first);
    assert_ne!(worker(&system), first);
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 0);
}

#[test]
fn a_worker_that_closes_its_input_may_answer_what_it_has_read() {
    let system = system(&[], "");
    let first = worker(&system);
    assert_eq!(done(&system, "upper", "last"), "the last");
    assert_eq!(done(&system, "upper", "hello"), "HELLO");
    is_gone(first);
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 0);
}

#[test]
fn a_worker_can_say_that_a_job_has_failed_and_why() {
    let system = system(&[], "");
    let first = worker(&system);
    assert_eq!(job(&system, "upper", "failed no such thing"), ends(("no such thing", "handler error")));
    assert_eq!(worker(&system), first, "there is nothing wrong with it");
}

#[test]
fn what_a_worker_says_on_standard_error_is_logged_by_lines() {
    let system = system(&[], "");
    let pid = worker(&system);
    assert_eq!(done(&system, "upper", "stderr it is warm here"), "said");
    let line = format!("worker {pid} (upper): it is warm here");
    eventually("the line in the log", || system.log().contains(&line).then_some(()));
    signal(pid, Signal::SIGTERM);
    let line = format!("worker {pid} (upper): without an end");
    eventually("what has no end", || system.log().contains(&line).then_some(()));
}

#[test]
fn workers_that_end_by_themselves_lose_no_job() {
    let system = system(&["jobs", "3"], "");
    let address = system.address();
    together(4, move |_| {
        for _ in 0..25 {
            let mut data = common::request(address, "upper");
            data.write_all(b"hello").unwrap();
            data.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut data), "HELLO");
        }
    });
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["done"], &status["ledger"]["failed"]), (&100.into(), &0.into()));
}

#[test]
fn a_slow_starter_serves_the_job_that_came_meanwhile() {
    let system = system(&["slow", "1000"], "");
    assert_eq!(done(&system, "upper", "early"), "EARLY");
    assert_eq!(done(&system, "upper", "later"), "LATER");
}

#[test]
fn where_no_worker_lives_to_serve_the_jobs_end_with_the_reason() {
    let system = system(&["end", "7"], "");
    for _ in 0..3 {
        assert_eq!(job(&system, "upper", "hello"), ends(("", "exit 7")));
    }
    system.books_are_exact();
}

#[test]
fn a_command_that_cannot_be_executed_fails_jobs_until_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let [script, interpreter, away] =
        ["script", "interpreter", "away"].map(|name| directory.path().join(name));
    std::fs::copy(common::worker::program(), &interpreter).unwrap();
    std::fs::write(&script, format!("#!{}\n", interpreter.display())).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let rest = format!(
        "[[request]]\nname = \"upper\"\nhandler = \"exec\"\nmode = \"persistent\"\ncommand = [{script:?}]\n"
    );
    let system = System::start("secondaries = 1", &rest);
    let first = worker(&system);
    std::fs::rename(&interpreter, &away).unwrap();
    signal(first, Signal::SIGKILL);
    is_gone(first);
    assert_eq!(job(&system, "upper", "hello"), ends(("", "cannot start")));
    std::fs::rename(&away, &interpreter).unwrap();
    eventually("a worker again", || (job(&system, "upper", "hello").1.is_empty()).then_some(()));
    system.books_are_exact();
}

#[test]
fn a_message_may_be_as_long_as_is_allowed_and_no_longer() {
    let system = system(&[], "max_message = \"200KiB\"");
    let longest = "x".repeat(200 * 1024);
    assert_eq!(done(&system, "upper", &longest), longest.to_ascii_uppercase());
    let mut followed = Followed::begin(&system, "upper");
    // The connection is closed while it sends.
    let _ = followed.data.write_all(&[b'x'; 200 * 1024 + 1]);
    assert_eq!(followed.outcome(), ends(("", "message too long")));
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 1);
}

#[test]
fn the_secondary_answers_while_messages_and_answers_of_megabytes_pass() {
    let system = system(&[], "max_message = \"16MiB\"\nmax_parallel = 2");
    let message = "y".repeat(16 << 20);
    let slow = Followed::ask(&system, "upper", "bytes 16000000");
    assert_eq!(done(&system, "upper", &message).len(), 16 << 20);
    assert_eq!(slow.outcome().0.len(), 16_000_000, "it read nothing for a while");
    system.books_are_exact();
}

#[test]
fn a_client_that_leaves_costs_the_others_nothing() {
    let system = system(&[], "time_limit = \"1s\"");
    let hung = Followed::ask(&system, "upper", "hang");
    let mut queued = Followed::ask(&system, "upper", "crash");
    queued.has_begun();
    reset(&queued);
    drop(std::mem::replace(&mut queued.data, system.connect()));
    assert_eq!(queued.end(), "connection lost");
    let mut served = Followed::ask(&system, "upper", "hang");
    assert_eq!(hung.outcome(), ends(("", "time limit")));
    served.has_begun();
    reset(&served);
    drop(std::mem::replace(&mut served.data, system.connect()));
    assert_eq!(served.end(), "connection lost");
    assert_eq!(done(&system, "upper", "after"), "AFTER");
    system.books_are_exact();
}

/// The connection breaks when it is closed.
fn reset(followed: &Followed) {
    rustix::net::sockopt::set_socket_linger(&followed.data, Some(std::time::Duration::ZERO)).unwrap();
}

#[test]
fn a_client_that_never_ends_its_message_is_closed_when_it_is_silent_for_long() {
    let rest = request("upper", &[], "");
    let system = System::start("secondaries = 1\nclient_idle = \"200ms\"", &rest);
    let mute = Followed::begin(&system, "upper");
    assert_eq!(mute.outcome(), ends(("", "")));
    let mut stuck = Followed::begin(&system, "upper");
    stuck.data.write_all(b"hel").unwrap();
    assert_eq!(stuck.outcome(), ends(("", "connection timed out")));
    system.books_are_exact();
}

#[test]
fn a_stop_leaves_no_worker_nor_what_it_has_started() {
    let mut system = System::start("secondaries = 2", &request("upper", &[], "max_parallel = 2"));
    let child: u32 = done(&system, "upper", "child").parse().unwrap();
    let workers = workers_of(&system);
    assert_eq!(workers.len(), 4);
    assert!(is_there(child));
    assert!(system.stop().success());
    for pid in workers.into_iter().chain([child]) {
        is_gone(pid);
    }
    assert_eq!(system.files(), ["lock"]);
}

/// The workers of all secondaries.
fn workers_of(system: &System) -> Vec<u32> {
    let servers: Vec<u32> = system.pids().split_off(2);
    let children = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let all: String = servers.into_iter().map(children).collect();
    all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_worker_that_ends_leaves_nobody_behind() {
    let system = system(&[], "time_limit = \"2s\"");
    for (last, reason) in [("exit 1", "exit 1"), ("crash", "signal 6"), ("hang", "time limit")] {
        let children = ["child", "child apart", "child bare", "child headless"]
            .map(|message| done(&system, "upper", message).parse::<u32>().unwrap());
        assert_eq!(job(&system, "upper", last), ends(("", reason)));
        children.into_iter().for_each(is_gone);
    }
}

#[test]
fn a_worker_that_leaves_its_group_is_killed_all_the_same() {
    let mut system = system(&[], "time_limit = \"2s\"");
    let first = worker(&system);
    assert_eq!(job(&system, "upper", "elsewhere stay"), ends(("", "time limit")));
    is_gone(first);
    let second = worker(&system);
    assert_eq!(done(&system, "upper", "elsewhere"), "moved");
    assert_eq!(job(&system, "upper", "hang"), ends(("", "time limit")));
    is_gone(second);
    let third = worker(&system);
    assert_eq!(done(&system, "upper", "elsewhere"), "moved");
    assert!(!system.log().contains("does not end of SIGKILL"));
    assert!(system.stop().success());
    is_gone(third);
}

#[test]
fn a_killed_secondary_leaves_no_worker_and_its_successor_serves() {
    let system = system(&[], "");
    let first = worker(&system);
    let hung = Followed::ask(&system, "upper", "hang");
    let waits = Followed::ask(&system, "upper", "waits");
    let (mut hung, mut waits) = (hung, waits);
    hung.has_begun();
    waits.has_begun();
    signal(system.pid(1), Signal::SIGKILL);
    assert_eq!((hung.end(), waits.end()), ("secondary lost".to_owned(), "secondary lost".to_owned()));
    is_gone(first);
    assert_eq!(done(&system, "upper", "again"), "AGAIN");
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 2);
}

#[test]
fn a_stop_at_once_ends_a_job_that_hangs() {
    let mut system = system(&[], "");
    let first = worker(&system);
    let mut hung = Followed::ask(&system, "upper", "hang");
    hung.has_begun();
    let pid = system.watchdog.id();
    signal(pid, Signal::SIGTERM);
    eventually("the stop", || system.log().contains("stop").then_some(()));
    signal(pid, Signal::SIGTERM);
    assert_eq!(hung.end(), "stopping");
    assert!(system.ended().success());
    is_gone(first);
}

#[test]
fn a_secondary_that_drains_lets_its_worker_finish_and_end() {
    let system = system(&["slow", "300"], "");
    let old = system.pid(1);
    let mut jobs: Vec<Followed> =
        (0..5).map(|number| Followed::ask(&system, "upper", &format!("job {number}"))).collect();
    jobs.iter_mut().for_each(Followed::has_begun);
    let workers = workers_of(&system);
    signal(old, Signal::SIGTERM);
    for (number, job) in jobs.into_iter().enumerate() {
        assert_eq!(job.outcome(), (format!("JOB {number}"), String::new()));
    }
    is_gone(old);
    workers.into_iter().for_each(is_gone);
    assert_eq!(done(&system, "upper", "again"), "AGAIN");
    assert!(system.log().contains("has ended: exit 0"), "it was asked to end, not killed");
    system.books_are_exact();
}

#[test]
fn the_worker_of_the_document_is_the_one_that_its_recipe_runs() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/handlers.md")).unwrap();
    let worker = std::fs::read_to_string(root.join("examples/worker.py")).unwrap();
    assert!(document.contains(&format!("```python\n{worker}```")), "examples/worker.py is another");
}
