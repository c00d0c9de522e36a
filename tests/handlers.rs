//! Handlers of one's own, in the servers of `examples/`; and what becomes of jobs whose handler does
//! not come back, or takes too long.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use common::{REQUESTS, System, connect, eventually, read_to_end, recv, request, say};
use serde_json::Value;

const PRIMES: &str = r#"
[[request]]
name = "primes"
handler = "primes"
settings = { largest = 1000000, traps = { 13 = "loop", 17 = "panic" } }

[[request]]
name = "echo"
handler = "echo"
"#;

const LINES: &str = r#"
[[request]]
name = "lines"
handler = "lines"
settings = { remind_after_ms = 60000 }
"#;

/// Quick to judge, but not so quick that a loaded machine looks like a hang.
const QUICK: &str = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"300ms\"\nkill_after = \"1s\"\n";
/// The watchdog leaves everybody alone for as long as a test takes.
const PATIENT: &str = "[watchdog]\nsuspect_after = \"100s\"\nkill_after = \"200s\"\n";

/// A tracked job and its exchange.
struct Tracked {
    news: BufReader<TcpStream>,
    data: TcpStream,
}

impl Tracked {
    fn begin(system: &System, kind: &str) -> Self {
        let address = system.address();
        let mut news = BufReader::new(connect(address));
        news.get_mut().write_all(format!("suivi {kind}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        news.read_line(&mut answer).unwrap();
        let (port, jeton) = answer.trim_end().split_once(' ').unwrap();
        let mut data = connect(SocketAddr::new(address.ip(), port.parse().unwrap()));
        data.write_all(format!("jeton {jeton}\n").as_bytes()).unwrap();
        Self { news, data }
    }

    /// How the job has ended: `done`, or why it has failed.
    fn end(&mut self) -> String {
        let mut line = String::new();
        while !line.starts_with("fintraitement") && !line.starts_with("errtraitement") {
            line.clear();
            assert_ne!(self.news.read_line(&mut line).unwrap(), 0, "no end was told");
        }
        line.trim_end().splitn(3, ' ').nth(2).unwrap_or("done").to_owned()
    }
}

/// The obituary of a process that has died.
fn obituary(system: &System, pid: u32) -> Value {
    let of_pid = |status: &Value| {
        let obituaries = status["obituaries"].as_array().unwrap();
        obituaries.iter().find(|obituary| obituary["pid"] == pid).cloned()
    };
    of_pid(&system.until("an obituary", |status| of_pid(status).is_some())).unwrap()
}

#[test]
fn a_registered_handler_is_served_by_the_whole_tree() {
    let system = System::start_example("primes", "secondaries = 2", PRIMES);
    let mut exchange = request(system.address(), "primes");
    assert_eq!(say(&mut exchange, "7\n"), "7 is prime\n");
    exchange.write_all(b"9").unwrap();
    assert_eq!(say(&mut exchange, "1\n1000001\n"), "91 is not prime\n1000001 is too large\n");
    exchange.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut exchange), "");
    let status = system.books_are_exact();
    assert_eq!(status["requests"]["primes"]["done"], 1);
    let checked = system.tool(&["check"]).output().unwrap();
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.contains("largest = 1000000") && checked.contains("13 = \"loop\""), "{checked}");
}

