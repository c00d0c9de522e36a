//! What successive readings of the status tell: rates, latencies of the last seconds, the last minutes. No clock, no
//! terminal.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::core::latency::Histogram;
use crate::core::moment::Moment;
use crate::status::{Death, EndsOf, Server, Status, Times};
use crate::top::history::{History, STEP, Stretch};
use crate::top::rows::{Process, State};

/// Over how long rates and CPU are told, at least: a little less than the usual interval, which is never exact.
const RATES_OVER: Duration = Duration::from_millis(900);
/// Over how long latencies are told, at least.
pub const LATENCIES_OVER: Duration = Duration::from_secs(5);

/// One look at the system.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When it was taken.
    pub at: Moment,
    /// The status and, by pid, the state letters of its processes; or why there is none.
    pub found: Result<(Status, BTreeMap<u32, char>), String>,
}

/// What is known of a request type.
#[derive(Clone, Debug)]
pub struct Kind<'a> {
    /// Its name.
    pub name: &'a str,
    /// Jobs that ended, in a second.
    pub rate: Option<f64>,
    /// How long those that have ended in the last seconds waited to be claimed.
    pub wait: Histogram,
    /// How long they were served.
    pub service: Histogram,
    /// How its jobs ended, ever.
    pub ends: EndsOf,
}

/// What was counted at a moment.
#[derive(Debug)]
struct Sample {
    at: Moment,
    /// Jobs that ended.
    ended: u64,
    /// By role and slot.
    by_server: BTreeMap<(&'static str, u16), u64>,
    /// CPU time by pid, in milliseconds.
    cpu: BTreeMap<u32, u64>,
    by_kind: BTreeMap<String, (u64, Times)>,
}

/// The last status that was had.
#[derive(Debug)]
struct Seen {
    at: Moment,
    status: Status,
    letters: BTreeMap<u32, char>,
}

/// What successive readings tell.
#[derive(Debug, Default)]
pub struct Model {
    /// When it was looked at last.
    now: Moment,
    seen: Option<Seen>,
    /// Since when the system does not run, and why that is known.
    gone: Option<(Moment, String)>,
    /// Of the run that is seen, the oldest first.
    samples: VecDeque<Sample>,
    history: History,
}

impl Model {
    /// Takes the next reading.
    pub fn take(&mut self, reading: Reading) {
        self.now = reading.at;
        match reading.found {
            Ok((status, letters)) => {
                if self.is_another_run(&status) {
                    self.samples.clear();
                }
                self.gone = None;
                self.samples.push_back(Sample::of(&status, reading.at));
                self.forget();
                self.seen = Some(Seen { at: reading.at, status, letters });
                self.remember();
            }
            Err(why) => {
                let since = self.gone.take().map_or(reading.at, |(since, _)| since);
                self.gone = Some((since, why));
                // What is counted when it is back is no rate of now.
                self.samples.clear();
            }
        }
    }

    /// A system that was stopped and started again counts from zero.
    fn is_another_run(&self, status: &Status) -> bool {
        let before = self.seen.as_ref().map(|seen| &seen.status);
        before.is_some_and(|before| before.pid != status.pid || before.uptime_ms > status.uptime_ms)
    }

    /// Keeps one sample that is older than all that is told.
    fn forget(&mut self) {
        while self.samples.get(1).is_some_and(|second| self.now.since(second.at) >= LATENCIES_OVER) {
            self.samples.pop_front();
        }
    }

