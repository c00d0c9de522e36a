//! What clients with kept control connections notice of reloads: how long their slowest exchange takes while
//! the system reloads again and again, beside the slowest in as long a time without, in turn.
//!
//! An exchange is a request over the control connection, a new data connection, a message and its answer. Any
//! error, and any connection that the server closes, makes the benchmark fail. Idle connections, which are
//! handed over too, may be added: `cargo bench --bench reload -- 5000`.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::env;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{REQUESTS, System, connect, job, now, say, together};

const CLIENTS: usize = 64;
const RELOADS: usize = 50;
const ROUNDS: usize = 5;

/// How long each exchange of all clients took, while something happens.
fn exchanges_while(address: SocketAddr, clients: usize, happens: impl FnOnce()) -> Vec<Duration> {
    let over = Arc::new(AtomicBool::new(false));
    let flag = over.clone();
    std::thread::scope(|scope| {
        let looping = scope.spawn(move || {
            together(clients, move |_| {
                let (mut control, mut took) = (connect(address), Vec::new());
                while !flag.load(Ordering::SeqCst) {
                    let begun = now();
                    let port = job(&mut control, "echo");
                    assert_eq!(say(&mut connect(SocketAddr::new(address.ip(), port)), "hello"), "hello");
                    took.push(now().since(begun));
                }
                took
            })
        });
        happens();
        over.store(true, Ordering::SeqCst);
        let mut took = looping.join().unwrap().concat();
        took.sort_unstable();
        took
    })
}

fn tell(what: &str, took: &[Duration]) {
    let (middle, late) = (took[took.len() / 2], took[took.len() - 1 - took.len() / 1000]);
    let longest = took[took.len() - 1];
    println!(
        "{what:<12}{:>8} exchanges: median {middle:>8.2?}, 99.9 % within {late:>8.2?}, longest {longest:>8.2?}",
        took.len()
    );
}

fn main() {
    let is_bench = env::args().any(|argument| argument == "--bench");
    let idle: usize = env::args().find_map(|argument| argument.parse().ok()).unwrap_or(0);
    let (rounds, reloads, clients) = if is_bench { (ROUNDS, RELOADS, CLIENTS) } else { (1, 2, 4) };
    let _ = osps::os::process::raise_descriptor_limit();
    let system = System::start("secondaries = 4\nclient_idle = \"1h\"", REQUESTS);
    let address = system.address();
    let others: Vec<TcpStream> = (0..idle).map(|_| connect(address)).collect();
    for _ in 0..rounds {
        let mut reloading = Duration::ZERO;
        let with = exchanges_while(address, clients, || {
            let begun = now();
            for _ in 0..reloads {
                assert!(system.tool(&["reload"]).output().unwrap().status.success());
            }
            reloading = now().since(begun);
        });
        let without = exchanges_while(address, clients, || {
            let begun = now();
            while now().since(begun) < reloading {
                common::pause();
            }
        });
        tell("reloading", &with);
        tell("at rest", &without);
        println!("            {reloads} reloads in {reloading:.2?}");
    }
    assert_eq!(others.len(), idle);
    let status = system.until("idle ones are left", |status| status["clients"]["connected"] == idle);
    assert_eq!((&status["clients"]["broken"], &status["ledger"]["failed"]), (&0.into(), &0.into()));
}
