//! What becomes of an exchange whose secondary is slow when its principal dies.

use std::io::Write;

use nix::sys::signal::Signal;

use crate::common::{System, eventually, recv, request};

/// A handler may block for less than `kill_after`: suspicion alone is no sentence.
#[test]
fn an_exchange_that_makes_its_secondary_suspect_is_finished_when_the_principal_dies() {
    let block = "[[request]]\nname = \"block\"\nhandler = \"block\"\ndelay = \"3s\"\n";
    let times =
        "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"100ms\"\nkill_after = \"60s\"\ngrace = \"60s\"\n";
    let system = System::start("secondaries = 1", &format!("{block}{times}"));
    let mut data = request(system.address(), "block");
    data.write_all(b"slow\n").unwrap();
    eventually("suspect", || system.log().contains("secondary 1.1 does not answer: suspect").then_some(()));
    system.signal(system.pid(0), Signal::SIGKILL);
    assert_eq!(recv(&mut data), "ok message 1 secondary 1\n");
}
