//! `osps-stress` against real systems: what it counts, what it tells, what it refuses.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{REQUESTS, System, ports};
use nix::sys::signal::Signal;
use serde_json::Value;

fn stress(system: &System, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    command.arg("--at").arg(system.address().to_string()).arg("--quiet").args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// The report of a run, and its exit code.
fn report(mut command: Command) -> (Value, i32) {
    let output = command.arg("--json").output().unwrap();
    let json = serde_json::from_slice(&output.stdout);
    (json.unwrap_or_else(|error| panic!("{error}: {}", said(&output))), output.status.code().unwrap())
}

fn failures(report: &Value) -> u64 {
    report["errors"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn every_request_of_a_closed_loop_is_counted() {
    let system = System::start("secondaries = 2", REQUESTS);
    for more in [&[][..], &["--renew"], &["--expect", "echo"], &["--expect", "line", "--size", "1"]] {
        let (report, code) = report(stress(&system, &[&["--count", "500", "--clients", "7"], more].concat()));
        assert_eq!(
            (code, &report["ok"], &report["errors"]),
            (0, &500.into(), &serde_json::json!({})),
            "{more:?}"
        );
        let at = |name: &str| report[name].as_f64().unwrap();
        assert!(at("rate") > 0.0 && at("min_us") > 0.0);
        let percentiles = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"].map(at);
        assert!(percentiles.is_sorted(), "{percentiles:?}");
    }
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["done"], 2000);
}

#[test]
fn a_mix_is_asked_for_by_weight_and_told_by_type() {
    let system = System::start("secondaries = 1", REQUESTS);
    let mix =
        ["--type", "echo=3", "--type", "requetetype1", "--count", "40", "--clients", "4", "--ramp", "50ms"];
    let (report, code) = report(stress(&system, &mix));
    assert_eq!(code, 0);
    assert_eq!(
        (&report["types"]["echo"]["ok"], &report["types"]["requetetype1"]["ok"]),
        (&30.into(), &10.into())
    );
    assert!(report["types"]["requetetype1"]["min_us"].as_f64().unwrap() >= 20_000.0, "it waits for 20 ms");
}

#[test]
fn large_messages_come_back_whole() {
    let system = System::start("secondaries = 1", REQUESTS);
    let large = ["--size", "300000", "--count", "20", "--clients", "3", "--expect", "echo"];
    assert_eq!(report(stress(&system, &large)).1, 0);
    assert_eq!(report(stress(&system, &["--size", "0", "--count", "20", "--clients", "3"])).1, 0);
}

#[test]
fn an_open_loop_tells_of_a_server_that_stood_still() {
    let times = "[watchdog]\nperiod = \"250ms\"\nsuspect_after = \"20s\"\nkill_after = \"30s\"\n";
    let system = System::start("secondaries = 1", &format!("{REQUESTS}{times}"));
    let loads = stress(&system, &["--rate", "200", "--duration", "3s", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = system.pid(1);
    system.until("that it has begun", |status| status["ledger"]["done"].as_u64() > Some(0));
    system.signal(pid, Signal::SIGSTOP);
    pause(1500);
    system.signal(pid, Signal::SIGCONT);
    let output = loads.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ok"], failures(&report)), (&600.into(), 0), "whatever was to begin has begun");
    // Half of the requests should have begun while it stood still: a closed loop would have left them out.
    assert!(report["p90_us"].as_f64().unwrap() >= 500_000.0, "{report}");
    assert!(report["max_us"].as_f64().unwrap() >= 1_300_000.0, "{report}");
}

#[expect(clippy::disallowed_methods, reason = "what is tested is a stretch of time")]
fn pause(millis: u64) {
    std::thread::sleep(std::time::Duration::from_millis(millis));
}

#[test]
fn what_an_interrupted_run_leaves_undone_is_counted() {
    let times = "[watchdog]\nperiod = \"250ms\"\nsuspect_after = \"20s\"\nkill_after = \"30s\"\n";
    let system = System::start("secondaries = 1", &format!("{REQUESTS}{times}"));
    for processes in ["1", "2"] {
        let run =
            ["--rate", "200", "--clients", "20", "--duration", "60s", "--json", "--processes", processes];
        let mut loads = stress(&system, &run).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let done = system.status()["ledger"]["done"].as_u64().unwrap();
        system.until("that it has begun", |status| status["ledger"]["done"].as_u64() > Some(done + 20));
        let pid = system.pid(0);
        system.signal(pid, Signal::SIGSTOP);
        pause(1000);
        // Two that come at once may be one.
        while loads.try_wait().unwrap().is_none() {
            system.signal(loads.id(), Signal::SIGINT);
            pause(100);
        }
        let output = loads.wait_with_output().unwrap();
        system.signal(pid, Signal::SIGCONT);
        assert_eq!(output.status.code(), Some(69));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let errors = &report["errors"];
        if processes == "1" {
            assert_eq!(errors["unfinished"], 20, "all clients were at a request: {errors}");
            assert!(errors["not_begun"].as_u64() > Some(50), "a second of them: {errors}");
        } else {
            // Those that did not tell in time are told of.
            assert!(failures(&report) > 0, "{errors}");
        }
        let steps = report["timeline"]["ok"].as_array().unwrap().len();
        assert!(
            steps as f64 >= report["duration_s"].as_f64().unwrap() * 10.0,
            "the time line goes to the end"
        );
    }
}

#[test]
fn a_unix_socket_is_asked_from_one_address() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", dir.path().join("principal").display());
    let system = System::start(&format!("listen = [\"127.0.0.1:0\", {socket:?}]\nsecondaries = 1"), REQUESTS);
    let mut command = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    command.args(["--at", &socket, "--clients", "100", "--count", "300", "--quiet"]);
    let (report, code) = report(command);
    assert_eq!((code, &report["ok"], &report["errors"]), (0, &300.into(), &serde_json::json!({})));
    system.books_are_exact();
}

#[test]
fn nobody_has_to_read_the_course_of_it() {
    let system = System::start("secondaries = 1", REQUESTS);
    let mut command = Command::new("sh");
    let script =
        "{ \"$0\" --at \"$1\" --clients 2 --duration 1500ms; echo $? >&3; } 2>&1 >/dev/null 3>code | true";
    command.args(["-c", script, env!("CARGO_BIN_EXE_osps-stress"), &system.address().to_string()]);
    assert!(command.current_dir(system.dir.path()).status().unwrap().success());
    let code = common::eventually("its end", || {
        fs::read_to_string(system.dir.path().join("code")).ok().filter(|c| !c.is_empty())
    });
    assert_eq!(code, "0\n");
}

#[test]
fn several_processes_add_up() {
    let system = System::start("secondaries = 2", REQUESTS);
    let (report, code) = report(stress(&system, &["--processes", "3", "--clients", "10", "--count", "101"]));
    assert_eq!((code, &report["ok"]), (0, &101.into()));
    let (few, _) = self::report(stress(&system, &["--processes", "4", "--clients", "8", "--count", "2"]));
    assert_eq!(few["ok"], 2);
    assert_eq!((&report["setting"]["clients"], &report["setting"]["processes"]), (&10.into(), &3.into()));
    assert_eq!(system.books_are_exact()["ledger"]["done"], 103);
}

#[test]
fn failures_are_told_by_their_kind_and_make_the_exit_code() {
    let system = System::start("secondaries = 1\nmax_jobs = 1\nqueue_within = \"0s\"", REQUESTS);
    let (busy, code) =
        report(stress(&system, &["--clients", "8", "--count", "100", "--type", "requetetype1"]));
    assert_eq!((code, busy["errors"]["busy"].as_u64().is_some()), (69, true), "{busy}");
    let (unknown, code) = report(stress(&system, &["--clients", "2", "--count", "5", "--type", "nothing"]));
    assert_eq!((code, &unknown["errors"]), (69, &serde_json::json!({ "no_port": 5 })));
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    let (_bound, address) = ports::nobody();
    nobody.args(["--at", &address.to_string(), "--clients", "2", "--count", "4", "--quiet"]);
    let (refused, code) = report(nobody);
    assert_eq!((code, &refused["errors"]), (69, &serde_json::json!({ "refused": 4 })));
    let (late, code) = report(stress(
        &system,
        &["--clients", "1", "--count", "2", "--type", "requetetype2", "--timeout", "5ms"],
    ));
    assert_eq!((code, late["errors"]["timeout"].as_u64().is_some()), (69, true), "{late}");
}

#[test]
fn many_clients_come_from_many_addresses() {
    let system = System::start("secondaries = 1\nmax_clients_per_address = 64", REQUESTS);
    let (spread, code) = report(stress(&system, &["--clients", "200", "--count", "400"]));
    assert_eq!((code, &spread["ok"]), (0, &400.into()), "{spread}");
    let (one, code) = report(stress(&system, &["--clients", "200", "--count", "400", "--sources", "1"]));
    assert_eq!(code, 69);
    assert!(failures(&one) > 0);
}

#[test]
fn faults_strike_and_are_told() {
    let mut system = System::start("secondaries = 3", REQUESTS);
    let mut command = stress(&system, &["--faults", "5", "--duration", "2s", "--rate", "300"]);
    command.arg("--runtime-dir").arg(system.rundir());
    let (report, _) = report(command);
    let faults = report["faults"].as_array().unwrap();
    assert!(!faults.is_empty());
    let words = ["killed principal", "froze principal", "killed secondary", "froze secondary"];
    for fault in faults {
        let what = fault["what"].as_str().unwrap();
        assert!(words.iter().any(|word| what.starts_with(word)), "{what}");
    }
    let refused = report["errors"].get("refused");
    assert_eq!(refused, None, "no connection is refused while servers are replaced");
    system.all_ready();
    system.books_are_exact();
    assert!(system.stop().success());
}

#[test]
fn only_the_system_that_is_loaded_is_struck() {
    let [loaded, other] = [(); 2].map(|()| System::start("secondaries = 1", REQUESTS));
    let mut command = stress(&loaded, &["--faults", "1000", "--count", "10"]);
    let output = command.arg("--runtime-dir").arg(other.rundir()).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("is not the system of"), "{}", said(&output));
    for slot in 0..=1 {
        assert_eq!(System::server(&other.status(), slot)["restarts"], 0);
    }
}

#[test]
fn a_report_is_drawn_kept_and_compared() {
    let system = System::start("secondaries = 1", REQUESTS);
    let file = |name: &str| system.dir.path().join(name).to_str().unwrap().to_owned();
    let [plot, hdr, one, two] = ["plot.svg", "latency.hgrm", "one.json", "two.json"].map(file);
    let run = ["--count", "100", "--clients", "2", "--plot", &plot, "--hdr", &hdr, "--json"];
    for json in [&one, &two] {
        let output = stress(&system, &run).output().unwrap();
        fs::write(json, &output.stdout).unwrap();
    }
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("latency by percentile"));
    assert!(fs::read_to_string(&hdr).unwrap().contains("#[Max"));
    let output =
        Command::new(env!("CARGO_BIN_EXE_osps-stress")).args(["--compare", &one, &two]).output().unwrap();
    let table = said(&output);
    for word in ["one.json", "two.json", "rate", "p999_us", "to the first"] {
        assert!(table.contains(word), "{table}");
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_osps-stress")).args(["--compare", &plot, &two]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(said(&output).contains("plot.svg is no report"));
}

#[test]
fn people_read_a_table_and_the_course_of_it() {
    let system = System::start("secondaries = 1", REQUESTS);
    let mut command = Command::new(env!("CARGO_BIN_EXE_osps-stress"));
    command.arg("--at").arg(system.address().to_string()).args(["--clients", "2", "--duration", "1500ms"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let (table, course) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(table.contains("0 failed") && table.contains("99.9 %") && table.contains("longest"), "{table}");
    assert!(course.contains("in flight") && !course.contains('\u{1b}'), "plain lines: {course:?}");
}

#[test]
fn a_limit_in_the_way_is_named_before_anything_begins() {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "ulimit -n 100; exec \"$0\" --clients 100 --count 1",
        env!("CARGO_BIN_EXE_osps-stress"),
    ]);
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let said = said(&output);
    assert!(said.contains("232 descriptors") && said.contains("--processes"), "{said}");
    for (arguments, word) in [
        (&["--rate", "0"][..], "--rate"),
        (&["--type", "a b"], "a b"),
        (&["--processes", "9", "--clients", "3"], "--processes"),
        (&["--at", "[::1]:1", "--sources", "4"], "--sources"),
        (&["--size", "0", "--expect", "echo"], "--expect"),
        (&["--duration", "1s", "--count", "1"], "--count"),
        (&["--type", "echo", "--type", "echo=3"], "twice"),
        (&["--duration", "1s", "--ramp", "2s"], "--ramp"),
        (&["--at", "unix:/no/such", "--sources", "2"], "--sources"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_osps-stress")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(self::said(&output).contains(word), "{arguments:?}: {}", self::said(&output));
    }
}
