//! Reloads: a new configuration and a new program, and no client that notices.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod edges;
mod faults;
mod refused;
mod shape;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{REQUESTS, System, ask, connect, eventually, job, now, recv, request, say, together};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Asks for a reload: without the configuration of the system, which may be bad, or its program, which may be another.
fn ask_for_reload(system: &System) -> Command {
    let mut tool = common::osps();
    tool.arg("reload").arg("--runtime-dir").arg(system.rundir()).current_dir("/");
    tool
}

/// What a reload says on standard output; it must have succeeded.
fn reload(system: &System) -> String {
    let output = ask_for_reload(system).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What it says on standard error; it must have failed.
fn failed_reload(system: &System) -> String {
    let Output { status, stderr, .. } = ask_for_reload(system).output().unwrap();
    assert_eq!(status.code(), Some(69), "{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stderr).unwrap()
}

/// Changes a word of the configuration.
fn rewrite(system: &System, from: &str, to: &str) {
    let path = system.dir.path().join("osps.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// A program that can be replaced by another: `osps` under a path of its own.
struct Program {
    dir: tempfile::TempDir,
    copies: usize,
}

impl Program {
    fn new() -> Self {
        let mut program = Self { dir: tempfile::tempdir().unwrap(), copies: 0 };
        program.replace_by(Path::new(env!("CARGO_BIN_EXE_osps")));
        program
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("osps-of-the-test")
    }

    /// As a package manager does: the new file takes the name of the old one.
    fn replace_by(&mut self, program: &Path) {
        self.copies += 1;
        let copy = self.dir.path().join(format!("new-{}", self.copies));
        // By another process: a child that this one starts meanwhile would hold the file open for writing.
        assert!(Command::new("cp").arg(program).arg(&copy).status().unwrap().success());
        fs::rename(copy, self.path()).unwrap();
    }
}

/// Which file a process executes.
fn inode_of(pid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

/// What a client that loops with a kept control connection has seen.
#[derive(Default)]
struct Seen {
    served: u64,
    longest: Duration,
}

/// Loops until `over`: a request, an exchange, and the next. Any error of any kind fails the test.
fn loops(address: SocketAddr, over: &AtomicBool) -> Seen {
    let mut control = connect(address);
    let mut seen = Seen::default();
    while !over.load(Ordering::SeqCst) {
        let begun = now();
        let port = job(&mut control, "echo");
        let mut data = connect(SocketAddr::new(address.ip(), port));
        assert_eq!(say(&mut data, "hello"), "hello");
        seen.served += 1;
        seen.longest = seen.longest.max(now().since(begun));
    }
    seen
}

/// Clients that loop while something happens.
fn while_clients_loop<T>(address: SocketAddr, clients: usize, happens: impl FnOnce() -> T) -> (T, Vec<Seen>) {
    let over = Arc::new(AtomicBool::new(false));
    let flag = over.clone();
    std::thread::scope(|scope| {
        let looping = scope.spawn(move || together(clients, move |_| loops(address, &flag)));
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
        over.store(true, Ordering::SeqCst);
        let seen = looping.join().unwrap();
        (happened.unwrap(), seen)
    })
}

fn ledger(status: &Value, entry: &str) -> u64 {
    status["ledger"][entry].as_u64().unwrap()
}

#[test]
fn clients_notice_nothing_of_fifty_reloads_half_of_them_with_a_new_program() {
    let mut program = Program::new();
    let system = System::start_program(program.path(), "secondaries = 3", REQUESTS);
    let before = system.status();
    let ((), seen) = while_clients_loop(system.address(), 64, || {
        for round in 0..50 {
            if round % 2 == 1 {
                program.replace_by(Path::new(env!("CARGO_BIN_EXE_osps")));
            }
            reload(&system);
        }
    });
    let served: u64 = seen.iter().map(|seen| seen.served).sum();
    let longest = seen.iter().map(|seen| seen.longest).max().unwrap();
    println!("{served} exchanges, the longest took {longest:?}");
    let status = system.until("clients have gone", |status| status["clients"]["connected"] == 0);
    assert_eq!(ledger(&system.books_are_exact(), "done"), served);
    assert_eq!((ledger(&status, "failed"), ledger(&status, "expired")), (0, 0), "{status}");
    assert_eq!((ledger(&status, "refused"), ledger(&status, "rejected")), (0, 0), "{status}");
    assert_eq!(status["pid"], before["pid"], "the watchdog is the same");
    system
        .until("the last predecessors have ended", |status| status["servers"].as_array().unwrap().len() == 4);
    let new = fs::metadata(program.path()).map(|file| std::os::unix::fs::MetadataExt::ino(&file)).unwrap();
    assert!(system.pids()[1..].iter().all(|&pid| inode_of(pid) == new), "all run the new program");
    assert!(system.zombies().is_empty());
}

#[test]
fn what_a_client_has_open_survives_reloads() {
    let unix = tempfile::tempdir().unwrap();
    let socket = unix.path().join("osps.sock");
    let listen = format!("secondaries = 2\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]", socket.display());
    let system = System::start(&listen, REQUESTS);
    let address = system.address();
    // Idle; in the middle of a line; after a bare answer, which a newline still completes; in the middle of an
    // exchange; a tracked job that nobody has come for.
    let mut idle = connect(address);
    let mut halfway = connect(address);
    assert!(job(&mut halfway, "echo") > 0);
    halfway.write_all(b"suivi ec").unwrap();
    let mut bare = connect(address);
    bare.write_all(b"nonsense").unwrap();
    assert_eq!(recv(&mut bare), "-1");
    let mut local = UnixStream::connect(&socket).unwrap();
    assert!(ask(&mut local, "echo").parse::<u16>().is_ok());
    let mut data = request(address, "echo");
    assert_eq!(say(&mut data, "before"), "before");
    let (mut claimed, mut unclaimed) = (connect(address), connect(address));
    let tracked = ask(&mut claimed, "suivi echo");
    let (port, jeton) = tracked.split_once(' ').unwrap();
    let mut exchange = connect(SocketAddr::new(address.ip(), port.parse().unwrap()));
    assert_eq!(say(&mut exchange, &format!("jeton {jeton}\nbefore")), "before");
    assert_eq!(recv(&mut claimed), format!("debuttraitement {jeton}\n"));
    let waits = ask(&mut unclaimed, "suivi echo");
    let (waits_at, waiting_jeton) = waits.split_once(' ').unwrap();
    for round in 0..3 {
        reload(&system);
        assert_eq!(say(&mut data, "between"), "between", "round {round}");
        assert_eq!(say(&mut exchange, "between"), "between");
    }
    assert!(job(&mut idle, "requetetype1") > 0);
    halfway.write_all(b"ho\n").unwrap();
    assert!(recv(&mut halfway).contains(' '));
    bare.write_all(b"\n").unwrap();
    assert!(recv(&mut bare).starts_with(" unknown request type \"nonsense\""));
    assert!(ask(&mut local, "echo").parse::<u16>().is_ok());
    drop(exchange);
    assert_eq!(recv(&mut claimed), format!("fintraitement {jeton}\n"));
    let mut late = connect(SocketAddr::new(address.ip(), waits_at.parse().unwrap()));
    assert_eq!(say(&mut late, &format!("jeton {waiting_jeton}\nlate")), "late");
    drop(late);
    let mut told = String::new();
    while told.lines().count() < 2 {
        told.push_str(&recv(&mut unclaimed));
    }
    assert_eq!(told, format!("debuttraitement {waiting_jeton}\nfintraitement {waiting_jeton}\n"));
    assert_eq!(say(&mut data, "after"), "after");
}

#[test]
fn a_tracked_job_that_expires_after_a_reload_has_its_one_end() {
    let system = System::start("secondaries = 2\nclaim_within = \"1s\"", REQUESTS);
    let mut control = connect(system.address());
    let answer = ask(&mut control, "suivi echo");
    let jeton = answer.split_once(' ').unwrap().1.to_owned();
    reload(&system);
    assert_eq!(recv(&mut control), format!("errtraitement {jeton} expired\n"));
    // And then it is a connection like any other.
    assert!(job(&mut control, "echo") > 0);
}

#[test]
fn who_waits_for_a_place_in_a_secondary_waits_on() {
    let system = System::start("secondaries = 1\nmax_jobs = 1\nqueue_within = \"60s\"", REQUESTS);
    let data = request(system.address(), "echo");
    let mut waiting = connect(system.address());
    waiting.write_all(b"echo\n").unwrap();
    // It is the principal's before the reload.
    assert!(ask(&mut connect(system.address()), "nonsense").starts_with("-1"));
    reload(&system);
    drop(data);
    let port = recv(&mut waiting).trim().parse().unwrap();
    assert_eq!(say(&mut connect(SocketAddr::new(system.address().ip(), port)), "x"), "x");
}

#[test]
fn who_waits_to_be_heard_is_heard_after_a_reload() {
    let system = System::start("secondaries = 1\nmax_clients = 1", REQUESTS);
    let mut first = connect(system.address());
    assert!(job(&mut first, "echo") > 0);
    let mut second = connect(system.address());
    system.until("the second waits", |status| status["clients"]["parked"] == 1);
    reload(&system);
    let status = system.until("both are known", |status| status["clients"]["parked"] == 1);
    assert_eq!(status["clients"]["connected"], 1);
    assert!(job(&mut first, "echo") > 0);
    drop(first);
    assert!(job(&mut second, "echo") > 0);
}

#[test]
fn five_thousand_idle_connections_are_alive_after_ten_reloads() {
    let system = System::start("secondaries = 2\nclient_idle = \"1h\"", REQUESTS);
    let _ = osps::os::process::raise_descriptor_limit();
    let mut clients: Vec<TcpStream> = Vec::new();
    for all in (500..=5000).step_by(500) {
        clients.extend((0..500).map(|_| connect(system.address())));
        system.until("all are heard", |status| status["clients"]["connected"] == all);
    }
    for _ in 0..10 {
        reload(&system);
    }
    let status = system.until("all are there", |status| status["clients"]["connected"] == 5000);
    assert_eq!((&status["clients"]["broken"], &status["clients"]["accepted"]), (&0.into(), &5000.into()));
    for client in &mut clients {
        client.write_all(b"nonsense\n").unwrap();
    }
    for client in &mut clients {
        assert!(recv(client).starts_with("-1 unknown"));
    }
}

#[test]
fn the_new_configuration_is_in_force() {
    let delay = "delay = \"20ms\"\n\n[[request]]\nname = \"requetetype2\"";
    let system = System::start("secondaries = 2\nclaim_within = \"59s\"\nmax_clients = 100", REQUESTS);
    rewrite(&system, delay, &delay.replace("20ms", "1ms"));
    rewrite(
        &system,
        "handler = \"echo\"",
        "handler = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"read x; echo $x $x\"]",
    );
    rewrite(&system, "claim_within = \"59s\"", "claim_within = \"10ms\"");
    assert_eq!(say(&mut request(system.address(), "echo"), "x\n"), "x\n");
    let said = reload(&system);
    let principal = system.pid(0);
    assert_eq!(said, format!("a new principal serves, pid {principal}; 2 secondaries serve, all new\n"));
    assert_eq!(say(&mut request(system.address(), "echo"), "x\n"), "x x\n");
    let mut control = connect(system.address());
    let answer = ask(&mut control, "suivi echo");
    assert_eq!(recv(&mut control), format!("errtraitement {} expired\n", answer.split_once(' ').unwrap().1));
    // What comes after it is of the new configuration, too.
    system.strike(principal, Signal::SIGKILL);
    system.until("another principal", |status| {
        let pid = System::server(status, 0)["pid"].as_u64();
        pid.is_some_and(|pid| pid != u64::from(principal))
    });
    system.all_ready();
    assert_eq!(say(&mut request(system.address(), "echo"), "y\n"), "y y\n");
}

#[test]
fn a_signal_asks_for_a_reload_too_and_the_log_tells_of_it() {
    let system = System::start("secondaries = 2", REQUESTS);
    let before = system.pids();
    let mut control = connect(system.address());
    system.signal(before[0], Signal::SIGHUP);
    eventually("it is done", || system.log().contains("reload: a new principal serves").then_some(()));
    let after = system.pids();
    assert_eq!(before[0], after[0]);
    assert!(before[1..].iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    assert!(job(&mut control, "echo") > 0);
    fs::write(system.dir.path().join("osps.toml"), "nonsense = 1").unwrap();
    system.signal(before[0], Signal::SIGHUP);
    eventually("it is refused", || system.log().contains("reload: nothing was changed").then_some(()));
    assert!(job(&mut control, "echo") > 0);
}

#[test]
fn an_exchange_under_way_is_not_cut_however_long_it_takes() {
    let system = System::start(
        "secondaries = 1",
        &format!("{REQUESTS}[watchdog]\ngrace = \"50ms\"\nperiod = \"20ms\"\n"),
    );
    let mut data = request(system.address(), "echo");
    assert_eq!(say(&mut data, "before"), "before");
    reload(&system);
    let (begun, mut probes) = (now(), 0);
    // Many times its grace.
    while now().since(begun) < Duration::from_millis(1500) {
        assert_eq!(say(&mut data, "on"), "on");
        probes += 1;
        common::pause();
    }
    assert!(probes > 10);
    data.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    data.read_to_string(&mut rest).unwrap();
    system.until("the old one has ended", |status| status["servers"].as_array().unwrap().len() == 2);
    assert_eq!(ledger(&system.books_are_exact(), "done"), 1);
}

#[test]
fn reloads_and_other_wishes_wait_for_one_another() {
    let system = System::start("secondaries = 2", REQUESTS);
    let tools: Vec<_> = ["reload", "restart 1", "reload", "drain 2", "restart 2", "reload"]
        .iter()
        .map(|words| {
            let words: Vec<&str> = words.split(' ').collect();
            system.tool(&words).stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut tool in tools {
        assert!(tool.wait().unwrap().success());
    }
    // `drain 2` may have come last.
    let status = system.status();
    assert!(["ready", "down"].contains(&System::server(&status, 2)["state"].as_str().unwrap()), "{status}");
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}

#[test]
fn a_slot_that_is_drained_stays_empty_through_a_reload() {
    let system = System::start("secondaries = 2", REQUESTS);
    assert!(system.tool(&["drain", "2"]).status().unwrap().success());
    let said = reload(&system);
    assert!(said.ends_with("; 1 secondary serves, all new\n"), "{said}");
    assert_eq!(System::server(&system.status(), 2)["state"], "down");
    assert!(system.tool(&["restart", "2"]).status().unwrap().success());
    assert_eq!(System::server(&system.status(), 2)["state"], "ready");
}
