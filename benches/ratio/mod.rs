//! Ratios to bare baselines, kept for the table that `verdicts` prints when all benchmarks have run.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A figure that is promised (docs/performance.md), as it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ratio {
    /// What was measured.
    pub what: String,
    /// Beside what.
    pub to: String,
    /// Over the rounds: median, minimum and maximum.
    pub median: f64,
    pub least: f64,
    pub most: f64,
    /// What is promised.
    pub limit: Limit,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Ratio {
    /// The ratio of what was measured in each round.
    pub fn of(what: &str, to: &str, limit: Limit, rounds: impl IntoIterator<Item = f64>) -> Self {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        Self {
            what: what.to_owned(),
            to: to.to_owned(),
            median: rounds[rounds.len() / 2],
            least: rounds[0],
            most: rounds[rounds.len() - 1],
            limit,
        }
    }

    /// Whether the median keeps the promise.
    pub fn holds(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.median <= limit,
            Limit::AtLeast(limit) => self.median >= limit,
        }
    }

    /// A line of the table.
    pub fn line(&self) -> String {
        let limit = match self.limit {
            Limit::AtMost(limit) => format!("at most {limit}"),
            Limit::AtLeast(limit) => format!("at least {limit}"),
        };
        let holds = if self.holds() { "yes" } else { "no" };
        let Self { what, to, median, least, most, .. } = self;
        format!("{what:<48}{to:<24}{median:>8.2}{least:>8.2}{most:>8.2}  {limit:<14}{holds}")
    }
}

/// The head of the table.
pub fn head() -> String {
    format!("{:<48}{:<24}{:>8}{:>8}{:>8}  {:<14}kept", "ratio of", "to", "median", "min", "max", "promised")
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ratios")
}

/// Keeps what a benchmark has found, in place of what it had found before.
pub fn keep(bench: &str, ratios: &[Ratio]) {
    fs::create_dir_all(directory()).unwrap();
    fs::write(directory().join(bench), serde_json::to_vec(ratios).unwrap()).unwrap();
}

/// What all benchmarks have found, by their names.
pub fn all() -> Vec<(String, Vec<Ratio>)> {
    let entries = fs::read_dir(directory()).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let ratios = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
        Some((entry.file_name().into_string().ok()?, ratios))
    };
    let mut all: Vec<(String, Vec<Ratio>)> = entries.filter_map(read).collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}
