//! The log: lines for programs, the record of each job, repeats; and that it never holds up anybody.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;

use common::{REQUESTS, System, ask, connect, eventually, job, read_to_end, request, say};
use humantime_serde::re::humantime::parse_rfc3339;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Commands that end with 3, and that say what no line may have.
const COMMANDS: &str = r#"
[[request]]
name = "three"
handler = "exec"
command = ["sh", "-c", "cat; exit 3"]

[[request]]
name = "noise"
handler = "exec"
command = ["sh", "-c", "printf '\\033[2J\"\\\\\\377\\001%5000s\\n\"' x >&2"]
"#;
const TIMES: &str = "[watchdog]\nperiod = \"50ms\"\n";

/// A system with these keys, and with `--log-format json`.
fn start_json(top: &str, rest: &str) -> System {
    let system = System::start_by(top, rest, |mut command| {
        command.args(["--log-format", "json"]);
        command
    });
    system.all_ready();
    system
}

/// A log, each line of it an object that tells when, how bad, who and what.
fn parsed(log: &str) -> Vec<Value> {
    assert!(log.is_empty() || log.ends_with('\n'), "whole lines");
    log.lines().map(parsed_line).collect()
}

fn parsed_line(line: &str) -> Value {
    let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let time = object["time"].as_str().unwrap();
    assert!(parse_rfc3339(time).is_ok() && time.len() == "2026-01-31T12:00:00.000Z".len(), "{line}");
    assert!(
        ["error", "warn", "info", "debug", "trace"].contains(&object["level"].as_str().unwrap()),
        "{line}"
    );
    let role = object["role"].as_str().unwrap();
    assert!(["watchdog", "principal", "secondary", "observer"].contains(&role), "{line}");
    assert_eq!(object["slot"].is_u64(), role == "secondary", "{line}");
    assert!(object["pid"].is_u64() && object["message"].is_string(), "{line}");
    assert!(line.len() < 4096, "{} bytes", line.len());
    object
}

/// The access records of a log.
fn records(log: &str) -> Vec<Value> {
    parsed(log).into_iter().filter(|line| line["access"].is_object()).collect()
}

/// The one record of a job of that type.
fn record<'a>(records: &'a [Value], kind: &str) -> &'a Value {
    let of_kind: Vec<&Value> = records.iter().filter(|line| line["access"]["type"] == kind).collect();
    assert_eq!(of_kind.len(), 1, "{kind}: {of_kind:?}");
    of_kind[0]
}

/// A message to a job of that type, and all that comes back until the server closes.
fn exchange(address: SocketAddr, kind: &str, message: &str) -> String {
    let mut data = request(address, kind);
    data.write_all(message.as_bytes()).unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    read_to_end(&mut data)
}

