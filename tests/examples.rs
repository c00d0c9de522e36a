//! What README and `examples/` tell people to type.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::System;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `examples/client.py` against a system, with these arguments after the address.
fn python_client(system: &System, arguments: &[&str]) -> Output {
    let mut client = Command::new("python3");
    client.arg(root().join("examples/client.py")).arg(system.address().to_string()).args(arguments);
    client.output().unwrap()
}

#[test]
#[ignore = "needs python3"]
fn the_client_in_python_asks_for_work_and_follows_it() {
    let lines = std::fs::read_to_string(root().join("examples/client.py")).unwrap().lines().count();
    assert!(lines < 40, "{lines} lines");
    let system = System::start("secondaries = 2", "");
    let output = python_client(&system, &["requetetype1", "hello"]);
    assert!(text(&output.stdout).starts_with("ok message 1 secondary "), "{output:?}");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    let output = python_client(&system, &["echo", "hello", "--follow"]);
    assert_eq!(text(&output.stdout), "hello");
    let news = text(&output.stderr);
    let words: Vec<&str> = news.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(words, ["debuttraitement", "fintraitement"], "{output:?}");
    assert!(output.status.success());

    let output = python_client(&system, &["nonsense", "hello"]);
    assert!(text(&output.stderr).contains("unknown request type"), "{output:?}");
    assert!(!output.status.success());
    assert_eq!(system.books_are_exact()["ledger"]["done"], 2);
}

#[test]
#[ignore = "needs python3"]
fn the_ten_lines_of_python_in_the_readme_work() {
    let readme = readme();
    let begin = readme.find("```python\n").unwrap() + "```python\n".len();
    let lines = &readme[begin..begin + readme[begin..].find("```").unwrap()];
    let system = System::start("secondaries = 1", "");
    let program = lines.replace("2222", &system.address().port().to_string());
    let output = Command::new("python3").args(["-c", &program]).output().unwrap();
    assert_eq!(text(&output.stdout), "ok message 1 secondary 1\n\n", "{output:?}");
}

#[test]
#[ignore = "needs nc as OpenBSD has it"]
fn the_line_of_nc_in_the_readme_works() {
    let readme = readme();
    let line = readme.lines().find(|line| line.starts_with("echo hello | nc ")).unwrap();
    let system = System::start("secondaries = 1", "");
    let line = line.replace("2222", &system.address().port().to_string());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(text(&output.stdout), "ok message 1 secondary 1\n", "{output:?}");
}
