//! Many clients at once: who is heard, who waits, and who goes. An address that has more than
//! its share makes room for others.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};

use common::{
    PATIENCE, REQUESTS, System, ask, connect, eventually, job, pause, read_once, read_to_end, recv, say,
};
use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SocketType, bind, socket};

const HOG: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const THIRD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A server may be stopped for a while.
const PATIENT: &str = "[watchdog]\nsuspect_after = \"50s\"\nkill_after = \"60s\"\n";

/// A connection from one of the loopback addresses.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks until the answer is no port, from as many control connections as that takes. Returns how
/// many jobs that were, and why there is not one more.
fn ask_for_all(from: Ipv4Addr, address: SocketAddr) -> (usize, String) {
    for jobs in (0..).step_by(50) {
        let mut control = connect_from(from, address);
        for more in 0..50 {
            let answer = ask(&mut control, "echo");
            if let Some(why) = answer.strip_prefix("-1 ") {
                return (jobs + more, why.to_owned());
            }
        }
    }
    unreachable!("no table is endless")
}

/// Whether a control connection is heard now.
fn is_heard(control: &mut TcpStream) -> bool {
    control.set_nonblocking(true).unwrap();
    let mut byte = [0];
    let heard = matches!(control.peek(&mut byte), Ok(1));
    control.set_nonblocking(false).unwrap();
    heard
}

fn count(system: &System, what: &str) -> u64 {
    system.status()["clients"][what].as_u64().unwrap()
}

#[test]
fn who_has_most_makes_room_for_others_but_not_for_himself() {
    let system = System::start("secondaries = 1\nmax_clients = 20", REQUESTS);
    let address = system.address();
    let mut hog: Vec<TcpStream> = (0..40).map(|_| connect_from(HOG, address)).collect();
    for control in &mut hog {
        control.write_all(b"echo\n").unwrap();
    }
    system.until("the hog takes all places", |status| {
        status["clients"]["connected"] == 20 && status["clients"]["parked"] == 20
    });
    eventually("20 answers", || {
        (hog.iter_mut().map(is_heard).filter(|&heard| heard).count() == 20).then_some(())
    });
    assert_eq!(count(&system, "evicted"), 0, "nobody goes for one of his own");
    let mut other = connect_from(OTHER, address);
    job(&mut other, "echo");
    system.until("one has gone", |status| status["clients"]["evicted"].as_u64() >= Some(1));
    let heard = hog.iter_mut().map(is_heard).filter(|&heard| heard).count();
    assert_eq!(heard, 20, "those that were answered keep that");
    drop(hog);
    job(&mut other, "echo");
}

fn address_number(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

#[test]
fn many_others_at_once_are_all_heard_and_half_a_line_is_no_shield() {
    let system = System::start("secondaries = 1\nmax_clients = 16", &format!("{PATIENT}{REQUESTS}"));
    let address = system.address();
    let mut hog: Vec<TcpStream> = (0..16).map(|_| connect_from(HOG, address)).collect();
    for control in &mut hog {
        assert_eq!(ask(control, "nonsense").split_once(' ').unwrap().0, "-1");
        control.write_all(b"a").unwrap();
    }
    system.signal(system.pid(0), Signal::SIGSTOP);
    let mut others: Vec<TcpStream> =
        (2..17).map(|last| connect_from(address_number(last), address)).collect();
    system.signal(system.pid(0), Signal::SIGCONT);
    for control in &mut others {
        job(control, "echo");
    }
    assert_eq!(count(&system, "evicted"), 15);
}

#[test]
fn nobody_overtakes_those_who_wait() {
    let limits = "secondaries = 1\nmax_jobs = 1\nqueue_within = \"60s\"\nclaim_within = \"60s\"";
    let system = System::start(limits, &format!("{PATIENT}{REQUESTS}"));
    let address = system.address();
    let mut held = connect(SocketAddr::new(address.ip(), job(&mut connect(address), "echo")));
    assert_eq!(say(&mut held, "x"), "x");
    let (mut first, mut second) = (connect(address), connect(address));
    first.write_all(b"echo\n").unwrap();
    system.until("two are here", |status| status["clients"]["accepted"] == 3);
    pause();
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGSTOP);
    second.write_all(b"echo\n").unwrap();
    held.shutdown(Shutdown::Both).unwrap();
    system.until("the job has ended", |status| System::server(status, 1)["open"] == 1);
    system.signal(principal, Signal::SIGCONT);
    assert!(recv(&mut first).trim_end().parse::<u16>().is_ok());
    assert!(!is_heard(&mut second));
}

