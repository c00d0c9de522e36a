//! What a reload meets that is out of the ordinary.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::{REQUESTS, System, ask, connect, eventually, job, now, pause, recv, request, say};
use crate::{Program, ask_for_reload, failed_reload, reload, rewrite};

#[test]
fn files_that_were_removed_or_spoilt_cost_nobody_a_connection() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut control = connect(system.address());
    let mut data = request(system.address(), "echo");
    assert_eq!(say(&mut data, "before"), "before");
    for name in ["wdtube1", "dwtube2", "secondary2.page", "orders.1"] {
        fs::remove_file(system.rundir().join(name)).unwrap();
    }
    let mut table = OpenOptions::new().write(true).open(system.rundir().join("secondary1.jobs")).unwrap();
    table.seek(SeekFrom::Start(0)).unwrap();
    table.write_all(&[0; 4]).unwrap();
    reload(&system);
    assert!(job(&mut control, "echo") > 0);
    assert_eq!(say(&mut data, "after"), "after");
    assert_eq!(say(&mut request(system.address(), "echo"), "new"), "new");
}

#[test]
fn reloads_that_fail_do_not_spoil_those_that_wait() {
    let mut program = Program::new();
    let system = System::start_program(program.path(), "secondaries = 2", REQUESTS);
    let mut control = connect(system.address());
    // `cat principal` waits until it is killed for that.
    program.replace_by(Path::new("/bin/true"));
    let ask_silently =
        || ask_for_reload(&system).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut tools: Vec<Child> = (0..4).map(|_| ask_silently()).collect();
    assert!(tools.iter_mut().all(|tool| !tool.wait().unwrap().success()));
    program.replace_by(Path::new(env!("CARGO_BIN_EXE_osps")));
    let principal = system.pid(0);
    let mut tools: Vec<Child> = (0..3).map(|_| ask_silently()).collect();
    assert!(tools.iter_mut().all(|tool| tool.wait().unwrap().success()));
    assert_ne!(system.pid(0), principal);
    assert!(job(&mut control, "echo") > 0);
}

#[test]
fn many_signals_are_one_reload_or_two() {
    let system = System::start("secondaries = 1", REQUESTS);
    let watchdog = system.watchdog.id();
    for _ in 0..200 {
        system.signal(watchdog, Signal::SIGHUP);
    }
    let done = || system.log().matches("reload: a new principal serves").count();
    eventually("a reload", || (done() > 0).then_some(()));
    // Whoever asks now has had all of them before.
    reload(&system);
    assert!(done() <= 3, "{}", system.log());
    assert_eq!(system.status()["obituaries"].as_array().unwrap().len(), 0, "a reload is no trouble");
}

#[test]
fn the_watchdog_waits_for_no_pipe() {
    let mut system = System::start("secondaries = 1", REQUESTS);
    let path = system.dir.path().join("osps.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let said = failed_reload(&system);
    assert!(said.contains("no regular file"), "{said}");
    fs::remove_file(&path).unwrap();
    fs::write(&path, text).unwrap();
    reload(&system);
    assert!(system.stop().success());
}

#[test]
fn fewer_clients_are_wanted_than_are_there() {
    let system = System::start("secondaries = 1\nmax_clients = 40", REQUESTS);
    let mut clients: Vec<TcpStream> = (0..40).map(|_| connect(system.address())).collect();
    system.until("all are heard", |status| status["clients"]["connected"] == 40);
    rewrite(&system, "max_clients = 40", "max_clients = 2");
    reload(&system);
    for client in &mut clients {
        assert!(job(client, "requetetype1") > 0);
    }
    let mut late = connect(system.address());
    system.until("one more waits", |status| status["clients"]["parked"] == 1);
    drop(clients);
    assert!(job(&mut late, "echo") > 0);
}

#[test]
fn who_waits_is_bound_by_the_new_patience() {
    let system = System::start("secondaries = 1\nmax_jobs = 1\nqueue_within = \"1h\"", REQUESTS);
    let data = request(system.address(), "echo");
    let mut waiting = connect(system.address());
    waiting.write_all(b"echo\n").unwrap();
    assert!(ask(&mut connect(system.address()), "nonsense").starts_with("-1"));
    rewrite(&system, "queue_within = \"1h\"", "queue_within = \"10ms\"");
    reload(&system);
    assert!(ask(&mut connect(system.address()), "echo").starts_with("-1 busy"));
    assert!(recv(&mut waiting).starts_with("-1 busy"));
    drop(data);
}

#[test]
fn a_secondary_that_is_killed_during_a_reload_is_replaced_by_the_new_principal() {
    let system = System::start("secondaries = 3\nclaim_within = \"1s\"", REQUESTS);
    let mut control = connect(system.address());
    for round in 0..10u64 {
        let victim = system.pid(1 + round % 3);
        let mut tool = ask_for_reload(&system).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = now();
        while now().since(begun) < Duration::from_millis(round * 2) {
            pause();
        }
        system.strike(victim, Signal::SIGKILL);
        assert!(tool.wait().unwrap().success(), "round {round}: {}", system.log());
        system.all_ready();
        let port = job(&mut control, "echo");
        assert_eq!(say(&mut connect(SocketAddr::new(system.address().ip(), port)), "x"), "x");
    }
    system.books_are_exact();
}
