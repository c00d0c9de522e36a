//! The observer as a process: supervised like the others, needed by none of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use common::{REQUESTS, System, ask, breaks, connect, eventually, read_to_end, request, say};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Nobody is killed for being slow.
const PATIENT: &str = "[watchdog]\nkill_after = \"600s\"\nsuspect_after = \"300s\"";
const HASTY: &str = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"100ms\"\nkill_after = \"400ms\"";

/// A system with an observer that is ready.
fn start(top: &str, times: &str) -> System {
    let system = System::start(
        &format!("secondaries = 2\nobserve = \"127.0.0.1:0\"\n{top}"),
        &[times, REQUESTS].concat(),
    );
    observer(&system);
    system
}

/// The status once an observer is ready.
fn observed(system: &System) -> Value {
    system.until("an observer", |status| status["observer"]["state"] == "ready")
}

/// The observer's entry in the status.
fn observer(system: &System) -> Value {
    observed(system)["observer"].clone()
}

fn pid(system: &System) -> u32 {
    u32::try_from(observer(system)["pid"].as_u64().unwrap()).unwrap()
}

fn address(system: &System) -> SocketAddr {
    observed(system)["observe"][0].as_str().unwrap().parse().unwrap()
}

/// What a path shows: status and body.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = connect(address);
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    understood(&read_to_end(&mut stream))
}

fn understood(response: &str) -> (u16, String) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{response:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("{head:?}")), body.to_owned())
}

/// Everybody but the observer, with what is to stay as it is.
fn others(status: &Value) -> Vec<(Value, Value, Value)> {
    let of = |server: &Value| (server["pid"].clone(), server["restarts"].clone(), server["kills"].clone());
    status["servers"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn it_shows_what_the_status_says() {
    let system = start("", "");
    let address = address(&system);
    let mut data = request(system.address(), "echo");
    data.write_all(b"x").unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut data), "x");
    system.books_are_exact();
    let shown = eventually("the job in its eyes", || {
        let (status, body) = get(address, "/status.json");
        assert_eq!(status, 200, "{body}");
        let shown: Value = serde_json::from_str(&body).unwrap();
        (shown["ledger"]["done"] == 1).then_some(shown)
    });
    let told = system.status();
    assert_eq!((&shown["pid"], &shown["requests"]), (&told["pid"], &told["requests"]));
    assert_eq!(others(&shown), others(&told));
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(get(address, "/nothing").0, 404);
    let visits = observer(&system);
    assert!(visits["done"].as_u64().unwrap() >= 2 && visits["failed"].as_u64().unwrap() >= 1, "{visits}");
}

#[test]
fn without_observe_there_is_none() {
    let system = System::start("secondaries = 1", REQUESTS);
    let status = system.status();
    assert!(status["observer"].is_null() && status["observe"] == Value::Array(vec![]), "{status}");
    assert!(!system.files().iter().any(|file| file.contains("observer")));
}

#[test]
fn one_that_dies_is_replaced_and_nobody_notices() {
    let system = start("", "");
    let before = others(&system.status());
    let mut control = system.connect();
    let mut known = connect(address(&system));
    for round in 1..4_u64 {
        assert!(system.strike(pid(&system), Signal::SIGKILL));
        // Who comes meanwhile waits in the backlog.
        assert_eq!(get(address(&system), "/healthz").0, 200);
        let status = system.until("the next one", |status| {
            status["observer"]["restarts"] == round && status["observer"]["state"] == "ready"
        });
        assert_eq!((&status["observer"]["kills"], others(&status)), (&Value::from(0), before.clone()));
        assert!(ask(&mut control, "echo").trim().parse::<u16>().is_ok());
    }
    breaks(&mut known);
    let obituary = &system.status()["obituaries"][0];
    assert_eq!((&obituary["role"], &obituary["cause"]), (&"observer".into(), &"signal 9".into()));
    let log = system.log();
    assert!(log.contains("obituary role=observer slot=0 incarnation=1"), "{log}");
}

#[test]
fn one_that_is_frozen_is_killed_and_replaced() {
    let system = start("", HASTY);
    let before = others(&system.status());
    system.signal(pid(&system), Signal::SIGSTOP);
    let status = system.until("the next one", |status| {
        status["observer"]["restarts"] == 1 && status["observer"]["state"] == "ready"
    });
    assert_eq!((&status["observer"]["kills"], others(&status)), (&Value::from(1), before));
    let killed = status["obituaries"][0]["killed"].as_str().unwrap();
    assert!(killed.starts_with("stopped"), "{killed}");
    assert_eq!(get(address(&system), "/healthz").0, 200);
}