    /// Adds to the history what came since its end, once that is long enough.
    fn remember(&mut self) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return };
        // After a gap, and at the beginning, no sample is of the end.
        let of_end = self.history.end().filter(|&end| first.at <= end);
        let of_end = of_end.and_then(|end| self.samples.iter().rev().find(|sample| sample.at <= end));
        let before = of_end.unwrap_or(first);
        // A little less than it should be, for no interval is exact.
        if last.at.since(before.at) < STEP * 9 / 10 {
            return;
        }
        let Some(rate) = per_second(last.ended, before.ended, last.at.since(before.at)) else { return };
        let served = service_of_all(last).since(&service_of_all(before));
        let stretch = Stretch { from: before.at, to: last.at, rate, p99: served.quantile(0.99) };
        self.history.push(stretch);
    }

    /// The last sample, and the youngest that is older by `over`, or the oldest there is.
    fn samples_over(&self, over: Duration) -> Option<(&Sample, &Sample)> {
        let last = self.samples.back()?;
        let mut before = self.samples.iter().rev().skip(1);
        let found = before.find(|sample| last.at.since(sample.at) >= over);
        let before = found.or_else(|| self.samples.front().filter(|first| first.at < last.at))?;
        Some((last, before))
    }

    /// When the system was looked at last.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.now
    }

    /// The last status that was had.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        self.seen.as_ref().map(|seen| &seen.status)
    }

    /// For how long the system has not been running, and why that is known.
    #[must_use]
    pub fn gone(&self) -> Option<(Duration, &str)> {
        self.gone.as_ref().map(|(since, why)| (self.now.since(*since), why.as_str()))
    }

    /// The last minutes.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Jobs that end in a second.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let (last, before) = self.samples_over(RATES_OVER)?;
        per_second(last.ended, before.ended, last.at.since(before.at))
    }

    /// How long the jobs of the last seconds were served.
    #[must_use]
    pub fn service(&self) -> Histogram {
        let of = |(last, before)| service_of_all(last).since(&service_of_all(before));
        self.samples_over(LATENCIES_OVER).map(of).unwrap_or_default()
    }

    /// The request types by name.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind<'_>> {
        let requests = self.status().into_iter().flat_map(|status| &status.requests);
        requests.map(|(name, ends)| self.kind(name, *ends)).collect()
    }

    fn kind<'a>(&self, name: &'a str, ends: EndsOf) -> Kind<'a> {
        let rate = self.samples_over(RATES_OVER).and_then(|(last, before)| {
            let ended = |sample: &Sample| sample.by_kind.get(name).map(|&(ended, _)| ended);
            per_second(ended(last)?, ended(before)?, last.at.since(before.at))
        });
        let times = self.samples_over(LATENCIES_OVER).and_then(|(last, before)| {
            let times = |sample: &Sample| sample.by_kind.get(name).map(|&(_, times)| times);
            let (late, early) = (times(last)?, times(before)?);
            Some(Times { wait: late.wait.since(&early.wait), service: late.service.since(&early.service) })
        });
        let Times { wait, service } = times.unwrap_or_default();
        Kind { name, rate, wait, service, ends }
    }

    /// The watchdog, then all other processes in the order of the status.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let Some(Seen { status, letters, .. }) = &self.seen else {
            return Vec::new();
        };
        let letter = |pid: Option<u32>| pid.and_then(|pid| letters.get(&pid).copied());
        let cpu = |pid: Option<u32>| pid.and_then(|pid| self.cpu(pid));
        let of_watchdog = Process::watchdog(status, letter(Some(status.pid)), cpu(Some(status.pid)));
        let of_server = |server: &Server| {
            let process = Process::of(server, letter(server.pid), cpu(server.pid), self.rate_of(server));
            if server.role == "observer" { process.noting(status.observe.join(" ")) } else { process }
        };
        let mut processes: Vec<Process> =
            [of_watchdog].into_iter().chain(servers(status).map(of_server)).collect();
        // Those who leave a slot stand below those who have it.
        processes.sort_by_key(Process::place);
        processes
    }

    /// Whether the watchdog is stopped: then nobody is replaced.
    #[must_use]
    pub fn is_watchdog_stopped(&self) -> bool {
        let letter = self.seen.as_ref().and_then(|seen| seen.letters.get(&seen.status.pid));
        self.gone.is_none() && letter.is_some_and(|letter| State::of_letter(*letter) == State::Stopped)
    }

    fn rate_of(&self, server: &Server) -> Option<f64> {
        let (last, before) = self.samples_over(RATES_OVER)?;
        let ended = |sample: &Sample| sample.by_server.get(&(server.role, server.slot)).copied();
        per_second(ended(last)?, ended(before)?, last.at.since(before.at))
    }

    /// Hundredths of a core.
    fn cpu(&self, pid: u32) -> Option<f64> {
        let (last, before) = self.samples_over(RATES_OVER)?;
        let used = per_second(*last.cpu.get(&pid)?, *before.cpu.get(&pid)?, last.at.since(before.at))?;
        Some(used / 10.0)
    }

    /// The last deaths, the latest first, and how long ago each was.
    #[must_use]
    pub fn deaths(&self) -> Vec<(&Death, Duration)> {
        let Some(seen) = &self.seen else {
            return Vec::new();
        };
        let since = self.now.since(seen.at);
        let deaths = seen.status.obituaries.iter();
        deaths.map(|death| (death, Duration::from_millis(death.ms_ago) + since)).collect()
    }
}

impl Sample {
    fn of(status: &Status, at: Moment) -> Self {
        let ended = |server: &Server| ((server.role, server.slot), server.done.wrapping_add(server.failed));
        // The first entry of a slot is that of who has it; who leaves counts nothing any more.
        let by_server = status.observer.iter().chain(status.servers.iter().rev()).map(ended).collect();
        let of_servers = servers(status).map(|server| (server.pid, server.usage.cpu_ms));
        let cpu = of_servers.chain([(Some(status.pid), status.watchdog.cpu_ms)]);
        let by_kind = status.requests.iter().map(|(name, ends)| {
            let times = status.times.get(name).copied().unwrap_or_default();
            (name.clone(), (ends.done.wrapping_add(ends.failed), times))
        });
        Self {
            at,
            ended: status.ledger.done.wrapping_add(status.ledger.failed),
            by_server,
            cpu: cpu.filter_map(|(pid, cpu)| Some((pid?, cpu?))).collect(),
            by_kind: by_kind.collect(),
        }
    }
}

