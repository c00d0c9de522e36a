//! The transcripts in `tests/vectors/`, played against running systems; `tests/vectors/README.md`
//! tells how they read.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "vectors/play.rs"]
mod play;
#[path = "vectors/transcript.rs"]
mod transcript;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{System, connect, eventually, recv, together};
use nix::sys::signal::Signal;
use transcript::Transcript;

/// So many transcripts are played at once, where they leave each other alone.
const PLAYERS: usize = 24;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

/// The files of a directory that hold transcripts.
fn files(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory(name)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "txt")).collect();
    files.sort();
    assert!(!files.is_empty(), "no transcripts in {name}");
    files
}

fn transcripts(name: &str) -> Vec<Transcript> {
    files(name).iter().flat_map(|file| transcript::read(file)).collect()
}

/// A system with the configuration of a directory.
fn system(name: &str) -> System {
    System::start(&fs::read_to_string(directory(name).join("osps.toml")).unwrap(), "")
}

/// A transcript, and where it is cut.
type Variant = (Arc<Transcript>, Option<(usize, usize)>);

/// Each as it is, cut at every byte, and merged.
fn variants(transcripts: Vec<Transcript>) -> Vec<Variant> {
    let mut variants = Vec::new();
    for transcript in transcripts {
        variants.extend(transcript.merged().map(|merged| (Arc::new(merged), None)));
        let transcript = Arc::new(transcript);
        let cuts = transcript.cuts().into_iter().map(Some);
        variants.extend([None].into_iter().chain(cuts).map(|cut| (transcript.clone(), cut)));
    }
    variants
}

/// Plays all variants, so many at once, and fails with all that differ.
fn play_all(variants: Vec<Variant>, players: usize, server: SocketAddr) {
    let (next, count) = (AtomicUsize::new(0), variants.len());
    let operator = |what: &str| panic!("nobody does {what} here");
    let failed = together(players, move |_| {
        let mut failed = Vec::new();
        while let Some((transcript, cut)) = variants.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(how) = play::play(transcript, *cut, server, &operator) {
                let cut = cut.map_or(String::new(), |(step, byte)| {
                    format!(", cut at byte {byte} of line {}", transcript.steps[step].line)
                });
                failed.push(format!("{}{cut}\n  {how}", transcript.name));
            }
        }
        failed
    });
    let failed = failed.concat();
    let shown = failed.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(failed.is_empty(), "{} of {count} differ:\n{shown}", failed.len());
    println!("{count} played");
}

/// Plays the transcripts of a directory, also cut and merged, all against one system.
fn plays(name: &str, players: usize) {
    let system = system(name);
    play_all(variants(transcripts(name)), players, system.address());
    system.books_are_exact();
}

#[test]
fn what_is_built_in() {
    plays("default", PLAYERS);
}

#[test]
fn types_that_extend_each_other() {
    plays("types", PLAYERS);
}

#[test]
fn jobs_that_nobody_comes_for() {
    plays("expiry", PLAYERS);
}

#[test]
fn a_system_that_is_full() {
    // One after the other: they want all there is.
    plays("busy", 1);
}

#[test]
fn clients_that_are_silent() {
    plays("idle", PLAYERS);
}

#[test]
fn a_door_that_is_open() {
    plays("open", PLAYERS);
}

/// Each with a system of its own, to which an operator does something.
fn plays_with_operator(name: &str, transcripts: &[Transcript]) {
    for transcript in transcripts {
        let system = system(name);
        let operator = |what: &str| match what {
            "stop" => stop(&system),
            "kill" => kill_secondaries(&system),
            other => panic!("{other}"),
        };
        let played = play::play(transcript, None, system.address(), &operator);
        assert_eq!(played, Ok(()), "{}", transcript.name);
    }
}

/// Asks to stop, and waits until requests are refused.
fn stop(system: &System) {
    let mut control = system.connect();
    system.signal(system.watchdog.id(), Signal::SIGTERM);
    eventually("a refusal", || {
        control.write_all(b"requetetype1\n").unwrap();
        let answer = recv(&mut control);
        if let Ok(port) = answer.trim_end().parse() {
            drop(connect(SocketAddr::new(control.peer_addr().unwrap().ip(), port)));
        }
        (answer == "-1 stopping\n").then_some(())
    });
}

fn kill_secondaries(system: &System) {
    let status = system.status();
    for server in status["servers"].as_array().unwrap().iter().filter(|server| server["role"] == "secondary")
    {
        system.signal(u32::try_from(server["pid"].as_u64().unwrap()).unwrap(), Signal::SIGKILL);
    }
}

#[test]
fn a_system_that_stops_or_whose_secondary_is_killed() {
    plays_with_operator("operator", &transcripts("operator"));
}

#[test]
fn a_system_that_stops_with_little_grace() {
    plays_with_operator("grace", &transcripts("grace"));
}

/// The directories that need no operator.
const ALONE: [&str; 6] = ["default", "types", "expiry", "busy", "idle", "open"];
const WITH_OPERATOR: [&str; 2] = ["operator", "grace"];

#[test]
fn the_transcripts_in_the_document_are_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md");
    let all = transcript::read_document(&path, &[&ALONE[..], &WITH_OPERATOR].concat());
    let of = |name: &str| -> Vec<Transcript> {
        all.iter().filter(|(of, _)| of == name).map(|(_, transcript)| transcript.clone()).collect()
    };
    for name in ALONE {
        let system = system(name);
        play_all(of(name).into_iter().map(|each| (Arc::new(each), None)).collect(), 1, system.address());
    }
    for name in WITH_OPERATOR {
        plays_with_operator(name, &of(name));
    }
}

#[test]
fn no_directory_is_forgotten() {
    let entries = fs::read_dir(directory("")).unwrap().map(|entry| entry.unwrap().path());
    let directories = entries.filter(|path| path.is_dir());
    let mut names: Vec<String> =
        directories.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    let mut known = [&ALONE[..], &WITH_OPERATOR].concat();
    known.sort_unstable();
    assert_eq!(names, known);
    let readme = fs::read_to_string(directory("README.md")).unwrap();
    for name in known {
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is not in the README");
    }
}

#[test]
#[ignore = "needs python3; takes a minute"]
fn the_runner_in_python_plays_them_too() {
    for name in ALONE {
        let system = system(name);
        run_python(&system, &files(name), &[]);
        system.books_are_exact();
    }
    let types = system("types");
    run_python(&types, &files("types"), &["--cut"]);
    for name in WITH_OPERATOR {
        for file in files(name) {
            let system = system(name);
            let script = operator_script(&system);
            run_python(&system, &[file], &["--operator", script.to_str().unwrap()]);
        }
    }
}

fn run_python(system: &System, files: &[PathBuf], options: &[&str]) {
    let mut runner = Command::new("python3");
    runner.arg(directory("run.py")).arg(system.address().to_string()).args(files).args(options);
    let output = runner.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("skipped"), "{files:?}:\n{said}\n{complained}");
}

/// A command that does with one word what an operator is asked for.
fn operator_script(system: &System) -> PathBuf {
    let address = system.address();
    let text = include_str!("vectors/operator.py")
        .replace("WATCHDOG", &system.watchdog.id().to_string())
        .replace("PRINCIPAL", &system.pid(0).to_string())
        .replace("HOST", &address.ip().to_string())
        .replace("PORT", &address.port().to_string());
    let path = system.dir.path().join("operator");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
