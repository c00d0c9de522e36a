//! What became of the requests: in words for people, as JSON for programs, as a distribution for the tools
//! of HdrHistogram. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::stress::faults::Fault;
use crate::stress::load::Target;
use crate::stress::record::{Failed, Late, Record, STEP};
use crate::stress::watch::millis;
use crate::stress::{Plan, Until};

/// The percentiles of the table.
const PERCENTILES: [f64; 7] = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// Latencies of requests that were served, in µs from the moment when each should have begun.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub min_us: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
        let at = |quantile: f64| micros(histogram.value_at_quantile(quantile));
        Self {
            min_us: if histogram.is_empty() { 0.0 } else { micros(histogram.min()) },
            mean_us: (histogram.mean() / 100.0).round() / 10.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: micros(histogram.max()),
        }
    }
}

/// What became of the requests of one type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfType {
    /// Served.
    pub ok: u64,
    /// Failed, by how.
    pub errors: BTreeMap<String, u64>,
    /// Latencies.
    #[serde(flatten)]
    pub latency: Latency,
}

/// What happened in each step of time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The width of a step.
    pub step_ms: u64,
    /// Served, by step.
    pub ok: Vec<u64>,
    /// Failed, by step.
    pub failed: Vec<u64>,
    /// The longest latency, by step.
    pub max_us: Vec<u64>,
}

/// What was measured: reports of different settings cannot be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The version of osps-stress.
    pub version: String,
    /// Where the principal was asked.
    pub target: String,
    /// Types and weights.
    pub types: BTreeMap<String, u32>,
    /// Clients at once.
    pub clients: usize,
    /// The rate that was asked for; null: a closed loop.
    pub rate: Option<f64>,
    /// How long, or how many: as given.
    pub until: String,
    /// The ramp, in seconds.
    pub ramp_s: f64,
    /// Whether each request had a control connection of its own.
    pub renew: bool,
    /// Bytes sent with each request.
    pub size: usize,
    /// When an answer was complete.
    pub expect: String,
    /// Within which time, in seconds.
    pub timeout_s: f64,
    /// Loopback addresses to connect from; 0: what the kernel takes.
    pub sources: usize,
    /// Processes.
    pub processes: usize,
}

impl Setting {
    fn new(plan: &Plan, target: &Target) -> Self {
        let until = match plan.until {
            Until::Time(time) => humantime_serde::re::humantime::format_duration(time).to_string(),
            Until::Count(count) => format!("{count} requests"),
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            target: target.to_string(),
            types: plan.shares.iter().map(|share| (share.kind.clone(), share.weight)).collect(),
            clients: plan.clients,
            rate: plan.rate,
            until,
            ramp_s: plan.ramp.as_secs_f64(),
            renew: !plan.keep,
            size: plan.payload.len(),
            expect: format!("{:?}", plan.expect).to_lowercase(),
            timeout_s: plan.timeout.as_secs_f64(),
            sources: plan.sources,
            processes: plan.processes,
        }
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let types: Vec<String> = match self.types.len() {
            1 => self.types.keys().cloned().collect(),
            _ => self.types.iter().map(|(kind, weight)| format!("{kind}={weight}")).collect(),
        };
        let looped = self.rate.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate}/s"));
        let control = if self.renew { "renewed" } else { "kept" };
        let processes =
            if self.processes > 1 { format!(", {} processes", self.processes) } else { String::new() };
        format!(
            "{} at {}: {} clients{processes}, {looped}, {}, {} bytes, control connections {control}",
            types.join(" "),
            self.target,
            self.clients,
            self.until,
            self.size
        )
    }
}