fn reload(system: &System, keys: &str) {
    let path = system.dir.path().join("osps.toml");
    fs::write(&path, format!("{keys}\n{}", fs::read_to_string(&path).unwrap())).unwrap();
    let output = system.tool(&["reload"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn every_line_for_programs_is_an_object_whatever_happens() {
    let mut system = start_json("secondaries = 2", &format!("{REQUESTS}{COMMANDS}{TIMES}"));
    assert!(system.tool(&["log", "debug"]).output().unwrap().status.success());
    assert_eq!(exchange(system.address(), "echo", "comes back"), "comes back");
    assert_eq!(exchange(system.address(), "noise", ""), "");
    // The client's last byte comes before the secondary's last word about the job.
    let _ = system.books_are_exact();
    let killed = system.pid(2);
    system.signal(killed, Signal::SIGKILL);
    system.until("another", |status| System::server(status, 2)["pid"] != killed);
    system.signal(system.pid(0), Signal::SIGKILL);
    system.until("another principal", |status| System::server(status, 0)["incarnation"] == 2);
    system.all_ready();
    assert!(system.stop().success());
    let lines = parsed(&system.log());
    let obituaries: Vec<&Value> = lines.iter().filter(|line| line["obituary"]["pid"] == killed).collect();
    let [obituary] = obituaries[..] else { panic!("{obituaries:?}") };
    assert_eq!((&obituary["level"], &obituary["role"]), (&"warn".into(), &"principal".into()));
    let of_killed = &obituary["obituary"];
    assert_eq!((&of_killed["role"], &of_killed["slot"]), (&"secondary".into(), &2.into()));
    assert_eq!((&of_killed["cause"], &of_killed["jobs"]), (&"signal 9".into(), &0.into()));
    assert!(obituary["message"].as_str().unwrap().starts_with("obituary role=secondary slot=2 "));
    let roles: BTreeSet<&str> = lines.iter().map(|line| line["role"].as_str().unwrap()).collect();
    assert_eq!(roles.into_iter().collect::<Vec<_>>(), ["principal", "secondary", "watchdog"]);
    // What a command says is escaped before it is anybody's line.
    let noise = lines
        .iter()
        .find(|line| line["message"].as_str().unwrap().contains(r#"(noise): \x1b[2J\"\\\xff\x01"#));
    assert!(noise.is_some(), "{}", system.log());
}

#[test]
fn who_cannot_start_says_so_in_the_format_that_was_asked_for() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"\n", taken.local_addr().unwrap());
    let mut by_key = System::start_unready(&format!("{listen}log_format = \"json\""), "");
    assert_eq!(by_key.ended().code(), Some(69));
    let mut wrong = System::start_by("secondaries = 0", "", |mut command| {
        command.arg("--log-format=json");
        command
    });
    assert_eq!(wrong.ended().code(), Some(78));
    for (system, why) in [(by_key, "another program has this port"), (wrong, "secondaries = 0")] {
        let lines = parsed(&system.log());
        assert_eq!(
            (lines.len(), &lines[0]["level"], &lines[0]["role"]),
            (1, &"error".into(), &"watchdog".into())
        );
        assert!(lines[0]["message"].as_str().unwrap().contains(why), "{}", lines[0]);
    }
}

#[test]
fn each_job_that_has_ended_has_one_record() {
    let top = "secondaries = 2\naccess_log = true\nclaim_within = \"500ms\"";
    let mut system = start_json(top, &format!("{REQUESTS}{COMMANDS}"));
    let address = system.address();
    let mut done = request(address, "echo");
    let port = done.local_addr().unwrap().port();
    assert_eq!(say(&mut done, "123456789"), "123456789");
    done.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut done), "");
    assert_eq!(exchange(address, "three", "abc"), "abc");
    let mut lost = request(address, "requetetype1");
    assert_eq!(say(&mut lost, "x\n").lines().count(), 1);
    let status = system.status();
    let slot = (1..=2)
        .find(|&slot| {
            System::server(&status, slot)["ports"]["requetetype1"] == lost.peer_addr().unwrap().port()
        })
        .unwrap();
    system.signal(system.pid(slot), Signal::SIGKILL);
    common::breaks(&mut lost);
    let mut control = connect(address);
    job(&mut control, "requetetype2");
    system.until("its expiry", |status| status["requests"]["requetetype2"]["expired"] == 1);
    system.books_are_exact();
    assert!(system.stop().success());

    let records = records(&system.log());
    assert_eq!(records.len(), 4, "{records:?}");
    let echo = record(&records, "echo");
    let access = &echo["access"];
    assert_eq!((&echo["role"], &echo["level"]), (&"secondary".into(), &"info".into()));
    assert_eq!((&access["peer"], &access["peer_port"]), (&"127.0.0.1".into(), &port.into()));
    assert_eq!(access["secondary"], format!("{}.{}", echo["slot"], echo["incarnation"]));
    assert_eq!((&access["bytes_in"], &access["bytes_out"]), (&9.into(), &9.into()));
    assert_eq!((&access["outcome"], &access["reason"]), (&"done".into(), &Value::Null));
    assert!(
        access["wait_ms"].is_number() && access["service_ms"].is_number() && access["job"] == 1,
        "{access}"
    );

    let three = &record(&records, "three")["access"];
    assert_eq!((&three["outcome"], &three["reason"]), (&"failed".into(), &"exit 3".into()));
    assert!(three["bytes_in"].is_null() && three["bytes_out"].is_null(), "the command had the socket itself");

    let lost = record(&records, "requetetype1");
    let access = &lost["access"];
    assert_eq!((&lost["role"], &access["secondary"]), (&"principal".into(), &format!("{slot}.1").into()));
    assert_eq!((&access["outcome"], &access["reason"]), (&"failed".into(), &"secondary lost".into()));
    assert!(access["service_ms"].is_number() && access["bytes_in"].is_null(), "{access}");

    let expired = &record(&records, "requetetype2")["access"];
    assert_eq!((&expired["outcome"], &expired["service_ms"]), (&"expired".into(), &Value::Null));
    assert!(expired["wait_ms"].as_f64().unwrap() >= 500.0 && expired["peer"] == "127.0.0.1", "{expired}");
}

#[test]
fn a_reload_switches_records_on_and_off_and_the_format_unless_that_was_given() {
    let mut system = System::start("secondaries = 1", &format!("{REQUESTS}{TIMES}"));
    let address = system.address();
    let one = |number: u32| {
        assert_eq!(exchange(address, "echo", "x"), "x", "job {number}");
    };
    one(1);
    let mut stays = request(address, "echo");
    assert_eq!(say(&mut stays, "x"), "x");
    reload(&system, "access_log = true");
    one(3);
    let human = " type=echo peer=127.0.0.1 peer_port=";
    let line = eventually("its line", || {
        system.log().lines().find(|line| line.contains(" job=3 ")).map(str::to_owned)
    });
    assert!(line.contains("]: access job=3") && line.contains(human), "{line}");
    assert!(line.ends_with(" bytes_in=1 bytes_out=1 outcome=done"), "{line}");
    // Who leaves hears of it at its next probe, which this waits for.
    assert!(system.tool(&["log", "default"]).output().unwrap().status.success());
    stays.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut stays), "");
    let before = system.log();
    assert!(before.contains(" job=2 ") && !before.contains(" job=1 "), "{before}");

    let path = system.dir.path().join("osps.toml");
    fs::write(
        &path,
        fs::read_to_string(&path).unwrap().replace("access_log = true", "log_format = \"json\""),
    )
    .unwrap();
    assert!(system.tool(&["reload"]).output().unwrap().status.success());
    one(4);
    let marked = system.log().len();
    let killed = system.pid(1);
    system.signal(killed, Signal::SIGKILL);
    system.until("another", |status| System::server(status, 1)["pid"] != killed);
    system.all_ready();
    assert!(system.stop().success());
    let after = parsed(&system.log()[marked..]);
    assert!(after.iter().any(|line| line["obituary"]["pid"] == killed), "{after:?}");
    assert_eq!(system.log().matches("outcome").count(), 2);

    let given = start_json("secondaries = 1", &format!("{REQUESTS}{TIMES}"));
    reload(&given, "log_format = \"human\"");
    assert_eq!(exchange(given.address(), "echo", "x"), "x");
    assert!(!parsed(&given.log()).is_empty());
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_job_and_what_was_dropped_is_told() {
    let mut system = System::start_by("secondaries = 2\naccess_log = true", REQUESTS, |mut command| {
        command.args(["--log-format", "json"]).stderr(Stdio::piped());
        command
    });
    system.all_ready();
    let mut control = connect(system.address());
    // A pipe holds 64 KiB (pipe(7)): less than these records.
    const JOBS: usize = 600;
    let host = control.peer_addr().unwrap().ip();
    let mut one = |number: usize| {
        let mut data = connect(SocketAddr::new(host, job(&mut control, "echo")));
        assert_eq!(say(&mut data, "x"), "x", "job {number}");
        data.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut data), "");
    };
    (0..JOBS).for_each(&mut one);
    let mut reader = system.watchdog.stderr.take().unwrap();
    let mut log = String::new();
    let mut lines = Vec::new();
    // Whoever has dropped something tells of it with what it says next.
    while dropped(&lines).is_none() {
        one(JOBS);
        let mut bytes = [0; 16 * 1024];
        let length = reader.read(&mut bytes).unwrap();
        log.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        // What was read may end within a line.
        lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parsed_line).collect();
    }
    let notice = dropped(&lines).unwrap();
    assert_eq!((&notice["level"], &notice["role"]), (&"warn".into(), &"secondary".into()));
    let said = format!("{} lines could not be written and were dropped", notice["dropped"]);
    assert_eq!(notice["message"], said);
    assert_eq!(ask(&mut control, "echo").parse::<u16>().map(|_| ()), Ok(()));
}

