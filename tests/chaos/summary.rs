//! What a storm was, in words.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::clients::{Outcome, Record};
use crate::verdict::Trial;

/// The summary of a storm; `principal_kib` is the principal's own memory before and after.
pub fn of(trial: &Trial<'_>, replay: &str, principal_kib: Option<(u64, u64)>) -> String {
    let mut text = format!("--- storm: {replay} ---\n");
    let report = trial.report;
    let _ = writeln!(text, "faults ({} found nobody to strike):", report.missed);
    for (kind, count) in &report.faults {
        let _ = writeln!(text, "  {count:>6}  {kind}");
    }
    let _ = writeln!(text, "signals that reached a server: {}", report.strikes.len());
    let _ = writeln!(text, "kills by the watchdog:");
    for (reason, count) in tally(trial.chronicle.kills.iter().map(|kill| kill.reason.as_str())) {
        let _ = writeln!(text, "  {count:>6}  {reason}");
    }
    let _ = writeln!(text, "obituaries:");
    for (exit, count) in tally(trial.chronicle.obituaries.iter().map(|obituary| obituary.exit.as_str())) {
        let _ = writeln!(text, "  {count:>6}  {exit}");
    }
    let _ = writeln!(text, "orphans of which nobody knew: {}", trial.chronicle.orphans.len());
    let _ = writeln!(text, "killed and no obituary: {:?}", trial.chronicle.unsung(&report.strikes));
    let restarts = trial.status["servers"].as_array().unwrap().iter();
    let restarts: Vec<u64> = restarts.filter_map(|server| server["restarts"].as_u64()).collect();
    let _ = writeln!(text, "restarts, the principal's first: {restarts:?}");
    let _ = writeln!(text, "requests: {}", trial.records.len());
    for (outcome, records) in by_outcome(trial) {
        let longest = records.iter().map(|record| record.took).max().unwrap_or_default();
        let middle = median(records.iter().map(|record| record.took).collect());
        let count = records.len();
        let _ = writeln!(text, "  {count:>6}  {outcome}; median {middle:?}, longest {longest:?}");
    }
    let _ = writeln!(text, "what became of the servers whose connections broke:");
    let causes = trial.broken().into_iter();
    let causes: Vec<String> = causes.map(|(_, why)| why.unwrap_or_else(|| "had no job".to_owned())).collect();
    for (why, count) in tally(causes.iter().map(String::as_str)) {
        let _ = writeln!(text, "  {count:>6}  {why}");
    }
    let _ = writeln!(text, "books: {}", trial.status["ledger"]);
    let _ = writeln!(text, "the watchdog's own memory: {:?} KiB", report.memory_kib);
    if let Some((before, after)) = principal_kib {
        let _ = writeln!(text, "the principal's own memory: first {before}, last {after} KiB");
    }
    text
}

fn tally<'a>(words: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for word in words {
        *counts.entry(word).or_default() += 1;
    }
    counts
}

fn by_outcome<'a>(trial: &'a Trial<'_>) -> BTreeMap<String, Vec<&'a Record>> {
    let mut outcomes: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in trial.records {
        let outcome = match &record.outcome {
            Outcome::Served => "served",
            Outcome::ControlBroke => "control connection broke",
            Outcome::Refused(_) => "answered -1",
            Outcome::DataBroke { answers: 0 } => "data connection broke before an answer",
            Outcome::DataBroke { .. } => "data connection broke after an answer",
            Outcome::Wrong(_) => "WRONG",
        };
        let name = format!("{}: {outcome}", trial.types[record.kind]);
        outcomes.entry(name).or_default().push(record);
    }
    outcomes
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
