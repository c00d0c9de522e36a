//! What became of the requests: counts, latencies, and both over time. Pure; merged from several
//! processes by adding up.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::core::moment::nanos;

/// Width of a step of the time line.
pub const STEP: Duration = Duration::from_millis(100);
/// The longest latency that is told apart.
const LONGEST: Duration = Duration::from_secs(3600);
/// Three significant figures: an error of 0.1 % at most.
const FIGURES: u8 = 3;

/// How a request has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failed {
    /// Nobody listens: `ECONNREFUSED`.
    Refused,
    /// The connection was broken off.
    Reset,
    /// `-1 busy`.
    Busy,
    /// `-1` for another reason: an unknown type, a server that stops.
    NoPort,
    /// The server has closed the connection before the answer was complete.
    EarlyClose,
    /// No answer in time.
    Timeout,
    /// What came was no answer, or not what was sent.
    Wrong,
    /// This machine has no port left to connect from.
    OutOfPorts,
    /// This process has no descriptor left.
    OutOfDescriptors,
    /// Anything else that `connect(2)` may say.
    Unreachable,
    /// It was under way when the run was interrupted.
    Unfinished,
    /// It should have begun, but the run was interrupted.
    NotBegun,
    /// A process of this program has ended early, and what it had counted is lost.
    Lost,
}

impl Failed {
    /// As JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Busy => "busy",
            Self::NoPort => "no_port",
            Self::EarlyClose => "early_close",
            Self::Timeout => "timeout",
            Self::Wrong => "wrong",
            Self::OutOfPorts => "out_of_ports",
            Self::OutOfDescriptors => "out_of_descriptors",
            Self::Unreachable => "unreachable",
            Self::Unfinished => "unfinished",
            Self::NotBegun => "not_begun",
            Self::Lost => "lost",
        }
    }
}

/// What happened in one step of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Requests that were served.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
    /// The longest latency among those that were served, in µs.
    pub max_us: u64,
}

/// What became of the requests of one type.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Its name.
    pub name: String,
    /// Latencies of those that were served, in ns.
    pub latency: Histogram<u64>,
    /// Those that failed.
    pub failed: BTreeMap<Failed, u64>,
}

/// What became of all requests.
#[derive(Clone, Debug)]
pub struct Record {
    /// By type.
    pub kinds: Vec<Kind>,
    /// From the start on, in steps of [`STEP`].
    pub steps: Vec<Step>,
    /// An example of each failure, in words.
    pub examples: BTreeMap<Failed, String>,
    /// How late requests of an open loop began.
    pub late: Late,
    /// Which part of one core this program has used; of several processes the one that has used most.
    pub busy: f64,
}

/// Requests of an open loop that began late: no client was free, or this process had no CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// How many began more than [`LATE`] after their moments.
    pub requests: u64,
    /// Of those, so many because all clients were busy.
    pub for_clients: u64,
    /// The latest, in µs.
    pub most_us: u64,
}

/// Who begins later than that is late.
pub const LATE: Duration = Duration::from_millis(1);

impl Late {
    /// A request has begun so late; all clients had been busy.
    pub fn note(&mut self, late: Duration, all_were_busy: bool) {
        if late > LATE {
            self.requests += 1;
            self.for_clients += u64::from(all_were_busy);
            self.most_us = self.most_us.max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.for_clients += other.for_clients;
        self.most_us = self.most_us.max(other.most_us);
    }
}

impl Record {
    /// Nothing has happened yet, to requests of these types.
    #[must_use]
    pub fn new<'a>(kinds: impl IntoIterator<Item = &'a str>) -> Self {
        let kind = |name: &str| Kind { name: name.to_owned(), latency: histogram(), failed: BTreeMap::new() };
        let kinds = kinds.into_iter().map(kind).collect();
        Self { kinds, steps: Vec::new(), examples: BTreeMap::new(), late: Late::default(), busy: 0.0 }
    }

    /// A request was served, so long after it should have begun, and so long after the start of all.
    pub fn serve(&mut self, kind: usize, latency: Duration, at: Duration) {
        let step = self.step(at);
        step.ok += 1;
        step.max_us = step.max_us.max(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.kinds[kind].latency.saturating_record(nanos(latency));
    }

    /// A request has failed.
    pub fn fail(&mut self, kind: usize, failed: Failed, example: impl FnOnce() -> String, at: Duration) {
        self.step(at).failed += 1;
        *self.kinds[kind].failed.entry(failed).or_default() += 1;
        self.examples.entry(failed).or_insert_with(example);
    }

    fn step(&mut self, at: Duration) -> &mut Step {
        let index = usize::try_from(at.as_nanos() / STEP.as_nanos()).unwrap_or(usize::MAX);
        if self.steps.len() <= index {
            self.steps.resize(index + 1, Step::default());
        }
        &mut self.steps[index]
    }

    /// The latencies of all types, in ns.
    #[must_use]
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        for kind in &self.kinds {
            all.add(&kind.latency).unwrap_or_else(|_| unreachable!("histograms of one shape"));
        }
        all
    }

