//! Attacks by number: connections that only are there, and clients that take every place.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};

use crate::common::recv;
use crate::honest::{HONEST, connect_from};
use crate::{Fortress, SLACK, most_of_the_descriptors, rest};

/// What one that is silent may cost.
const EACH: u64 = 2 << 10;

fn silent(connections: usize) {
    let fortress = Fortress::new("client_idle = \"120s\"");
    let held = fortress.besieged(|siege| {
        let held: Vec<TcpStream> = (0..connections).map(|_| fortress.connect()).collect();
        fortress.counted("clients", "connected", connections as u64);
        siege.outlast(40);
        held
    });
    drop(held);
    fortress.has_held(SLACK / 2 + EACH * connections as u64);
}

#[test]
fn a_thousand_silent_connections_disturb_nobody() {
    silent(1_000);
}

#[test]
#[ignore = "ten thousand connections need a descriptor each, and half a minute"]
fn ten_thousand_silent_connections_disturb_nobody() {
    let _most = most_of_the_descriptors();
    silent(10_000);
}

#[test]
fn who_is_silent_for_too_long_is_closed_and_counted() {
    const SILENT: usize = 300;
    let fortress = Fortress::new("client_idle = \"4s\"");
    let mut held = fortress.besieged(|_| {
        let held: Vec<TcpStream> = (0..SILENT).map(|_| fortress.connect()).collect();
        fortress.counted("clients", "idle", SILENT as u64);
        held
    });
    for control in &mut held {
        assert_eq!(rest(control), b"");
    }
    fortress.has_held(SLACK);
}

#[test]
fn who_takes_every_place_is_pushed_aside() {
    const PLACES: usize = 30;
    let fortress = Fortress::new(&format!("max_clients = {PLACES}"));
    let held = fortress.besieged(|siege| {
        let mut held: Vec<TcpStream> = (0..10 * PLACES).map(|_| fortress.connect()).collect();
        for _ in 0..20 {
            // Whoever was closed comes again.
            for control in &mut held {
                control.set_nonblocking(true).unwrap();
                if matches!(control.peek(&mut [0]), Ok(0)) || control.write(b"\n").is_err() {
                    *control = fortress.connect();
                }
            }
            siege.outlast(4);
        }
        // Each of them keeps his place, for which somebody has to go.
        let mut guests: Vec<TcpStream> = (0..3).map(|_| connect_from(HONEST, fortress.address)).collect();
        for guest in &mut guests {
            guest.write_all(b"nosuch\n").unwrap();
            assert!(recv(guest).starts_with("-1 unknown"));
        }
        held
    });
    let status = fortress.system.status();
    assert!(status["clients"]["evicted"].as_u64() >= Some(1), "{status}");
    drop(held);
    fortress.has_held(SLACK);
}

#[test]
fn who_comes_from_many_addresses_takes_no_more_than_each_of_them_may_have() {
    let fortress = Fortress::new("max_clients_per_address = 10");
    let held = fortress.besieged(|siege| {
        let address = fortress.address;
        let everywhere = (0..40).flat_map(|_| (1..=50).map(|last| Ipv4Addr::new(127, 0, 1, last)));
        let held: Vec<TcpStream> = everywhere.map(|from| connect_from(from, address)).collect();
        fortress.counted("clients", "turned_away", 1_500);
        siege.outlast(10);
        assert!(fortress.count("clients", "connected") <= 500 + 10);
        held
    });
    drop(held);
    let status = fortress.has_held(SLACK);
    assert_eq!(status["refusals"]["busy"], 1_500);
    assert_eq!(status["clients"]["turned_away"], 1_500);
}
