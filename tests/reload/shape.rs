//! Systems that grow and shrink while they serve: secondaries, request types, ports, addresses.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Output;

use serde_json::Value;

use crate::common::{REQUESTS, System, ask, connect, eventually, job, recv, request, say};
use crate::{failed_reload, ledger, reload, rewrite, while_clients_loop};

fn scale(system: &System, secondaries: u16) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        system.tool(&["scale", &secondaries.to_string()]).output().unwrap();
    if status.success() {
        Ok(String::from_utf8(stdout).unwrap())
    } else {
        Err(String::from_utf8(stderr).unwrap())
    }
}

/// The slots of which status tells.
fn slots(status: &Value) -> Vec<u64> {
    let servers = status["servers"].as_array().unwrap().iter();
    servers
        .filter(|server| server["state"] != "draining")
        .map(|server| server["slot"].as_u64().unwrap())
        .collect()
}

fn data_ports(status: &Value) -> BTreeSet<u64> {
    let servers = status["servers"].as_array().unwrap().iter();
    servers
        .flat_map(|server| server["ports"].as_object().unwrap().values())
        .map(|port| port.as_u64().unwrap())
        .collect()
}

/// Nobody listens there any more.
fn is_closed(port: u64) {
    let address = SocketAddr::new([127, 0, 0, 1].into(), u16::try_from(port).unwrap());
    eventually("the port is closed", || TcpStream::connect(address).is_err().then_some(()));
}

#[test]
fn four_become_sixteen_and_two_and_no_client_notices() {
    let system = System::start("secondaries = 4", REQUESTS);
    let four = system.status();
    let pids = system.pids();
    let (sixteen, seen) = while_clients_loop(system.address(), 16, || {
        assert_eq!(scale(&system, 16).unwrap(), "16 secondaries serve\n");
        let sixteen = system.status();
        assert_eq!(slots(&sixteen), (0..=16).collect::<Vec<_>>());
        // Who was there before is there still.
        assert_eq!(system.pids()[2..6], pids[2..]);
        assert_eq!(scale(&system, 2).unwrap(), "2 secondaries serve\n");
        assert_eq!(slots(&system.status()), [0, 1, 2]);
        sixteen
    });
    let served: u64 = seen.iter().map(|seen| seen.served).sum();
    let status = system.until("clients have gone", |status| status["clients"]["connected"] == 0);
    assert_eq!(ledger(&system.books_are_exact(), "done"), served);
    assert_eq!((ledger(&status, "failed"), ledger(&status, "expired")), (0, 0), "{status}");
    assert_eq!((ledger(&status, "refused"), ledger(&status, "rejected")), (0, 0), "{status}");
    assert!(data_ports(&four).is_subset(&data_ports(&sixteen)));
    for port in data_ports(&sixteen).difference(&data_ports(&system.status())) {
        is_closed(*port);
    }
    // And up again, where some have been.
    assert_eq!(scale(&system, 5).unwrap(), "5 secondaries serve\n");
    assert_eq!(slots(&system.all_ready()), [0, 1, 2, 3, 4, 5]);
    for _ in 0..10 {
        assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    }
    assert_eq!(ledger(&system.books_are_exact(), "done"), served + 10);
    // What was scaled is what the next principal knows, too; but not what the file says.
    system.strike(system.pid(0), nix::sys::signal::Signal::SIGKILL);
    system.all_ready();
    assert_eq!(slots(&system.all_ready()), [0, 1, 2, 3, 4, 5]);
    reload(&system);
    system.until("as the file says", |status| slots(status) == [0, 1, 2, 3, 4]);
}

