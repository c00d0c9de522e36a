//! Real processes that are killed before a chosen store into shared memory: the books are
//! exact after it, wherever it was. The fuse exists in builds with debug assertions only.
#![allow(clippy::unwrap_used)]
#![cfg(debug_assertions)]

mod common;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};

use common::{System, read_once, together};
use osps::page::fuse;
use serde_json::Value;

/// No probe disturbs the counting of stores.
const RARE_PROBES: &str = "
secondaries = 1
claim_within = \"50ms\"
queue_within = \"10m\"
[watchdog]
period = \"10m\"
suspect_after = \"20m\"
kill_after = \"40m\"
[[request]]
name = \"echo\"
handler = \"echo\"
";
/// Runs at the same time.
const LANES: usize = 3;

fn start(fuses: &str) -> System {
    let system = System::start_by(RARE_PROBES, "", |mut command| {
        command.env(fuse::VARIABLE, fuses);
        command
    });
    system.all_ready();
    system
}

/// What a server that may die says; `None` where it has.
fn hear(stream: &mut TcpStream) -> Option<String> {
    let mut buffer = [0; 64];
    match read_once(stream, &mut buffer) {
        Ok(length) if length > 0 => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
        Ok(_) | Err(_) => None,
    }
}

/// A port, asked for until a principal lives long enough to give one.
fn ask(address: SocketAddr) -> SocketAddr {
    loop {
        let mut control = common::connect(address);
        if control.write_all(b"echo").is_ok()
            && let Some(port) = hear(&mut control)
        {
            return SocketAddr::new(address.ip(), port.parse().unwrap());
        }
    }
}

/// An exchange that has begun, if the secondary lives long enough.
fn begin(port: SocketAddr) -> Option<TcpStream> {
    let mut exchange = common::connect(port);
    exchange.write_all(b"here").ok()?;
    (hear(&mut exchange)? == "here").then_some(exchange)
}

fn finish(mut exchange: TcpStream) {
    let _ = exchange.shutdown(Shutdown::Write);
    let _ = hear(&mut exchange);
}

/// Jobs that are done, expire, and are under way while others are given and end. Returns how
/// many ports the client was told.
fn a_day_of_work(address: SocketAddr) -> u64 {
    let first = begin(ask(address));
    let never_claimed = ask(address);
    assert_ne!(never_claimed.port(), 0);
    // The secondary swaps while the principal gives: nobody waits for the other.
    let mut control = common::connect(address);
    let _ = control.write_all(b"echo");
    first.into_iter().for_each(finish);
    let second =
        hear(&mut control).and_then(|port| begin(SocketAddr::new(address.ip(), port.parse().unwrap())));
    let told = 2 + u64::from(second.is_some());
    second.into_iter().for_each(finish);
    told
}

/// Lives a day with these fuses lit. Returns the status when all jobs have ended.
fn a_day_with(fuses: &str) -> Value {
    let mut system = start(fuses);
    let told = a_day_of_work(system.address());
    // Whoever comes after the death serves as if nothing had been.
    let afterwards = common::eventually("an exchange afterwards", || begin(ask(system.address())));
    finish(afterwards);
    let status = system.books_are_exact();
    let ledger = &status["ledger"];
    assert!(ledger["accepted"].as_u64() > Some(told), "{told} ports were told with {fuses}: {ledger}");
    assert!(ledger["done"].as_u64() >= Some(1), "{ledger}");
    let of_echo = &status["requests"]["echo"];
    for end in ["done", "failed", "expired"] {
        assert_eq!(of_echo[end], ledger[end], "by type, with {fuses}: {status}");
    }
    let secondary = System::server(&status, 1);
    assert_eq!((&secondary["done"], &secondary["failed"]), (&ledger["done"], &ledger["failed"]), "by slot");
    assert!(system.stop().success(), "{}", system.log());
    status
}

/// Lives days whose fuses burn ever later, until one does not burn any more.
fn every_day(fuses: impl Fn(u64) -> String + Send + Sync + 'static, burnt: fn(&Value) -> bool, least: u64) {
    let lasts = together(LANES, move |lane| {
        let mut stores = lane as u64;
        while burnt(&a_day_with(&fuses(stores))) {
            stores += LANES as u64;
        }
        stores
    });
    assert!(lasts.iter().all(|&last| last >= least), "fuses burnt out after {lasts:?} stores");
}

fn principal_died(status: &Value) -> bool {
    System::server(status, 0)["restarts"] != 0
}

fn secondary_died(status: &Value) -> bool {
    System::server(status, 1)["restarts"] != 0
}

#[test]
fn a_principal_may_die_before_any_of_its_stores() {
    every_day(|stores| format!("principal.1:{stores}"), principal_died, 60);
}

#[test]
fn a_successor_may_die_before_any_of_its_stores_too() {
    let successor_died = |status: &Value| System::server(status, 0)["restarts"].as_u64() > Some(1);
    every_day(|stores| format!("principal.1:40,principal.2:{stores}"), successor_died, 40);
}

#[test]
fn a_secondary_may_die_before_any_of_its_stores() {
    every_day(|stores| format!("secondary 1.1:{stores}"), secondary_died, 10);
}

#[test]
fn both_may_die_in_one_day() {
    every_day(|stores| format!("principal.1:{},secondary 1.1:{stores}", 2 * stores), secondary_died, 10);
}
