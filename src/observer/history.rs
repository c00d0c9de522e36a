//! The last minutes: what a status alone does not tell, because it takes two readings. Rates, quantiles of what
//! ended between them, CPU.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::core::latency::Histogram;
use crate::core::moment::Moment;
use crate::status::{EndsOf, Server, ServerState, Status, Times};

/// How far back samples go.
pub const KEPT: Duration = Duration::from_secs(300);
/// Request types that are followed one by one: those with the most jobs.
pub const MOST_TYPES: usize = 32;
/// A reading that comes sooner after the last is not taken: it would make noise, not news.
const APART: Duration = Duration::from_millis(900);
/// Samples at most, whatever the clock says.
const MOST_SAMPLES: usize = 340;
/// What quantiles are taken over, and in which steps that moves.
const WINDOW: Duration = Duration::from_secs(60);
const WINDOW_STEP: Duration = Duration::from_secs(10);
/// What the use of CPU is taken over: the kernel counts it in hundredths of a second.
const CPU_WINDOW: Duration = Duration::from_secs(10);
/// No type has this name.
const ALL_TYPES: &str = "";

/// What happened between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When the later one was.
    pub at: Moment,
    /// Jobs that ended, a second.
    pub rate: f64,
    /// Those of them that failed or expired.
    pub trouble: f64,
    /// How long half of them were served, and 99 of a hundred; `None` where none was.
    pub service: Option<(Duration, Duration)>,
}

/// Samples, the oldest first.
pub type Series = VecDeque<Sample>;

/// How long jobs took: quantiles of the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// How long half waited to be claimed, and 99 of a hundred.
    pub wait: Option<(Duration, Duration)>,
    /// How long they were served.
    pub service: Option<(Duration, Duration)>,
}

/// What was counted of a request type.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    ends: u64,
    /// Ends that were no success.
    trouble: u64,
    times: Times,
}

/// Counters of a reading.
#[derive(Clone, Debug, Default)]
struct Counters {
    at: Moment,
    types: BTreeMap<String, Counted>,
    /// Jobs that ended, by slot.
    slots: BTreeMap<u16, u64>,
    /// CPU time in milliseconds, by pid.
    cpu_ms: BTreeMap<u32, u64>,
}

/// The last minutes of a system.
#[derive(Debug, Default)]
pub struct History {
    last: Option<Counters>,
    total: Series,
    types: BTreeMap<String, Series>,
    /// Older readings of the types that are followed, the oldest first.
    marks: VecDeque<(Moment, BTreeMap<String, Times>)>,
    quantiles: BTreeMap<String, Quantiles>,
    /// Jobs that ended, a second, by slot.
    slot_rates: BTreeMap<u16, f64>,
    /// CPU times of older readings, in milliseconds by pid, the oldest first.
    cpu: VecDeque<(Moment, BTreeMap<u32, u64>)>,
    /// Cores in use, by pid.
    cores: BTreeMap<u32, f64>,
}

impl History {
    /// Takes a reading; meant to be called once a second. Counters that have gone back are those of a new system:
    /// nothing is told of the time between.
    pub fn handle_status(&mut self, now: Moment, status: &Status) {
        let last = self.last.take();
        if let Some(last) = last.as_ref().filter(|last| now.since(last.at) < APART) {
            self.last = Some(last.clone());
            return;
        }
        let new = Counters::of(now, status);
        if let Some(last) = last {
            self.add(&last, &new);
        }
        self.mark(&new);
        self.use_of_cpu(&new);
        self.last = Some(new);
    }

    /// All types together.
    #[must_use]
    pub fn total(&self) -> &Series {
        &self.total
    }

    /// One of the types that are followed.
    #[must_use]
    pub fn of_type(&self, name: &str) -> Option<&Series> {
        self.types.get(name)
    }

    /// What jobs of a type that is followed took in the last minute.
    #[must_use]
    pub fn quantiles(&self, name: &str) -> Quantiles {
        self.quantiles.get(name).copied().unwrap_or_default()
    }

    /// What jobs of all types took in the last minute.
    #[must_use]
    pub fn all_quantiles(&self) -> Quantiles {
        self.quantiles(ALL_TYPES)
    }

    /// Jobs that ended in a slot, a second.
    #[must_use]
    pub fn slot_rate(&self, slot: u16) -> Option<f64> {
        self.slot_rates.get(&slot).copied()
    }

    /// How much of a core a process has used.
    #[must_use]
    pub fn cores(&self, pid: u32) -> Option<f64> {
        self.cores.get(&pid).copied()
    }

