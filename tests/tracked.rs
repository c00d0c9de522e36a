//! Tracked jobs while servers die: each client hears of one start at most and of exactly one
//! end, and that end is what happened.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{PATIENCE, REQUESTS, System, connect, now, pause, together};
use nix::sys::signal::Signal;

const CLIENTS: usize = 8;
const JOBS_EACH: usize = 125;
const KILL_EVERY: Duration = Duration::from_millis(200);
const TIMES: &str = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"400ms\"\nkill_after = \"1s\"\n";

/// What a client has heard of one job.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    starts: usize,
    ends: Vec<String>,
}

struct Client {
    address: SocketAddr,
    control: BufReader<TcpStream>,
    heard: BTreeMap<String, Heard>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, control: BufReader::new(connect(address)), heard: BTreeMap::new() }
    }

    /// Reads a line; news are noted, an answer is returned.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        let line = line.strip_suffix('\n').expect("whole lines");
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        match words[..] {
            ["debuttraitement", jeton] => self.heard.get_mut(jeton).unwrap().starts += 1,
            ["fintraitement", jeton] => self.heard.get_mut(jeton).unwrap().ends.push("done".to_owned()),
            ["errtraitement", jeton, reason] => {
                self.heard.get_mut(jeton).unwrap().ends.push(reason.to_owned());
            }
            _ => return Some(line.to_owned()),
        }
        None
    }

    /// A tracked job: its port and jeton. A busy server is asked again.
    fn ask(&mut self) -> (SocketAddr, String) {
        std::iter::repeat_with(|| self.try_ask()).find_map(Result::ok).unwrap()
    }

    /// As [`Client::ask`]; the answer, where it names no port.
    fn try_ask(&mut self) -> Result<(SocketAddr, String), String> {
        self.control.get_mut().write_all(b"suivi echo\n").unwrap();
        let answer = std::iter::repeat_with(|| self.line()).flatten().next().unwrap();
        let given = answer.split_once(' ').filter(|_| !answer.starts_with("-1"));
        let (port, jeton) = given.ok_or(answer.clone())?;
        let known = self.heard.insert(jeton.to_owned(), Heard::default());
        assert_eq!(known, None, "a jeton came twice");
        Ok((SocketAddr::new(self.address.ip(), port.parse().unwrap()), jeton.to_owned()))
    }

    /// Waits for the end of a job and returns it.
    fn end(&mut self, jeton: &str) -> String {
        while self.heard[jeton].ends.is_empty() {
            assert_eq!(self.line(), None, "nothing was asked");
        }
        self.heard[jeton].ends[0].clone()
    }
}

/// An exchange; false where it broke off.
fn exchange(port: SocketAddr, jeton: &str) -> bool {
    let mut data = connect(port);
    let mut answer = String::new();
    data.write_all(format!("jeton {jeton}\nhello").as_bytes()).is_ok()
        && data.shutdown(Shutdown::Write).is_ok()
        && data.read_to_string(&mut answer).is_ok()
        && answer == "hello"
}

/// Kills one secondary after the other until all clients are done, but not for ever: a job that nobody has claimed
/// has `claim_within` anew with each replacement, and would never expire where none lives so long.
fn strike(system: &System, at_work: &AtomicUsize) -> usize {
    let mut strikes = 0;
    let give_up_at = now() + PATIENCE / 3;
    while at_work.load(Ordering::SeqCst) > 0 && now() < give_up_at {
        let until = now() + KILL_EVERY;
        while now() < until && at_work.load(Ordering::SeqCst) > 0 {
            pause();
        }
        let status = system.status();
        let pid = System::server(&status, strikes as u64 % 4 + 1)["pid"].as_u64();
        if let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) {
            strikes += usize::from(system.strike(pid, Signal::SIGKILL));
        }
    }
    strikes
}