fn dropped(lines: &[Value]) -> Option<Value> {
    lines.iter().find(|line| line["dropped"].is_u64()).cloned()
}

#[test]
fn what_repeats_is_counted_and_told_and_no_death_is_withheld() {
    const ASKED: u64 = 16;
    const SLOTS: u16 = 16;
    let mut system = start_json(&format!("secondaries = {SLOTS}"), &format!("{REQUESTS}{TIMES}"));
    for _ in 0..ASKED {
        assert!(system.tool(&["log", "info"]).output().unwrap().status.success());
    }
    let victims: Vec<u32> = system.pids()[2..].to_vec();
    assert_eq!(victims.len(), usize::from(SLOTS));
    victims.iter().for_each(|&pid| system.signal(pid, Signal::SIGKILL));
    system.until("others", |status| {
        (1..=u64::from(SLOTS)).all(|slot| System::server(status, slot)["incarnation"] == 2)
    });
    system.all_ready();
    assert!(system.stop().success());
    let lines = parsed(&system.log());
    let asked =
        lines.iter().filter(|line| line["message"].as_str().unwrap().starts_with("a tool asks: log info"));
    let (counted, told): (Vec<&Value>, Vec<&Value>) = asked.partition(|line| line["repeated"].is_u64());
    let withheld: u64 = counted.iter().map(|line| line["repeated"].as_u64().unwrap()).sum();
    assert_eq!(told.len() as u64 + withheld, ASKED, "{told:?} {counted:?}");
    assert!(withheld > 0 && told.len() >= 10, "{told:?} {counted:?}");
    let said = counted[0]["message"].as_str().unwrap();
    let times = counted[0]["repeated"].as_u64().unwrap();
    assert!(said.contains(&format!(": repeated {times} times in ")) && said.ends_with(" s"), "{said}");
    for pid in victims {
        let obituaries = lines.iter().filter(|line| line["obituary"]["pid"] == pid);
        assert_eq!(obituaries.count(), 1, "of {pid}");
    }
}