#[test]
fn who_is_scaled_away_finishes_what_it_has() {
    let system = System::start("secondaries = 2", REQUESTS);
    // One exchange in each.
    let mut exchanges: Vec<TcpStream> = (0..2).map(|_| request(system.address(), "echo")).collect();
    exchanges.iter_mut().for_each(|data| assert_eq!(say(data, "x"), "x"));
    let mut tool = system.tool(&["scale", "1"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    system.until("it leaves", |status| slots(status) == [0, 1]);
    exchanges.iter_mut().for_each(|data| assert_eq!(say(data, "still"), "still"));
    assert!(tool.try_wait().unwrap().is_none(), "it is waited for");
    drop(exchanges);
    assert!(tool.wait().unwrap().success());
    assert_eq!(ledger(&system.books_are_exact(), "done"), 2);
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let system = System::start("secondaries = 1", REQUESTS);
    let said = scale(&system, 65).unwrap_err();
    assert!(said.contains("nothing was changed: there is room for 64 secondaries"), "{said}");
    let narrow = System::start("secondaries = 1\ndata_ports = \"0\"", REQUESTS);
    // Others have all that are left: what this test cannot have, somebody else has.
    let first = 40_000;
    let _taken: Vec<_> = (first..first + 8).map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
    rewrite(&narrow, "data_ports = \"0\"", &format!("data_ports = \"{first}-{}\"", first + 7));
    rewrite(&narrow, "secondaries = 1", "secondaries = 2");
    let said = failed_reload(&narrow);
    assert!(said.contains("not enough free ports"), "{said}");
    assert_eq!(slots(&narrow.status()), [0, 1]);
    assert_eq!(say(&mut request(narrow.address(), "echo"), "x"), "x");
}

const WORKS: &str = "[[request]]\nname = \"works\"\nhandler = \"echo\"\n";

#[test]
fn request_types_come_and_go() {
    let system = System::start("secondaries = 2", &format!("{REQUESTS}{WORKS}"));
    let before = system.status();
    let mut control = connect(system.address());
    let old_port = job(&mut control, "works");
    let mut exchange = connect(SocketAddr::new(system.address().ip(), old_port));
    assert_eq!(say(&mut exchange, "before"), "before");
    // A job of it that nobody has come for yet.
    let waits_at = job(&mut control, "works");
    rewrite(&system, "name = \"works\"", "name = \"new\"");
    reload(&system);
    assert_eq!(say(&mut exchange, "after"), "after");
    assert!(ask(&mut control, "works").starts_with("-1 unknown request type \"works\"; known: "));
    assert_eq!(say(&mut request(system.address(), "new"), "x"), "x");
    // Who was given a port is served there.
    let mut late = connect(SocketAddr::new(system.address().ip(), waits_at));
    assert_eq!(say(&mut late, "late"), "late");
    drop((exchange, late));
    let status = system.until("jobs have ended", |status| ledger(status, "open") == 0);
    assert_eq!(status["requests"]["works"]["done"], 2, "its counters stay");
    for server in before["servers"].as_array().unwrap().iter().filter(|server| server["role"] == "secondary")
    {
        is_closed(server["ports"]["works"].as_u64().unwrap());
        let slot = server["slot"].as_u64().unwrap();
        eventually("status tells it", || {
            System::server(&system.status(), slot)["ports"]["works"].is_null().then_some(())
        });
        // Those of the others are what they were.
        assert_eq!(System::server(&system.status(), slot)["ports"]["echo"], server["ports"]["echo"]);
    }
    // And back.
    rewrite(&system, "name = \"new\"", "name = \"works\"");
    reload(&system);
    assert_eq!(say(&mut request(system.address(), "works"), "again"), "again");
    assert!(ask(&mut control, "new").starts_with("-1 unknown"));
    assert_eq!(system.books_are_exact()["requests"]["works"]["done"], 3);
}

#[test]
fn who_waits_for_a_type_that_goes_is_told_so() {
    let system =
        System::start("secondaries = 1\nmax_jobs = 1\nqueue_within = \"60s\"", &format!("{REQUESTS}{WORKS}"));
    let data = request(system.address(), "echo");
    let mut waiting = connect(system.address());
    waiting.write_all(b"works\n").unwrap();
    assert!(ask(&mut connect(system.address()), "nonsense").starts_with("-1"));
    rewrite(&system, WORKS, "");
    reload(&system);
    assert!(recv(&mut waiting).starts_with("-1 unknown request type \"works\""));
    drop(data);
    assert!(job(&mut waiting, "echo") > 0);
}

#[test]
fn addresses_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first.sock"), dir.path().join("second.sock"));
    let listen = |unix: &std::path::Path| format!("listen = [\"127.0.0.1:0\", \"unix:{}\"]", unix.display());
    let system = System::start(&format!("secondaries = 1\n{}", listen(&first)), REQUESTS);
    let address = system.address();
    let mut kept = connect(address);
    let mut local = UnixStream::connect(&first).unwrap();
    assert!(ask(&mut local, "echo").parse::<u16>().is_ok());
    rewrite(&system, &listen(&first), &listen(&second));
    reload(&system);
    assert_eq!(system.address(), address, "what stays is the same socket");
    assert!(job(&mut kept, "echo") > 0);
    assert!(ask(&mut local, "echo").parse::<u16>().is_ok(), "who came by the old one stays");
    let mut new = UnixStream::connect(&second).unwrap();
    assert!(ask(&mut new, "echo").parse::<u16>().is_ok());
    assert!(!first.exists() && UnixStream::connect(&first).is_err());
    // One that cannot be had changes nothing, and leaves nothing.
    let (third, taken) = (dir.path().join("third.sock"), TcpListener::bind("127.0.0.1:0").unwrap());
    let bad = format!(
        "listen = [\"127.0.0.1:0\", \"unix:{}\", \"{}\"]",
        third.display(),
        taken.local_addr().unwrap()
    );
    rewrite(&system, &listen(&second), &bad);
    let said = failed_reload(&system);
    assert!(said.contains("another program has this port"), "{said}");
    assert!(!third.exists());
    assert!(ask(&mut UnixStream::connect(&second).unwrap(), "echo").parse::<u16>().is_ok());
    assert!(job(&mut kept, "echo") > 0);
}

#[test]
fn who_was_to_leave_may_be_wanted_again() {
    let system = System::start("secondaries = 4\nclaim_within = \"60s\"", REQUESTS);
    // Jobs that nobody has come for keep every secondary in its slot.
    let mut control = connect(system.address());
    let ports: Vec<u16> = (0..4).map(|_| job(&mut control, "echo")).collect();
    let mut tool = system.tool(&["scale", "2"]);
    let mut tool =
        tool.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let said = std::io::BufReader::new(tool.stderr.take().unwrap());
    let leaves = |line: &String| line.contains("2 finish what they have");
    assert!(std::io::BufRead::lines(said).map_while(Result::ok).any(|line| leaves(&line)));
    assert_eq!(scale(&system, 4).unwrap(), "4 secondaries serve\n");
    assert!(tool.wait().unwrap().success());
    for port in ports {
        assert_eq!(say(&mut connect(SocketAddr::new(system.address().ip(), port)), "x"), "x");
    }
    assert_eq!(system.status()["ledger"]["expired"], 0);
}

#[test]
fn a_type_that_is_gone_needs_nothing_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    assert!(std::process::Command::new("cp").arg("/bin/cat").arg(&program).status().unwrap().success());
    let worker = format!("[[request]]\nname = \"cat\"\nhandler = \"exec\"\ncommand = [{program:?}]\n");
    let system = System::start("secondaries = 1", &format!("{REQUESTS}{worker}"));
    rewrite(&system, &worker, "");
    reload(&system);
    std::fs::remove_file(&program).unwrap();
    reload(&system);
    system.strike(system.pid(0), nix::sys::signal::Signal::SIGKILL);
    system.all_ready();
    assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
}