/// All of it, as `--json` prints it and `--compare` reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Requests served in a second.
    pub rate: f64,
    /// Requests served.
    pub ok: u64,
    /// Requests that failed, by how; those that did not occur are left out.
    pub errors: BTreeMap<String, u64>,
    /// Latencies.
    #[serde(flatten)]
    pub latency: Latency,
    /// From the start until the last request had ended.
    pub duration_s: f64,
    /// What was asked for.
    pub setting: Setting,
    /// Requests of an open loop that began late.
    pub late: Late,
    /// Which part of one core osps-stress itself has used; of several processes the one that has used most.
    pub generator_cpu: f64,
    /// The same by type.
    pub types: BTreeMap<String, OfType>,
    /// Servers that were struck.
    pub faults: Vec<Fault>,
    /// The same over time.
    pub timeline: Timeline,
}

impl Report {
    /// The report of a record.
    #[must_use]
    pub fn new(plan: &Plan, target: &Target, record: &Record, faults: Vec<Fault>, took: Duration) -> Self {
        let names = |failed: &BTreeMap<Failed, u64>| {
            failed.iter().map(|(failed, count)| (failed.name().to_owned(), *count)).collect()
        };
        let types = record.kinds.iter().map(|kind| {
            let of_type = OfType {
                ok: kind.latency.len(),
                errors: names(&kind.failed),
                latency: Latency::of(&kind.latency),
            };
            (kind.name.clone(), of_type)
        });
        let steps = || record.steps.iter();
        let rate = record.ok() as f64 / took.as_secs_f64().max(1e-9);
        Self {
            rate: (rate * 10.0).round() / 10.0,
            ok: record.ok(),
            errors: names(&record.failures()),
            latency: Latency::of(&record.latency()),
            duration_s: took.as_secs_f64(),
            setting: Setting::new(plan, target),
            late: record.late,
            generator_cpu: (record.busy * 1000.0).round() / 1000.0,
            types: types.collect(),
            faults,
            timeline: Timeline {
                step_ms: u64::try_from(STEP.as_millis()).unwrap_or(u64::MAX),
                ok: steps().map(|step| step.ok).collect(),
                failed: steps().map(|step| step.failed).collect(),
                max_us: steps().map(|step| step.max_us).collect(),
            },
        }
    }

    /// Whether no request has failed, and one at least was served.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.ok > 0
    }
}

/// For people.
#[must_use]
pub fn text(report: &Report, record: &Record) -> String {
    let mut text = format!("{}\n", report.setting.text());
    let all = record.latency();
    let failed: u64 = report.errors.values().sum();
    let _ = writeln!(
        text,
        "{} served in {:.2} s, {:.0}/s; {failed} failed",
        report.ok, report.duration_s, report.rate
    );
    for (name, count) in &report.errors {
        let example = record.examples.iter().find(|(failed, _)| failed.name() == name);
        let example = example.map_or("", |(_, example)| example.as_str());
        let _ = writeln!(text, "  {name:<18} {count:>9}  {example}");
    }
    if report.types.len() > 1 {
        let _ = writeln!(
            text,
            "\n{:<18} {:>9} {:>9} {:>10} {:>10} {:>10}",
            "type", "served", "failed", "p50", "p99", "max"
        );
        for (name, of) in &report.types {
            let [p50, p99, max] = [of.latency.p50_us, of.latency.p99_us, of.latency.max_us].map(shown);
            let failed: u64 = of.errors.values().sum();
            let _ = writeln!(text, "{name:<18} {:>9} {failed:>9} {p50:>10} {p99:>10} {max:>10}", of.ok);
        }
    }
    if !all.is_empty() {
        let from = if report.setting.rate.is_some() {
            "from the moment when each should have begun"
        } else {
            "of each request"
        };
        let _ = writeln!(text, "\nlatency, {from}\n{:>10}  {:>10}  {:>10}", "percentile", "", "beyond it");
        for percentile in PERCENTILES {
            let value = all.value_at_percentile(percentile);
            let beyond = all.len() - all.count_between(0, value);
            let _ = writeln!(text, "{percentile:>9} %  {:>10}  {beyond:>10}", millis(value / 1000));
        }
        let _ = writeln!(text, "{:>11}  {:>10}", "longest", millis(all.max() / 1000));
    }
    if !report.faults.is_empty() {
        let _ = writeln!(text, "\nservers that were struck");
    }
    for fault in &report.faults {
        let _ = writeln!(text, "{:8.1} s  {}", fault.at_s, fault.what);
    }
    for hint in hints(report) {
        let _ = writeln!(text, "\n{hint}");
    }
    text
}