    fn add(&mut self, last: &Counters, new: &Counters) {
        let seconds = new.at.since(last.at).as_secs_f64();
        let followed = followed(new);
        self.types.retain(|name, _| followed.contains(&name.as_str()));
        let mut all = Counted::default();
        for (name, counted) in &new.types {
            let grown = counted.since(&last.types.get(name).copied().unwrap_or_default());
            all = all.with(&grown);
            if followed.contains(&name.as_str()) {
                push(self.types.entry(name.clone()).or_default(), grown.sample(new.at, seconds));
            }
        }
        push(&mut self.total, all.sample(new.at, seconds));
        self.slot_rates = per_second(&last.slots, &new.slots, seconds);
    }

    fn use_of_cpu(&mut self, new: &Counters) {
        self.cpu.retain(|(at, _)| new.at.since(*at) <= CPU_WINDOW);
        let share = |(pid, &now): (&u32, &u64)| {
            let (at, before) = self.cpu.iter().find_map(|(at, all)| Some((*at, *all.get(pid)?)))?;
            Some((*pid, rate(now.saturating_sub(before), new.at.since(at).as_secs_f64() * 1000.0)))
        };
        self.cores = new.cpu_ms.iter().filter_map(share).collect();
        self.cpu.push_back((new.at, new.cpu_ms.clone()));
    }

    fn mark(&mut self, new: &Counters) {
        let times = |name: &str| Some((name.to_owned(), new.types.get(name)?.times));
        let mut now: BTreeMap<String, Times> = followed(new).into_iter().filter_map(times).collect();
        let all = new.types.values().fold(Counted::default(), |all, counted| all.with(counted));
        now.insert(ALL_TYPES.to_owned(), all.times);
        self.marks.retain(|(at, _)| new.at.since(*at) <= WINDOW);
        let oldest = self.marks.front().map(|(_, oldest)| oldest);
        let of_type = |(name, times): (&String, &Times)| {
            let before = oldest.map_or(*times, |oldest| oldest.get(name).copied().unwrap_or_default());
            let wait = both(&times.wait.since(&before.wait));
            (name.clone(), Quantiles { wait, service: both(&times.service.since(&before.service)) })
        };
        self.quantiles = now.iter().map(of_type).collect();
        if self.marks.back().is_none_or(|(at, _)| new.at.since(*at) >= WINDOW_STEP) {
            self.marks.push_back((new.at, now));
        }
    }
}

impl Counters {
    fn of(at: Moment, status: &Status) -> Self {
        let of_type = |(name, ends): (&String, &EndsOf)| {
            let trouble = ends.failed.wrapping_add(ends.expired);
            let times = status.times.get(name).copied().unwrap_or_default();
            (name.clone(), Counted { ends: ends.done.wrapping_add(trouble), trouble, times })
        };
        let is_current = |server: &&Server| server.slot > 0 && server.state != ServerState::Draining;
        let of_slot = |server: &Server| (server.slot, server.done.wrapping_add(server.failed));
        let servers = status.servers.iter().chain(&status.observer).map(|server| (server.pid, server.usage));
        let all = servers.chain([(Some(status.pid), status.watchdog)]);
        Self {
            at,
            types: status.requests.iter().map(of_type).collect(),
            slots: status.servers.iter().filter(is_current).map(of_slot).collect(),
            cpu_ms: all.filter_map(|(pid, usage)| Some((pid?, usage.cpu_ms?))).collect(),
        }
    }
}

impl Counted {
    fn since(&self, earlier: &Self) -> Self {
        let times = Times {
            wait: self.times.wait.since(&earlier.times.wait),
            service: self.times.service.since(&earlier.times.service),
        };
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        Self { ends: grown(self.ends, earlier.ends), trouble: grown(self.trouble, earlier.trouble), times }
    }

    fn with(&self, other: &Self) -> Self {
        let times = Times {
            wait: self.times.wait.with(&other.times.wait),
            service: self.times.service.with(&other.times.service),
        };
        Self {
            ends: self.ends.wrapping_add(other.ends),
            trouble: self.trouble.wrapping_add(other.trouble),
            times,
        }
    }

    /// What has come in so many seconds, as a sample.
    fn sample(&self, at: Moment, seconds: f64) -> Sample {
        let rate = |count| rate(count, seconds);
        Sample { at, rate: rate(self.ends), trouble: rate(self.trouble), service: both(&self.times.service) }
    }
}

/// The types that a page has room for: those with the most jobs so far, in the order of their names.
#[must_use]
pub fn shown_types(status: &Status) -> Vec<&str> {
    let ends = |ends: &EndsOf| ends.done.wrapping_add(ends.failed).wrapping_add(ends.expired);
    most(status.requests.iter().map(|(name, of_type)| (name.as_str(), ends(of_type))).collect())
}

fn followed(counters: &Counters) -> Vec<&str> {
    most(counters.types.iter().map(|(name, counted)| (name.as_str(), counted.ends)).collect())
}

fn most(mut types: Vec<(&str, u64)>) -> Vec<&str> {
    if types.len() > MOST_TYPES {
        // A stable sort: of equals, the first by name.
        types.sort_by_key(|&(_, ends)| std::cmp::Reverse(ends));
        types.truncate(MOST_TYPES);
        types.sort_unstable();
    }
    types.into_iter().map(|(name, _)| name).collect()
}

