//! Attacks on data connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::common::{ask, job};
use crate::control::Noise;
use crate::honest::{HONEST, HOSTILE, connect_from};
use crate::{Fortress, SLACK, descriptors, insist, most_of_the_descriptors, rest, stuff};

/// More may not be undecided in one secondary.
const MAX_UNDECIDED: usize = 1024;

impl Fortress {
    /// A job for an attacker, and a connection that claims it.
    fn exchange(&self, kind: &str) -> TcpStream {
        let port = job(&mut self.connect(), kind);
        connect_from(HOSTILE, SocketAddr::new(self.address.ip(), port))
    }

    fn echo_addresses(&self) -> Vec<SocketAddr> {
        [1, 2].map(|slot| self.data_address(slot, "echo")).to_vec()
    }

    /// Tracked jobs of an attacker that wait on the ports of both secondaries.
    fn tracked_jobs_wait(&self) -> (TcpStream, Vec<(SocketAddr, String)>) {
        let mut control = self.connect();
        let mut jobs: Vec<(SocketAddr, String)> = Vec::new();
        let ports = self.echo_addresses();
        while !ports.iter().all(|port| jobs.iter().any(|(of, _)| of == port)) {
            let answer = ask(&mut control, "suivi echo");
            let (port, jeton) = answer.split_once(' ').unwrap();
            jobs.push((SocketAddr::new(self.address.ip(), port.parse().unwrap()), jeton.to_owned()));
            assert!(jobs.len() < 60, "the secondaries get jobs in turn");
        }
        (control, jobs)
    }
}

#[test]
fn a_message_without_end_is_not_kept() {
    const MESSAGES: usize = 8;
    let fortress = Fortress::new("");
    let endless = vec![b'x'; 4 << 20];
    let held = fortress.besieged(|siege| {
        let mut held: Vec<TcpStream> = (0..MESSAGES).map(|_| fortress.exchange("requetetype1")).collect();
        for data in &mut held {
            stuff(data, &endless);
        }
        siege.outlast(10);
        held
    });
    drop(held);
    fortress.has_held(SLACK);
}

#[test]
fn what_nobody_reads_is_kept_within_bounds() {
    const DEAF: usize = 100;
    let fortress = Fortress::new("");
    let much = vec![b'x'; 1 << 20];
    let held = fortress.besieged(|siege| {
        let mut held: Vec<TcpStream> = (0..DEAF).map(|_| fortress.exchange("echo")).collect();
        let mut sent = 0;
        for _ in 0..8 {
            for data in &mut held {
                data.set_nonblocking(true).unwrap();
                sent += data.write(&much).unwrap_or(0);
            }
            siege.outlast(2);
        }
        println!("{} KiB were sent", sent >> 10);
        held
    });
    drop(held);
    let status = fortress.has_held(SLACK + DEAF as u64 * (160 << 10));
    assert!(status["ledger"]["failed"].as_u64() > Some(0), "{status}");
}

#[test]
fn garbage_on_data_ports_finds_no_job_or_is_echoed() {
    const HEAPS: u64 = 200;
    let fortress = Fortress::new("");
    let ports = fortress.echo_addresses();
    let mut noise = Noise::new();
    fortress.besieged(|_| {
        for number in 0..HEAPS {
            let bytes = noise.bytes(2000);
            let mut uninvited = connect_from(HOSTILE, ports[usize::from(number % 2 == 0)]);
            insist(&mut uninvited, &bytes);
            assert_eq!(rest(&mut uninvited), b"");
        }
        for _ in 0..HEAPS / 4 {
            let bytes = noise.bytes(2000);
            let mut invited = fortress.exchange("echo");
            invited.write_all(&bytes).unwrap();
            invited.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&mut invited), bytes);
        }
    });
    let status = fortress.has_held(SLACK);
    assert_eq!(status["ledger"]["rejected"], HEAPS);
}

/// Connections that nobody has invited, each after the other; in bursts where the attacker does not
/// wait for what becomes of them.
fn uninvited(connections: usize, burst: usize) {
    let fortress = Fortress::new("");
    let ports = fortress.echo_addresses();
    fortress.besieged(|_| {
        for _ in 0..connections / burst {
            let mut uninvited: Vec<TcpStream> =
                (0..burst).map(|number| connect_from(HOSTILE, ports[number % 2])).collect();
            for data in &mut uninvited {
                assert_eq!(rest(data), b"");
            }
        }
    });
    let status = fortress.has_held(SLACK);
    assert_eq!(status["ledger"]["rejected"], connections / burst * burst);
}

#[test]
fn who_is_not_invited_is_closed() {
    uninvited(2_000, 200);
}

