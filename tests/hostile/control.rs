//! Attacks on control connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::common::{now, pause, read_once};
use crate::honest::{connect_from, hostile};
use crate::{Fortress, SLACK, insist, rest, stuff};

/// Bytes that only the seed foretells (splitmix64).
pub struct Noise(u64);

impl Noise {
    /// Another noise at each run; the seed is printed.
    pub fn new() -> Self {
        let seed = now().as_nanos();
        println!("noise of seed {seed}");
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Up to `most` bytes.
    pub fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.number() % most + 1).map(|_| self.number().to_le_bytes()[0]).collect()
    }
}

#[test]
fn a_byte_a_second_is_not_a_request() {
    const SLOW: usize = 100;
    let fortress = Fortress::new("client_idle = \"4s\"");
    let (mut lines, mut words) = fortress.besieged(|_| {
        let begin = |bytes: &[u8]| {
            let mut control = fortress.connect();
            control.write_all(bytes).unwrap();
            control
        };
        let mut lines: Vec<TcpStream> = (0..SLOW).map(|_| begin(b"\nechoech")).collect();
        let mut words: Vec<TcpStream> = (0..SLOW).map(|_| begin(b"suivi e")).collect();
        while fortress.count("refusals", "malformed") < 2 * SLOW as u64 {
            for control in lines.iter_mut().chain(&mut words) {
                insist(control, b"o");
            }
            let next = now() + Duration::from_secs(1);
            while now() < next {
                pause();
            }
        }
        (lines, words)
    });
    for control in lines.iter_mut().chain(&mut words) {
        assert_eq!(rest(control), b"-1 request incomplete: no newline within 4s\n");
    }
    let status = fortress.has_held(SLACK);
    assert_eq!(status["refusals"]["malformed"], 2 * SLOW);
}

#[test]
fn a_line_without_end_is_not_kept() {
    const LINES: usize = 20;
    let fortress = Fortress::new("");
    let endless = vec![b'x'; 1 << 20];
    fortress.besieged(|_| {
        for number in 0..LINES {
            let mut control = fortress.connect();
            let is_line = number % 2 == 0;
            insist(&mut control, if is_line { b"\n" } else { b"" });
            insist(&mut control, &endless);
            let answer = rest(&mut control);
            let expected: &[u8] = if is_line { b"-1 request too long" } else { b"-1" };
            assert!(answer.starts_with(expected), "{:?}", answer.escape_ascii().to_string());
        }
    });
    let status = fortress.has_held(SLACK);
    assert_eq!(status["refusals"]["malformed"], LINES);
}

#[test]
fn garbage_is_answered_in_kind() {
    const HEAPS: usize = 300;
    let fortress = Fortress::new("");
    let mut noise = Noise::new();
    fortress.besieged(|_| {
        for _ in 0..HEAPS {
            let mut control = fortress.connect();
            insist(&mut control, &noise.bytes(2000));
            let _ = control.shutdown(Shutdown::Write);
            let answer = rest(&mut control);
            assert!(answer.is_ascii(), "{:?}", answer.escape_ascii().to_string());
            for line in answer.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                assert!(line.starts_with(b"-1"), "{:?}", line.escape_ascii().to_string());
            }
        }
    });
    let status = fortress.has_held(SLACK);
    assert!(status["ledger"]["refused"].as_u64() >= Some(HEAPS as u64 / 2), "{status}");
}

/// So many requests at once, of whose answers none is read before the well-behaved client was
/// served for a while.
fn pipelined(fortress: &Fortress, request: &str, requests: usize) -> TcpStream {
    fortress.besieged(|siege| {
        let mut control = fortress.connect();
        let sent = stuff(&mut control, request.repeat(requests).as_bytes());
        println!("{sent} of {} bytes", requests * request.len());
        siege.outlast(20);
        control
    })
}

#[test]
fn a_hundred_thousand_requests_give_64_jobs_at_a_time() {
    let fortress = Fortress::new("claim_within = \"10s\"");
    let before = fortress.count("ledger", "accepted");
    let mut plain = pipelined(&fortress, "echo\n", 100_000);
    let mut answers = BufReader::new(&mut plain);
    for _ in 0..64 {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert!(line.trim_end().parse::<u16>().is_ok(), "{line:?}");
    }
    drop(plain);
    let tracked = pipelined(&fortress, "suivi echo\n", 100_000);
    drop(tracked);
    assert!(fortress.count("ledger", "accepted") > before + 128);
    let status = fortress.has_held(SLACK);
    assert!(status["ledger"]["expired"].as_u64() >= Some(128), "{status}");
}

#[test]
fn a_hundred_thousand_unknown_requests_are_each_refused_once_somebody_reads_that() {
    const REQUESTS: usize = 100_000;
    let fortress = Fortress::new("");
    let mut control = pipelined(&fortress, "?\n", REQUESTS);
    let refused = fortress.count("refusals", "unknown");
    assert!(refused < REQUESTS as u64, "the server does not answer ahead of who does not read");
    let mut bytes = [0; 65536];
    let mut lines = 0;
    while lines < REQUESTS {
        let length = read_once(&mut control, &mut bytes).unwrap();
        assert!(length > 0, "closed after {lines} answers");
        lines += bytes[..length].iter().filter(|&&byte| byte == b'\n').count();
    }
    drop(control);
    let status = fortress.has_held(SLACK);
    assert_eq!(status["refusals"]["unknown"], REQUESTS);
}

#[test]
fn who_never_reads_his_answers_gets_no_more_of_them() {
    const DEAF: usize = 100;
    let fortress = Fortress::new("");
    let requests = "nonsense\n".repeat(20_000);
    let deaf = fortress.besieged(|siege| {
        let mut deaf: Vec<TcpStream> = (0..DEAF).map(|_| fortress.connect()).collect();
        for control in &mut deaf {
            control.set_nonblocking(true).unwrap();
            while control.write(requests.as_bytes()).is_ok() {}
        }
        siege.outlast(20);
        deaf
    });
    assert!(fortress.count("refusals", "unknown") > 0);
    drop(deaf);
    fortress.has_held(SLACK + DEAF as u64 * (64 << 10));
}

/// Connections that come and go, as fast as one process can make them.
fn churn(connections: usize) {
    let fortress = Fortress::new("");
    fortress.besieged(|_| {
        for number in 0..connections {
            let mut control = connect_from(hostile(number), fortress.address);
            if number % 2 == 0 {
                control.write_all(b"nonsense\n").unwrap();
                let mut first = [0; 2];
                control.read_exact(&mut first).unwrap();
                assert_eq!(&first, b"-1");
            }
        }
    });
    let status = fortress.has_held(SLACK);
    assert!(status["clients"]["accepted"].as_u64() > Some(connections as u64), "{status}");
}

#[test]
fn connections_may_come_and_go() {
    churn(3_000);
}

#[test]
#[ignore = "a hundred thousand connections take a minute"]
fn very_many_connections_may_come_and_go() {
    churn(100_000);
}
