//! A tree that is started by root and runs as another user. `nobody` exists everywhere.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{REQUESTS, System, connect, eventually, job, read_to_end, request, say};
use nix::sys::signal::Signal;
use osps::core::name::Name;
use osps::os::{account, proc};
use osps::page::watchdog::{Directory, WatchdogPage};

const USER: &str = "user = \"nobody\"\nsecondaries = 2\n";
const QUICK: &str = "[watchdog]\nperiod = \"50ms\"\nsuspect_after = \"250ms\"\nkill_after = \"1s\"\n";
const WHO: &str = "[[request]]\nname = \"who\"\nhandler = \"exec\"\ncommand = [\"/usr/bin/id\", \"-u\"]\n";

fn nobody() -> account::Account {
    account::user("nobody").unwrap()
}

/// Lets others reach what stands beside the configuration.
fn open_to_others(command: Command) -> Command {
    let config = Path::new(command.get_args().nth(1).unwrap());
    fs::set_permissions(config.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    command
}

fn start(top: &str) -> System {
    let system = System::start_by(top, &format!("{QUICK}{REQUESTS}{WHO}"), open_to_others);
    system.all_ready();
    system
}

/// Replaces a line of the configuration, for the next start.
fn reconfigure(system: &System, from: &str, to: &str) {
    let path = system.dir.path().join("osps.toml");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains(from));
    fs::write(path, config.replace(from, to)).unwrap();
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

/// A field of `/proc/<pid>/status`.
fn field(pid: u32, name: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_ascii_whitespace().map(str::to_owned).collect()
}

/// All processes are the user's, and none is anything more.
fn all_are(system: &System, uid: u32, gid: u32) {
    for pid in system.pids() {
        assert_eq!(field(pid, "Uid"), vec![uid.to_string(); 4]);
        assert_eq!(field(pid, "Gid"), vec![gid.to_string(); 4]);
        let groups = field(pid, "Groups");
        assert!(groups.iter().all(|group| *group != "0"), "{groups:?}");
        for set in ["CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&field(pid, set)[0], 16).unwrap(), 0, "{set} of {pid}");
        }
    }
}

fn serves(system: &System) {
    assert_eq!(say(&mut request(system.address(), "echo"), "hello"), "hello");
}

/// A tool, run by the user.
fn tool_of_user(system: &System, arguments: &[&str]) -> String {
    let (binary, mut of_user) = by_user(system);
    of_user.args(arguments).arg("--config").arg(system.dir.path().join("osps.toml"));
    let output = of_user.output().unwrap();
    assert!(output.status.success(), "{}: {output:?}", binary.display());
    String::from_utf8(output.stdout).unwrap()
}

/// The program where the user can reach it, run by the user.
fn by_user(system: &System) -> (std::path::PathBuf, Command) {
    let binary = system.dir.path().join("osps-of-user");
    if !binary.exists() {
        fs::copy(env!("CARGO_BIN_EXE_osps"), &binary).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&binary);
    command.uid(nobody().uid).gid(nobody().gid);
    (binary, command)
}

/// A port of root's that nobody has.
fn low_port() -> u16 {
    (512..1024).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

#[test]
#[ignore = "needs root"]
fn what_root_has_started_runs_as_the_user_and_recovers_as_the_user() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = dir.path().join("principal");
    let (port, account::Account { uid, gid }) = (low_port(), nobody());
    let listen = format!("listen = [\"127.0.0.1:{port}\", {:?}]\n", format!("unix:{}", socket.display()));
    let mut system = start(&format!("{USER}{listen}"));
    assert_eq!(system.address().port(), port);
    all_are(&system, uid, gid);
    assert_eq!(owner(&system.rundir()), (uid, gid));
    assert_eq!(owner(&socket), (uid, gid));
    for file in system.files() {
        let found = fs::symlink_metadata(system.rundir().join(&file)).unwrap();
        assert_eq!(((found.uid(), found.gid()), found.mode() & 0o777), ((uid, gid), 0o600), "{file}");
    }
    serves(&system);
    let given = job(&mut UnixStream::connect(&socket).unwrap(), "who");
    let mut data = connect(SocketAddr::from(([127, 0, 0, 1], given)));
    assert_eq!(read_to_end(&mut data), format!("{uid}\n"), "commands are the user's as well");

    // Killed, and frozen: found out by what /proc tells the user of its own processes.
    for (slot, signal) in
        [(1, Signal::SIGKILL), (0, Signal::SIGKILL), (2, Signal::SIGSTOP), (0, Signal::SIGSTOP)]
    {
        let pid = system.pid(slot);
        system.signal(pid, signal);
        system.until("a successor", |status| {
            let server = System::server(status, slot);
            server["pid"] != pid && server["state"] == "ready"
        });
        serves(&system);
    }
    system.all_ready();
    all_are(&system, uid, gid);
    let log = system.log();
    assert!(log.contains("state T): stopped, no answer within kill_after"), "its state is known");
    assert!(!log.contains("Permission denied") && !log.contains("not permitted"), "{log}");
    system.books_are_exact();
    assert!(system.stop().success());
    assert_eq!(system.files(), ["lock"]);
    assert!(socket.exists(), "its directory is root's");
    assert!(system.log().contains("cannot remove"), "and that is told");
}

#[test]
#[ignore = "needs root"]
fn root_and_the_user_start_it_in_turn() {
    let mut system = start(USER);
    let account::Account { uid, gid } = nobody();
    assert!(system.stop().success());
    system.start_again();
    all_are(&system, uid, gid);
    assert!(tool_of_user(&system, &["status"]).contains("secondary 2"));
    tool_of_user(&system, &["stop"]);
    assert!(system.ended().success());

    // The user itself, for whom the same configuration is as good.
    let (_, mut command) = by_user(&system);
    let config = system.dir.path().join("osps.toml");
    let mut own =
        command.arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    system.until("its own", |status| status["pid"] == own.id());
    system.all_ready();
    serves(&system);
    assert!(system.tool(&["stop"]).output().unwrap().status.success(), "root stops it");
    assert!(own.wait().unwrap().success());

    reconfigure(&system, "user = \"nobody\"\n", "user = \"root\"\n");
    let config = system.dir.path().join("osps.toml");
    let refused = by_user(&system).1.arg("--config").arg(config).output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only root can become another user"));
    reconfigure(&system, "user = \"root\"\n", "");
    system.start_again();
    assert_eq!(owner(&system.rundir()).0, 0, "root does not work in what is another's");
    assert_eq!(field(system.pid(1), "Uid"), vec!["0"; 4]);
    assert!(system.stop().success());
    reconfigure(&system, "secondaries = 2\n", "secondaries = 2\nuser = \"nobody\"\ngroup = \"daemon\"\n");
    system.start_again();
    let daemon = account::group("daemon").unwrap();
    all_are(&system, uid, daemon);
    assert_eq!(owner(&system.rundir()), (uid, daemon));
    assert!(tool_of_user(&system, &["status"]).contains("secondary 2"), "although its group is another");
    assert!(system.stop().success());
    assert_eq!(system.files(), ["lock"]);

    // Handed to the user without what is in it.
    let lock = system.rundir().join("lock");
    chown(&lock, Some(0), Some(0)).unwrap();
    reconfigure(&system, "user = \"nobody\"\ngroup = \"daemon\"\n", "");
    let config = system.dir.path().join("osps.toml");
    let refused = by_user(&system).1.arg("--config").arg(config).output().unwrap();
    assert_eq!(refused.status.code(), Some(77));
    let why = format!("its lock belongs to user 0: remove {}", lock.display());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains(&why), "{said}");
}

