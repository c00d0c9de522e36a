//! The table of processes.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::top::controls::Controls;
use crate::top::rows::{Order, Process};
use crate::top::view::columns::{Column, fitting, headings, line, width};
use crate::top::view::{Theme, put};
use crate::top::words::{UNKNOWN, bytes, count, or_unknown, percent, rate, time};

/// What stands in a column: something to sort by, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    By(Order),
    Letter,
    Note,
}

const FIELDS: [Field; 15] = [
    Field::By(Order::Slot),
    Field::By(Order::State),
    Field::Letter,
    Field::By(Order::Pid),
    Field::By(Order::Rate),
    Field::By(Order::Open),
    Field::By(Order::Cpu),
    Field::By(Order::Memory),
    Field::By(Order::RoundTrip),
    Field::By(Order::Answered),
    Field::By(Order::Restarts),
    Field::By(Order::Kills),
    Field::By(Order::Done),
    Field::By(Order::Failed),
    Field::Note,
];

/// The columns of [`FIELDS`] where there is little room, but for the last.
const NARROW: [Column; 14] = [
    Column::text("SERVER", 11, 0),
    Column::text("STATE", 8, 1),
    Column::text("S", 1, 12),
    Column::number("PID", 5, 8),
    Column::number("JOBS/S", 6, 2),
    Column::number("OPEN", 4, 3),
    Column::number("CPU%", 4, 4),
    Column::number("MEM", 5, 6),
    Column::number("RTT", 5, 5),
    Column::number("ANSW", 5, 9),
    Column::number("RST", 4, 7),
    Column::number("KILL", 4, 11),
    Column::number("DONE", 5, 13),
    Column::number("FAIL", 4, 10),
];

/// And where there is much.
const WIDE: [Column; 15] = [
    Column::text("SERVER", 14, 0),
    Column::text("STATE", 9, 1),
    Column::text("S", 1, 12),
    Column::number("PID", 7, 8),
    Column::number("JOBS/S", 9, 2),
    Column::number("OPEN", 7, 3),
    Column::number("CPU%", 6, 4),
    Column::number("MEMORY", 8, 6),
    Column::number("PROBE RTT", 10, 5),
    Column::number("ANSWERED", 9, 9),
    Column::number("RESTARTS", 9, 7),
    Column::number("KILLS", 7, 11),
    Column::number("DONE", 12, 13),
    Column::number("FAILED", 8, 10),
    Column::text("PORTS", 8, 14),
];

/// Draws the rows that are in sight.
pub fn draw(buffer: &mut Buffer, area: Rect, rows: &[Process], controls: &Controls, theme: Theme) {
    let columns = columns(usize::from(area.width), rows);
    let stay = fitting(&columns, usize::from(area.width));
    let heading = |index: usize| match FIELDS[index] {
        Field::By(order) if order == controls.order => theme.chosen(),
        _ => theme.heading(),
    };
    put(buffer, area, 0, headings(&columns, &stay, heading));
    let in_sight = rows.iter().skip(controls.first).take(controls.shown.0);
    for (row, process) in (1..).zip(in_sight) {
        let cell = |index: usize| {
            let field = FIELDS[index];
            let style = match field {
                Field::By(Order::State) => theme.state(process.state),
                Field::By(_) | Field::Letter | Field::Note => Style::new(),
            };
            (text(process, field, columns[index].width), style)
        };
        put(buffer, area, row, line(&columns, &stay, cell));
    }
}

/// The columns, as wide as need be for these rows.
fn columns(room: usize, rows: &[Process]) -> Vec<Column> {
    let mut columns = if room >= width(&WIDE) { WIDE.to_vec() } else { NARROW.to_vec() };
    let longest = |field| rows.iter().map(|row| text(row, field, 0).len()).max().unwrap_or(0);
    for (column, field) in columns.iter_mut().zip(FIELDS) {
        if matches!(field, Field::By(Order::Slot | Order::Pid)) {
            column.width = column.width.max(longest(field));
        }
    }
    // The last takes what is left.
    let rest = room.saturating_sub(width(&columns));
    if columns.len() == FIELDS.len()
        && let Some(note) = columns.last_mut()
    {
        note.width += rest;
    }
    columns
}

fn text(process: &Process, field: Field, width: usize) -> String {
    let number = |value: Option<u64>| or_unknown(value, |value| count(value, width.max(4)));
    let Field::By(order) = field else {
        return if field == Field::Letter {
            or_unknown(process.letter, |letter| letter.to_string())
        } else {
            process.note.clone()
        };
    };
    match order {
        Order::Slot => process.name(),
        Order::State => process.state.as_str().to_owned(),
        Order::Pid => process.pid.map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string()),
        Order::Rate => or_unknown(process.rate, |per_second| rate(per_second, width)),
        Order::Open => number(process.open),
        Order::Cpu => or_unknown(process.cpu, percent),
        Order::Memory => or_unknown(process.memory, bytes),
        Order::RoundTrip => or_unknown(process.round_trip, time),
        Order::Answered => or_unknown(process.answered, time),
        Order::Restarts => number(process.restarts),
        Order::Kills => number(process.kills),
        Order::Done => number(process.done),
        Order::Failed => number(process.failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_all_there_are_to_sort_by_in_their_order() {
        let by = FIELDS.iter().filter_map(|field| match field {
            Field::By(order) => Some(*order),
            Field::Letter | Field::Note => None,
        });
        assert_eq!(by.collect::<Vec<_>>(), Order::ALL);
        assert_eq!((NARROW.len() + 1, WIDE.len()), (FIELDS.len(), FIELDS.len()));
    }

    #[test]
    fn eighty_columns_have_room_for_all_but_one() {
        let stay = fitting(&NARROW, 80);
        let gone: Vec<_> = (0..NARROW.len()).filter(|index| !stay.contains(index)).collect();
        assert_eq!(gone.iter().map(|&index| NARROW[index].title).collect::<Vec<_>>(), ["DONE"]);
        let titles =
            |room| fitting(&NARROW, room).iter().map(|&index| NARROW[index].title).collect::<Vec<_>>();
        assert_eq!(titles(40), ["SERVER", "STATE", "JOBS/S", "OPEN", "CPU%"]);
        assert_eq!(titles(20), ["SERVER", "STATE"]);
    }
}
