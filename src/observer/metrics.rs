//! `/metrics`: the status in the text formats of Prometheus. What each figure means, for who reads them:
//! `docs/observer.md`.
//!
//! The status has counted already, so nothing is registered for long: each time, one collector writes what was
//! read. How many series there are is bounded by the configuration, and by [`MOST_TYPES`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::core::latency::{BOUNDS_US, Histogram};
use crate::observer::health::Health;
use crate::status::{Connections, EndsOf, Ledger, Refusals, Server, ServerState, Status, Times, Usage};

/// Request types with figures of their own: the first by name. The others are counted together, as [`OTHERS`].
pub const MOST_TYPES: usize = 200;
/// No request type can have this name.
const OTHERS: &str = "(others)";

/// In which format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus, 0.0.4, that all tools read.
    Text,
    /// OpenMetrics 1.0.0, which Prometheus itself asks for.
    OpenMetrics,
}

impl Format {
    /// What a client that sends this `Accept` gets: OpenMetrics only where it asks for it by name, and would not
    /// rather have plain text.
    #[must_use]
    pub fn wanted(accept: &str) -> Self {
        let open = quality(accept, "application/openmetrics-text");
        if open > 0.0 && open >= quality(accept, "text/plain") { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// How much a media type is wanted: the highest of its `q` (RFC 9110, section 12.4.2).
fn quality(accept: &str, media_type: &str) -> f32 {
    let of_range = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(media_type));
        let quality = parts.find_map(|part| part.strip_prefix("q="));
        is_it.then(|| quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
    };
    accept.split(',').filter_map(of_range).fold(0.0, f32::max)
}

/// All metrics of a status. `started` is when the system was started, since 1970-01-01 00:00 UTC.
///
/// # Errors
/// Never in practice: a String takes all.
pub fn render(status: &Status, started: Duration, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("osps");
    registry.register_collector(Box::new(Snapshot { status: status.clone(), started }));
    let mut page = String::with_capacity(64 * 1024);
    match format {
        Format::Text => prometheus_text::encode(&mut page, &registry)?,
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

#[derive(Debug)]
struct Snapshot {
    status: Status,
    started: Duration,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Copy)]
enum Value {
    Whole(u64),
    Real(f64),
    Times(Histogram),
}

/// A metric with all its values.
struct Family {
    kind: MetricType,
    /// Without the prefix, the unit, and what the kind appends.
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    values: Vec<(Labels, Value)>,
}

impl Family {
    fn gauge(name: &'static str, help: &'static str, values: Vec<(Labels, Value)>) -> Self {
        Self { kind: MetricType::Gauge, name, unit: None, help, values }
    }

    fn counter(name: &'static str, help: &'static str, values: Vec<(Labels, Value)>) -> Self {
        Self { kind: MetricType::Counter, name, unit: None, help, values }
    }

    fn histogram(name: &'static str, help: &'static str, values: Vec<(Labels, Value)>) -> Self {
        Self { kind: MetricType::Histogram, name, unit: Some(Unit::Seconds), help, values }
    }

    fn of(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self { status, started } = self;
        let version = vec![("version", status.version.clone())];
        let help = "The version of the watchdog";
        encoder.encode_descriptor("build", help, None, MetricType::Info)?.encode_info(&version)?;
        let groups = [
            of_system(status, *started),
            of_jobs(status),
            of_clients(status),
            of_servers(status),
            of_processes(status),
        ];
        for Family { kind, name, unit, help, values } in groups.into_iter().flatten() {
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for (labels, value) in &values {
                if labels.is_empty() {
                    write(&mut metric, kind, *value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, kind, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder, kind: MetricType, value: Value) -> fmt::Result {
    match (kind, value) {
        (MetricType::Counter, Value::Whole(count)) => {
            metric.encode_counter::<NoLabelSet, _, f64>(&count, None)
        }
        (MetricType::Counter, Value::Real(count)) => {
            metric.encode_counter::<NoLabelSet, _, f64>(&count, None)
        }
        (_, Value::Whole(number)) => metric.encode_gauge(&number),
        (_, Value::Real(number)) => metric.encode_gauge(&number),
        (_, Value::Times(histogram)) => {
            let bounds = BOUNDS_US.iter().map(|&bound| seconds(bound, 1e6)).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(histogram.buckets).collect();
            let sum = seconds(histogram.sum_us, 1e6);
            metric.encode_histogram::<NoLabelSet>(sum, histogram.count(), &buckets, None)
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "of what is more than 285 years in microseconds")]
fn seconds(count: u64, in_a_second: f64) -> f64 {
    count as f64 / in_a_second
}

fn one(value: Value) -> Vec<(Labels, Value)> {
    vec![(Labels::new(), value)]
}

/// A value for each of a few words.
fn by<const N: usize>(label: &'static str, values: [(&str, u64); N]) -> Vec<(Labels, Value)> {
    values.map(|(word, count)| (vec![(label, word.to_owned())], Value::Whole(count))).to_vec()
}

fn of_system(status: &Status, started: Duration) -> Vec<Family> {
    let is = |condition: bool| one(Value::Whole(condition.into()));
    let is_ready = Health::of(Ok(status)).is_ready();
    vec![
        Family::gauge(
            "start_time",
            "When the watchdog was started, since 1970-01-01 00:00 UTC",
            one(Value::Real(started.as_secs_f64())),
        )
        .of(Unit::Seconds),
        Family::gauge("ready", "1 where clients get ports, as /readyz says", is(is_ready)),
        Family::gauge("stopping", "1 once a stop was asked for", is(status.stopping)),
    ]
}

fn of_jobs(status: &Status) -> Vec<Family> {
    let Ledger { accepted, open, rejected, .. } = status.ledger;
    let Refusals { unknown, malformed, busy, stopping } = status.refusals;
    let refused = [("unknown", unknown), ("malformed", malformed), ("busy", busy), ("stopping", stopping)];
    let mut ended = Vec::new();
    let (mut waits, mut services) = (Vec::new(), Vec::new());
    for (name, (EndsOf { done, failed, expired }, Times { wait, service })) in by_type(status) {
        for (outcome, count) in [("done", done), ("failed", failed), ("expired", expired)] {
            let labels = vec![("type", name.clone()), ("outcome", outcome.to_owned())];
            ended.push((labels, Value::Whole(count)));
        }
        waits.push((vec![("type", name.clone())], Value::Times(wait)));
        services.push((vec![("type", name)], Value::Times(service)));
    }
    vec![
        Family::counter("jobs_accepted", "Ports given out", one(Value::Whole(accepted))),
        Family::counter("jobs_ended", "Jobs that have ended, by request type and how", ended),
        Family::gauge("jobs_open", "Jobs that have not ended", one(Value::Whole(open))),
        Family::histogram("job_wait", "From the answer with a port until somebody came for the job", waits),
        Family::histogram("job_service", "From when somebody came for a job until it ended", services),
        Family::counter("requests_refused", "Requests answered -1, by why", by("reason", refused)),
        Family::counter(
            "data_connections_rejected",
            "Data connections that nobody was waiting for",
            one(Value::Whole(rejected)),
        ),
    ]
}

/// What is known of each request type, and of those together that have no figures of their own.
fn by_type(status: &Status) -> BTreeMap<String, (EndsOf, Times)> {
    let mut types = BTreeMap::new();
    for (index, (name, ends)) in status.requests.iter().enumerate() {
        let times = status.times.get(name).copied().unwrap_or_default();
        let name = if index < MOST_TYPES { name } else { OTHERS };
        let none = (EndsOf { done: 0, failed: 0, expired: 0 }, Times::default());
        let (all, all_times): &mut (EndsOf, Times) = types.entry(name.to_owned()).or_insert(none);
        *all = EndsOf {
            done: all.done.wrapping_add(ends.done),
            failed: all.failed.wrapping_add(ends.failed),
            expired: all.expired.wrapping_add(ends.expired),
        };
        all_times.wait = all_times.wait.with(&times.wait);
        all_times.service = all_times.service.with(&times.service);
    }
    types
}

fn of_clients(status: &Status) -> Vec<Family> {
    let Connections { connected, parked, accepted, turned_away, evicted, idle, broken } = status.clients;
    let closed = [("turned_away", turned_away), ("evicted", evicted), ("idle", idle), ("broken", broken)];
    vec![
        Family::gauge(
            "clients_connected",
            "Control connections that are heard",
            one(Value::Whole(connected)),
        ),
        Family::gauge(
            "clients_waiting",
            "Control connections that wait for a place",
            one(Value::Whole(parked)),
        ),
        Family::counter("clients_accepted", "Control connections accepted", one(Value::Whole(accepted))),
        Family::counter(
            "clients_closed",
            "Control connections that ended otherwise than by the client's own wish, by why",
            by("reason", closed),
        ),
    ]
}

/// The principal and who is in its slots; not who only finishes there.
fn current(status: &Status) -> impl Iterator<Item = &Server> {
    status.servers.iter().filter(|server| server.slot == 0 || server.state != ServerState::Draining)
}

fn labels(role: &str, slot: u16) -> Labels {
    vec![("role", role.to_owned()), ("slot", slot.to_string())]
}

/// A value of each server where there is one.
fn each<'a>(
    servers: impl Iterator<Item = &'a Server>,
    value: impl Fn(&Server) -> Option<Value>,
) -> Vec<(Labels, Value)> {
    servers.filter_map(|server| Some((labels(server.role, server.slot), value(server)?))).collect()
}

fn of_servers(status: &Status) -> Vec<Family> {
    let all = || current(status).chain(&status.observer);
    let secondaries = || current(status).filter(|server| server.slot > 0);
    let count = |of: fn(&Server) -> u64| move |server: &Server| Some(Value::Whole(of(server)));
    let mut states = Vec::new();
    for server in all() {
        use ServerState::{Down, Draining, Ready, Starting, Suspect};
        for state in [Starting, Ready, Suspect, Draining, Down] {
            let mut labels = labels(server.role, server.slot);
            labels.push(("state", state.as_str().to_owned()));
            states.push((labels, Value::Whole((state == server.state).into())));
        }
    }
    let mut jobs = Vec::new();
    for server in secondaries() {
        for (outcome, count) in [("done", server.done), ("failed", server.failed)] {
            let labels = vec![("slot", server.slot.to_string()), ("outcome", outcome.to_owned())];
            jobs.push((labels, Value::Whole(count)));
        }
    }
    let round_trip = |server: &Server| Some(Value::Real(seconds(server.rtt_us?, 1e6)));
    let answered = |server: &Server| Some(Value::Real(seconds(server.answered_ms_ago?, 1e3)));
    let open =
        secondaries().map(|server| (vec![("slot", server.slot.to_string())], Value::Whole(server.open)));
    let recycled =
        secondaries().map(|server| (vec![("slot", server.slot.to_string())], Value::Whole(server.recycled)));
    vec![
        Family::gauge("server_state", "1 for the state that a server is in, 0 for all others", states),
        Family::counter(
            "server_restarts",
            "How often a successor was started",
            each(all(), count(|server| server.restarts)),
        ),
        Family::counter(
            "server_kills",
            "How often the watchdog has killed a server",
            each(all(), count(|server| server.kills)),
        ),
        Family::gauge("server_probe_round_trip", "Round trip of the last probe", each(all(), round_trip))
            .of(Unit::Seconds),
        Family::gauge("server_answer_age", "How long ago the last probe was answered", each(all(), answered))
            .of(Unit::Seconds),
        Family::counter(
            "secondary_recycled",
            "Restarts because a secondary had served for long enough",
            recycled.collect(),
        ),
        Family::gauge("secondary_jobs_open", "Open jobs of a secondary", open.collect()),
        Family::counter("secondary_jobs_ended", "Jobs that a secondary has ended, by how", jobs),
    ]
}

fn of_processes(status: &Status) -> Vec<Family> {
    let watchdog = [(labels("watchdog", 0), status.watchdog)];
    let servers = current(status).chain(&status.observer);
    let all: Vec<(Labels, Usage)> = watchdog
        .into_iter()
        .chain(servers.map(|server| (labels(server.role, server.slot), server.usage)))
        .collect();
    let values = |value: fn(&Usage) -> Option<Value>| -> Vec<(Labels, Value)> {
        all.iter().filter_map(|(labels, usage)| Some((labels.clone(), value(usage)?))).collect()
    };
    let predecessors =
        || status.servers.iter().filter(|server| server.slot > 0 && server.state == ServerState::Draining);
    let held = predecessors().map(|server| server.open).fold(0, u64::wrapping_add);
    let mut families = vec![
        Family::gauge(
            "process_resident_memory",
            "Resident memory, shared pages included",
            values(|usage| usage.memory_bytes.map(Value::Whole)),
        )
        .of(Unit::Bytes),
        Family::counter(
            "process_cpu",
            "CPU time of a process since it was started",
            values(|usage| Some(Value::Real(seconds(usage.cpu_ms?, 1e3)))),
        )
        .of(Unit::Seconds),
        Family::gauge(
            "predecessors",
            "Secondaries that were replaced and finish what they have",
            one(Value::Whole(predecessors().count() as u64)),
        ),
        Family::gauge("predecessors_jobs_open", "Jobs that predecessors have", one(Value::Whole(held))),
    ];
    if let Some(observer) = &status.observer {
        let requests = [("ok", observer.done), ("error", observer.failed)];
        let help = "Requests that the observer has answered, by how";
        families.push(Family::counter("observer_requests", help, by("outcome", requests)));
        let help = "Connections of browsers and scrapers";
        families.push(Family::gauge("observer_connections", help, one(Value::Whole(observer.open))));
    }
    families
}

#[cfg(test)]
mod tests;
