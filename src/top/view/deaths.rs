//! The last obituaries.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Line;

use crate::status::Death;
use crate::top::rows::name;
use crate::top::view::columns::{Column, fitting, headings, line, width};
use crate::top::view::{Theme, put};
use crate::top::words::{age, count};

const COLUMNS: [Column; 5] = [
    Column::text("DEATHS", 12, 0),
    Column::number("PID", 7, 3),
    Column::number("AGO", 6, 1),
    Column::number("JOBS", 4, 4),
    Column::text("CAUSE", 9, 2),
];

/// Draws as many as there is room for, the latest first.
pub fn draw(buffer: &mut Buffer, area: Rect, deaths: &[(&Death, Duration)], theme: Theme) {
    let room = usize::from(area.width);
    if deaths.is_empty() {
        put(buffer, area, 0, Line::styled("DEATHS none", theme.heading()));
        return;
    }
    let mut columns = COLUMNS;
    columns[4].width += room.saturating_sub(width(&COLUMNS));
    let stay = fitting(&columns, room);
    put(buffer, area, 0, headings(&columns, &stay, |_| theme.heading()));
    for (row, (death, ago)) in (1..area.height).zip(deaths) {
        let text = |index| match index {
            0 => name(death.role, death.slot),
            1 => death.pid.to_string(),
            2 => age(*ago),
            3 => count(death.jobs, 4),
            _ => cause(death),
        };
        put(buffer, area, row, line(&columns, &stay, |index| (text(index), Style::new())));
    }
}

/// How it ended, and why, the most important first.
fn cause(death: &Death) -> String {
    let killed = death.killed.map(|why| format!("killed: {why}"));
    let state = death.state.map(|letter| match &death.wchan {
        Some(wchan) => format!("state {letter} in {wchan}"),
        None => format!("state {letter}"),
    });
    let answered = death.answered_ms_before.map(|millis| format!("last answer {millis} ms before"));
    // Nothing else comes of being killed by the watchdog.
    let is_told = death.cause.is_empty() || killed.is_some() && death.cause == "signal 9";
    let cause = (!is_told).then(|| death.cause.clone());
    [cause, killed, state, answered].into_iter().flatten().collect::<Vec<_>>().join(", ")
}
