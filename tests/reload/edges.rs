//! What a reload meets that is out of the ordinary.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::{REQUESTS, System, ask, connect, eventually, job, now, pause, recv, request, say};
use crate::{Program, ask_for_reload, failed_reload, reload, rewrite, while_clients_loop};

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

#[test]
fn a_stop_during_a_reload_cuts_no_client_off() {
    for round in 0..12u64 {
        let mut system = System::start("secondaries = 2\nclaim_within = \"1s\"", REQUESTS);
        let mut control = connect(system.address());
        let answer = ask(&mut control, "suivi echo");
        let (port, jeton) = answer.split_once(' ').unwrap();
        let mut data = connect(SocketAddr::new(system.address().ip(), port.parse().unwrap()));
        assert_eq!(say(&mut data, &format!("jeton {jeton}\nx")), "x");
        assert_eq!(recv(&mut control), format!("debuttraitement {jeton}\n"));
        let arguments =
            [&["reload"][..], &["scale", "5"], &["scale", "1"]][usize::try_from(round % 3).unwrap()];
        let mut tool = system.tool(arguments);
        let mut tool = tool.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = now();
        while now().since(begun) < Duration::from_millis(2 * round) {
            pause();
        }
        system.signal(system.watchdog.id(), Signal::SIGTERM);
        assert_eq!(say(&mut data, "still"), "still", "round {round}");
        drop(data);
        assert_eq!(recv(&mut control), format!("fintraitement {jeton}\n"), "round {round}: {}", system.log());
        assert!(system.ended().success(), "round {round}: {}", system.log());
        tool.wait().unwrap();
        assert_eq!(system.files(), ["lock"], "round {round}: {}", system.log());
        assert!(!system.has_survivors());
    }
}

#[test]
fn somebody_always_serves() {
    let system = System::start("secondaries = 2", REQUESTS);
    assert!(system.tool(&["drain", "1"]).status().unwrap().success());
    let refused = system.tool(&["scale", "1"]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("nothing was changed: all of the slots 1 to 1 are drained"), "{said}");
    rewrite(&system, "secondaries = 2", "secondaries = 1");
    assert!(failed_reload(&system).contains("are drained"));
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}

#[test]
fn who_leaves_for_long_keeps_nobody_else_waiting() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut exchanges: Vec<TcpStream> = (0..2).map(|_| request(system.address(), "echo")).collect();
    exchanges.iter_mut().for_each(|data| assert_eq!(say(data, "x"), "x"));
    rewrite(&system, "secondaries = 2", "secondaries = 1");
    system.signal(system.watchdog.id(), Signal::SIGHUP);
    let done = || system.log().contains("1 secondary serves, all new; 1 finish what they have").then_some(());
    eventually("the wanted ones serve", done);
    reload(&system);
    assert!(system.tool(&["restart", "1"]).status().unwrap().success());
    exchanges.iter_mut().for_each(|data| assert_eq!(say(data, "still"), "still"));
}

#[test]
fn a_configuration_that_was_found_has_to_be_there_still() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let text =
        format!("listen = \"127.0.0.1:0\"\ndata_ports = \"0\"\nsecondaries = 1\nruntime_dir = {run:?}\n");
    fs::write(dir.path().join("osps.toml"), text).unwrap();
    // By a link to a directory of its version, as packages do.
    let (link, old) = (dir.path().join("current"), dir.path().join("1.0"));
    fs::create_dir(&old).unwrap();
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_osps")).arg(&old).status().unwrap().success());
    std::os::unix::fs::symlink(&old, &link).unwrap();
    let mut found = Command::new(link.join("osps"));
    found.current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut found = Ends(found.spawn().unwrap());
    let ask = |arguments: &[&str]| {
        let mut tool = crate::common::osps();
        tool.args(arguments).arg("--runtime-dir").arg(&run).current_dir("/").output().unwrap()
    };
    eventually("it serves", || ask(&["status"]).status.success().then_some(()));
    eventually("it reloads", || ask(&["reload"]).status.success().then_some(()));
    let new = dir.path().join("2.0");
    fs::create_dir(&new).unwrap();
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_osps")).arg(&new).status().unwrap().success());
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&new, &link).unwrap();
    assert!(ask(&["reload"]).status.success());
    let status: serde_json::Value = serde_json::from_slice(&ask(&["status", "--json"]).stdout).unwrap();
    let principal = u32::try_from(System::server(&status, 0)["pid"].as_u64().unwrap()).unwrap();
    let executed = fs::read_link(format!("/proc/{principal}/exe")).unwrap();
    assert_eq!(executed, new.join("osps"));
    fs::remove_file(dir.path().join("osps.toml")).unwrap();
    let refused = String::from_utf8(ask(&["reload"]).stderr).unwrap();
    assert!(refused.contains("nothing was changed: ") && refused.contains("osps.toml"), "{refused}");
    let mut long = fs::File::create(dir.path().join("osps.toml")).unwrap();
    long.write_all(&b"# nothing\n".repeat(200_000)).unwrap();
    let refused = String::from_utf8(ask(&["reload"]).stderr).unwrap();
    assert!(refused.contains("is longer than 1MiB"), "{refused}");
    assert!(ask(&["stop"]).status.success());
    assert!(found.0.wait().unwrap().success());
}

/// Kills a watchdog of a test that fails.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn secondaries_that_end_at_any_moment_of_a_reload_cost_no_client_its_connection() {
    let system = System::start("secondaries = 3\nmax_jobs_served = 3", REQUESTS);
    let ((), seen) = while_clients_loop(system.address(), 4, || {
        for _ in 0..25 {
            reload(&system);
        }
    });
    assert!(seen.iter().all(|seen| seen.served > 0));
}