#[test]
#[ignore = "needs root"]
fn what_a_crash_leaves_of_the_users_is_cleaned_up() {
    let mut system = start(USER);
    system.signal(system.pid(1), Signal::SIGSTOP);
    let left = system.pid(1);
    system.signal(system.watchdog.id(), Signal::SIGKILL);
    system.start_again_at_once();
    eventually("the end of a survivor", || proc::stat(left).is_err().then_some(()));
    serves(&system);
    assert!(system.stop().success());
}

#[test]
#[ignore = "needs root"]
fn a_second_start_changes_nothing_under_a_running_system() {
    let system = start(USER);
    let second = system.tool(&[]).output().unwrap();
    assert_eq!(second.status.code(), Some(75), "{second:?}");
    assert_eq!(owner(&system.rundir()).0, nobody().uid);
    // Nor where it finds out late: the lock was removed.
    fs::remove_file(system.rundir().join("lock")).unwrap();
    let late = system.tool(&[]).output().unwrap();
    assert_eq!(late.status.code(), Some(75), "{late:?}");
    assert_eq!(owner(&system.rundir()).0, nobody().uid);
    serves(&system);
}

#[test]
#[ignore = "needs root"]
fn a_directory_that_cannot_be_made_again_is_told_of_once() {
    let mut system = start(USER);
    let address = system.address();
    let gone = system.dir.path().join("gone");
    fs::rename(system.rundir(), &gone).unwrap();
    fs::remove_dir_all(gone).unwrap();
    let told = || system.log().matches("cannot be mended").count();
    eventually("it is told", || (told() > 0).then_some(()));
    // Twenty turns and more.
    let until = common::now() + std::time::Duration::from_secs(1);
    while common::now() < until {
        assert_eq!(say(&mut request(address, "echo"), "hello"), "hello");
    }
    assert_eq!(told(), 1, "{}", system.log());
    // Root helps.
    fs::create_dir(system.rundir()).unwrap();
    fs::set_permissions(system.rundir(), fs::Permissions::from_mode(0o700)).unwrap();
    chown(system.rundir(), Some(nobody().uid), Some(nobody().gid)).unwrap();
    system.all_ready();
    assert!(system.stop().success());
    assert_eq!(system.files(), ["lock"]);
}