#[test]
#[ignore = "fifty thousand connections take a minute"]
fn very_many_that_are_not_invited_are_closed() {
    uninvited(50_000, 1_000);
}

/// Silence, and jeton lines that never end, where tracked jobs wait.
fn half_open(connections: usize) {
    let fortress = Fortress::new("claim_within = \"10s\"");
    let ports = fortress.echo_addresses();
    let (mut control, held) = fortress.besieged(|siege| {
        let (control, _) = fortress.tracked_jobs_wait();
        let mut held = Vec::new();
        for number in 0..connections {
            let mut data = connect_from(HOSTILE, ports[number % 2]);
            if number % 4 < 2 {
                insist(&mut data, b"jeton 0123");
            }
            held.push(data);
        }
        siege.outlast(10);
        for (&pid, before) in fortress.pids.iter().zip(&fortress.descriptors) {
            assert!(descriptors(pid) <= before + MAX_UNDECIDED + 64, "{} descriptors", descriptors(pid));
        }
        fortress.counted("ledger", "rejected", connections as u64);
        (control, held)
    });
    // Its jobs have expired meanwhile: it hears of each.
    control.shutdown(Shutdown::Write).unwrap();
    let mut news = String::new();
    control.read_to_string(&mut news).unwrap();
    assert!(!news.is_empty() && news.lines().all(|line| line.ends_with(" expired")), "{news}");
    drop(held);
    let status = fortress.has_held(SLACK);
    assert_eq!(status["ledger"]["rejected"], connections);
}

#[test]
fn half_open_connections_are_bounded_where_tracked_jobs_wait() {
    half_open(3_000);
}

#[test]
#[ignore = "twelve thousand half-open connections: ten times as many as may be undecided"]
fn very_many_half_open_connections_are_bounded() {
    let _most = most_of_the_descriptors();
    half_open(12_000);
}

#[test]
fn who_floods_a_port_displaces_himself_and_not_who_is_slow() {
    let fortress = Fortress::new("");
    let rejected = fortress.besieged(|_| {
        let mut control = connect_from(HONEST, fortress.address);
        let answer = ask(&mut control, "suivi echo");
        let (port, jeton) = answer.split_once(' ').unwrap();
        let port = SocketAddr::new(fortress.address.ip(), port.parse().unwrap());
        let mut slow = connect_from(HONEST, port);
        slow.write_all(b"jeton ").unwrap();
        let mut flood = Vec::new();
        for _ in 0..MAX_UNDECIDED + 500 {
            let mut data = connect_from(HOSTILE, port);
            insist(&mut data, b"jeton 0123");
            flood.push(data);
        }
        fortress.counted("ledger", "rejected", 400);
        slow.write_all(format!("{jeton}\nx").as_bytes()).unwrap();
        slow.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut slow), b"x");
        let rejected = flood.len();
        drop(flood);
        fortress.counted("ledger", "rejected", rejected as u64);
        rejected
    });
    let status = fortress.has_held(SLACK);
    assert_eq!(status["ledger"]["rejected"], rejected);
}

/// Lines that look like that of a tracked job, while some wait.
fn wrong_jetons(lines: usize) {
    let fortress = Fortress::new("");
    let mut noise = Noise::new();
    fortress.besieged(|_| {
        let (_control, jobs) = fortress.tracked_jobs_wait();
        for number in 0..lines {
            let (port, right) = &jobs[number % jobs.len()];
            let mut data = connect_from(HOSTILE, *port);
            // All but the last digits are right, or none.
            let wrong = match number % 3 {
                0 => format!("{}{:02x}", &right[..30], (noise.number() % 255 + 1) ^ last_byte(right)),
                1 => format!("{:016x}{:016x}", noise.number(), noise.number()),
                _ => "0".repeat(number % 40),
            };
            insist(&mut data, format!("jeton {wrong}\nx").as_bytes());
            assert_eq!(rest(&mut data), b"", "{wrong} is not {right}");
        }
        for (port, jeton) in jobs {
            let mut data = connect_from(HOSTILE, port);
            data.write_all(format!("jeton {jeton}\nx").as_bytes()).unwrap();
            data.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&mut data), b"x", "the right one is still good");
        }
    });
    let status = fortress.has_held(SLACK);
    assert_eq!(status["ledger"]["rejected"], lines);
}

fn last_byte(jeton: &str) -> u64 {
    u64::from_str_radix(&jeton[30..], 16).unwrap()
}

#[test]
fn a_jeton_cannot_be_guessed() {
    wrong_jetons(1_500);
}

#[test]
#[ignore = "thirty thousand connections take a minute"]
fn a_jeton_cannot_be_guessed_by_trying_often() {
    wrong_jetons(30_000);
}
