//! The status page: one document with all that it needs. The same pieces of HTML stand in the page that is sent
//! first and in the events after it, so a browser without JavaScript shows the same.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::core::moment::Moment;
use crate::observer::chart::{HALF, NEARLY_ALL, Picture, RATE, Scale, Span, TROUBLE};
use crate::observer::health::{Health, Level};
use crate::observer::history::{History, Sample};
use crate::observer::html::Html;
use crate::observer::{figures, tables};
use crate::status::{Connections, Ledger, Refusals, Status};

const FRAME: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the page may do: use its own style and its own script, known by their hashes, and get events from where it
/// came from. Nothing else is loaded, and nobody may frame it.
pub const POLICY: &str = "default-src 'none'; \
    style-src 'sha256-ImNT5eOlPEuO0APLzAShDw6NvMEtQrKh7SBagyf2yqw='; \
    script-src 'sha256-NkacNOu8CEMQmz8Yr/DBuRK1uOXaR976vL2V3z6q8DU='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The pieces of the page, by the `id` of the element that each fills.
type Pieces = BTreeMap<&'static str, Html>;

/// An event, as the script of the page takes it.
#[derive(Serialize)]
struct Event<'a> {
    title: String,
    level: &'static str,
    pieces: BTreeMap<&'static str, &'a str>,
    samples: Vec<Point>,
}

/// A sample, for who points at it in a chart: its age in seconds, jobs that ended a second, those that failed or
/// expired, and the median and the 99th percentile of service times in milliseconds.
type Point = (f64, f64, f64, Option<(f64, f64)>);

fn point(now: Moment, sample: &Sample) -> Point {
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let millis = |time: Duration| rounded(time.as_secs_f64() * 1000.0);
    let service = sample.service.map(|(half, nearly_all)| (millis(half), millis(nearly_all)));
    (rounded(now.since(sample.at).as_secs_f64()), rounded(sample.rate), rounded(sample.trouble), service)
}

/// The whole page, of a status or the reason why there is none.
#[must_use]
pub fn page(now: Moment, status: Result<&Status, &str>, history: &History) -> String {
    let health = Health::of(status);
    let pieces = pieces(now, status, &health, history);
    let mut title_html = Html::default();
    title_html.text(&title(&health));
    let mut page = String::with_capacity(64 * 1024);
    let mut parts = FRAME.split("{{");
    page.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        page.push_str(match name {
            "style" => STYLE,
            "script" => SCRIPT,
            "level" => level(&health),
            "title" => title_html.as_str(),
            piece => pieces.get(piece).map_or("", Html::as_str),
        });
        page.push_str(rest);
    }
    page
}

/// What the page shows now, as JSON: its title, how good that is, and its pieces.
#[must_use]
pub fn event(now: Moment, status: Result<&Status, &str>, history: &History) -> String {
    let health = Health::of(status);
    let pieces = pieces(now, status, &health, history);
    let pieces = pieces.iter().map(|(id, html)| (*id, html.as_str())).collect();
    let samples = history.total().iter().map(|sample| point(now, sample)).collect();
    // Strings and numbers as JSON cannot fail.
    let event = Event { title: title(&health), level: level(&health), pieces, samples };
    serde_json::to_string(&event).unwrap_or_default()
}

fn title(health: &Health) -> String {
    format!("{} · OSPS", health.summary)
}

fn level(health: &Health) -> &'static str {
    match health.level {
        Level::Good => "good",
        Level::Fair => "fair",
        Level::Bad => "bad",
    }
}

fn pieces(now: Moment, status: Result<&Status, &str>, health: &Health, history: &History) -> Pieces {
    let mut pieces = Pieces::from([("health", self::health(health))]);
    if let Ok(status) = status {
        pieces.insert("about", about(status));
        pieces.insert("figures", key_figures(status, history));
        pieces.insert("charts", charts(now, history));
        pieces.insert("requests", tables::requests(now, status, history));
        pieces.insert("processes", tables::processes(status, history));
        pieces.insert("books", books(status));
        pieces.insert("obituaries", tables::obituaries(status));
    }
    pieces
}

fn health(health: &Health) -> Html {
    let mut html = Html::default();
    html.around("<h1>", &health.summary, ".</h1>");
    if !health.troubles.is_empty() {
        html.raw("<ul>");
        for trouble in health.troubles.iter().take(8) {
            html.around("<li>", trouble, "</li>");
        }
        html.raw("</ul>");
    }
    html
}

fn about(status: &Status) -> Html {
    let mut html = Html::default();
    html.around("<span>version ", &status.version, "</span> ");
    html.around("<span>up ", &figures::age(status.uptime_ms), "</span> ");
    html.raw("<span>listens on ");
    for (index, address) in status.listen.iter().enumerate() {
        html.raw(if index > 0 { ", " } else { "" }).around("<code>", address, "</code>");
    }
    html.raw("</span>");
    html
}

