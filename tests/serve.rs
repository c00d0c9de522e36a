//! Clients that do what the protocol says, against real processes.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr};

use common::{REQUESTS, System, connect, read_to_end, recv, request, say, together};
use serde_json::Value;

#[test]
fn a_bare_request_gets_digits_and_a_line_request_a_line() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut control = system.connect();
    control.write_all(b"requetetype1").unwrap();
    let digits = recv(&mut control);
    assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits:?}");
    assert!(digits.parse::<u16>().unwrap() > 2222);
    let mut control = system.connect();
    control.write_all(b"requetetype1\n").unwrap();
    let line = recv(&mut control);
    assert!(line.trim_end_matches('\n').parse::<u16>().unwrap() > 2222, "{line:?}");
    assert!(line.ends_with('\n'));
}

#[test]
fn the_control_connection_may_be_closed_before_the_data_connection_is_opened() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut data = request(system.address(), "requetetype1");
    data.write_all(b"hello").unwrap();
    assert!(recv(&mut data).starts_with("ok message 1 secondary "));
}

#[test]
fn twenty_requests_on_one_control_connection() {
    let system = System::start("secondaries = 2", REQUESTS);
    let address = system.address();
    let mut control = BufReader::new(connect(address));
    for number in 0..20 {
        let kind = if number % 2 == 0 { "echo" } else { "requetetype1" };
        control.get_mut().write_all(format!("{kind}\n").as_bytes()).unwrap();
        let mut line = String::new();
        control.read_line(&mut line).unwrap();
        let mut data = connect(SocketAddr::new(address.ip(), line.trim().parse().unwrap()));
        data.write_all(b"x\n").unwrap();
        data.shutdown(Shutdown::Write).unwrap();
        assert!(!read_to_end(&mut data).is_empty());
    }
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["done"], 20);
    assert_eq!(status["requests"]["echo"]["done"], 10);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let system = System::start("secondaries = 1", REQUESTS);
    let mut control = system.connect();
    control.write_all(b"echo\nrequetetype1\r\nnosuch\n\necho\n").unwrap();
    control.shutdown(Shutdown::Write).unwrap();
    let answer = read_to_end(&mut control);
    let lines: Vec<&str> = answer.lines().collect();
    let status = system.status();
    let ports = &System::server(&status, 1)["ports"];
    assert_eq!(lines.len(), 4, "{answer:?}");
    assert_eq!(lines[0], ports["echo"].to_string());
    assert_eq!(lines[1], ports["requetetype1"].to_string());
    assert!(lines[2].starts_with("-1 unknown request type \"nosuch\"; known: requetetype1"), "{answer:?}");
    assert_eq!(lines[3], lines[0]);
}

#[test]
fn five_messages_without_newline_on_one_data_connection() {
    let system = System::start("secondaries = 2", REQUESTS);
    let mut data = request(system.address(), "requetetype1");
    for number in 1..=5 {
        data.write_all(format!("message {number}").as_bytes()).unwrap();
        assert!(recv(&mut data).starts_with(&format!("ok message {number} secondary ")));
    }
    drop(data);
    assert_eq!(system.books_are_exact()["ledger"]["done"], 1);
}

#[test]
fn a_half_closed_client_gets_its_last_answers() {
    let system = System::start("secondaries = 1", REQUESTS);
    for kind in ["requetetype1", "block"] {
        let mut data = request(system.address(), kind);
        data.write_all(b"one\ntwo\nthree").unwrap();
        data.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            read_to_end(&mut data),
            "ok message 1 secondary 1\nok message 2 secondary 1\nok message 3 secondary 1\n"
        );
    }
}

#[test]
fn echo_returns_every_byte_however_slowly_it_is_read() {
    let system = System::start("secondaries = 1", REQUESTS);
    let bytes: Vec<u8> = (0..5_000_000u32).map(|number| number.to_le_bytes()[0]).collect();
    let mut client = osps::client::Client::new(&system.address().to_string()).unwrap();
    client.limits = osps::client::Limits::each(common::PATIENCE);
    let reply = client.call("echo", &bytes).unwrap();
    assert!(reply.bytes == bytes, "{} bytes came back of {}", reply.bytes.len(), bytes.len());
}

#[test]
fn two_hundred_clients_at_once_are_all_answered_and_the_load_is_spread() {
    let system = System::start("secondaries = 4", REQUESTS);
    let address = system.address();
    let answers = together(200, move |number| {
        let kind = if number % 2 == 0 { "requetetype1" } else { "requetetype2" };
        let mut data = request(address, kind);
        data.write_all(b"hello").unwrap();
        recv(&mut data)
    });
    assert!(answers.iter().all(|answer| answer.starts_with("ok message 1 secondary ")), "{answers:?}");
    let status = system.books_are_exact();
    assert_eq!(status["ledger"]["done"], 200);
    for slot in 1..=4 {
        let done = System::server(&status, slot)["done"].as_u64().unwrap();
        assert!(done >= 20, "secondary {slot} did {done} of 200: {status}");
    }
}

