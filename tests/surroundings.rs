//! Commands and their exit codes, and the odd environments in which a system is started.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{REQUESTS, System, eventually, osps, osps_client, request, say};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::Signal;

/// Runs `osps` to its end.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    read(osps().args(arguments).output().unwrap())
}

fn read(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Whether a system serves: a killed secondary is replaced, and requests are answered.
fn serves(system: &System) {
    let pid = system.pid(1);
    system.signal(pid, Signal::SIGKILL);
    system.until("a replacement", |status| {
        let server = System::server(status, 1);
        server["state"] == "ready" && server["pid"] != pid
    });
    for _ in 0..20 {
        assert_eq!(say(&mut request(system.address(), "echo"), "x"), "x");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        let (code, said, _) = run(&[flag]);
        assert_eq!(code, Some(0));
        assert!(said.contains("osps"), "{said}");
        assert_eq!(osps_client().arg(flag).output().unwrap().status.code(), Some(0));
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in
        [&["--bogus"][..], &["bogus"], &["principal"], &["secondary", "1"], &["pingpong", "--count", "0"]]
    {
        let (code, _, error) = run(arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {error}");
        assert!(!error.is_empty(), "{arguments:?}");
    }
}

/// Starts a system that cannot start, with further arguments: its exit code and its words.
fn fails(top: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut system = System::start_by(top, REQUESTS, |mut command| {
        command.args(arguments);
        command
    });
    (system.ended().code(), system.log())
}

#[test]
fn an_unknown_key_is_named() {
    for command in [&["check"][..], &[]] {
        let (code, error) = fails("secondaires = 4", command);
        assert_eq!(code, Some(78), "{error}");
        assert!(error.contains("secondaires"), "{error}");
    }
}

#[test]
fn a_runtime_directory_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("run");
    let (code, error) = fails("", &["--runtime-dir", below.to_str().unwrap()]);
    assert_eq!(code, Some(73), "{error}");
    assert!(error.contains(below.to_str().unwrap()), "{error}");
}

#[test]
fn a_directory_in_the_place_of_a_file_is_named_and_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for name in ["watchdog.page", "watchdog.old.page", "control", "dwtube1"] {
        let obstacle = run.join(name);
        DirBuilder::new().mode(0o700).create(&run).unwrap();
        fs::create_dir(&obstacle).unwrap();
        fs::write(obstacle.join("mine"), "").unwrap();
        fs::write(run.join("secondary1.jobs"), "").unwrap();
        let (code, error) = fails("", &["--runtime-dir", run.to_str().unwrap()]);
        assert_eq!(code, Some(73), "{error}");
        assert!(error.contains(&format!("{} is a directory", obstacle.display())), "{error}");
        let mut expected = [name, "lock", "secondary1.jobs"];
        expected.sort_unstable();
        assert_eq!(names(), expected);
        assert!(obstacle.join("mine").exists());
        fs::remove_dir_all(&run).unwrap();
    }
}

/// A directory that belongs to somebody else, whoever runs this test: root gives one away.
fn directory_of_another(dir: &Path) -> &Path {
    if dir.metadata().unwrap().uid() != 0 {
        return Path::new("/proc");
    }
    chown(dir, Some(65534), None).unwrap();
    dir
}

#[test]
fn a_runtime_directory_of_somebody_else_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = directory_of_another(dir.path()).to_str().unwrap();
    let (code, error) = fails("", &["--runtime-dir", path]);
    assert_eq!(code, Some(77), "{error}");
    assert!(error.contains(path), "{error}");
}

#[test]
fn check_names_two_listeners_that_clash_and_prints_those_that_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("osps.toml");
    let check = |toml: &str| {
        fs::write(&file, toml).unwrap();
        run(&["check", "--config", file.to_str().unwrap()])
    };
    let (code, _, error) = check("listen = [\"0.0.0.0:4000\", \"127.0.0.1:4000\"]");
    assert_eq!(code, Some(78));
    assert!(error.contains("0.0.0.0:4000") && error.contains("127.0.0.1:4000"), "{error}");
    let (code, _, error) = check("listen = [\"0.0.0.0:4000\", \"[::1]:80\"]\nobserve = \"127.0.0.1:4000\"");
    assert_eq!(code, Some(78));
    let why = "observe = \"127.0.0.1:4000\": clashes with \"0.0.0.0:4000\" in listen: choose another";
    assert!(error.contains(why), "{error}");
    let line = "listen = [\"0.0.0.0:4000\", \"[::]:4000\", \"unix:/run/x\"]\n";
    let lines = [line, "announce = \"work.example.org\"\n", "max_clients_per_address = 9\n"];
    let (code, printed, _) = check(&lines.concat());
    assert_eq!(code, Some(0));
    assert!(lines.iter().all(|line| printed.contains(line)), "{printed}");
}