#[test]
fn a_handler_that_cannot_be_made_is_shown_by_check_and_refuses_the_start() {
    for (settings, wrong) in [
        ("{ largest = 1 }", "largest = 1 is below the first prime"),
        ("{ largest = \"many\" }", "invalid type"),
        ("{}", "missing field `largest`"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let request = format!("[[request]]\nname = \"work\"\nhandler = \"primes\"\nsettings = {settings}\n");
        std::fs::write(dir.path().join("osps.toml"), request).unwrap();
        for arguments in [&["check"][..], &[]] {
            let mut primes = std::process::Command::new(common::example("primes"));
            primes.args(arguments).arg("--runtime-dir").arg(dir.path().join("run"));
            let output = primes.current_dir(dir.path()).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{said}");
            let begin = "primes: request \"work\": handler \"primes\": ";
            assert!(said.starts_with(begin) && said.contains(wrong), "{said}");
            assert!(!dir.path().join("run").exists());
        }
    }
}

#[test]
fn who_has_another_handler_than_the_configuration_wants_says_which_it_has() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("osps.toml"), PRIMES).unwrap();
    for (program, known) in
        [(common::example("lines"), "exec, lines"), (env!("CARGO_BIN_EXE_osps").into(), "block, exec")]
    {
        let output =
            std::process::Command::new(program).arg("check").current_dir(dir.path()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains("request.handler = \"primes\"") && said.trim_end().ends_with(known), "{said}");
    }
}

#[test]
fn a_session_may_speak_first_and_end_the_exchange_whatever_the_client_still_sends() {
    let system = System::start_example("lines", "secondaries = 1", LINES);
    let mut tracked = Tracked::begin(&system, "lines");
    assert_eq!(recv(&mut tracked.data), "say something\n");
    // More than one read takes: what is left unread must not reset the connection.
    tracked.data.write_all(b"one\ntwo\n\n").unwrap();
    tracked.data.write_all(&[b'x'; 100_000]).unwrap();
    let said = read_to_end(&mut tracked.data);
    assert!(said.starts_with("goodbye: 2 lines, "), "{said:?}");
    assert_eq!(tracked.end(), "done");
    assert_eq!(system.books_are_exact()["ledger"]["done"], 1);
}

#[test]
fn a_client_that_does_not_hear_of_the_end_is_cut_off() {
    let system = System::start_example("lines", "secondaries = 1", LINES);
    let idle = sockets(system.pid(1));
    for sends in [true, false] {
        let mut exchange = request(system.address(), "lines");
        exchange.write_all(b"\n").unwrap();
        assert_eq!(read_to_end(&mut exchange), "say something\ngoodbye: 0 lines, 1 bytes\n");
        assert_eq!(system.books_are_exact()["ledger"]["failed"], 0, "its job is done all the same");
        eventually("the end of the connection", || {
            let broken = sends && exchange.write(&[b'x'; 1000]).is_err();
            (broken || !sends && sockets(system.pid(1)) == idle).then_some(())
        });
    }
}

/// Connections of a process, and listeners.
fn sockets(pid: u32) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_str().is_some_and(|link| link.starts_with("socket:"))).count()
}

#[test]
fn a_session_hears_of_the_end_of_the_input() {
    let system = System::start_example("lines", "secondaries = 1", LINES);
    let mut exchange = request(system.address(), "lines");
    exchange.write_all(b"one\ntwo").unwrap();
    exchange.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut exchange), "say something\n2 lines, 7 bytes\n");
    assert_eq!(system.books_are_exact()["ledger"]["done"], 1);
}

#[test]
fn a_session_is_woken_by_its_timer_again_and_again() {
    let system = System::start_example("lines", "secondaries = 1", &LINES.replace("60000", "20"));
    let exchange = request(system.address(), "lines");
    let mut lines = BufReader::new(&exchange).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "say something");
    for _ in 0..3 {
        assert_eq!(lines.next().unwrap().unwrap(), "still there? 0 lines, 0 bytes so far");
    }
}

#[test]
fn a_job_that_its_handler_fails_has_failed_and_its_answers_are_sent() {
    let system = System::start_example("primes", "secondaries = 1", PRIMES);
    let mut tracked = Tracked::begin(&system, "primes");
    tracked.data.write_all(b"5\nfive\n5\n").unwrap();
    let said = read_to_end(&mut tracked.data);
    assert_eq!(said, "5 is prime\n\"five\": invalid digit found in string\n");
    assert_eq!(tracked.end(), "handler error");
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 1);
}