#[test]
fn a_thousand_jobs_each_end_once_while_secondaries_are_killed() {
    let system = System::start(
        "secondaries = 4\nclaim_within = \"1s\"\nqueue_within = \"10s\"",
        &format!("{TIMES}{REQUESTS}"),
    );
    let (system, address) = (Arc::new(system), Arc::new(AtomicUsize::new(CLIENTS)));
    let at_work = address;
    let address = system.address();
    let (its_system, its_work) = (system.clone(), at_work.clone());
    let heard = together(CLIENTS + 1, move |number| {
        if number == CLIENTS {
            let strikes = strike(&its_system, &its_work);
            assert!(strikes > 0, "nobody was killed");
            return BTreeMap::new();
        }
        let mut client = Client::new(address);
        for _ in 0..JOBS_EACH {
            let (port, jeton) = client.ask();
            let was_served = exchange(port, &jeton);
            let end = client.end(&jeton);
            assert!(end != "done" || was_served, "{end}, but the exchange broke off");
            assert!(["done", "secondary lost", "expired", "connection lost"].contains(&&*end), "{end}");
        }
        its_work.fetch_sub(1, Ordering::SeqCst);
        // Whatever else might be said is said before the end.
        client.control.get_mut().shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        client.control.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        client.heard
    });
    let heard: Vec<Heard> = heard.into_iter().flat_map(BTreeMap::into_values).collect();
    assert!(heard.len() >= CLIENTS * JOBS_EACH);
    for one in &heard {
        assert!(one.starts <= 1 && one.ends.len() == 1, "{one:?}");
        assert!(one.ends[0] == "expired" || one.starts == 1, "{one:?}");
    }
    let status = system.books_are_exact();
    let ends = |which: &str| heard.iter().filter(|one| one.ends[0] == which).count() as u64;
    assert_eq!(status["ledger"]["accepted"], heard.len());
    assert_eq!(status["ledger"]["done"], ends("done"));
    assert_eq!(status["ledger"]["expired"], ends("expired"));
}

#[test]
fn a_stop_tells_each_client_how_its_job_ended() {
    let mut system = System::start("secondaries = 1", &format!("[watchdog]\ngrace = \"300ms\"\n{REQUESTS}"));
    let mut client = Client::new(system.address());
    let (port, finished) = client.ask();
    let (_, cut) = client.ask();
    let (_, unclaimed) = client.ask();
    let talk = |jeton: &str| {
        let mut data = connect(port);
        data.write_all(format!("jeton {jeton}\nx").as_bytes()).unwrap();
        data.read_exact(&mut [0]).unwrap();
        data
    };
    let (first, second) = (talk(&finished), talk(&cut));
    let watchdog = system.watchdog.id();
    system.signal(watchdog, Signal::SIGTERM);
    // It is told a moment later.
    while client.try_ask() != Err("-1 stopping".to_owned()) {}
    drop(first);
    assert_eq!(client.end(&finished), "done");
    assert_eq!(client.end(&cut), "stopping");
    assert_eq!(client.end(&unclaimed), "expired");
    drop(second);
    assert!(system.ended().success());
}

#[test]
fn a_connection_with_an_open_job_is_not_idle() {
    let system = System::start("secondaries = 1\nclient_idle = \"200ms\"\nclaim_within = \"1s\"", REQUESTS);
    let mut client = Client::new(system.address());
    let (_, jeton) = client.ask();
    assert_eq!(client.end(&jeton), "expired", "it was open for five times as long as a client may be idle");
    let mut rest = String::new();
    client.control.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    system.until("it was idle then", |status| status["clients"]["idle"] == 1);
}

#[test]
fn a_reset_is_told_as_such() {
    let system = System::start("secondaries = 1", REQUESTS);
    let mut client = Client::new(system.address());
    let (port, jeton) = client.ask();
    let mut data = connect(port);
    data.write_all(format!("jeton {jeton}\nx").as_bytes()).unwrap();
    data.read_exact(&mut [0]).unwrap();
    rustix::net::sockopt::set_socket_linger(&data, Some(Duration::ZERO)).unwrap();
    drop(data);
    assert_eq!(client.end(&jeton), "connection lost");
}