/// All entries of a status, the observer among them.
pub fn servers(status: &Status) -> impl Iterator<Item = &Server> {
    status.servers.iter().chain(&status.observer)
}

fn service_of_all(sample: &Sample) -> Histogram {
    sample.by_kind.values().fold(Histogram::default(), |sum, (_, times)| sum.with(&times.service))
}

/// How fast a counter grows; `None` where it went backwards, because somebody began to count again.
fn per_second(late: u64, early: u64, within: Duration) -> Option<f64> {
    if within.is_zero() {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "nobody counts so fast")]
    let more = late.checked_sub(early)? as f64;
    Some(more / within.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::fake::{
        at, death, model_at_work, nothing, observer, predecessor, reading, serve, status,
    };

    const FAST: Duration = Duration::from_micros(300);

    fn process(model: &Model, name: &str) -> Process {
        model.processes().into_iter().find(|process| process.name() == name).unwrap()
    }

    #[test]
    fn one_reading_tells_no_rate() {
        let mut model = Model::default();
        model.take(reading(at(1000), &status(5000, 2), &[]));
        assert_eq!((model.rate(), model.service().count()), (None, 0));
        let secondary = process(&model, "secondary 1");
        assert_eq!((secondary.rate, secondary.cpu, secondary.open), (None, None, Some(0)));
        assert_eq!(model.kinds()[0].rate, None);
        assert_eq!(model.history().end(), None);
    }

    #[test]
    fn rates_are_what_was_counted_from_one_reading_to_the_next() {
        let model = model_at_work(2, |_| ());
        assert_eq!(model.rate(), Some(100.0));
        let rate = |name| process(&model, name).rate;
        assert_eq!(
            (rate("principal"), rate("secondary 1"), rate("secondary 2")),
            (Some(100.0), Some(100.0), Some(0.0))
        );
        assert_eq!(process(&model, "secondary 1").cpu, Some(25.0));
        assert_eq!(process(&model, "secondary 2").cpu, Some(0.0));
        let kinds = model.kinds();
        let names: Vec<_> = kinds.iter().map(|kind| (kind.name, kind.rate)).collect();
        assert_eq!(names, [("echo", Some(100.0)), ("requetetype1", Some(0.0)), ("requetetype2", Some(0.0))]);
    }

    #[test]
    fn latencies_are_those_of_the_last_seconds_only() {
        let mut model = Model::default();
        let mut status = status(0, 1);
        serve(&mut status, 1, 1_000_000, Duration::from_secs(1));
        for second in 0..20 {
            model.take(reading(at(second * 1000), &status, &[]));
            serve(&mut status, 1, 10, FAST);
        }
        let kind = &model.kinds()[0];
        assert_eq!((kind.service.count(), kind.wait.count()), (50, 50));
        assert!(kind.service.quantile(0.99) <= Some(Duration::from_micros(500)));
        assert_eq!(model.service(), kind.service);
        assert_eq!(model.kinds()[1].service.quantile(0.5), None, "none of that type has ended");
    }

    #[test]
    fn readings_that_come_fast_are_told_over_a_second() {
        let mut model = Model::default();
        let mut status = status(0, 1);
        for tenth in 0..100 {
            // All of a second's jobs in its first tenth.
            if tenth % 10 == 1 {
                serve(&mut status, 1, 50, FAST);
            }
            model.take(reading(at(tenth * 100), &status, &[]));
        }
        let rate = model.rate().unwrap();
        assert!((50.0..=56.0).contains(&rate), "{rate}");
        assert!(model.samples.len() <= 52, "{}", model.samples.len());
        let (columns, _) = model.history().columns(model.now(), 180);
        assert_eq!(columns.iter().flat_map(|column| column.rate).count(), 10);
    }

    #[test]
    fn a_slow_interval_tells_the_whole_of_it() {
        let mut model = Model::default();
        let mut status = status(0, 1);
        for minute in 0..5 {
            model.take(reading(at(minute * 60_000), &status, &[]));
            serve(&mut status, 1, 600, FAST);
        }
        assert_eq!((model.rate(), model.service().count()), (Some(10.0), 600));
        let (columns, _) = model.history().columns(model.now(), 180);
        assert!(columns.iter().all(|column| column.rate == Some(10.0)), "{columns:?}");
    }

    #[test]
    fn a_system_that_was_started_again_has_no_absurd_rates() {
        let mut model = model_at_work(2, |_| ());
        // Another watchdog, or the same pid again: both count from zero.
        for pid in [2000, 1000] {
            let mut fresh = status(500, 2);
            fresh.pid = pid;
            serve(&mut fresh, 1, 7, FAST);
            let now = model.now();
            model.take(reading(now + Duration::from_secs(1), &fresh, &[]));
            assert_eq!((model.rate(), model.service().count()), (None, 0), "{pid}");
            assert_eq!(process(&model, "secondary 1").rate, None);
            fresh.uptime_ms += 1000;
            serve(&mut fresh, 1, 20, FAST);
            model.take(reading(now + Duration::from_secs(2), &fresh, &[]));
            assert_eq!((model.rate(), model.service().count()), (Some(20.0), 20), "{pid}");
        }
    }

    #[test]
    fn a_counter_that_goes_backwards_is_no_rate() {
        let mut model = model_at_work(2, |_| ());
        let mut after = status(60_000, 2);
        after.servers[1].usage.cpu_ms = Some(3);
        model.take(reading(at(161_000), &after, &[]));
        let secondary = process(&model, "secondary 1");
        assert_eq!((model.rate(), secondary.rate, secondary.cpu), (None, None, None));
        assert_eq!(model.service().count(), 0);
        let (columns, _) = model.history().columns(model.now(), 180);
        assert!(columns.iter().flat_map(|column| column.rate).all(|rate| rate == 100.0));
    }

    #[test]
    fn a_system_that_has_gone_is_told_as_it_was_seen_last() {
        let mut model = model_at_work(2, |status| status.obituaries.push(death(2, 500)));
        model.take(nothing(at(161_000)));
        model.take(nothing(at(163_000)));
        let (since, why) = model.gone().unwrap();
        assert_eq!((since, why), (Duration::from_secs(2), "no osps is running in /run/osps"));
        assert_eq!((model.rate(), process(&model, "secondary 1").rate), (None, None));
        assert_eq!(model.processes().len(), 4);
        assert_eq!(model.deaths()[0].1, Duration::from_millis(3500), "it was longer ago by now");
        model.take(reading(at(164_000), &status(10, 2), &[]));
        assert_eq!((model.gone(), model.rate()), (None, None));
        model.take(reading(at(165_000), &status(1010, 2), &[]));
        assert_eq!(model.rate(), Some(0.0));
        let (columns, _) = model.history().columns(model.now(), 180);
        let last: Vec<_> = columns[174..].iter().map(|column| column.rate).collect();
        assert_eq!(last, [Some(100.0), None, None, None, None, Some(0.0)], "nothing is known of in between");
    }

    #[test]
    fn nothing_is_known_of_a_system_that_was_never_seen() {
        let mut model = Model::default();
        model.take(nothing(at(1000)));
        assert!(model.status().is_none() && model.processes().is_empty() && model.deaths().is_empty());
        assert_eq!(model.gone().unwrap().0, Duration::ZERO);
    }

    #[test]
    fn who_leaves_a_slot_takes_no_counts_along() {
        let model = model_at_work(2, |status| status.servers.push(predecessor(1)));
        let names: Vec<_> = model.processes().iter().map(|process| (process.name(), process.state)).collect();
        let name = |name: &str, state| (name.to_owned(), state);
        let expected = [
            name("watchdog", State::Running),
            name("principal", State::Ready),
            name("secondary 1", State::Ready),
            name("secondary 1", State::Draining),
            name("secondary 2", State::Ready),
        ];
        assert_eq!(names, expected);
        let leaves = &model.processes()[3];
        assert_eq!((leaves.rate, leaves.restarts, leaves.done, leaves.open), (None, None, None, Some(2)));
        assert_eq!(model.processes()[2].rate, Some(100.0));
    }

    #[test]
    fn an_observer_stands_between_the_principal_and_its_secondaries() {
        let mut model = Model::default();
        let mut status = status(0, 1);
        status.observe = vec!["127.0.0.1:2221".to_owned(), "[::1]:2221".to_owned()];
        for second in 0..3 {
            status.observer = Some(observer(second * 4));
            model.take(reading(at(second * 1000), &status, &[(998, 'R')]));
        }
        let third = &model.processes()[2];
        assert_eq!((third.name().as_str(), third.rate, third.letter), ("observer", Some(4.0), Some('R')));
        assert_eq!(third.note, "127.0.0.1:2221 [::1]:2221");
    }

    #[test]
    fn a_watchdog_that_is_stopped_is_told() {
        let mut model = Model::default();
        model.take(reading(at(1000), &status(0, 1), &[]));
        assert!(!model.is_watchdog_stopped());
        model.take(reading(at(2000), &status(1000, 1), &[(1000, 'T')]));
        assert!(model.is_watchdog_stopped());
        assert_eq!(process(&model, "watchdog").state, State::Stopped);
        model.take(nothing(at(3000)));
        assert!(!model.is_watchdog_stopped(), "it is no more");
    }
}