fn key_figures(status: &Status, history: &History) -> Html {
    let service = history.all_quantiles().service;
    let rate = history.total().back().map(|sample| sample.rate);
    let servers = status.servers.iter().chain(&status.observer).map(|server| server.usage);
    let memory = servers.chain([status.watchdog]).filter_map(|usage| usage.memory_bytes);
    let dash = || "–".to_owned();
    let mut html = Html::default();
    for (name, figure) in [
        ("Jobs per second", rate.map_or_else(dash, figures::rate)),
        ("Median service time", service.map_or_else(dash, |(half, _)| figures::time(half))),
        ("99 % served within", service.map_or_else(dash, |(_, nearly_all)| figures::time(nearly_all))),
        ("Open jobs", figures::count(status.ledger.open)),
        ("Clients connected", figures::count(status.clients.connected)),
        ("Memory of all", figures::bytes(memory.sum())),
    ] {
        html.raw("<div><dt>").raw(name).around("</dt><dd>", &figure, "</dd></div>");
    }
    html
}

fn charts(now: Moment, history: &History) -> Html {
    let series = history.total();
    let (span, last) = (Span::of(now, series), series.back());
    let mut html = Html::default();
    let scale = Scale::of_rates(series);
    let figure = last.map_or_else(String::new, |last| format!(": {} now", figures::rate(last.rate)));
    let words = format!("Jobs per second, {}{figure}", span.words);
    let picture = Picture::new(now, span, series, &scale, &words).grid();
    let picture = picture.area("fill", RATE, None).line("rate", RATE).line("trouble", TROUBLE).done();
    let legend = "<span class=\"key rate\">ended</span> <span class=\"key trouble\">failed or expired</span>";
    chart(&mut html, "rates", "Jobs per second", legend, (span, &scale), &picture);
    let scale = Scale::of_times(series);
    let figure = last.and_then(|last| last.service).map_or_else(String::new, |(half, nearly_all)| {
        format!(": median {}, 99 % within {} now", figures::time(half), figures::time(nearly_all))
    });
    let words = format!("Service time, {}{figure}", span.words);
    let picture = Picture::new(now, span, series, &scale, &words).grid();
    let picture =
        picture.area("band", NEARLY_ALL, Some(HALF)).line("half", HALF).line("nearly", NEARLY_ALL).done();
    let legend = "<span class=\"key half\">median</span> <span class=\"key nearly\">99 % within</span>";
    chart(&mut html, "times", "Service time", legend, (span, &scale), &picture);
    html
}

/// A picture with its title, its scales, and room for what the pointer is on.
fn chart(
    html: &mut Html,
    class: &'static str,
    title: &'static str,
    legend: &'static str,
    (span, scale): (Span, &Scale),
    picture: &Html,
) {
    html.raw("<figure class=\"").raw(class).raw("\"><figcaption><h2>").raw(title);
    html.raw("</h2> <span class=\"keys\">").raw(legend).raw("</span></figcaption>");
    html.raw("<div class=\"plot\"><div class=\"upright\" aria-hidden=\"true\">");
    for label in &scale.labels {
        html.around("<span>", label, "</span>");
    }
    html.raw("</div><div class=\"picture\">").append(picture).raw("</div></div>");
    html.raw("<div class=\"across\" aria-hidden=\"true\">");
    for label in span.labels {
        html.raw("<span>").raw(label).raw("</span>");
    }
    html.raw("</div></figure>");
}

/// The ledger with its equation, then what is no job.
fn books(status: &Status) -> Html {
    let Ledger { accepted, done, failed, expired, open, refused, rejected } = status.ledger;
    let mut html = Html::default();
    html.raw("<h2>Ledger</h2><p class=\"equation\">");
    for (sign, name, number) in [
        ("", "accepted", accepted),
        ("=", "done", done),
        ("+", "failed", failed),
        ("+", "expired", expired),
        ("+", "open", open),
    ] {
        html.raw("<span class=\"term\"><span class=\"operator\">").raw(sign).raw("</span> ");
        html.around("<span class=\"value\">", &figures::count(number), "</span> ");
        html.around("<span class=\"name\">", name, "</span></span> ");
    }
    let sum = [done, failed, expired, open].into_iter().fold(0, u64::wrapping_add);
    html.raw("</p><p class=\"note\">");
    html.raw(if sum == accepted {
        "Every port that was given out has exactly one end, or is open."
    } else {
        "The principal is between two steps: the books will balance in a moment."
    });
    html.raw("</p><div class=\"lists\">");
    let Refusals { unknown, malformed, busy, stopping } = status.refusals;
    let refusals =
        [("unknown type", unknown), ("malformed", malformed), ("busy", busy), ("stopping", stopping)];
    list(&mut html, "Requests refused", refused, &refusals);
    let Connections { connected, parked, accepted, turned_away, evicted, idle, broken } = status.clients;
    let clients = [
        ("waiting for a place", parked),
        ("accepted so far", accepted),
        ("turned away", turned_away),
        ("evicted", evicted),
        ("idle for too long", idle),
        ("broken off", broken),
    ];
    list(&mut html, "Clients connected", connected, &clients);
    list(&mut html, "Data connections rejected", rejected, &[]);
    html.raw("</div>");
    html
}

fn list(html: &mut Html, title: &'static str, total: u64, parts: &[(&'static str, u64)]) {
    html.raw("<dl><div class=\"total\"><dt>").raw(title);
    html.around("</dt><dd>", &figures::count(total), "</dd></div>");
    for &(name, number) in parts {
        html.raw(if number == 0 { "<div class=\"none\"><dt>" } else { "<div><dt>" }).raw(name);
        html.around("</dt><dd>", &figures::count(number), "</dd></div>");
    }
    html.raw("</dl>");
}

#[cfg(test)]
mod tests;