#[test]
fn those_beyond_max_clients_wait_until_others_leave() {
    let system = System::start("secondaries = 1\nmax_clients = 2", REQUESTS);
    let address = system.address();
    let mut waiting: Vec<TcpStream> = (0..30).map(|_| connect(address)).collect();
    for control in &mut waiting {
        control.write_all(b"echo").unwrap();
    }
    while !waiting.is_empty() {
        let at = eventually("somebody is heard", || waiting.iter_mut().position(is_heard));
        let mut control = waiting.remove(at);
        assert!(recv(&mut control).parse::<u16>().is_ok());
    }
    assert_eq!(count(&system, "evicted"), 0);
}

#[test]
fn an_address_may_have_a_limit_of_its_own() {
    let system = System::start("secondaries = 1\nmax_clients_per_address = 2", REQUESTS);
    let address = system.address();
    let mut first: Vec<TcpStream> = (0..2).map(|_| connect_from(HOG, address)).collect();
    for control in &mut first {
        job(control, "echo");
    }
    let mut third = connect_from(HOG, address);
    third.write_all(b"echo\n").unwrap();
    assert_eq!(read_to_end(&mut third), "-1 busy: more than 2 connections from your address\n");
    job(&mut connect_from(OTHER, address), "echo");
    drop(first.pop());
    eventually("a place is free", || {
        let mut control = connect_from(HOG, address);
        ask(&mut control, "echo").parse::<u16>().ok()
    });
    let status = system.status();
    assert!(status["clients"]["turned_away"].as_u64() >= Some(1), "{status}");
    assert!(status["refusals"]["busy"].as_u64() >= Some(1), "{status}");
    assert_eq!(status["ledger"]["refused"], status["refusals"]["busy"]);
}

#[test]
fn requests_that_wait_are_served_in_turn_by_address() {
    let limits = "secondaries = 1\nmax_jobs = 1\nqueue_within = \"60s\"\nclaim_within = \"60s\"";
    let system = System::start(limits, REQUESTS);
    let address = system.address();
    let port = job(&mut connect(address), "echo");
    let data = |from| {
        let mut data = connect_from(from, SocketAddr::new(address.ip(), port));
        assert_eq!(say(&mut data, "x"), "x");
        data
    };
    let mut held = data(HOG);
    let mut waiting = Vec::new();
    for number in 0..5 {
        let mut control = connect_from(HOG, address);
        control.write_all(b"echo\n").unwrap();
        waiting.push((HOG, control));
        system.until("it waits", |status| status["clients"]["accepted"] == 2 + number);
    }
    let mut other = connect_from(OTHER, address);
    other.write_all(b"echo\n").unwrap();
    waiting.push((OTHER, other));
    system.until("it waits", |status| status["clients"]["accepted"] == 7);
    let mut served = Vec::new();
    while !waiting.is_empty() {
        // Its end makes room for the next.
        held.shutdown(Shutdown::Both).unwrap();
        let at = eventually("the next", || waiting.iter_mut().position(|(_, control)| is_heard(control)));
        let (from, _control) = waiting.remove(at);
        served.push(from);
        held = data(from);
    }
    assert!(served[..2].contains(&OTHER), "{served:?}");
}

