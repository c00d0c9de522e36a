//! What tools ask of a running system: a new secondary, none, another level of the log.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Output, Stdio};

use common::blows::give_jobs_at;
use common::{REQUESTS, System, connect, eventually, job, request, say};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A system of so many secondaries.
fn start(secondaries: u16) -> System {
    System::start(&format!("secondaries = {secondaries}"), REQUESTS)
}

fn ask(system: &System, arguments: &[&str]) -> Output {
    system.tool(arguments).output().unwrap()
}

/// What it says on standard output; it must have succeeded.
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What it says on standard error, and its exit code; it must have failed.
fn failed(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn echo_port(status: &Value, slot: u64) -> u16 {
    u16::try_from(System::server(status, slot)["ports"]["echo"].as_u64().unwrap()).unwrap()
}

/// An exchange under way in that slot.
fn exchange_at(system: &System, slot: u64) -> TcpStream {
    let address = SocketAddr::new(system.address().ip(), echo_port(&system.status(), slot));
    let mut control = connect(system.address());
    give_jobs_at(&mut control, "echo", address.port(), 1);
    let mut data = connect(address);
    assert_eq!(say(&mut data, "hello"), "hello");
    data
}

fn drain_in_background(system: &System, slot: u64) -> Child {
    let mut tool = system.tool(&["drain", &slot.to_string()]);
    let mut tool = tool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(tool.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, format!("slot {slot} is given no more jobs\n"));
    tool
}

#[test]
fn who_is_replaced_finishes_what_it_has_while_its_successor_serves() {
    let system = start(2);
    let before = system.all_ready();
    let mut data = exchange_at(&system, 1);
    let said = done(&ask(&system, &["restart", "1"]));
    let after = system.status();
    let pid = System::server(&after, 1)["pid"].clone();
    assert_eq!(said, format!("secondary 1 serves, pid {pid}\n"));
    assert_ne!(pid, System::server(&before, 1)["pid"]);
    assert_eq!(echo_port(&after, 1), echo_port(&before, 1));
    assert_eq!(say(&mut data, "still here"), "still here");
    for _ in 0..4 {
        assert_eq!(say(&mut request(system.address(), "echo"), "new"), "new");
    }
    drop(data);
    system.until("the old one has ended", |status| status["servers"].as_array().unwrap().len() == 3);
    let status = system.books_are_exact();
    assert_eq!(
        (&status["ledger"]["failed"], &status["ledger"]["expired"]),
        (&0.into(), &0.into()),
        "{status}"
    );
    assert_eq!(System::server(&status, 1)["kills"], 0);
}

#[test]
fn a_slot_that_is_drained_stays_empty_until_it_is_started_again() {
    let system = start(2);
    let mut data = exchange_at(&system, 2);
    let tool = drain_in_background(&system, 2);
    let others = echo_port(&system.status(), 1);
    let mut control = connect(system.address());
    for _ in 0..5 {
        let port = job(&mut control, "echo");
        assert_eq!(port, others, "a job for a slot that is drained");
        let mut data = connect(SocketAddr::new(system.address().ip(), port));
        assert_eq!(say(&mut data, "x"), "x");
    }
    assert_eq!(say(&mut data, "no hurry"), "no hurry");
    drop(data);
    let said = tool.wait_with_output().unwrap();
    assert_eq!(done(&said), "slot 2 is empty\n");
    let is_empty = |status: &Value| {
        let server = System::server(status, 2);
        server["state"] == "down" && server["pid"].is_null() && server["reason"].is_string()
    };
    assert!(is_empty(&system.status()), "{}", system.status());
    // A new principal knows it, too.
    let principal = system.pid(0);
    system.strike(principal, Signal::SIGKILL);
    system.until("the next principal serves with one secondary", |status| {
        System::server(status, 0)["pid"] != principal && System::server(status, 1)["state"] == "ready"
    });
    assert!(is_empty(&system.status()), "{}", system.status());
    assert_eq!(say(&mut request(system.address(), "echo"), "one is left"), "one is left");
    done(&ask(&system, &["restart", "2"]));
    system.all_ready();
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["expired"], 0, "{status}");
}

#[test]
fn a_job_that_waits_in_a_slot_that_is_drained_is_served_there() {
    let system = start(2);
    let port = echo_port(&system.status(), 2);
    let mut control = connect(system.address());
    give_jobs_at(&mut control, "echo", port, 1);
    let tool = drain_in_background(&system, 2);
    let mut data = connect(SocketAddr::new(system.address().ip(), port));
    assert_eq!(say(&mut data, "as promised"), "as promised");
    drop(data);
    done(&tool.wait_with_output().unwrap());
    system.books_are_exact();
}

#[test]
fn a_secondary_that_dies_while_it_is_drained_is_not_started_again() {
    let system = start(2);
    let data = exchange_at(&system, 2);
    let pid = system.pid(2);
    let tool = drain_in_background(&system, 2);
    system.strike(pid, Signal::SIGKILL);
    done(&tool.wait_with_output().unwrap());
    drop(data);
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["failed"], 1, "{status}");
}

