//! The screen of `osps top`. What there is no room for is left out, the least important first.

mod columns;
mod deaths;
mod graphs;
mod help;
mod kinds;
mod plan;
mod processes;
#[cfg(test)]
mod tests;
mod theme;

use std::collections::BTreeMap;
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;

use crate::status::{Connections, Ledger, Refusals, Status};
use crate::top::controls::Controls;
use crate::top::model::{LATENCIES_OVER, Model};
use crate::top::rows::{Process, State, select};
use crate::top::words::{age, count};
use plan::{Contents, Part, Plan};

pub use theme::Theme;

/// Draws all of it, and tells `controls` how many rows of the table are in sight.
pub fn draw(buffer: &mut Buffer, model: &Model, controls: &mut Controls, theme: Theme) {
    let area = buffer.area;
    let all = model.processes();
    let (of_all, states) = (all.len(), states(&all));
    let processes = select(all, &controls.filter, controls.order, controls.reversed);
    let (kinds, deaths) = (model.kinds(), model.deaths());
    let length = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
    let contents = Contents {
        kinds: length(kinds.len()),
        processes: length(processes.len()),
        deaths: length(deaths.len()),
    };
    let plan = Plan::new(area.height, contents);
    let part = |part: Part| {
        let (above, height) = plan.rows(part);
        Rect { y: area.y + above, height, ..area }
    };
    let room = usize::from(plan.rows(Part::Processes).1).saturating_sub(1);
    controls.fit(room, processes.len());
    draw_title(buffer, part(Part::Title), model, controls, theme);
    if controls.help {
        let keys = part(Part::Keys);
        help::draw(
            buffer,
            Rect { y: area.y + 1, height: area.height.saturating_sub(1 + keys.height), ..area },
        );
        put(buffer, keys, 0, Line::raw("any key goes back"));
        theme.restrict(buffer);
        return;
    }
    if let Some(status) = model.status() {
        draw_books(buffer, part(Part::Books), status);
    }
    if part(Part::Graphs).height > 0 {
        graphs::draw(buffer, part(Part::Graphs), model, theme);
    }
    let over = age(LATENCIES_OVER.max(controls.interval));
    draw_rule(buffer, part(Part::KindsRule), &format!("request types, latencies of the last {over}"), theme);
    kinds::draw(buffer, part(Part::Kinds), kinds, theme);
    let which = if processes.len() < of_all {
        format!("{} of {of_all}", processes.len())
    } else {
        of_all.to_string()
    };
    let when = if model.gone().is_some() { ", as seen last" } else { "" };
    draw_rule(buffer, part(Part::ProcessesRule), &format!("{which} processes{when}: {states}"), theme);
    processes::draw(buffer, part(Part::Processes), &processes, controls, theme);
    draw_rule(buffer, part(Part::DeathsRule), "the last deaths", theme);
    deaths::draw(buffer, part(Part::Deaths), &deaths, theme);
    draw_keys(buffer, part(Part::Keys), controls, theme);
    theme.restrict(buffer);
}

/// Puts a line into a row of an area, where it has that row.
fn put(buffer: &mut Buffer, area: Rect, row: u16, line: Line) {
    if row < area.height {
        line.render(Rect { y: area.y + row, height: 1, ..area }, buffer);
    }
}

/// The first of these texts that fits, or the last.
fn fitting<const N: usize>(texts: [String; N], room: u16) -> String {
    let fits = |text: &String| text.chars().count() <= usize::from(room);
    let last = texts.last().cloned().unwrap_or_default();
    texts.into_iter().find(fits).unwrap_or(last)
}

/// How many processes are in which state, the most worrying first.
fn states(processes: &[Process]) -> String {
    let mut counts: BTreeMap<State, usize> = BTreeMap::new();
    processes.iter().for_each(|process| *counts.entry(process.state).or_default() += 1);
    let counts = counts.iter().map(|(state, count)| format!("{count} {}", state.as_str()));
    counts.collect::<Vec<_>>().join(", ")
}

fn draw_title(buffer: &mut Buffer, area: Rect, model: &Model, controls: &Controls, theme: Theme) {
    let is_stopping = model.gone().is_none() && model.status().is_some_and(|status| status.stopping);
    let notice = match (controls.paused, model.is_watchdog_stopped(), is_stopping) {
        (true, ..) => Some(" PAUSED"),
        (_, true, _) => Some(" WATCHDOG STOPPED"),
        (.., true) => Some(" STOPPING"),
        (false, false, false) => None,
    };
    let right = notice.map_or_else(|| format!(" every {}", interval(controls)), str::to_owned);
    let is_alarm = model.gone().is_some() || model.is_watchdog_stopped();
    let style = if is_alarm { theme.alarm() } else { theme.title() };
    let whole = match (model.gone(), model.status()) {
        (Some((since, why)), _) => format!("osps NOT RUNNING for {}: {why}", age(since)),
        (None, None) => "osps".to_owned(),
        (None, Some(status)) => {
            let up = age(Duration::from_millis(status.uptime_ms));
            let Status { version, listen, .. } = status;
            let long = format!("osps {version}  up {up}  on {}", listen.join(", "));
            let room = area.width.saturating_sub(u16::try_from(right.len()).unwrap_or(0));
            // An address that is cut off may look like another.
            let more = listen.len().saturating_sub(1);
            let first = listen.first().map_or("", String::as_str);
            let short = format!("osps {version}  up {up}  on {first} and {more} more");
            fitting([long, short, format!("osps {version}  up {up}"), format!("osps up {up}")], room)
        }
    };
    buffer.set_style(area, style);
    put(buffer, area, 0, Line::raw(whole.clone()));
    let used = u16::try_from(whole.chars().count()).unwrap_or(u16::MAX);
    let width = u16::try_from(right.len()).unwrap_or(0);
    if used.saturating_add(width) <= area.width || notice.is_some() {
        let width = width.min(area.width);
        put(buffer, Rect { x: area.right() - width, width, ..area }, 0, Line::raw(right));
    }
}