fn push(series: &mut Series, sample: Sample) {
    while series.len() >= MOST_SAMPLES || series.front().is_some_and(|old| sample.at.since(old.at) > KEPT) {
        series.pop_front();
    }
    series.push_back(sample);
}

fn both(histogram: &Histogram) -> Option<(Duration, Duration)> {
    histogram.quantile(0.5).zip(histogram.quantile(0.99))
}

/// How much the counters that are in both have grown.
fn per_second<K: Ord + Copy>(
    last: &BTreeMap<K, u64>,
    new: &BTreeMap<K, u64>,
    seconds: f64,
) -> BTreeMap<K, f64> {
    let grown =
        |(key, &count): (&K, &u64)| Some((*key, rate(count.saturating_sub(*last.get(key)?), seconds)));
    new.iter().filter_map(grown).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a rate is an estimate anyway")]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::latency::bucket;
    use crate::observer::example;

    fn second(second: u64) -> Moment {
        Moment::from_nanos(1_000_000_000 * (second + 1))
    }

    fn after(status: &mut Status, done: u64, failed: u64, micros: u64) {
        let of_type = status.requests.get_mut("echo").unwrap();
        (of_type.done, of_type.failed) = (of_type.done + done, of_type.failed + failed);
        let service = &mut status.times.get_mut("echo").unwrap().service;
        service.buckets[bucket(micros)] += done + failed;
    }

    #[test]
    fn rates_and_quantiles_are_of_what_came_between_two_readings() {
        let mut status = example::status();
        let mut history = History::default();
        history.handle_status(second(0), &status);
        assert!(history.total().is_empty(), "one reading tells no rate");
        assert_eq!(history.all_quantiles(), Quantiles::default(), "nor what was before it");
        after(&mut status, 18, 2, 300);
        status.servers[1].done += 20;
        status.servers[1].usage.cpu_ms = status.servers[1].usage.cpu_ms.map(|millis| millis + 500);
        history.handle_status(second(2), &status);
        let sample = history.total()[0];
        assert_eq!((sample.at, sample.rate, sample.trouble), (second(2), 10.0, 1.0));
        assert_eq!(sample.service.unwrap().0, Duration::from_micros(375));
        assert_eq!(history.of_type("echo").unwrap()[0], sample);
        assert_eq!(history.of_type("sum").unwrap()[0].service, None);
        assert_eq!(history.slot_rate(1), Some(10.0));
        assert_eq!(history.cores(status.servers[1].pid.unwrap()), Some(0.25));
        assert_eq!(history.cores(status.pid), Some(0.0));
    }

    #[test]
    fn counters_that_go_back_are_those_of_another_system() {
        let mut status = example::status();
        let mut history = History::default();
        after(&mut status, 1_000_000, 0, 300);
        history.handle_status(second(0), &status);
        history.handle_status(second(1), &status);
        let mut new = example::status();
        new.requests.remove("sum");
        history.handle_status(second(2), &new);
        assert_eq!(history.total()[1].rate, 0.0);
        after(&mut new, 5, 0, 300);
        history.handle_status(second(3), &new);
        assert_eq!(history.total()[2].rate, 5.0);
        assert!(history.of_type("sum").is_none());
    }

    #[test]
    fn memory_is_bounded_in_time_and_types() {
        let mut status = example::status();
        for number in 0..100 {
            status.requests.insert(format!("type{number:03}"), EndsOf { done: 1, failed: 0, expired: 0 });
        }
        let mut history = History::default();
        for turn in 0..1000 {
            history.handle_status(second(turn), &status);
        }
        assert_eq!(history.total().len(), 301);
        assert_eq!((history.types.len(), history.quantiles.len()), (MOST_TYPES, MOST_TYPES + 1));
        assert!(history.of_type("echo").is_some(), "it has had the most jobs");
        assert!(history.marks.len() <= 7 && history.cpu.len() <= 11);
        // A clock that stands adds nothing.
        for _ in 0..1000 {
            history.handle_status(second(999), &status);
        }
        assert_eq!(history.total().len(), 301);
    }

    #[test]
    fn quantiles_forget_after_a_minute() {
        let mut status = example::status();
        let mut history = History::default();
        history.handle_status(second(0), &status);
        after(&mut status, 10, 0, 2_000_000);
        history.handle_status(second(1), &status);
        assert!(history.quantiles("echo").service.unwrap().0 > Duration::from_secs(1));
        for turn in 2..=70 {
            after(&mut status, 1, 0, 20);
            history.handle_status(second(turn), &status);
        }
        assert!(history.quantiles("echo").service.unwrap().1 < Duration::from_millis(1));
        assert_eq!(history.all_quantiles(), history.quantiles("echo"));
    }
}
