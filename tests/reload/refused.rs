//! Reloads that cannot be: nothing changes, and whoever asked hears why.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::{REQUESTS, System, connect, eventually, job, request, say};
use crate::{Program, ask_for_reload, failed_reload, reload, rewrite};

/// The same processes serve as before, and a client of theirs has noticed nothing.
fn stays_as_it_was(system: &System, attempt: impl FnOnce()) {
    let before = system.pids();
    let mut control = connect(system.address());
    let mut data = request(system.address(), "echo");
    assert_eq!(say(&mut data, "before"), "before");
    attempt();
    assert_eq!(system.pids(), before);
    assert!(job(&mut control, "echo") > 0);
    assert_eq!(say(&mut data, "after"), "after");
    eventually("nobody is left over", || system.zombies().is_empty().then_some(()));
    assert!(system.files().iter().all(|name| !name.starts_with("orders.principal.")), "{:?}", system.files());
}

#[test]
fn a_configuration_that_does_not_check_changes_nothing() {
    let system = System::start("secondaries = 2", REQUESTS);
    let path = system.dir.path().join("osps.toml");
    let good = fs::read_to_string(&path).unwrap();
    for (bad, why) in [
        ("secondary = 2", "unknown"),
        ("claim_within = \"soon\"", "soon"),
        (
            "[[request]]\nname = \"x\"\nhandler = \"exec\"\ncommand = [\"/no/such/program\"]",
            "/no/such/program",
        ),
        ("[[request]]\nname = \"x\"\nhandler = \"echo\"\ndelay = \"300ms\"", "echo does not wait"),
    ] {
        stays_as_it_was(&system, || {
            fs::write(&path, format!("{good}\n{bad}\n")).unwrap();
            let said = failed_reload(&system);
            fs::write(&path, &good).unwrap();
            assert!(said.starts_with("osps: nothing was changed: ") && said.contains(why), "{said}");
        });
    }
    reload(&system);
}

#[test]
fn a_handler_that_the_new_principal_does_not_have_is_named_whatever_stands_beside_it() {
    let system = System::start("secondaries = 2", REQUESTS);
    let path = system.dir.path().join("osps.toml");
    let mistyped = "[[request]]\nname = \"x\"\nhandler = \"echo2\"\ndelay = \"300ms\"\n";
    fs::write(&path, format!("{}\n{mistyped}", fs::read_to_string(&path).unwrap())).unwrap();
    stays_as_it_was(&system, || {
        let said = failed_reload(&system);
        let why =
            "nothing was changed: request \"x\": handler \"echo2\": there is no such handler; known: delay,";
        assert!(said.contains(why), "{said}");
    });
}

#[test]
fn what_takes_a_stop_and_a_start_is_named() {
    let system = System::start("secondaries = 2", REQUESTS);
    rewrite(&system, "secondaries = 2", "secondaries = 3\nuser = \"root\"\nmax_jobs = 7");
    stays_as_it_was(&system, || {
        let said = failed_reload(&system);
        assert!(said.contains("max_jobs and user have changed, which takes a stop and a start"), "{said}");
    });
}

#[test]
fn a_program_that_is_no_server_changes_nothing() {
    let mut program = Program::new();
    let system = System::start_program(program.path(), "secondaries = 2", REQUESTS);
    stays_as_it_was(&system, || {
        program.replace_by(Path::new("/bin/true"));
        let said = failed_reload(&system);
        assert!(said.contains("nothing was changed: the new principal ended: exit 0"), "{said}");
    });
    // The kernel says only "No such file or directory", which a script that is there does not explain.
    let script = system.dir.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    stays_as_it_was(&system, || {
        program.replace_by(&script);
        let said = failed_reload(&system);
        assert!(said.contains("nothing was changed: the new principal ended: exit 71"), "{said}");
        assert!(system.log().contains("cannot execute a script"), "{}", system.log());
    });
    // Nor does a death of the principal bring the other program into force.
    system.strike(system.pid(0), Signal::SIGKILL);
    system.all_ready();
    program.replace_by(Path::new(env!("CARGO_BIN_EXE_osps")));
    reload(&system);
}

#[test]
fn a_principal_that_is_not_ready_in_time_changes_nothing() {
    let mut program = Program::new();
    let times = "[watchdog]\nstart_within = \"500ms\"\n";
    let mut system = System::start_program(program.path(), "secondaries = 2", &format!("{REQUESTS}{times}"));
    // `cat principal` waits for ever for somebody to write into it.
    mkfifo(&system.dir.path().join("principal"), Mode::S_IRWXU).unwrap();
    stays_as_it_was(&system, || {
        program.replace_by(Path::new("/bin/cat"));
        let said = failed_reload(&system);
        assert!(said.contains("nothing was changed: the new principal ended: signal 9"), "{said}");
        assert!(system.log().contains("not ready within start_within"), "{}", system.log());
    });
    // A stop need not wait for one that never comes.
    let mut tool = ask_for_reload(&system).stderr(Stdio::null()).spawn().unwrap();
    let is_under_way = || system.files().iter().any(|name| name.starts_with("orders.principal."));
    eventually("a reload is under way", || is_under_way().then_some(()));
    assert!(system.stop().success());
    assert!(!tool.wait().unwrap().success());
    assert!(!system.has_survivors());
}

#[test]
fn without_a_principal_that_serves_there_is_no_reload() {
    let times = "[watchdog]\nperiod = \"20ms\"\nsuspect_after = \"60ms\"\nkill_after = \"30s\"\n";
    let system = System::start("secondaries = 2", &format!("{REQUESTS}{times}"));
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGSTOP);
    system.until("it is suspect", |status| System::server(status, 0)["state"] == "suspect");
    let said = failed_reload(&system);
    assert!(said.contains("no principal serves at the moment"), "{said}");
    system.signal(principal, Signal::SIGCONT);
    system.all_ready();
    reload(&system);
}