/// What to do where this machine was the limit.
fn hints(report: &Report) -> Vec<String> {
    let hint =
        |failed: Failed, hint: &str| report.errors.contains_key(failed.name()).then(|| hint.to_owned());
    let Late { requests, for_clients, most_us } = report.late;
    let many_were_late = requests * 100 > report.ok;
    let late = many_were_late.then(|| {
        let why = if for_clients * 2 > requests {
            "no client was free. If the server stood still, so it should be; else use more --clients"
        } else {
            "osps-stress had no CPU just then: use less rate, or --processes"
        };
        format!("{requests} requests began late, the latest by {}: {why}.", millis(most_us))
    });
    let busy = (report.generator_cpu > 0.9).then(|| {
        format!(
            "osps-stress itself has used {:.0} % of a core: it may be the limit, not the server. Use --processes, and \
             cores that the server does not use.",
            report.generator_cpu * 100.0
        )
    });
    [
        hint(
            Failed::OutOfPorts,
            "This machine has run out of ports to connect from, for an address has some 28,000 for each port of \
             the server: spread the clients over more (--sources N, on the loopback), or widen \
             net.ipv4.ip_local_port_range.",
        ),
        hint(
            Failed::OutOfDescriptors,
            "This process has run out of descriptors: use fewer clients, more --processes, or raise the limit \
             (ulimit -n).",
        ),
        late,
        busy,
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a latency in µs")]
fn shown(micros: f64) -> String {
    millis(micros as u64)
}

/// The distribution of the latencies, in ms, in the format that HdrHistogram's plotter reads (`.hgrm`).
#[must_use]
pub fn distribution(record: &Record) -> String {
    let all = record.latency();
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for value in all.iter_quantiles(5) {
        total += value.count_since_last_iteration();
        let part = value.quantile_iterated_to();
        let millis = value.value_iterated_to() as f64 / 1e6;
        let _ = write!(text, "{millis:>12.6} {part:>14.12} {total:>10}");
        let _ = if part < 1.0 { writeln!(text, " {:>14.2}", 1.0 / (1.0 - part)) } else { writeln!(text) };
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]",
        all.mean() / 1e6,
        all.stdev() / 1e6
    );
    let _ =
        writeln!(text, "#[Max     = {:>12.6}, Total count    = {:>12}]", all.max() as f64 / 1e6, all.len());
    text
}

/// Two reports side by side; how the second is to the first.
#[must_use]
pub fn compare(names: [&str; 2], [first, second]: [&Report; 2]) -> String {
    let mut text = String::new();
    for (name, report) in names.iter().zip([first, second]) {
        let _ = writeln!(text, "{name}: {}", report.setting.text());
    }
    let alike =
        |setting: &Setting| Setting { version: String::new(), target: String::new(), ..setting.clone() };
    if alike(&first.setting) != alike(&second.setting) {
        let _ = writeln!(text, "These are two different measurements: think before you compare them.");
    }
    let _ = writeln!(text, "\n{:<12} {:>16} {:>16} {:>10}", "", names[0], names[1], "to the first");
    let failed = |report: &Report| report.errors.values().sum::<u64>() as f64;
    let rows: [(&str, [f64; 2]); 8] = [
        ("rate", [first.rate, second.rate]),
        ("ok", [first.ok as f64, second.ok as f64]),
        ("errors", [failed(first), failed(second)]),
        ("p50_us", [first.latency.p50_us, second.latency.p50_us]),
        ("p90_us", [first.latency.p90_us, second.latency.p90_us]),
        ("p99_us", [first.latency.p99_us, second.latency.p99_us]),
        ("p999_us", [first.latency.p999_us, second.latency.p999_us]),
        ("max_us", [first.latency.max_us, second.latency.max_us]),
    ];
    for (name, [one, two]) in rows {
        let ratio = if one > 0.0 { format!("{:.3}", two / one) } else { "-".to_owned() };
        let _ = writeln!(text, "{name:<12} {one:>16.1} {two:>16.1} {ratio:>10}");
    }
    let kinds: std::collections::BTreeSet<&String> =
        first.errors.keys().chain(second.errors.keys()).collect();
    for kind in kinds {
        let [one, two] = [first, second].map(|report| report.errors.get(kind).copied().unwrap_or(0));
        let _ = writeln!(text, "  {kind:<10} {one:>16} {two:>16}");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::stress::Expect;

    pub fn plan() -> Plan {
        Plan {
            shares: vec!["echo".parse().unwrap(), "sum".parse().unwrap()],
            requests: vec![b"echo\n".to_vec(), b"sum\n".to_vec()],
            payload: Vec::new(),
            expect: Expect::End,
            clients: 8,
            rate: None,
            until: Until::Time(Duration::from_secs(1)),
            keep: true,
            timeout: Duration::from_secs(1),
            ramp: Duration::ZERO,
            sources: 0,
            first_client: 0,
            offset: Duration::ZERO,
            processes: 1,
        }
    }

    pub fn target() -> Target {
        Target::Tcp(([127, 0, 0, 1], 2222).into())
    }

    fn record() -> Record {
        let mut record = Record::new(["echo", "sum"]);
        for number in 1..=1000_u64 {
            let time = Duration::from_micros(number * 10);
            record.serve(usize::from(number > 900), time, Duration::from_millis(number));
        }
        record.fail(1, Failed::OutOfPorts, || "cannot connect".to_owned(), Duration::from_millis(5));
        record
    }

    #[test]
    fn json_has_the_names_that_others_rely_on_and_comes_back() {
        let report = Report::new(&plan(), &target(), &record(), Vec::new(), Duration::from_secs(2));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((json["rate"].as_f64(), json["ok"].as_u64()), (Some(500.0), Some(1000)));
        assert_eq!(json["errors"], serde_json::json!({ "out_of_ports": 1 }));
        for (name, wanted) in
            [("p50_us", 5000.0), ("p90_us", 9000.0), ("p99_us", 9900.0), ("max_us", 10000.0)]
        {
            let value: f64 = json[name].as_f64().unwrap();
            assert!((value - wanted).abs() <= wanted * 0.002, "{name}: {value}");
        }
        assert!(json["p999_us"].is_number());
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
        assert!(!report.is_clean());
    }

    #[test]
    fn people_are_told_what_failed_and_what_to_do() {
        let (plan, record) = (plan(), record());
        let report = Report::new(&plan, &target(), &record, Vec::new(), Duration::from_secs(2));
        let text = text(&report, &record);
        for part in
            ["1000 served", "1 failed", "out_of_ports", "cannot connect", "--sources", "99.9 %", "sum"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let mut other = report.clone();
        other.setting.clients = 9;
        assert!(compare(["a", "b"], [&report, &other]).contains("two different measurements"));
        other.generator_cpu = 0.97;
        other.late = Late { requests: 500, for_clients: 10, most_us: 30_000 };
        let hints = hints(&other).join(" ");
        assert!(hints.contains("97 % of a core") && hints.contains("500 requests began late"), "{hints}");
        let compared = compare(["a", "b"], [&report, &report]);
        assert!(compared.contains("p999_us") && compared.contains("1.000"), "{compared}");
        let distribution = distribution(&record);
        assert!(distribution.lines().count() > 10 && distribution.contains("#[Max"), "{distribution}");
    }
}
