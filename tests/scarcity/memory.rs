//! No memory, and no room in the FIFOs.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};

use nix::sys::signal::Signal;
use rustix::process::Resource;

use osps::core::following::MAX_UNCLAIMED;

use crate::common::{REQUESTS, System, connect, eventually, job, read_to_end, request, say};
use crate::limits::take;
use crate::{LONG, PATIENT, ends_well, lines, patient, replaced};

/// Exchanges that make their secondary keep what the clients do not read.
pub fn greedy(address: SocketAddr, clients: usize) -> Vec<TcpStream> {
    let open = |_| {
        let mut data = request(address, "echo");
        assert_eq!(say(&mut data, "x"), "x");
        data
    };
    (0..clients).map(open).collect()
}

/// Sends more than clients who read nothing leave room for in the kernel: their secondary must
/// keep it. Ends when one has died of it, in those words.
pub fn overfeed(system: &System, exchanges: &[TcpStream], obituary: &str) {
    eventually(obituary, || {
        for mut data in exchanges {
            data.set_nonblocking(true).unwrap();
            while data.write(&[b'x'; 65536]).is_ok() {}
        }
        (lines(system, obituary) > 0).then_some(())
    });
}

#[test]
fn a_secondary_that_gets_no_more_memory_dies_with_its_own_jobs_only() {
    let system = patient(2);
    let exchanges = greedy(system.address(), 16);
    let first = system.pid(1);
    let open = |status: &serde_json::Value, slot| System::server(status, slot)["open"].as_u64().unwrap();
    let status = system.status();
    let (doomed, spared) = (open(&status, 1), open(&status, 2));
    assert_eq!(doomed + spared, 16);
    assert!(doomed > 0 && spared > 0);
    let _until_it_dies = take(first, Resource::As, 0);
    overfeed(&system, &exchanges, "cause=\"signal 6\"");
    replaced(&system, 1, first);
    let status = system.until("the dead one's jobs", |status| status["ledger"]["failed"] == doomed);
    assert_eq!(open(&status, 2), spared, "who was elsewhere is served still");
    drop(exchanges);
    ends_well(system);
}

#[test]
fn a_secondary_that_did_not_listen_to_thousands_of_doorbells_serves_them_all() {
    const JOBS: usize = 125 * MAX_UNCLAIMED as usize;
    let system =
        System::start(&format!("secondaries = 1\nmax_jobs = 10000\n{LONG}"), &format!("{PATIENT}{REQUESTS}"));
    let address = system.address();
    let (principal, secondary) = (system.pid(0), system.pid(1));
    system.signal(secondary, Signal::SIGSTOP);
    // A connection gets so many jobs that nobody has come for.
    let unclaimed = MAX_UNCLAIMED as usize;
    let mut ports = Vec::new();
    for _ in 0..JOBS / unclaimed {
        let mut control = connect(address);
        ports.extend((0..unclaimed).map(|_| job(&mut control, "echo")));
    }
    ports.dedup();
    assert_eq!(ports.len(), 1, "there is one secondary");
    let port = SocketAddr::new(address.ip(), ports[0]);
    system.signal(secondary, Signal::SIGCONT);
    let serve = |jobs: usize| {
        for _ in 0..jobs {
            let mut data = connect(port);
            data.write_all(b"x").unwrap();
            data.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut data), "x");
        }
    };
    serve(1000);
    // Now the principal does not listen to the thousands of ends.
    system.signal(principal, Signal::SIGSTOP);
    serve(JOBS - 1000);
    system.signal(principal, Signal::SIGCONT);
    assert_eq!(system.books_are_exact()["ledger"]["done"], JOBS);
    ends_well(system);
}