fn interval(controls: &Controls) -> String {
    humantime_serde::re::humantime::format_duration(controls.interval).to_string()
}

fn draw_books(buffer: &mut Buffer, area: Rect, status: &Status) {
    let Ledger { accepted, done, failed, expired, open, refused, rejected } = status.ledger;
    let books = [
        format!(
            "jobs: {accepted} accepted = {done} done + {failed} failed + {expired} expired + {open} open"
        ),
        format!("{accepted} accepted = {done} done + {failed} failed + {expired} expired + {open} open"),
        {
            let [accepted, done, failed, expired, open] =
                [accepted, done, failed, expired, open].map(|value| count(value, 4));
            format!("acc {accepted} done {done} fail {failed} exp {expired} open {open}")
        },
    ];
    put(buffer, area, 0, Line::raw(fitting(books, area.width)));
    let Refusals { unknown, malformed, busy, stopping } = status.refusals;
    let Connections { connected, parked, .. } = status.clients;
    let others = [
        format!(
            "refused: {refused} requests ({unknown} unknown, {malformed} malformed, {busy} busy, {stopping} stopping); \
             rejected: {rejected} connections; clients: {connected} connected, {parked} waiting"
        ),
        format!(
            "refused: {refused} ({busy} busy); rejected: {rejected}; clients: {connected} connected, {parked} waiting"
        ),
        format!("refused {refused}, rejected {rejected}, clients {connected}, waiting {parked}"),
        format!("ref {refused} rej {rejected} clients {connected}+{parked}"),
    ];
    put(buffer, area, 1, Line::raw(fitting(others, area.width)));
}

fn draw_rule(buffer: &mut Buffer, area: Rect, caption: &str, theme: Theme) {
    if area.height == 0 {
        return;
    }
    let line = theme.line();
    let text = format!("{} {caption} ", line.repeat(2));
    let rest = usize::from(area.width).saturating_sub(text.chars().count());
    put(buffer, area, 0, Line::styled(format!("{text}{}", line.repeat(rest)), theme.rule()));
}

/// The filter that is in force or being typed, what keys do, and which rows are in sight.
fn draw_keys(buffer: &mut Buffer, area: Rect, controls: &Controls, theme: Theme) {
    if area.height == 0 {
        return;
    }
    let (room, rows) = controls.shown;
    let last = (controls.first + room).min(rows);
    let in_sight =
        if room < rows { format!(" {}-{last} of {rows}", controls.first + 1) } else { String::new() };
    let left = usize::from(area.width).saturating_sub(in_sight.len());
    let reversed = if controls.reversed { ", reversed" } else { "" };
    let sort = format!("sort: {}{reversed}", controls.order.as_str());
    let keys: &[(&str, &str)] = if controls.typing {
        &[("Enter", "keep"), ("Esc", "clear")]
    } else {
        &[
            ("q", "quit"),
            ("?", "help"),
            ("< >", &sort),
            ("r", "reverse"),
            ("/", "filter"),
            ("p", "pause"),
            ("+ -", "interval"),
            ("up down", "scroll"),
        ]
    };
    let mut spans: Vec<Span> = Vec::new();
    if controls.typing || !controls.filter.is_empty() {
        let cursor = if controls.typing { "_" } else { "" };
        spans.push(Span::styled(format!("/{}{cursor}", controls.filter), theme.chosen()));
    }
    let width = |spans: &[Span]| spans.iter().map(Span::width).sum::<usize>();
    for (key, does) in keys {
        let gap = if spans.is_empty() { "" } else { "  " };
        let more = [Span::raw(gap), Span::styled(*key, theme.heading()), Span::raw(format!(" {does}"))];
        if width(&spans) + width(&more) > left {
            break;
        }
        spans.extend(more);
    }
    put(buffer, area, 0, Line::from(spans));
    let width = u16::try_from(in_sight.len()).unwrap_or(0).min(area.width);
    put(buffer, Rect { x: area.right() - width, width, ..area }, 0, Line::raw(in_sight));
}