#[test]
fn a_handler_that_never_comes_back_costs_its_process_and_nobody_else() {
    let system = System::start_example("primes", "secondaries = 2", &format!("{PRIMES}{QUICK}"));
    let mut stuck = Tracked::begin(&system, "primes");
    let mut other = Tracked::begin(&system, "primes");
    let port = stuck.data.peer_addr().unwrap().port();
    assert_eq!(say(&mut other.data, "7\n"), "7 is prime\n");
    let status = system.status();
    let slot = (1..=2).find(|&slot| System::server(&status, slot)["ports"]["primes"] == port).unwrap();
    let pid = system.pid(slot);
    stuck.data.write_all(b"13\n").unwrap();
    assert_eq!(stuck.end(), "secondary lost");
    assert_eq!(say(&mut other.data, "11\n"), "11 is prime\n");
    assert_eq!(obituary(&system, pid)["killed"], "spinning, no answer within kill_after");
    system.until("another process", |status| {
        let server = System::server(status, slot);
        server["state"] == "ready" && server["pid"] != pid
    });
    drop(other.data.shutdown(Shutdown::Write));
    assert_eq!(other.end(), "done");
}

#[test]
fn a_handler_that_panics_costs_the_jobs_of_its_process_and_nobody_else() {
    let system = System::start_example("primes", "secondaries = 2", PRIMES);
    let mut panics = Tracked::begin(&system, "primes");
    let mut other = Tracked::begin(&system, "primes");
    panics.data.write_all(b"17\n").unwrap();
    assert_eq!(panics.end(), "secondary lost");
    assert_eq!(say(&mut other.data, "11\n"), "11 is prime\n");
    assert!(system.log().contains("somebody asked for 17"), "what it panicked with stands in the log");
    system.all_ready();
    assert_eq!(say(&mut request(system.address(), "primes"), "2\n"), "2 is prime\n");
}

#[test]
fn a_panic_is_a_line_of_the_log_like_any_other() {
    let system = System::start_example("primes", "secondaries = 1\nlog_format = \"json\"", PRIMES);
    let mut panics = Tracked::begin(&system, "primes");
    panics.data.write_all(b"17\n").unwrap();
    assert_eq!(panics.end(), "secondary lost");
    let lines = system.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let says = |line: &&Value| line["message"].as_str().unwrap().starts_with("panicked at ");
    let panicked = lines.iter().find(says).unwrap();
    assert!(panicked["message"].as_str().unwrap().contains("somebody asked for 17"), "{panicked}");
    assert_eq!((&panicked["level"], &panicked["role"]), (&"error".into(), &"secondary".into()));
}

#[test]
fn a_job_that_waits_on_a_timer_for_too_long_fails_and_its_process_goes_on() {
    let slow =
        "[[request]]\nname = \"slow\"\nhandler = \"delay\"\ndelay = \"100s\"\ntime_limit = \"100ms\"\n";
    let system = System::start("secondaries = 1", &format!("{slow}{REQUESTS}"));
    let (pid, mut other) = (system.pid(1), request(system.address(), "echo"));
    assert_eq!(say(&mut other, "a"), "a");
    let mut slow = Tracked::begin(&system, "slow");
    slow.data.write_all(b"hello\n").unwrap();
    assert_eq!(slow.end(), "time limit");
    assert_eq!(read_to_end(&mut slow.data), "");
    // Silence counts as well.
    assert_eq!(Tracked::begin(&system, "slow").end(), "time limit");
    assert_eq!(say(&mut other, "b"), "b");
    assert_eq!(system.pid(1), pid);
    assert!(!system.log().contains("killing"), "nobody was in its way");
}

