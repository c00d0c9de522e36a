//! `/metrics` as Prometheus' own tools read it. `tests/browser/install.sh` installs them.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use common::{REQUESTS, System, connect, installed, read_to_end, request, say};
use nix::sys::signal::Signal;

const OPENMETRICS: &str =
    "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// Prints each sample as the parser understands it: name, labels in order, value.
const PARSER: &str = r#"
import sys
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text
parser = {"openmetrics": openmetrics, "text": text}[sys.argv[1]]
for family in parser.text_fd_to_metric_families(sys.stdin):
    assert family.documentation, family
    for sample in family.samples:
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        print(f"{sample.name}{{{labels}}} {float(sample.value)}")
"#;

/// A system that has served, has refused, and has lost a secondary.
fn system() -> System {
    let system = System::start("secondaries = 2\nobserve = \"127.0.0.1:0\"", REQUESTS);
    for _ in 0..3 {
        let mut data = request(system.address(), "requetetype1");
        assert!(say(&mut data, "x\n").starts_with("ok "));
    }
    let mut control = system.connect();
    control.write_all(b"nothing\n").unwrap();
    assert!(common::recv(&mut control).starts_with("-1 "));
    drop(control);
    system.signal(system.pid(2), Signal::SIGKILL);
    system.until("a successor", |status| {
        let server = System::server(status, 2);
        server["restarts"] == 1 && server["state"] == "ready" && !server["answered_ms_ago"].is_null()
    });
    system.books_are_exact();
    system
}

/// Type and text of what a scraper with this `Accept` gets.
fn scrape(system: &System, accept: &str) -> (String, String) {
    let status = system.until("an observer", |status| status["observer"]["state"] == "ready");
    let address: SocketAddr = status["observe"][0].as_str().unwrap().parse().unwrap();
    let mut stream = connect(address);
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let response = read_to_end(&mut stream);
    let (head, text) = response.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap();
    (kind.to_owned(), text.to_owned())
}

/// What a program says of a text.
fn told(mut command: Command, text: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn samples(format: &str, text: &str) -> HashMap<String, f64> {
    let mut command = Command::new("python3");
    command.args(["-c", PARSER, format]).env("PYTHONPATH", installed("python"));
    let output = told(command, text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let sample =
        |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    lines.lines().filter_map(sample).collect()
}

#[test]
#[ignore = "needs Python and the parser of prometheus_client"]
fn the_official_parser_understands_both_formats() {
    let system = system();
    for (accept, kind, format) in [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "text"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8", "openmetrics"),
    ] {
        let (told, text) = scrape(&system, accept);
        assert_eq!(told, kind);
        let samples = samples(format, &text);
        for (name, value) in [
            ("osps_jobs_accepted_total{}", 3.0),
            ("osps_jobs_ended_total{outcome=done,type=requetetype1}", 3.0),
            ("osps_job_service_seconds_count{type=requetetype1}", 3.0),
            ("osps_job_service_seconds_bucket{le=+Inf,type=requetetype1}", 3.0),
            // It waits for 20 ms.
            ("osps_job_service_seconds_bucket{le=0.01,type=requetetype1}", 0.0),
            ("osps_requests_refused_total{reason=unknown}", 1.0),
            ("osps_server_restarts_total{role=secondary,slot=2}", 1.0),
            ("osps_server_state{role=secondary,slot=1,state=ready}", 1.0),
            ("osps_ready{}", 1.0),
        ] {
            assert_eq!(samples.get(name), Some(&value), "{name} in\n{text}");
        }
        assert!(samples["osps_process_resident_memory_bytes{role=observer,slot=0}"] > 1e6);
        assert!(samples["osps_start_time_seconds{}"] > 1.7e9);
        assert!(samples["osps_server_probe_round_trip_seconds{role=secondary,slot=2}"] > 0.0);
    }
}

#[test]
#[ignore = "needs promtool"]
fn promtool_has_nothing_to_complain_of() {
    let system = system();
    let (_, text) = scrape(&system, "*/*");
    let mut command = Command::new(installed("promtool"));
    command.args(["check", "metrics"]);
    let output = told(command, &text);
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_alerts_and_their_tests() {
    for (what, file) in [("check", "alerts.yml"), ("test", "alerts_test.yml")] {
        let mut command = Command::new(installed("promtool"));
        command.args([what, "rules", file]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs"));
        let output = told(command, "");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