#[test]
fn check_prints_what_is_in_force_even_beside_a_running_server() {
    let system = System::start("secondaries = 2", REQUESTS);
    let (code, printed, error) = read(system.tool(&["check"]).output().unwrap());
    assert_eq!(code, Some(0), "{error}");
    for expected in ["secondaries = 2", "kill_after = \"2s\"", "name = \"requetetype2\""] {
        assert!(printed.contains(expected), "{printed}");
    }
    let copy = system.dir.path().join("copy.toml");
    fs::write(&copy, &printed).unwrap();
    let (code, again, error) = run(&["check", "--config", copy.to_str().unwrap()]);
    assert_eq!((code, again), (Some(0), printed), "{error}");
    serves(&system);
}

#[test]
fn tools_say_that_no_server_runs() {
    let mut system = System::start("secondaries = 1", REQUESTS);
    system.stop();
    for arguments in [&["status"][..], &["status", "--json"], &["stop"]] {
        let (code, _, error) = read(system.tool(arguments).output().unwrap());
        assert_eq!(code, Some(69), "{arguments:?}: {error}");
        assert!(error.contains(system.rundir().to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_configuration_that_does_not_check_disarms_no_tool() {
    let mut system = System::start("secondaries = 2", REQUESTS);
    let path = system.dir.path().join("osps.toml");
    let good = fs::read_to_string(&path).unwrap();
    let runtime_dir = system.rundir().to_str().unwrap().to_owned();
    let tools =
        [&["status"][..], &["top"], &["log", "debug"], &["scale", "3"], &["drain", "3"], &["restart", "3"]];
    // What the tools without a directory say of it, and why the watchdog refuses it.
    for (bad, code, refused) in [
        (format!("secundaries = 2\n{good}"), Some(0), "secundaries"),
        (format!("observe = 5\n{good}"), Some(0), "observe"),
        (format!("claim_within = \"soon\"\n{good}"), Some(0), "soon"),
        (format!("= 5\n{good}"), Some(78), "= 5"),
    ] {
        fs::write(&path, bad).unwrap();
        for arguments in tools {
            let plain = read(system.tool(arguments).output().unwrap());
            assert_eq!(plain.0, code, "{arguments:?}: {plain:?}");
            assert!(code == Some(0) || plain.2.contains("--runtime-dir does without"), "{plain:?}");
            let directed =
                read(system.tool(arguments).args(["--runtime-dir", &runtime_dir]).output().unwrap());
            assert_eq!(directed.0, Some(0), "{arguments:?}: {directed:?}");
        }
        let reload = read(system.tool(&["reload", "--runtime-dir", &runtime_dir]).output().unwrap());
        assert_eq!(reload.0, Some(69), "{reload:?}");
        assert!(reload.2.contains("nothing was changed") && reload.2.contains(refused), "{reload:?}");
    }
    fs::remove_file(&path).unwrap();
    let (code, _, error) = read(system.tool(&["stop"]).output().unwrap());
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("osps.toml") && error.contains("--runtime-dir does without"), "{error}");
    let (code, ..) = read(system.tool(&["stop", "--runtime-dir", &runtime_dir]).output().unwrap());
    assert_eq!((code, system.ended().code()), (Some(0), Some(0)));
}

#[test]
fn status_for_people_names_every_process() {
    let system = System::start("secondaries = 2", REQUESTS);
    let (code, said, error) = read(system.tool(&["status"]).output().unwrap());
    assert_eq!(code, Some(0), "{error}");
    for expected in ["watchdog", "principal", "secondary 1", "secondary 2", "requetetype1"] {
        assert!(said.contains(expected), "{said}");
    }
}

/// Whether a system survives what it is there for: the death of a secondary and of the principal,
/// whoever started it; whether it leaves no zombie meanwhile, and whether it stops.
fn survives(mut system: System) {
    system.all_ready();
    serves(&system);
    let principal = system.pid(0);
    system.signal(principal, Signal::SIGKILL);
    system.until("another principal", |status| {
        let server = System::server(status, 0);
        server["state"] == "ready" && server["pid"] != principal
    });
    serves(&system);
    eventually("that all the dead are reaped", || system.zombies().is_empty().then_some(()));
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    assert_eq!(system.ended().code(), Some(0));
    assert!(!system.has_processes());
}

/// Starts a system through another program, which sets the stage and becomes `osps`.
fn start_through(stage: &[&str]) -> System {
    System::start_by("secondaries = 2", REQUESTS, |command| {
        let script = "exec \"$@\" >>stdout 2>>stderr";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).args(stage).arg(command.get_program()).args(command.get_args());
        shell
    })
}

/// Which signals each server ignores and which it blocks, for its loop to read, as the kernel tells
/// (proc_pid_status(5)).
fn held_signals(system: &System) -> Vec<[u64; 2]> {
    let mask = |pid: u32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let of_process = |pid: &u32| ["SigIgn:", "SigBlk:"].map(|name| mask(*pid, name));
    system.all_ready();
    system.pids()[1..].iter().map(of_process).collect()
}

#[test]
fn it_survives_under_nohup() {
    let system = start_through(&["nohup"]);
    system.all_ready();
    // For the watchdog, the first of them, that is a reload: to the servers it says nothing.
    for pid in system.pids().into_iter().rev() {
        system.signal(pid, Signal::SIGHUP);
    }
    let reloaded = || system.log().contains("reload: a new principal serves").then_some(());
    eventually("it has reloaded", reloaded);
    survives(system);
}

#[test]
fn it_survives_with_sigchld_ignored_by_its_parent() {
    survives(start_through(&["env", "--ignore-signal=CHLD"]));
}

#[test]
fn it_survives_with_all_signals_blocked_by_its_parent() {
    survives(start_through(&["env", "--block-signal"]));
}

#[test]
fn it_survives_with_all_signals_ignored_by_its_parent() {
    survives(start_through(&["env", "--ignore-signal"]));
}

#[test]
fn servers_hold_the_same_signals_whoever_started_them() {
    let plain = held_signals(&System::start("secondaries = 2", REQUESTS));
    // Those that the C library leaves to programs (signal(7)), from number 34 on.
    let real_time = u64::MAX << 33;
    assert!(plain.iter().all(|[ignored, _]| ignored & real_time == real_time), "{plain:x?}");
    assert_eq!(held_signals(&start_through(&["env", "--block-signal"])), plain);
    let strange =
        "--ignore-signal=HUP,INT,QUIT,USR1,USR2,ALRM,TERM,CHLD,CONT,PROF,VTALRM,IO,URG,XCPU,XFSZ,WINCH";
    assert_eq!(held_signals(&start_through(&["env", strange])), plain);
}

/// Fills a pipe through a description of its own, so that whoever gets the other one
/// finds it as usual: blocking.
fn fill(pipe: &PipeWriter) {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    let mut file = OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path).unwrap();
    while file.write(&[b'.'; 4096]).is_ok() {}
    while file.write(b".").is_ok() {}
}

/// Runs a talkative system whose outputs are both that pipe; `meanwhile` happens once it is
/// ready. It must serve and stop as if it were heard.
fn serves_into(pipe: PipeWriter, meanwhile: impl FnOnce()) {
    let mut system = System::start_by("secondaries = 2", REQUESTS, |mut command| {
        command.env("RUST_LOG", "trace").stdout(pipe.try_clone().unwrap()).stderr(pipe);
        command
    });
    system.all_ready();
    meanwhile();
    serves(&system);
    assert_eq!(system.stop().code(), Some(0));
    assert!(!system.has_processes());
}

#[test]
fn outputs_that_nobody_reads_hold_nothing_up() {
    let (_unread, full) = std::io::pipe().unwrap();
    fill(&full);
    serves_into(full, || ());
}

#[test]
fn outputs_whose_reader_is_gone_hold_nothing_up() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    serves_into(writer, || ());
}

