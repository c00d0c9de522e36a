//! No process can be started: fork(2) says EAGAIN.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;
use rustix::process::{Resource, getrlimit};

use crate::common::{self, REQUESTS, System, connect, say};
use crate::{LONG, PATIENT, echo, ends_well, lines, logged, replaced};

/// A user whom RLIMIT_NPROC binds: it does not bind root (getrlimit(2)).
const NOBODY: u32 = 65534;

/// What the soft limit may be raised to again.
fn as_before() -> u64 {
    getrlimit(Resource::Nproc).maximum.unwrap_or(u64::MAX)
}

/// A system of a user whom the limit binds, with the means to set it.
struct Forkless {
    system: System,
    uid: Option<u32>,
}

impl Forkless {
    fn start() -> Self {
        let uid = rustix::process::geteuid().is_root().then_some(NOBODY);
        let top = format!("secondaries = 2\n{LONG}");
        let system = System::start_by(&top, &format!("{PATIENT}{REQUESTS}"), |command| match uid {
            None => command,
            Some(uid) => as_user(uid, &command),
        });
        system.all_ready();
        Self { system, uid }
    }

    /// Only root with CAP_SYS_RESOURCE may change another user's limits: that user does it.
    fn limit(&self, pid: u32, processes: u64) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={pid}")).arg(format!("--nproc={processes}:"));
        self.uid.map(|uid| command.uid(uid).gid(uid));
        assert!(command.status().expect("prlimit of util-linux").success());
    }
}

/// The same command for another user, who may not get to where it was built.
fn as_user(uid: u32, command: &Command) -> Command {
    let config = PathBuf::from(command.get_args().last().unwrap());
    let dir = config.parent().unwrap();
    // Not by ourselves: a process that another test starts meanwhile would hold the copy open for
    // writing until it executes its own program, and the copy could not be executed (ETXTBSY).
    let copied = Command::new("cp").arg(command.get_program()).arg(dir.join("osps")).status().unwrap();
    assert!(copied.success());
    chown(dir, Some(uid), Some(uid)).unwrap();
    let mut copy = Command::new(dir.join("osps"));
    let output = |name| File::options().append(true).open(dir.join(name)).unwrap();
    copy.args(command.get_args()).stdout(output("stdout")).stderr(output("stderr")).uid(uid).gid(uid);
    copy
}

#[test]
fn a_principal_that_cannot_fork_replaces_its_secondary_when_it_can() {
    let forkless = Forkless::start();
    let system = &forkless.system;
    let (first, principal) = (system.pid(1), system.pid(0));
    forkless.limit(principal, 0);
    system.signal(first, Signal::SIGKILL);
    logged(system, "cannot start secondary 1.2: Resource temporarily unavailable");
    for _ in 0..5 {
        echo(system);
    }
    forkless.limit(principal, as_before());
    replaced(system, 1, first);
    assert_eq!(system.pid(0), principal);
    ends_well(forkless.system);
}

#[test]
fn a_watchdog_that_cannot_fork_replaces_the_principal_when_it_can() {
    let forkless = Forkless::start();
    let system = &forkless.system;
    let (address, principal) = (system.address(), system.pid(0));
    forkless.limit(system.watchdog.id(), 0);
    system.signal(principal, Signal::SIGKILL);
    logged(system, "cannot start principal.2: Resource temporarily unavailable");
    let mut waits = connect(address);
    waits.write_all(b"echo\n").unwrap();
    forkless.limit(system.watchdog.id(), as_before());
    replaced(system, 0, principal);
    let port = common::recv(&mut waits).trim().parse().unwrap();
    assert_eq!(say(&mut connect(SocketAddr::new(address.ip(), port)), "z"), "z");
    system.all_ready();
    ends_well(forkless.system);
}

#[test]
fn a_principal_that_cannot_fork_says_so_once() {
    let forkless = Forkless::start();
    let system = &forkless.system;
    forkless.limit(system.pid(0), 0);
    system.signal(system.pid(1), Signal::SIGKILL);
    system.until("more tries", |status| System::server(status, 1)["incarnation"].as_u64() > Some(5));
    assert_eq!(lines(system, "cannot start secondary 1"), 1, "{}", system.log());
    // Of the one that was killed.
    assert!(lines(system, "young deaths in a row") <= 1, "{}", system.log());
    forkless.limit(system.pid(0), as_before());
}