#[test]
fn one_that_does_not_hear_its_order_to_go_reads_of_it() {
    let times = "[watchdog]\nperiod = \"20ms\"\nkill_after = \"600s\"\nsuspect_after = \"300s\"";
    let system = start("", times);
    let orders = system.rundir().join("orders.observer");
    // One that is stopped for too long is killed, and proves nothing.
    eventually("one that goes by itself", || {
        let (before, old) = (observer(&system), pid(&system));
        system.signal(old, Signal::SIGSTOP);
        let mut stolen = fs::File::options()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&orders)
            .unwrap();
        let mut reload = system.tool(&["reload"]).spawn().unwrap();
        eventually("its order", || stolen.read(&mut [0; 64]).ok());
        system.strike(old, Signal::SIGCONT);
        assert!(reload.wait().unwrap().success());
        let after = system.until("the next one", |status| {
            status["observer"]["pid"] != old && status["observer"]["state"] == "ready"
        });
        (after["observer"]["kills"] == before["kills"]).then_some(())
    });
}

#[test]
fn it_goes_on_while_everybody_else_hangs() {
    let system = start("", PATIENT);
    let address = address(&system);
    let pids = system.pids();
    pids.iter().for_each(|&pid| system.signal(pid, Signal::SIGSTOP));
    let (status, body) = get(address, "/status.json");
    pids.iter().for_each(|&pid| system.signal(pid, Signal::SIGCONT));
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &shown["pid"]), (200, &Value::from(system.watchdog.id())));
}

#[test]
fn it_ends_with_the_watchdog_and_a_new_start_finds_nothing_in_its_way() {
    let mut system = start("", "");
    let (old, address) = (pid(&system), address(&system));
    system.signal(old, Signal::SIGSTOP);
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    let config = system.dir.path().join("osps.toml");
    let text = fs::read_to_string(&config).unwrap();
    // The same port again: what is left of the old one, stopped as it is, must not hold it.
    fs::write(&config, text.replace("observe = \"127.0.0.1:0\"", &format!("observe = \"{address}\"")))
        .unwrap();
    system.start_again_at_once();
    assert_eq!(get(address, "/healthz").0, 200);
    assert_ne!(pid(&system), old);
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    system.watchdog.wait().unwrap();
    eventually("its end", || (!system.has_processes()).then_some(()));
}

