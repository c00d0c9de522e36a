//! Secondaries that have served for long enough are replaced, and nobody notices.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use common::{
    PATIENCE, REQUESTS, System, ask, breaks, connect, eventually, job, recv, request, say, together,
};
use rustix::net::{AddressFamily, SocketType, sockopt};
use serde_json::Value;

/// Two secondaries that leave after ten jobs or so, and do not wait long for anything.
const SHORT_LIVES: &str = "secondaries = 2\nmax_jobs_served = 10\n";
const QUICK: &str = "[watchdog]\nperiod = \"20ms\"\ngrace = \"100ms\"\n";

fn start(top: &str) -> System {
    System::start(top, &format!("{QUICK}{REQUESTS}"))
}

fn sum(status: &Value, key: &str) -> u64 {
    status["servers"].as_array().unwrap().iter().map(|server| server[key].as_u64().unwrap()).sum()
}

/// Follows a job from the request to its end.
fn tracked(address: SocketAddr) {
    let mut control = connect(address);
    let answer = ask(&mut control, "suivi echo");
    let (port, jeton) = answer.split_once(' ').unwrap();
    let mut data = connect(SocketAddr::new(address.ip(), port.parse().unwrap()));
    assert_eq!(say(&mut data, &format!("jeton {jeton}\nhello")), "hello");
    drop(data);
    let mut news = String::new();
    while !news.contains("fintraitement") {
        news.push_str(&recv(&mut control));
    }
    assert_eq!(news, format!("debuttraitement {jeton}\nfintraitement {jeton}\n"));
}

/// Nothing went wrong with any job, and secondaries did leave.
fn all_is_well(system: &System) -> Value {
    let status = system.books_are_exact();
    let ledger = &status["ledger"];
    assert_eq!((&ledger["failed"], &ledger["expired"]), (&0.into(), &0.into()), "{ledger}");
    assert_eq!((&ledger["refused"], &ledger["rejected"]), (&0.into(), &0.into()), "{ledger}");
    assert_eq!(status["obituaries"], Value::Array(vec![]));
    status
}

#[test]
fn many_clients_notice_nothing_while_their_secondaries_are_replaced_again_and_again() {
    let system = start(SHORT_LIVES);
    let address = system.address();
    let mut slow = request(address, "echo");
    assert_eq!(say(&mut slow, "begun"), "begun");
    let served: usize = together(8, move |client| {
        for number in 0..60 {
            match (client + number) % 3 {
                0 => tracked(address),
                1 => {
                    let mut data = request(address, "echo");
                    assert_eq!(say(&mut data, "hello"), "hello");
                }
                _ => {
                    let mut control = connect(address);
                    let ports: Vec<u16> = (0..3).map(|_| job(&mut control, "requetetype1")).collect();
                    for port in ports {
                        let mut data = connect(SocketAddr::new(address.ip(), port));
                        assert!(!say(&mut data, "hello\n").is_empty());
                    }
                }
            }
        }
        60
    })
    .into_iter()
    .sum();
    assert_eq!(served, 480);
    assert_eq!(say(&mut slow, "still here"), "still here");
    drop(slow);
    all_is_well(&system);
    // While one takes the place of another, the page that counts is being made.
    system.until("each start is one of who was recycled: nobody died otherwise", |status| {
        let recycled = sum(status, "recycled");
        recycled >= 4 && recycled == sum(status, "restarts")
    });
    assert!(system.log().contains("leaves its place: "), "its reason is told");
    eventually("obituaries in words", || system.log().contains("cause=\"recycled\"").then_some(()));
}

#[test]
fn an_exchange_outlives_grace_when_its_secondary_is_recycled() {
    let system = start("secondaries = 1\nmax_jobs_served = 2\n");
    let mut slow = request(system.address(), "echo");
    assert_eq!(say(&mut slow, "begun"), "begun");
    let first = system.pid(1);
    for _ in 0..3 {
        assert_eq!(say(&mut request(system.address(), "echo"), "hello"), "hello");
    }
    let drains = |status: &Value| {
        let servers = status["servers"].as_array().unwrap();
        servers.iter().any(|server| server["state"] == "draining" && server["pid"] == first)
    };
    let since = system.until("its secondary leaves", drains)["uptime_ms"].as_u64().unwrap();
    // Longer than its own grace, and than the patience of the watchdog and the principal.
    let status = system.until("a while", |status| status["uptime_ms"].as_u64().unwrap() > since + 4000);
    assert!(drains(&status), "{status:#}");
    assert_eq!(say(&mut slow, "still here"), "still here");
    drop(slow);
    system.until("it has ended", |status| !drains(status));
    all_is_well(&system);
}

