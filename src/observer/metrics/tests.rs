//! What is scraped.

use std::collections::BTreeSet;

use super::*;
use crate::observer::example;

const STARTED: Duration = Duration::from_millis(1_700_000_000_250);

fn lines(status: &Status, format: Format) -> Vec<String> {
    render(status, STARTED, format).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn figures_have_base_units_and_the_names_of_convention() {
    let lines = lines(&example::status(), Format::Text);
    for expected in [
        "osps_build_info{version=\"0.1.0\"} 1",
        "osps_start_time_seconds 1700000000.25",
        "osps_ready 1",
        "osps_stopping 0",
        "osps_jobs_accepted_total 1213",
        "osps_jobs_ended_total{type=\"echo\",outcome=\"failed\"} 4",
        "osps_jobs_open 3",
        "osps_requests_refused_total{reason=\"busy\"} 4",
        "osps_data_connections_rejected_total 1",
        "osps_clients_connected 12",
        "osps_clients_closed_total{reason=\"turned_away\"} 2",
        "osps_server_state{role=\"secondary\",slot=\"1\",state=\"ready\"} 1",
        "osps_server_state{role=\"secondary\",slot=\"1\",state=\"down\"} 0",
        "osps_server_restarts_total{role=\"principal\",slot=\"0\"} 0",
        "osps_server_probe_round_trip_seconds{role=\"observer\",slot=\"0\"} 0.000085",
        "osps_server_answer_age_seconds{role=\"secondary\",slot=\"2\"} 0.12",
        "osps_secondary_jobs_ended_total{slot=\"1\",outcome=\"done\"} 600",
        "osps_process_resident_memory_bytes{role=\"watchdog\",slot=\"0\"} 4194304",
        "osps_process_cpu_seconds_total{role=\"secondary\",slot=\"1\"} 1.5",
        "osps_predecessors 1",
        "osps_observer_requests_total{outcome=\"ok\"} 600",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected} is missing in:\n{}", lines.join("\n"));
    }
}

#[test]
fn histograms_are_cumulative() {
    let lines = lines(&example::status(), Format::Text);
    let bucket = "osps_job_wait_seconds_bucket{type=\"echo\",le=\"";
    let of_echo = lines.iter().filter_map(|line| line.strip_prefix(bucket));
    let buckets: Vec<(&str, u64)> = of_echo
        .map(|line| line.split_once("\"} ").unwrap())
        .map(|(le, count)| (le, count.parse().unwrap()))
        .collect();
    assert_eq!(buckets.len(), BOUNDS_US.len() + 1);
    assert_eq!((buckets[0], buckets[2], buckets[22]), (("1e-05", 0), ("5e-05", 300), ("+Inf", 1200)));
    assert!(buckets.is_sorted_by_key(|&(_, count)| count));
    assert!(lines.contains(&"osps_job_wait_seconds_sum{type=\"echo\"} 0.726".to_owned()));
    assert!(lines.contains(&"osps_job_wait_seconds_count{type=\"echo\"} 1200".to_owned()));
}

#[test]
fn openmetrics_tells_the_same_and_says_where_it_ends() {
    let (text, open) =
        (lines(&example::status(), Format::Text), lines(&example::status(), Format::OpenMetrics));
    assert_eq!(open.last().unwrap(), "# EOF");
    let samples = |lines: &[String]| -> BTreeSet<String> {
        let samples = lines.iter().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
        samples.cloned().collect()
    };
    assert_eq!(samples(&text), samples(&open));
}

#[test]
fn every_metric_has_its_line_in_the_documents() {
    let document = include_str!("../../../docs/observer.md");
    for line in lines(&example::status(), Format::Text) {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) {
            assert!(document.contains(&format!("`{name}`")), "docs/observer.md does not tell of {name}");
        }
    }
}

#[test]
fn alerts_name_metrics_that_there_are() {
    let lines = lines(&example::status(), Format::Text);
    let is_part_of_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let names: BTreeSet<&str> = lines.iter().filter_map(|line| line.split(['{', ' ']).next()).collect();
    for rules in [include_str!("../../../docs/alerts.yml"), include_str!("../../../docs/alerts_test.yml")] {
        let words: BTreeSet<&str> =
            rules.split(|char| !is_part_of_name(char)).filter(|word| word.starts_with("osps_")).collect();
        assert!(words.len() > 10, "{words:?}");
        for word in words {
            assert!(names.contains(word), "the alerts name {word}, which is no metric");
        }
    }
}

#[test]
fn labels_are_escaped() {
    let mut status = example::status();
    status.requests.insert("a\"b\\c\nd".to_owned(), EndsOf { done: 1, failed: 0, expired: 0 });
    for format in [Format::Text, Format::OpenMetrics] {
        let lines = lines(&status, format);
        let expected = "osps_jobs_ended_total{type=\"a\\\"b\\\\c\\nd\",outcome=\"done\"} 1";
        assert!(lines.iter().any(|line| line == expected), "{}", lines.join("\n"));
    }
}

#[test]
fn types_without_figures_of_their_own_are_counted_together() {
    let mut status = example::status();
    let before = lines(&status, Format::Text).len();
    for number in 0..1000 {
        status.requests.insert(format!("type{number:04}"), EndsOf { done: 1, failed: 0, expired: 0 });
    }
    let lines = lines(&status, Format::Text);
    // "echo" and "sum" are among the first by name.
    let others = 1000 - (MOST_TYPES - 2);
    let expected = format!("osps_jobs_ended_total{{type=\"(others)\",outcome=\"done\"}} {others}");
    assert!(lines.contains(&expected), "{expected}");
    let of_a_type = 3 + 2 * (BOUNDS_US.len() + 3);
    assert_eq!(lines.len() - before, (MOST_TYPES - 2 + 1) * of_a_type);
}

#[test]
fn who_asks_for_openmetrics_gets_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                      application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
    assert_eq!(
        Format::wanted("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        Format::OpenMetrics
    );
    for accept in [
        "",
        "*/*",
        "text/html,*/*;q=0.8",
        "text/plain;version=0.0.4",
        "application/openmetrics-text;q=0,*/*",
        "text/plain,application/openmetrics-text;q=0.5",
    ] {
        assert_eq!(Format::wanted(accept), Format::Text, "{accept}");
    }
}
