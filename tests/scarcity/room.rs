//! No room for files: the file system is full, or a file may not grow (RLIMIT_FSIZE). It is
//! told once and clearly, others serve, and all is well again when there is room.

use std::io::Write;
use std::process::Command;

use nix::sys::signal::Signal;
use osps::os::fifo;
use rustix::process::Resource;
use serde_json::Value;

use crate::common::{REQUESTS, System, eventually};
use crate::limits::{Scarce, take};
use crate::{echo, ends_well, lines, patient, remove_spares};

/// The secondary of slot 1 has died and there is no room for another; `room` makes some.
pub fn is_replaced_in_the_end(system: System, room: impl FnOnce()) {
    let principal = system.pid(0);
    let tried = |status: &Value| System::server(status, 1)["incarnation"].as_u64().unwrap();
    let before = tried(&system.status());
    system.until("more tries", |status| tried(status) > before + 2);
    for _ in 0..5 {
        echo(&system);
    }
    room();
    system.until("a replacement", |status| System::server(status, 1)["state"] == "ready");
    assert_eq!(system.pid(0), principal);
    ends_well(system);
}

/// A start without room for the pages: says so, and leaves nothing.
pub fn cannot_be_created(mut system: System) {
    assert_eq!(system.ended().code(), Some(73), "{}", system.log());
    let log = system.log();
    assert!(log.contains("cannot create /"), "{log}");
    assert!(log.lines().count() <= 2, "{log}");
    assert_eq!(system.files(), ["lock"]);
}

/// A file that a process may not make longer fails it by a signal, SIGXFSZ, unless that is ignored.
#[test]
fn a_log_file_at_its_limit_ends_nobody() {
    let system = patient(1);
    let pids = system.pids();
    let scarce: Vec<Scarce> = pids.iter().map(|&pid| take(pid, Resource::Fsize, 0)).collect();
    let before = system.log();
    // The watchdog logs that it was asked.
    assert!(system.tool(&["log", "default"]).output().unwrap().status.success());
    for tube in ["wdtube1", "orders.1", "orders.principal"] {
        let mut stranger = fifo::open_end(&system.rundir().join(tube)).unwrap();
        stranger.write_all(b"\nnonsense\n").unwrap();
    }
    for _ in 0..20 {
        echo(&system);
    }
    assert_eq!(system.pids(), pids);
    assert_eq!(system.log(), before);
    scarce.into_iter().for_each(Scarce::ends);
    for tube in ["wdtube1", "orders.1"] {
        let mut stranger = fifo::open_end(&system.rundir().join(tube)).unwrap();
        stranger.write_all(b"\nnonsense\n").unwrap();
    }
    eventually("what was dropped is told", || {
        (lines(&system, "lines could not be written") == 2).then_some(())
    });
    ends_well(system);
}

#[test]
fn a_secondary_is_replaced_when_there_is_room_for_its_page_again() {
    let system = patient(2);
    let scarce = take(system.pid(0), Resource::Fsize, 0);
    remove_spares(&system);
    system.signal(system.pid(1), Signal::SIGKILL);
    system.until("no room", |status| System::server(status, 1)["state"] == "down");
    is_replaced_in_the_end(system, || scarce.ends());
}

#[test]
fn a_start_with_no_room_for_the_job_tables_says_so_and_leaves_nothing() {
    // 512 or 1024 bytes each: enough for the log and the small pages.
    let script = "ulimit -f 16; exec \"$0\" \"$@\" >>stdout 2>>stderr";
    cannot_be_created(System::start_by("secondaries = 2\nmax_jobs = 10000", REQUESTS, |command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(command.get_program()).args(command.get_args());
        shell
    }));
}