#[test]
fn it_is_the_last_to_end_and_leaves_nothing() {
    let mut system = start("", "");
    let address = address(&system);
    let mut data = request(system.address(), "requetetype2");
    say(&mut data, "hello\n");
    let mut stop = system.tool(&["stop"]).spawn().unwrap();
    // An exchange is under way: it can be watched how all else stops.
    let shown = eventually("a system that stops", || {
        let shown: Value = serde_json::from_str(&get(address, "/status.json").1).unwrap();
        (shown["stopping"] == true).then_some(shown)
    });
    assert_eq!(shown["observer"]["state"], "ready");
    drop(data);
    assert!(stop.wait().unwrap().success());
    assert!(system.ended().success());
    assert_eq!(system.files(), ["lock"]);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_reload_brings_it_moves_it_and_takes_it_away() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut control = system.connect();
    let config = system.dir.path().join("osps.toml");
    let without = fs::read_to_string(&config).unwrap();
    let reload = |observe: &str| {
        fs::write(&config, format!("{observe}\n{without}")).unwrap();
        let output = system.tool(&["reload"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    reload("observe = \"127.0.0.1:0\"");
    let first = address(&system);
    assert_eq!(get(first, "/healthz").0, 200);
    let socket = system.rundir().join("page");
    reload(&format!("observe = [\"127.0.0.1:0\", \"unix:{}\"]", socket.display()));
    system.until("both", |status| status["observe"].as_array().unwrap().len() == 2);
    assert_eq!(address(&system), first, "what stays keeps its socket");
    let mut visitor = UnixStream::connect(&socket).unwrap();
    visitor.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    visitor.read_to_string(&mut answer).unwrap();
    assert_eq!(understood(&answer).0, 200);
    reload("");
    system.until("none", |status| status["observer"].is_null());
    eventually("its socket closed", || TcpStream::connect(first).is_err().then_some(()));
    assert!(!socket.exists());
    assert!(ask(&mut control, "echo").trim().parse::<u16>().is_ok());
}

#[test]
fn an_address_that_osps_itself_has_is_not_said_to_be_anothers() {
    let system = start("", PATIENT);
    let config = system.dir.path().join("osps.toml");
    let text = fs::read_to_string(&config).unwrap();
    let reload = |observe: &str| {
        fs::write(&config, text.replace("observe = \"127.0.0.1:0\"", observe)).unwrap();
        let output = system.tool(&["reload"]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let shown = address(&system);
    let port_of_echo = system.status()["servers"][1]["ports"]["echo"].clone();
    for (observe, key) in [
        (format!("0.0.0.0:{}", shown.port()), "observe"),
        (system.address().to_string(), "listen"),
        (format!("127.0.0.1:{port_of_echo}"), "data_ports"),
    ] {
        let (_, said) = reload(&format!("observe = {observe:?}"));
        let expected = format!("cannot listen on {observe}: osps itself has it by the present {key}: choose");
        assert!(said.contains(&expected), "{said}");
        assert_eq!(get(shown, "/healthz").0, 200);
    }
    // What it says can be done.
    assert!(reload("").0);
    eventually("its socket closed", || TcpStream::connect(shown).is_err().then_some(()));
    let mut port = shown.port();
    eventually("an observer on all addresses", || {
        let (done, said) = reload(&format!("observe = \"0.0.0.0:{port}\""));
        if !done {
            // On another host somebody else may have that port by now.
            assert!(said.contains(&format!("cannot listen on 0.0.0.0:{port}")), "{said}");
            port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        }
        done.then_some(())
    });
    assert_eq!(get((Ipv4Addr::LOCALHOST, port).into(), "/healthz").0, 200);
}

#[test]
fn who_asks_for_nothing_keeps_nobody_out() {
    let system = start("", PATIENT);
    let address = address(&system);
    let idle: Vec<TcpStream> = (0..300).map(|_| connect(address)).collect();
    assert_eq!(get(address, "/healthz").0, 200);
    let half = |_| {
        let mut stream = connect(address);
        stream.write_all(b"GET / HT").unwrap();
        stream
    };
    let slow: Vec<TcpStream> = (0..20).map(half).collect();
    assert_eq!(get(address, "/healthz").0, 200);
    for (said, status) in [
        ("nonsense\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", 413),
        ("GET / HTTP/9.9\r\nHost: a\r\n\r\n", 505),
    ] {
        let mut stream = connect(address);
        stream.write_all(said.as_bytes()).unwrap();
        assert_eq!(understood(&read_to_end(&mut stream)).0, status, "{said:?}");
    }
    let mut stream = connect(address);
    stream
        .write_all(format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(9000)).as_bytes())
        .unwrap();
    assert_eq!(understood(&read_to_end(&mut stream)).0, 431);
    assert_eq!(observer(&system)["restarts"], 0);
    drop((idle, slow));
}

#[test]
fn what_is_no_request_is_counted_as_an_error() {
    let system = start("", PATIENT);
    let address = address(&system);
    let long = "y".repeat(9000);
    let wrong = [
        ("nonsense\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", 413),
        (&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[..4000]), 414),
        (&format!("GET / HTTP/1.1\r\nHost: a\r\nx: {long}\r\n\r\n"), 431),
        ("GET / HTTP/9.9\r\nHost: a\r\n\r\n", 505),
        ("GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
    ];
    for (said, status) in wrong {
        let mut stream = connect(address);
        stream.write_all(said.as_bytes()).unwrap();
        // Else it waits for more, to throw it away.
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(understood(&read_to_end(&mut stream)).0, status, "{said:?}");
    }
    assert_eq!(get(address, "/healthz").0, 200);
    let counted = |visits: &Value| (visits["done"].as_u64(), visits["failed"].as_u64());
    let expected = (Some(1), Some(wrong.len() as u64));
    system.until("all of them counted", |status| counted(&status["observer"]) == expected);
    let errors = format!("osps_observer_requests_total{{outcome=\"error\"}} {}\n", wrong.len());
    // What is shown may be a tenth of a second old.
    eventually("the errors as a metric", || get(address, "/metrics").1.contains(&errors).then_some(()));
}

/// Far more than the kernel takes at once from the observer, or holds for the client.
#[test]
fn who_asks_for_much_at_once_gets_all_of_it_and_the_end() {
    const REQUESTS: usize = 200;
    let system = start("", PATIENT);
    let mut stream = connect(address(&system));
    let ask = |how: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{how}\r\n");
    stream
        .write_all([ask("").repeat(REQUESTS - 1), ask("Connection: close\r\n")].concat().as_bytes())
        .unwrap();
    let answers = read_to_end(&mut stream);
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), REQUESTS);
    assert!(answers.ends_with("</html>\n"), "{}", &answers[answers.len() - 100..]);
}

/// Asks for events. The connection, and the status with which it was answered.
fn listen(address: SocketAddr) -> (TcpStream, String) {
    let mut stream = connect(address);
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).unwrap();
    (stream, String::from_utf8(begin.to_vec()).unwrap())
}

/// So many ask for events and stay: some of them get these, the others hear that they do not.
fn listen_all(address: SocketAddr, number: usize, served: usize) -> Vec<(TcpStream, String)> {
    let all: Vec<_> = (0..number).map(|_| listen(address)).collect();
    assert_eq!(all.iter().filter(|(_, begin)| begin == "HTTP/1.1 200").count(), served);
    assert_eq!(all.iter().filter(|(_, begin)| begin == "HTTP/1.1 503").count(), number - served);
    all
}

#[test]
fn who_only_listens_leaves_places_for_those_who_ask() {
    let system = start("", PATIENT);
    let address = address(&system);
    let all = listen_all(address, 300, 128);
    assert_eq!(get(address, "/healthz").0, 200);
    drop(all);
}

/// Of 100 descriptors 17 are for the observer itself and its listener.
#[test]
fn with_few_descriptors_there_are_fewer_places_and_some_for_those_who_ask() {
    let system = System::start_by(
        "secondaries = 1\nobserve = \"127.0.0.1:0\"",
        &[PATIENT, REQUESTS].concat(),
        |command| {
            let mut limited = Command::new("sh");
            limited.args(["-c", "ulimit -n 100; exec \"$@\" >>stdout 2>>stderr", "sh"]);
            limited.arg(command.get_program()).args(command.get_args());
            limited
        },
    );
    let address = address(&system);
    let log = system.log();
    assert!(
        log.contains("no more than 83 connections at once: the limit of open descriptors is 100"),
        "{log}"
    );
    let listening = listen_all(address, 200, 41);
    let idle: Vec<TcpStream> = (0..200).map(|_| connect(address)).collect();
    assert_eq!(get(address, "/healthz").0, 200);
    drop((listening, idle));
    assert!(!system.log().contains("cannot accept"), "{}", system.log());
}

#[test]
fn when_descriptors_become_fewer_some_who_listen_make_room() {
    let system = start("", PATIENT);
    let (address, observer) = (address(&system), pid(&system));
    let listening = listen_all(address, 100, 100);
    let observer = rustix::process::Pid::from_raw(observer.cast_signed());
    let limit = rustix::process::Rlimit { current: Some(80), maximum: Some(80) };
    rustix::process::prlimit(observer, rustix::process::Resource::Nofile, limit).unwrap();
    // Who came before may have taken the last that was free: room is made for the next.
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(get(address, "/healthz").0, 200);
    let log = system.log();
    assert!(
        log.contains("no more than 63 connections at once: the limit of open descriptors is 80"),
        "{log}"
    );
    system.until("fewer connections", |status| status["observer"]["open"].as_u64() <= Some(63));
    drop(listening);
}

#[test]
fn it_has_one_thread_and_holds_what_it_should() {
    let system = start("", "");
    let pid = pid(&system);
    assert_eq!(fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "osps-observer\n");
    let held = || {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(|entry| {
            let link = fs::read_link(entry.unwrap().path()).ok()?.display().to_string();
            Some(
                link.split(":[").next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned(),
            )
        });
        let mut held: Vec<String> =
            links.filter(|link| !["stdout", "stderr", "null"].contains(&&**link)).collect();
        held.sort();
        held
    };
    let expected = ["anon_inode", "anon_inode", "anon_inode", "orders.observer", "socket"];
    eventually("no more than that", || (held() == expected).then_some(()));
}