#[test]
fn a_stop_does_not_wait_for_who_was_recycled() {
    let mut system = start("secondaries = 1\nmax_jobs_served = 1\n");
    let mut slow = request(system.address(), "echo");
    assert_eq!(say(&mut slow, "begun"), "begun");
    system.until("its secondary leaves", |status| sum(status, "recycled") == 1);
    assert!(system.stop().success());
    breaks(&mut slow);
    assert_eq!(system.files(), ["lock"]);
    assert!(!system.log().contains("killing"), "it ends by itself");
}

#[test]
fn an_exchange_of_who_was_recycled_has_its_grace_when_the_principal_dies() {
    let system = start("secondaries = 1\nmax_jobs_served = 1\n");
    let mut slow = request(system.address(), "echo");
    assert_eq!(say(&mut slow, "begun"), "begun");
    system.until("its secondary leaves", |status| sum(status, "recycled") == 1);
    system.signal(system.pid(0), nix::sys::signal::Signal::SIGKILL);
    breaks(&mut slow);
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["failed"], 1);
}

#[test]
fn a_limit_of_one_job_is_no_storm_of_processes() {
    let system = System::start("secondaries = 1\nmax_jobs_served = 1\n", REQUESTS);
    for _ in 0..200 {
        assert_eq!(say(&mut request(system.address(), "echo"), "hello"), "hello");
    }
    system.until("it is replaced", |status| sum(status, "recycled") > 0);
    let status = all_is_well(&system);
    // Nobody leaves before it was probed, which happens once a period.
    let periods = status["uptime_ms"].as_u64().unwrap() / 250 + 1;
    assert!(sum(&status, "restarts") <= periods, "{status:#}");
}

#[test]
fn who_comes_uninvited_is_served_as_well() {
    let system = start(&format!("{SHORT_LIVES}admission = \"open\"\n"));
    let port = job(&mut connect(system.address()), "echo");
    let address = SocketAddr::new(system.address().ip(), port);
    assert_eq!(say(&mut connect(address), "first"), "first");
    together(8, move |_| {
        for _ in 0..40 {
            assert_eq!(say(&mut connect(address), "hello"), "hello");
        }
    });
    // While one takes the place of another, the page that counts is being made.
    let status = system.until("all have left, some were recycled", |status| {
        status["ledger"]["done"].as_u64() >= Some(321) && sum(status, "recycled") > 0
    });
    assert_eq!((&status["ledger"]["failed"], &status["ledger"]["rejected"]), (&0.into(), &0.into()));
}

/// A client that sends and reads nothing: what it does not take stays with its server.
fn deaf(address: SocketAddr) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[b'x'; 64 * 1024]).is_ok_and(|sent| sent > 0) {}
    stream
}

#[test]
fn a_secondary_that_has_grown_too_large_is_replaced() {
    let system = start("secondaries = 1\nmax_memory = \"16MiB\"\n");
    let mut slow = request(system.address(), "echo");
    assert_eq!(say(&mut slow, "begun"), "begun");
    let mut deaf_ones = Vec::new();
    let mut control = connect(system.address());
    let give_up_at = common::now() + PATIENCE;
    while !system.log().contains("KiB of memory, its limit is") {
        assert!(common::now() < give_up_at, "not with {} deaf clients", deaf_ones.len());
        let port = job(&mut control, "echo");
        deaf_ones.push(deaf(SocketAddr::new(system.address().ip(), port)));
    }
    let status = system.until("its successor", |status| sum(status, "recycled") >= 1);
    assert_eq!(status["ledger"]["failed"], 0);
    assert_eq!(say(&mut slow, "still here"), "still here");
    let mut all = 0;
    for mut client in deaf_ones.drain(..) {
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        all += client.read_to_end(&mut Vec::new()).unwrap();
    }
    assert!(all > 0);
    drop(slow);
    all_is_well(&system);
}
