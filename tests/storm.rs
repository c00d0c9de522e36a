//! Clients at work while servers die and freeze under them.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{PATIENCE, REQUESTS, System, read_once, request, say, together};
use nix::sys::signal::Signal;

const CLIENTS: usize = 8;
/// More than a client can do while the storm lasts: a bound, not a target.
const REQUESTS_AT_MOST: usize = 100_000;
const REQUESTS_AT_LEAST: usize = 50;

/// Who is hit in turn, 0 being the principal.
const STRIKES: [(u64, Signal); 14] = [
    (1, Signal::SIGKILL),
    (3, Signal::SIGKILL),
    (2, Signal::SIGSTOP),
    (0, Signal::SIGKILL),
    (2, Signal::SIGKILL),
    (1, Signal::SIGTERM),
    (1, Signal::SIGKILL),
    (0, Signal::SIGSTOP),
    (3, Signal::SIGSTOP),
    (1, Signal::SIGTERM),
    (0, Signal::SIGTERM),
    (0, Signal::SIGKILL),
    (3, Signal::SIGKILL),
    (2, Signal::SIGTERM),
];

/// A connection with patience; one that is refused fails the test.
fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes back for `message`; `None` where the connection breaks.
fn exchange(mut stream: TcpStream, message: &str) -> Option<String> {
    let broken = |error: std::io::Error| {
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    };
    stream.write_all(message.as_bytes()).map_err(broken).ok()?;
    let mut buffer = [0; 64];
    let length = read_once(&mut stream, &mut buffer).map_err(broken).ok()?;
    (length > 0).then(|| String::from_utf8(buffer[..length].to_vec()).unwrap())
}

/// One request from beginning to end; whether it was answered.
fn one_request(address: SocketAddr) -> bool {
    let Some(port) = exchange(connect(address), "echo") else {
        return false;
    };
    let port = port.parse().unwrap_or_else(|_| panic!("answered {port:?}"));
    match exchange(connect(SocketAddr::new(address.ip(), port)), "hello") {
        Some(echoed) => echoed == "hello" || panic!("echoed {echoed:?}"),
        None => false,
    }
}

/// Tells the clients that the storm is over, also where it fails.
struct SaysOver<'a>(&'a AtomicBool);

impl Drop for SaysOver<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn storm(system: &System) {
    for (slot, signal) in STRIKES {
        let before = system.pid(slot);
        system.strike(before, signal);
        system.until("a replacement that is ready", |status| {
            let server = System::server(status, slot);
            server["state"] == "ready" && server["pid"] != before
        });
    }
}

#[test]
fn no_connection_is_refused_and_no_job_lost_while_servers_are_killed_and_stopped() {
    let times =
        "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"150ms\"\nkill_after = \"500ms\"\ngrace = \"2s\"\n";
    let system = System::start(
        "secondaries = 3\nclaim_within = \"3s\"\nqueue_within = \"10m\"",
        &format!("{REQUESTS}\n{times}"),
    );
    let address = system.address();
    let system = Arc::new(system);
    let over = Arc::new(AtomicBool::new(false));
    let (shared, is_over) = (system.clone(), over.clone());
    let answered: Vec<usize> = together(CLIENTS + 1, move |client| {
        if client == CLIENTS {
            let _over = SaysOver(&is_over);
            storm(&shared);
            return 0;
        }
        let mut answered = 0;
        for request in 0..REQUESTS_AT_MOST {
            if request >= REQUESTS_AT_LEAST && is_over.load(Ordering::Relaxed) {
                break;
            }
            answered += usize::from(one_request(address));
        }
        answered
    });
    assert!(answered[..CLIENTS].iter().all(|&count| count > 0), "{answered:?}");
    let status = system.books_are_exact();
    // An answer may reach a client just before its server is killed: that exchange has failed.
    let sum = u64::try_from(answered.iter().sum::<usize>()).unwrap();
    let ended = ["done", "failed"].map(|end| status["ledger"][end].as_u64().unwrap());
    assert!(ended.iter().sum::<u64>() >= sum, "{sum} answered: {status}");
    for _ in 0..20 {
        assert_eq!(say(&mut request(address, "echo"), "calm"), "calm");
    }
}
