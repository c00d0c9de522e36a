//! The table of request types.

use std::cmp::Reverse;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::core::latency::Histogram;
use crate::status::EndsOf;
use crate::top::model::Kind;
use crate::top::view::columns::{Column, fitting, headings, line, width};
use crate::top::view::{Theme, put};
use crate::top::words::{count, or_unknown, rate, time};

const COLUMNS: [Column; 9] = [
    Column::text("REQUEST", 12, 0),
    Column::number("JOBS/S", 6, 1),
    Column::number("WAIT p50", 8, 5),
    Column::number("WAIT p99", 8, 4),
    Column::number("SERV p50", 8, 3),
    Column::number("SERV p99", 8, 2),
    Column::number("DONE", 7, 7),
    Column::number("FAILED", 6, 6),
    Column::number("EXPIRED", 7, 8),
];
/// The longest name there can be.
const LONGEST_NAME: usize = 64;

/// Draws the request types; where there is no room for all, those that were asked for most.
pub fn draw(buffer: &mut Buffer, area: Rect, kinds: Vec<Kind<'_>>, theme: Theme) {
    let room = usize::from(area.width);
    let kinds = most_used(kinds, usize::from(area.height).saturating_sub(1));
    let mut columns = COLUMNS;
    let longest = kinds.iter().map(|kind| kind.name.len()).max().unwrap_or(0).min(LONGEST_NAME);
    let rest = room.saturating_sub(width(&COLUMNS));
    columns[0].width = longest.clamp(COLUMNS[0].width, COLUMNS[0].width + rest);
    let stay = fitting(&columns, room);
    put(buffer, area, 0, headings(&columns, &stay, |_| theme.heading()));
    for (row, kind) in (1..).zip(&kinds) {
        let cell = |index: usize| (text(kind, index, columns[index].width), Style::new());
        put(buffer, area, row, line(&columns, &stay, cell));
    }
}

fn most_used(mut kinds: Vec<Kind<'_>>, room: usize) -> Vec<Kind<'_>> {
    if kinds.len() > room {
        kinds.sort_by_key(|kind| Reverse(ended(kind.ends)));
        kinds.truncate(room);
        kinds.sort_by_key(|kind| kind.name);
    }
    kinds
}

fn ended(EndsOf { done, failed, expired }: EndsOf) -> u64 {
    [done, failed, expired].into_iter().fold(0, u64::saturating_add)
}

fn text(kind: &Kind, index: usize, width: usize) -> String {
    let quantile = |times: &Histogram, share| or_unknown(times.quantile(share), time);
    let EndsOf { done, failed, expired } = kind.ends;
    match index {
        0 => kind.name.to_owned(),
        1 => or_unknown(kind.rate, |per_second| rate(per_second, width)),
        2 => quantile(&kind.wait, 0.5),
        3 => quantile(&kind.wait, 0.99),
        4 => quantile(&kind.service, 0.5),
        5 => quantile(&kind.service, 0.99),
        6 => count(done, width),
        7 => count(failed, width),
        _ => count(expired, width),
    }
}