#[test]
fn a_connection_with_64_unclaimed_jobs_is_heard_again_when_some_are_claimed() {
    let system = System::start("secondaries = 1\nclaim_within = \"60s\"", REQUESTS);
    let address = system.address();
    let mut control = BufReader::new(connect(address));
    control.get_mut().write_all(&b"echo\n".repeat(70)).unwrap();
    let mut next = || {
        let mut line = String::new();
        control.read_line(&mut line).unwrap();
        line.trim_end().parse::<u16>().unwrap()
    };
    let ports: Vec<u16> = (0..64).map(|_| next()).collect();
    assert_eq!(system.status()["ledger"]["accepted"], 64);
    for port in &ports[..6] {
        let mut data = connect(SocketAddr::new(address.ip(), *port));
        assert_eq!(say(&mut data, "x"), "x");
        next();
    }
    assert_eq!(system.status()["ledger"]["accepted"], 70);
}

#[test]
fn where_all_are_let_in_whoever_comes_uninvited_is_in_the_books() {
    let system = System::start("secondaries = 2\nadmission = \"open\"", REQUESTS);
    let status = system.status();
    let ip = system.address().ip();
    for slot in [1, 2] {
        let port = System::server(&status, slot)["ports"]["echo"].as_u64().unwrap();
        for _ in 0..5 {
            let mut data = connect(SocketAddr::new(ip, u16::try_from(port).unwrap()));
            assert_eq!(say(&mut data, "x"), "x");
        }
    }
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["accepted"], 10);
    assert_eq!(status["ledger"]["done"], 10);
    assert_eq!(status["ledger"]["rejected"], 0);
}

#[test]
fn where_all_are_let_in_the_address_does_not_matter() {
    let system = System::start("secondaries = 1\nadmission = \"open\"", REQUESTS);
    let address = system.address();
    let port = job(&mut connect_from(HOG, address), "echo");
    let mut data = connect_from(OTHER, SocketAddr::new(address.ip(), port));
    assert_eq!(say(&mut data, "x"), "x");
    drop(data);
    let status = system.books_are_exact();
    assert_eq!((&status["ledger"]["accepted"], &status["ledger"]["done"]), (&1.into(), &1.into()));
}

const OWN_SHARE: &str = "busy: your address has its share of open jobs; the rest is for others";

#[test]
fn who_never_comes_for_its_jobs_leaves_places_to_others() {
    let limits = "secondaries = 2\nmax_jobs = 80\nqueue_within = \"200ms\"\nclaim_within = \"60s\"";
    let system = System::start(limits, &format!("{PATIENT}{REQUESTS}"));
    let address = system.address();
    assert_eq!(ask_for_all(HOG, address), (143, OWN_SHARE.to_owned()));
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGKILL);
    system.until("another principal serves", |status| {
        let servers = status["servers"].as_array().unwrap();
        servers[0]["pid"] != principal && servers.iter().all(|server| server["state"] != "starting")
    });
    system.all_ready();
    assert_eq!(ask_for_all(HOG, address), (0, OWN_SHARE.to_owned()), "its successor knows what is open");
    let mut greedy = connect_from(HOG, address);
    greedy.write_all(b"echo\n").unwrap();
    let others = ask_for_all(OTHER, address);
    assert_eq!(others, (16, OWN_SHARE.to_owned()), "who waits for more than its share holds up nobody");
    job(&mut connect_from(THIRD, address), "echo");
    let ledger = &system.status()["ledger"];
    assert_eq!((&ledger["accepted"], &ledger["open"]), (&160.into(), &160.into()));
}

#[test]
fn who_comes_uninvited_leaves_places_to_others() {
    let limits = "secondaries = 1\nmax_jobs = 80\nadmission = \"open\"";
    let system = System::start(limits, &format!("{PATIENT}{REQUESTS}"));
    let port = System::server(&system.status(), 1)["ports"]["echo"].as_u64().unwrap();
    let data = SocketAddr::new(system.address().ip(), port.try_into().unwrap());
    let come = |from| {
        let mut stream = connect_from(from, data);
        let served = stream.write_all(b"x").is_ok() && matches!(read_once(&mut stream, &mut [0; 2]), Ok(1));
        served.then_some(stream)
    };
    let held: Vec<TcpStream> = std::iter::from_fn(|| come(HOG)).collect();
    assert_eq!(held.len(), 72);
    assert!(come(OTHER).is_some());
}