#[test]
fn a_handler_that_blocks_beyond_its_time_is_killed_long_before_the_watchdog_would() {
    let blocks =
        "[[request]]\nname = \"blocks\"\nhandler = \"block\"\ndelay = \"200s\"\ntime_limit = \"200ms\"\n";
    let limited =
        "[[request]]\nname = \"limited\"\nhandler = \"delay\"\ndelay = \"1ms\"\ntime_limit = \"90s\"\n";
    let system = System::start("secondaries = 1", &format!("{blocks}{limited}{REQUESTS}{PATIENT}"));
    let pid = system.pid(1);
    let mut others = ["echo", "limited"].map(|kind| Tracked::begin(&system, kind));
    for other in &mut others {
        assert_ne!(say(&mut other.data, "hello\n"), "");
    }
    let mut blocked = Tracked::begin(&system, "blocks");
    blocked.data.write_all(b"hello\n").unwrap();
    assert_eq!(blocked.end(), "time limit");
    for mut other in others {
        assert_eq!(other.end(), "secondary lost");
    }
    let obituary = obituary(&system, pid);
    assert_eq!(obituary["cause"], "signal 9");
    assert_eq!(obituary["killed"], "a handler blocked beyond time_limit");
    assert_eq!(obituary["jobs"], 3);
    let log = system.log();
    assert!(
        log.contains("(\"blocks\") has been at work for ") && log.contains("time_limit of 200ms"),
        "{log}"
    );
    system.all_ready();
    let mut again = request(system.address(), "limited");
    assert_eq!(say(&mut again, "hello\n"), "ok message 1 secondary 1\n");
    drop(again);
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["failed"], &status["ledger"]["done"]), (&3.into(), &1.into()));
}

#[test]
fn a_handler_that_computes_beyond_its_time_is_killed_too() {
    let limited = PRIMES.replacen("settings", "time_limit = \"300ms\"\nsettings", 1);
    let system = System::start_example("primes", "secondaries = 2", &format!("{limited}{PATIENT}"));
    let mut stuck = Tracked::begin(&system, "primes");
    assert_eq!(say(&mut stuck.data, "7\n"), "7 is prime\n");
    stuck.data.write_all(b"13\n").unwrap();
    assert_eq!(stuck.end(), "time limit");
    system.all_ready();
}

#[test]
fn who_is_blocked_by_anothers_handler_is_not_killed_for_it_but_ends_when_that_is_done() {
    let requests = "[[request]]\nname = \"blocks\"\nhandler = \"block\"\ndelay = \"1s\"\n\
                    [[request]]\nname = \"limited\"\nhandler = \"delay\"\ndelay = \"100s\"\ntime_limit = \"300ms\"\n";
    let system = System::start("secondaries = 1", &format!("{requests}{PATIENT}"));
    let pid = system.pid(1);
    let mut limited = Tracked::begin(&system, "limited");
    limited.data.write_all(b"hello\n").unwrap();
    let mut blocks = request(system.address(), "blocks");
    assert_eq!(say(&mut blocks, "hello\n"), "ok message 1 secondary 1\n");
    assert_eq!(limited.end(), "time limit");
    assert_eq!(system.pid(1), pid);
}

#[test]
fn a_predecessor_that_drains_is_held_to_the_time_of_its_jobs_by_the_next_principal() {
    let blocks =
        "[[request]]\nname = \"blocks\"\nhandler = \"block\"\ndelay = \"200s\"\ntime_limit = \"2s\"\n";
    let patient = PATIENT.replace("[watchdog]", "[watchdog]\ngrace = \"150s\"");
    let system = System::start("secondaries = 1", &format!("{blocks}{patient}"));
    let (principal, secondary) = (system.pid(0), system.pid(1));
    let mut blocked = Tracked::begin(&system, "blocks");
    blocked.data.write_all(b"hello\n").unwrap();
    let mut line = String::new();
    blocked.news.read_line(&mut line).unwrap();
    assert!(line.starts_with("debuttraitement "), "{line:?}");
    system.signal(principal, nix::sys::signal::Signal::SIGKILL);
    assert_eq!(obituary(&system, secondary)["cause"], "signal 9");
    assert!(system.log().contains("time_limit of 2s is over"), "{}", system.log());
    assert_eq!(system.books_are_exact()["ledger"]["failed"], 1);
}