#[test]
fn the_last_slot_is_not_drained() {
    let system = start(2);
    done(&ask(&system, &["drain", "1"]));
    let (code, said) = failed(&ask(&system, &["drain", "2"]));
    assert_eq!(code, 69);
    assert!(said.contains("no other slot than 2 serves now"), "{said}");
    assert_eq!(done(&ask(&system, &["drain", "1"])), "slot 1 is empty\n");
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}

#[test]
fn the_only_one_that_serves_is_not_drained() {
    let times = "[watchdog]\nperiod = \"20ms\"\nsuspect_after = \"100ms\"\nkill_after = \"60s\"\n";
    let system = System::start("secondaries = 2", &format!("{REQUESTS}{times}"));
    system.signal(system.pid(1), Signal::SIGSTOP);
    system.until("suspect", |status| System::server(status, 1)["state"] == "suspect");
    let (code, said) = failed(&ask(&system, &["drain", "2"]));
    assert_eq!(code, 69);
    assert!(said.contains("no other slot than 2 serves now"), "{said}");
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}

#[test]
fn other_slots_do_not_wait_for_one_that_takes_its_time() {
    let system = start(3);
    let data = exchange_at(&system, 2);
    let tool = drain_in_background(&system, 2);
    done(&ask(&system, &["restart", "1"]));
    done(&ask(&system, &["log", "info"]));
    done(&ask(&system, &["drain", "3"]));
    let mut waits = system.tool(&["restart", "2"]);
    let mut waits = waits.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(waits.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "waits for its turn after \"drain 2\"\n");
    let status = system.status();
    let of_slot = |state: &str| {
        let servers = status["servers"].as_array().unwrap();
        servers.iter().find(|server| server["slot"] == 2 && server["state"] == state).unwrap()["open"].clone()
    };
    assert_eq!((of_slot("draining"), of_slot("down")), (1.into(), 0.into()), "{status}");
    drop(data);
    done(&tool.wait_with_output().unwrap());
    assert!(waits.wait().unwrap().success());
    assert_eq!(System::server(&system.status(), 2)["state"], "ready");
}

#[test]
fn a_frozen_secondary_is_replaced_when_it_has_been_found_out() {
    let times = "[watchdog]\nperiod = \"20ms\"\nsuspect_after = \"100ms\"\nkill_after = \"300ms\"\n";
    let system = System::start("secondaries = 2", &format!("{REQUESTS}{times}"));
    system.signal(system.pid(1), Signal::SIGSTOP);
    done(&ask(&system, &["restart", "1"]));
    assert_eq!(System::server(&system.status(), 1)["kills"], 1);
}

#[test]
fn a_slot_that_is_left_down_can_be_started_by_hand() {
    // It dies at once again and again: the next start is far away.
    let system = start(2);
    for _ in 0..10 {
        let pid = eventually("the next one", || {
            let status = system.status();
            System::server(&status, 1)["pid"].as_u64()
        });
        system.strike(u32::try_from(pid).unwrap(), Signal::SIGKILL);
    }
    done(&ask(&system, &["restart", "1"]));
    system.all_ready();
}

#[test]
fn what_is_asked_for_at_once_is_done_in_turn() {
    let system = start(2);
    let before = System::server(&system.all_ready(), 1)["incarnation"].as_u64().unwrap();
    let ask_in_background = || system.tool(&["restart", "1"]).stdout(Stdio::null()).spawn().unwrap();
    let tools: Vec<Child> = (0..3).map(|_| ask_in_background()).collect();
    for mut tool in tools {
        assert!(tool.wait().unwrap().success());
    }
    assert_eq!(System::server(&system.all_ready(), 1)["incarnation"], before + 3);
}

#[test]
fn who_goes_away_is_not_waited_for() {
    let system = start(2);
    let data = exchange_at(&system, 2);
    let mut tool = drain_in_background(&system, 2);
    tool.kill().unwrap();
    tool.wait().unwrap();
    done(&ask(&system, &["restart", "1"]));
    // The one there has its successor, and leaves as it was told.
    done(&ask(&system, &["restart", "2"]));
    drop(data);
    system.all_ready();
    system.books_are_exact();
}