/// The data connection of a client that resets it.
fn reset(address: SocketAddr, kind: &str) {
    let data: TcpStream = request(address, kind);
    nix::sys::socket::setsockopt(
        &data,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    )
    .unwrap();
}

#[test]
fn records_tell_of_who_broke_off_and_of_who_was_cut_off_by_a_stop() {
    let mut system = start_json("secondaries = 1\naccess_log = true", &format!("{REQUESTS}{COMMANDS}"));
    let mut open = request(system.address(), "echo");
    assert_eq!(say(&mut open, "x"), "x");
    reset(system.address(), "requetetype1");
    system.until("its end", |status| status["requests"]["requetetype1"]["failed"] == 1);
    let mut control = connect(system.address());
    job(&mut control, "block");
    let mut stop = system.tool(&["stop"]).spawn().unwrap();
    eventually("the stop", || system.log().contains("stopping gracefully").then_some(()));
    // Again, which is at once.
    assert!(system.tool(&["stop"]).output().unwrap().status.success());
    assert!(stop.wait().unwrap().success() && system.ended().success());
    let records = records(&system.log());
    assert_eq!(records.len(), 3, "{records:?}");
    let outcome = |kind: &str| {
        let access = &record(&records, kind)["access"];
        (access["outcome"].as_str().unwrap(), access["reason"].as_str())
    };
    assert_eq!(outcome("requetetype1"), ("failed", Some("connection lost")));
    assert_eq!(outcome("echo"), ("failed", Some("stopping")));
    assert_eq!(outcome("block"), ("expired", None));
}