#[test]
#[ignore = "needs root"]
fn what_the_user_plants_makes_root_hurt_nobody() {
    let mut system = start(USER);
    assert!(system.stop().success());
    let account::Account { uid, gid } = nobody();

    // A page that calls a process of root's a survivor.
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let page = system.rundir().join("watchdog.page");
    let directory = Directory::default();
    let planted = WatchdogPage::create(&page, 1, &directory).unwrap();
    let start_time = proc::stat(bystander.id()).unwrap().start_time;
    planted.watch(Name::secondary(1, 1), bystander.id(), start_time).unwrap();
    chown(&page, Some(uid), Some(gid)).unwrap();
    system.start_again();
    assert!(bystander.try_wait().unwrap().is_none(), "it lives");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(system.stop().success());

    // A lock that is another file of root's, by link.
    let (secret, lock) = (system.dir.path().join("secret"), system.rundir().join("lock"));
    fs::write(&secret, "").unwrap();
    for symbolic in [false, true] {
        fs::remove_file(&lock).unwrap();
        if symbolic {
            std::os::unix::fs::symlink(&secret, &lock).unwrap();
        } else {
            fs::hard_link(&secret, &lock).unwrap();
        }
        assert!(!system.tool(&[]).output().unwrap().status.success());
        assert_eq!(owner(&secret), (0, 0));
    }
}

#[test]
#[ignore = "needs root"]
fn a_user_who_cannot_reach_the_directory_is_an_error_at_the_start() {
    let closed = |command: Command| {
        let config = Path::new(command.get_args().nth(1).unwrap());
        fs::set_permissions(config.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        command
    };
    let mut system = System::start_by(USER, REQUESTS, closed);
    assert_eq!(system.ended().code(), Some(77));
    assert!(system.log().contains("cannot reach the runtime directory"), "{}", system.log());
    assert_eq!(system.files(), ["lock"]);
}

#[test]
#[ignore = "needs root: a command of another user"]
fn a_command_is_the_first_that_its_user_can_execute() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    for (place, mode, says) in [(&first, 0o700, "first"), (&second, 0o755, "second")] {
        fs::create_dir(place).unwrap();
        fs::write(place.join("work"), format!("#!/bin/sh\necho {says}\n")).unwrap();
        fs::set_permissions(place.join("work"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(place, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let request = format!(
        "[[request]]\nname = \"work\"\nhandler = \"exec\"\ncommand = [\"work\"]\nuser = \"nobody\"\n\
         environment = {{ PATH = \"{}:{}\" }}\n",
        first.display(),
        second.display()
    );
    let system = System::start("secondaries = 1", &request);
    let mut data = common::request(system.address(), "work");
    assert_eq!(read_to_end(&mut data), "second\n");
    system.books_are_exact();
}

#[test]
#[ignore = "needs root: it looks with the eyes of another user"]
fn a_program_that_its_user_cannot_execute_is_named_by_check() {
    let dir = tempfile::tempdir().unwrap();
    let [program, config] = ["program", "osps.toml"].map(|name| dir.path().join(name));
    fs::copy("/bin/cat", &program).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let request = format!("[[request]]\nname = \"a\"\nhandler = \"exec\"\ncommand = [{program:?}]\n");
    let group = account::group("daemon").unwrap();
    chown(&program, None, Some(group)).unwrap();
    for (mode, text, is_good) in [
        (0o750, format!("user = \"nobody\"\ngroup = \"daemon\"\n{request}"), true),
        (0o750, format!("user = \"nobody\"\n{request}"), false),
        (0o755, format!("{request}user = \"nobody\"\n"), true),
        (0o700, request.clone(), true),
        (0o700, format!("{request}user = \"nobody\"\n"), false),
        (0o700, format!("user = \"nobody\"\n{request}"), false),
    ] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        fs::write(&config, &text).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_osps"));
        let output = check.arg("check").arg("--config").arg(&config).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(if is_good { 0 } else { 78 }), "{text}: {said}");
        let names_it = ["request.command", "cannot be executed by user \"nobody\"", "ermission denied"]
            .iter()
            .all(|part| said.contains(part));
        assert!(is_good || names_it, "{text}: {said}");
    }
}

#[test]
#[ignore = "needs root: to the kernel a program of another user may be one that nobody else reads"]
fn a_program_that_can_be_executed_but_not_read_is_reloaded_and_no_client_notices() {
    let system = System::start_by(USER, &format!("{QUICK}{REQUESTS}{WHO}"), |command| {
        let command = open_to_others(command);
        let program = Path::new(command.get_args().nth(1).unwrap()).with_file_name("unreadable");
        fs::copy(env!("CARGO_BIN_EXE_osps"), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o111)).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" >>stdout 2>>stderr", "sh"]).arg(program).args(command.get_args());
        shell
    });
    system.all_ready();
    let mut control = connect(system.address());
    job(&mut control, "echo");
    let principal = system.pid(0);
    let output = system.tool(&["reload"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_ne!(system.pid(0), principal);
    job(&mut control, "echo");
    serves(&system);
    assert!(!system.log().contains("ermission denied"), "{}", system.log());
}