#[test]
fn an_output_whose_reader_goes_away_holds_nothing_up() {
    let (reader, writer) = std::io::pipe().unwrap();
    serves_into(writer, || drop(reader));
}

#[test]
fn pingpong_tells_what_both_saw_and_leaves_nothing_behind() {
    let system = System::start("secondaries = 1", REQUESTS);
    let dir = tempfile::tempdir().unwrap();
    let output = osps().args(["pingpong", "--count", "1000"]).env("TMPDIR", dir.path()).output().unwrap();
    let (code, said, error) = read(output);
    assert_eq!(code, Some(0), "{error}");
    for expected in ["principal pid", "secondary pid", "saw 1000 pings", "saw 1000 pongs", "round trip"] {
        assert!(said.contains(expected), "{expected:?} not in {said}");
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    serves(&system);
}

#[test]
fn a_file_that_others_write_to_as_well_keeps_every_line() {
    let dir = tempfile::tempdir().unwrap();
    let script = "exec 2>errors; echo first >&2; \"$0\" status --runtime-dir none; echo last >&2";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(osps().get_program()).current_dir(dir.path());
    assert!(shell.status().unwrap().success());
    let errors = fs::read_to_string(dir.path().join("errors")).unwrap();
    assert_eq!(errors, "first\nosps: no osps is running in none\nlast\n");
}

#[test]
fn a_standard_output_that_takes_nothing_is_an_error_and_one_that_nobody_reads_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], stdout: Stdio| {
        let mut osps = Command::new(env!("CARGO_BIN_EXE_osps"));
        let output = osps.args(arguments).env("TMPDIR", dir.path()).stdout(stdout).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for arguments in [&["--help"][..], &["help", "check"], &["check"], &["pingpong", "--count", "2"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, said) = run(arguments, full.into());
        assert_eq!(code, Some(70), "{arguments:?}: {said}");
        assert!(said.contains("cannot write to standard output: No space left"), "{arguments:?}: {said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(arguments, writer.into()), (Some(0), String::new()), "{arguments:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "pingpong has left its directory");
}