#[test]
fn a_job_that_nobody_claims_expires() {
    let system = System::start("secondaries = 1\nclaim_within = \"50ms\"", REQUESTS);
    let mut control = system.connect();
    control.write_all(b"echo\n").unwrap();
    let port: u16 = recv(&mut control).trim().parse().unwrap();
    let status = system.books_are_exact();
    assert_eq!(status["requests"]["echo"]["expired"], 1);
    let mut late = connect(SocketAddr::new(system.address().ip(), port));
    assert_eq!(read_to_end(&mut late), "");
    system.until("the late connection is counted", |status| status["ledger"]["rejected"] == 1);
}

#[test]
fn when_every_secondary_is_full_a_request_waits_and_then_gets_busy() {
    let system = System::start("secondaries = 1\nmax_jobs = 2\nqueue_within = \"100ms\"", REQUESTS);
    let address = system.address();
    let first = request(address, "echo");
    let _second = request(address, "echo");
    system.until("two open jobs", |status| status["ledger"]["open"] == 2);
    let mut control = connect(address);
    control.write_all(b"echo\n").unwrap();
    let answer = recv(&mut control);
    assert!(answer.starts_with("-1 busy: "), "{answer:?}");
    // One that waits is served as soon as there is room.
    let patient = System::start("secondaries = 1\nmax_jobs = 1\nqueue_within = \"60s\"", REQUESTS);
    let only = request(patient.address(), "echo");
    let mut waiting = patient.connect();
    waiting.write_all(b"echo").unwrap();
    drop(only);
    assert!(recv(&mut waiting).parse::<u16>().is_ok());
    drop(first);
}

#[test]
fn a_client_that_stays_silent_is_let_go() {
    let system = System::start("secondaries = 1\nclient_idle = \"1s\"", REQUESTS);
    let mut control = system.connect();
    assert_eq!(read_to_end(&mut control), "");
    let mut data = request(system.address(), "echo");
    assert_eq!(read_to_end(&mut data), "");
    assert_eq!(system.books_are_exact()["ledger"]["done"], 1);
}

/// The kernel gives up a peer that takes nothing for so long (`TCP_USER_TIMEOUT`).
#[test]
fn a_client_that_never_reads_does_not_hold_its_job_for_ever() {
    let system = System::start("secondaries = 1\nclient_idle = \"500ms\"", REQUESTS);
    let mut data = request(system.address(), "echo");
    data.set_nonblocking(true).unwrap();
    let bulk = vec![b'x'; 1 << 16];
    common::eventually("the end of the exchange", || {
        let _ = data.write(&bulk);
        (system.status()["requests"]["echo"]["failed"] == 1).then_some(())
    });
}

#[test]
fn the_reference_client_asks_and_exchanges() {
    let system = System::start("secondaries = 2", REQUESTS);
    let at = system.address().to_string();
    let run = |arguments: &[&str]| {
        let output = common::osps_client().args(["--at", &at]).args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(run(&["echo", "--data", "hello"]), (Some(0), "hello".into(), String::new()));
    assert_eq!(run(&["echo", "--data", "ab", "--repeat", "3"]), (Some(0), "ababab".into(), String::new()));
    let (code, _, error) = run(&["nosuch", "--data", "x"]);
    assert_eq!(code, Some(69));
    assert!(error.contains("nosuch") && error.contains("known: requetetype1"), "{error}");
    assert_eq!(run(&["--bogus"]).0, Some(64));
}

#[test]
fn the_reference_client_streams_standard_input() {
    let system = System::start("secondaries = 1", REQUESTS);
    let mut client = common::osps_client()
        .args(["--at", &system.address().to_string(), "echo"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"first\n").unwrap();
    let mut stdout = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n", "an answer comes before the input ends");
    drop(stdin);
    assert!(client.wait().unwrap().success());
}

#[test]
fn the_status_tells_how_long_jobs_took_and_what_processes_use() {
    let system = System::start("secondaries = 2", REQUESTS);
    for _ in 0..3 {
        let mut data = request(system.address(), "requetetype1");
        say(&mut data, "hello\n");
    }
    system.until("three jobs", |status| status["ledger"]["done"] == 3);
    let status = system.books_are_exact();
    let times = &status["times"]["requetetype1"];
    let count = |histogram: &Value| -> u64 {
        histogram["buckets"].as_array().unwrap().iter().filter_map(Value::as_u64).sum()
    };
    assert_eq!((count(&times["wait"]), count(&times["service"])), (3, 3), "{times}");
    // Each of them waited for its answer, which is a timer of 20 ms.
    assert!(times["service"]["sum_us"].as_u64().unwrap() >= 3 * 20_000, "{times}");
    assert_eq!(count(&status["times"]["echo"]["service"]), 0);
    // This one blocks its process, and ends in the turn in which it was asked.
    let mut data = request(system.address(), "block");
    data.write_all(b"hello\n").unwrap();
    data.shutdown(Shutdown::Write).unwrap();
    read_to_end(&mut data);
    let status = system.until("its end", |status| status["requests"]["block"]["done"] == 1);
    assert!(status["times"]["block"]["service"]["sum_us"].as_u64().unwrap() >= 20_000, "{status}");
    let uses_memory = |process: &Value| process["memory_bytes"].as_u64() > Some(0);
    assert!(uses_memory(&status["watchdog"]), "{status}");
    assert!(status["servers"].as_array().unwrap().iter().all(uses_memory), "{status}");
}
