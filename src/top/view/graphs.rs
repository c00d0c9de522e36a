//! Rate and latency of the last minutes.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Sparkline, Widget};

use crate::top::history::Column;
use crate::top::model::Model;
use crate::top::view::{Theme, fitting, put};
use crate::top::words::{age, or_unknown, rate, time, whole};

/// In less than this the graphs do not stand side by side.
const LEAST_FOR_TWO: u16 = 60;
/// Between two graphs.
const GAP: u16 = 2;

/// Draws the rate of jobs and, where there is room, their latency.
pub fn draw(buffer: &mut Buffer, area: Rect, model: &Model, theme: Theme) {
    let now = or_unknown(model.rate(), |per_second| rate(per_second, 6));
    let p99 = or_unknown(model.service().quantile(0.99), time);
    if area.width < LEAST_FOR_TWO {
        let long = format!("{now} jobs/s, p99 {p99}");
        Graph::of_rates(format!("{now}/s p99 {p99} "), long).draw(buffer, area, model, theme);
        return;
    }
    let half = (area.width - GAP) / 2;
    let left = Rect { width: half, ..area };
    let right = Rect { x: area.x + half + GAP, width: area.width - half - GAP, ..area };
    let rates = Graph::of_rates(format!("jobs/s {now:<6} "), format!("jobs/s {now}"));
    rates.draw(buffer, left, model, theme);
    let latencies = Graph::of_latencies(format!("service p99 {p99:<5} "), format!("service p99 {p99}"));
    latencies.draw(buffer, right, model, theme);
}

/// Something that is drawn over time.
struct Graph {
    /// What stands beside a graph of one row.
    short: String,
    /// What stands above a higher one.
    long: String,
    /// A column, as a whole number.
    value: fn(&Column) -> Option<u64>,
    /// Such a number for people.
    text: fn(u64) -> String,
}

impl Graph {
    fn of_rates(short: String, long: String) -> Self {
        // A thousandth of a job in a second is something, too.
        let value = |column: &Column| column.rate.map(|rate| whole(rate * 1000.0));
        #[expect(clippy::cast_precision_loss, reason = "it was a floating-point number before")]
        let text = |value: u64| rate(value as f64 / 1000.0, 6);
        Self { short, long, value, text }
    }

    fn of_latencies(short: String, long: String) -> Self {
        let value =
            |column: &Column| column.p99.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        Self { short, long, value, text: |micros| time(Duration::from_micros(micros)) }
    }

    fn draw(self, buffer: &mut Buffer, area: Rect, model: &Model, theme: Theme) {
        let bars = self.bars(area);
        let (columns, length) = model.history().columns(model.now(), usize::from(bars.width));
        let values: Vec<Option<u64>> = columns.iter().map(self.value).collect();
        let caption = if area.height == 1 {
            self.short
        } else {
            let highest = or_unknown(values.iter().flatten().max().copied(), self.text);
            // Of what was looked at, which may be less than what there is room for.
            let seen = values.iter().position(Option::is_some).map_or(0, |first| values.len() - first);
            let span = age(length * u32::try_from(seen).unwrap_or(u32::MAX));
            let texts = [
                format!("{}, highest {highest} in the last {span}", self.long),
                format!("{}, highest {highest} in {span}", self.long),
                self.long,
            ];
            fitting(texts, area.width)
        };
        put(buffer, area, 0, Line::styled(caption, theme.heading()));
        let sparkline = Sparkline::default().data(values).bar_set(theme.bars());
        sparkline.style(theme.graph()).absent_value_symbol(" ").render(bars, buffer);
    }

    /// Where the bars stand.
    fn bars(&self, area: Rect) -> Rect {
        if area.height == 1 {
            let beside = u16::try_from(self.short.len()).unwrap_or(u16::MAX).min(area.width);
            Rect { x: area.x + beside, width: area.width - beside, ..area }
        } else {
            Rect { y: area.y + 1, height: area.height - 1, ..area }
        }
    }
}