#[test]
fn the_log_says_what_it_is_told_to() {
    let system = start(2);
    let deaths = || system.log().matches("obituary role=secondary slot=1").count();
    assert_eq!(done(&ask(&system, &["log", "off"])), "every process knows\n");
    system.strike(system.pid(1), Signal::SIGKILL);
    system.all_ready();
    assert_eq!(deaths(), 0, "{}", system.log());
    // Who is started meanwhile knows it, too.
    done(&ask(&system, &["log", "DEBUG"]));
    system.strike(system.pid(0), Signal::SIGKILL);
    system.all_ready();
    drop(request(system.address(), "echo"));
    let told = || system.log().lines().any(|line| line.contains("DEBUG") && line.contains("job 1, echo"));
    eventually("a job is told", || told().then_some(()));
    done(&ask(&system, &["log", "default"]));
    let before = system.log().matches("DEBUG").count();
    drop(request(system.address(), "echo"));
    system.strike(system.pid(1), Signal::SIGKILL);
    eventually("its death", || (deaths() > 0).then_some(()));
    assert_eq!(system.log().matches("DEBUG").count(), before);
}

#[test]
fn what_is_wrong_is_said() {
    let system = start(2);
    for (arguments, code, why) in [
        (&["restart", "3"][..], 69, "there is no slot 3: the secondaries are 1 to 2"),
        (&["drain", "0"], 64, "0 is not in 1..=1024"),
        (&["restart"], 64, "SLOT"),
        (&["drain", "x"], 64, "invalid value 'x'"),
        (
            &["log", "loud"],
            64,
            "\"loud\" is no level; there are: off, error, warn, info, debug, trace, default",
        ),
    ] {
        let (found, said) = failed(&ask(&system, arguments));
        assert_eq!(found, code, "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let mut raw = UnixStream::connect(system.rundir().join("control")).unwrap();
    raw.write_all(b"fly\nrestart one\nlog off now\n").unwrap();
    let answers: Vec<String> = BufReader::new(raw).lines().take(3).map(Result::unwrap).collect();
    assert_eq!(
        answers[0],
        "error unknown request \"fly\"; known: stop, reload, scale N, restart SLOT, drain SLOT, log LEVEL"
    );
    assert!(answers[1..].iter().all(|answer| answer.starts_with("error ")), "{answers:?}");
}

#[test]
fn who_waits_is_not_pushed_out_and_has_few_wishes() {
    let system = start(2);
    let data = exchange_at(&system, 2);
    let tool = drain_in_background(&system, 2);
    let path = system.rundir().join("control");
    let mut greedy = UnixStream::connect(&path).unwrap();
    greedy.write_all("restart 2\n".repeat(9).as_bytes()).unwrap();
    let mut answers = BufReader::new(greedy.try_clone().unwrap()).lines().map(Result::unwrap);
    let refused = answers.find(|answer| answer.starts_with("error ")).unwrap();
    assert!(refused.starts_with("error 8 requests of this tool are not done yet"), "{refused}");
    drop((answers, greedy));
    // More than there is room for: of those who wait for nothing the oldest goes.
    let idle: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let first = BufReader::new(&idle[0]).lines().next().unwrap().unwrap();
    assert_eq!(first, "error too many tools are connected");
    done(&ask(&system, &["restart", "1"]));
    drop(data);
    done(&tool.wait_with_output().unwrap());
}

#[test]
fn however_many_wait_a_stop_is_heard() {
    let mut system = start(2);
    let data = exchange_at(&system, 2);
    let mut drains = drain_in_background(&system, 2);
    let path = system.rundir().join("control");
    let mut waiting: Vec<UnixStream> = Vec::new();
    let refused = (0..30).find_map(|_| {
        let mut tool = UnixStream::connect(&path).unwrap();
        tool.write_all(b"restart 2\n").unwrap();
        let first = BufReader::new(&tool).lines().next().unwrap().unwrap();
        waiting.push(tool);
        first.strip_prefix("error ").map(str::to_owned)
    });
    assert_eq!(refused.unwrap(), "12 tools wait for what they have asked for: no more at once");
    let (code, said) = failed(&ask(&system, &["log", "debug"]));
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("12 tools wait"), "{said}");
    // The first that was refused is still there, and others: the oldest of them goes.
    let idle: Vec<UnixStream> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut stopping = system.tool(&["stop"]).spawn().unwrap();
    drop(data);
    assert!(stopping.wait().unwrap().success());
    assert!(system.ended().success());
    let _ = drains.wait();
    drop((idle, waiting));
}

#[test]
fn a_tool_that_reads_nothing_is_not_kept_waiting() {
    let system = start(2);
    let mut deaf = UnixStream::connect(system.rundir().join("control")).unwrap();
    // Their answers do not fit into any buffer.
    let nonsense = "fly\n".repeat(1000);
    eventually("its connection ends", || deaf.write_all(nonsense.as_bytes()).is_err().then_some(()));
    done(&ask(&system, &["restart", "1"]));
}

#[test]
fn a_stop_ends_what_is_waited_for() {
    let mut system = start(2);
    let data = exchange_at(&system, 2);
    let tool = drain_in_background(&system, 2);
    drop(data);
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    let output = tool.wait_with_output().unwrap();
    // It may have been done just before.
    assert!(output.status.success() || output.status.code() == Some(69), "{output:?}");
    assert!(system.watchdog.wait().unwrap().success());
}