    /// Requests that were served.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.latency.len()).sum()
    }

    /// Failures of all types, by how.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<Failed, u64> {
        let mut all = BTreeMap::new();
        for (failed, count) in self.kinds.iter().flat_map(|kind| &kind.failed) {
            *all.entry(*failed).or_default() += count;
        }
        all
    }

    /// So many requests should have begun and have not.
    pub fn not_begun(&mut self, count: u64, at: Duration) {
        self.step(at).failed += count;
        *self.kinds[0].failed.entry(Failed::NotBegun).or_default() += count;
        let example = || "due when the run was interrupted".to_owned();
        self.examples.entry(Failed::NotBegun).or_insert_with(example);
    }

    /// All has taken so long: the time line goes on to its end, also where nothing happened.
    pub fn end(&mut self, took: Duration) {
        let last = took.saturating_sub(Duration::from_nanos(1));
        self.step(last);
    }

    /// Requests that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures().values().sum()
    }

    /// Adds what another process has recorded of the same types since the same start.
    pub fn add(&mut self, other: &Self) {
        for (kind, more) in self.kinds.iter_mut().zip(&other.kinds) {
            kind.latency.add(&more.latency).unwrap_or_else(|_| unreachable!("histograms of one shape"));
            for (failed, count) in &more.failed {
                *kind.failed.entry(*failed).or_default() += count;
            }
        }
        self.steps.resize(self.steps.len().max(other.steps.len()), Step::default());
        for (step, more) in self.steps.iter_mut().zip(&other.steps) {
            step.ok += more.ok;
            step.failed += more.failed;
            step.max_us = step.max_us.max(more.max_us);
        }
        self.late.add(&other.late);
        self.busy = self.busy.max(other.busy);
        for (failed, example) in &other.examples {
            self.examples.entry(*failed).or_insert_with(|| example.clone());
        }
    }
}

/// Latencies from 1 ns to an hour.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, nanos(LONGEST), FIGURES)
        .unwrap_or_else(|error| unreachable!("fixed bounds: {error:?}"))
}

/// A record on its way from one process to another: histograms as pairs of value and count.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parcel {
    kinds: Vec<KindParcel>,
    steps: Vec<Step>,
    examples: BTreeMap<Failed, String>,
    late: Late,
    busy: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct KindParcel {
    name: String,
    latency: Vec<(u64, u64)>,
    failed: BTreeMap<Failed, u64>,
}

impl From<&Record> for Parcel {
    fn from(record: &Record) -> Self {
        let kind = |kind: &Kind| KindParcel {
            name: kind.name.clone(),
            latency: kind
                .latency
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_at_value()))
                .collect(),
            failed: kind.failed.clone(),
        };
        Self {
            kinds: record.kinds.iter().map(kind).collect(),
            steps: record.steps.clone(),
            examples: record.examples.clone(),
            late: record.late,
            busy: record.busy,
        }
    }
}

impl From<Parcel> for Record {
    fn from(parcel: Parcel) -> Self {
        let kind = |kind: KindParcel| {
            let mut latency = histogram();
            for (value, count) in kind.latency {
                latency.saturating_record_n(value, count);
            }
            Kind { name: kind.name, latency, failed: kind.failed }
        };
        Self {
            kinds: parcel.kinds.into_iter().map(kind).collect(),
            steps: parcel.steps,
            examples: parcel.examples,
            late: parcel.late,
            busy: parcel.busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let mut record = Record::new(["echo", "sum"]);
        for number in 1..=1000 {
            record.serve(
                number % 2,
                Duration::from_micros(number as u64),
                Duration::from_millis(number as u64),
            );
        }
        record.fail(1, Failed::Busy, || "busy: all full".to_owned(), Duration::from_millis(250));
        record
    }

    #[test]
    fn all_is_counted_by_type_and_over_time() {
        let record = record();
        assert_eq!((record.ok(), record.failed()), (1000, 1));
        assert_eq!(record.kinds[0].latency.len(), 500);
        let median = record.latency().value_at_quantile(0.5);
        assert!((499_000..=501_000).contains(&median), "{median}");
        assert_eq!(record.steps.len(), 11);
        assert_eq!(record.steps[2], Step { ok: 100, failed: 1, max_us: 299 });
        assert_eq!(record.failures().into_iter().collect::<Vec<_>>(), [(Failed::Busy, 1)]);
    }

    #[test]
    fn two_processes_add_up_to_one() {
        let (mut sum, other) = (record(), record());
        let json = serde_json::to_string(&Parcel::from(&other)).unwrap();
        let back = Record::from(serde_json::from_str::<Parcel>(&json).unwrap());
        sum.add(&back);
        assert_eq!((sum.ok(), sum.failed()), (2000, 2));
        assert_eq!(sum.latency().value_at_quantile(0.99), other.latency().value_at_quantile(0.99));
        assert_eq!(sum.steps[2], Step { ok: 200, failed: 2, max_us: 299 });
        assert_eq!(sum.examples[&Failed::Busy], "busy: all full");
    }
}
