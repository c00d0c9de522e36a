//! The report as a picture (SVG): latency by percentile, and rate, failures and the longest latency over
//! time, with a mark for each server that was struck.

use std::error::Error;
use std::ops::Range;

use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::stress::record::{Record, STEP};
use crate::stress::report::Report;

const SIZE: (u32, u32) = (960, 900);
const BLUE: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const ORANGE: RGBColor = RGBColor(0xe6, 0x7e, 0x22);
const RED: RGBColor = RGBColor(0xc0, 0x39, 0x2b);
const GREY: RGBColor = RGBColor(0x70, 0x70, 0x70);
/// Words that have room beside one another, upright.
const WORDS_ACROSS: f64 = 65.0;
/// Points of the time line at most: more are joined.
const MAX_STEPS: usize = 300;

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a report.
///
/// # Errors
/// What drawing says.
pub fn svg(title: &str, record: &Record, report: &Report) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(title, ("sans-serif", 20))?;
        let areas = root.split_evenly((3, 1));
        latencies(&areas[0], &record.latency())?;
        let line = TimeLine::of(record);
        rates(&areas[1], &line, report)?;
        longest(&areas[2], &line, report)?;
        root.present()?;
    }
    Ok(text)
}

/// Part of the requests on a scale where each step to the right leaves a tenth of those before.
struct Tail(f64);

impl ValueFormatter<f64> for Tail {
    fn format_ext(&self, value: &f64) -> String {
        let part = 100.0 * (1.0 - 10_f64.powf(-value));
        // 90, 99, 99.9: as many figures as there are nines.
        match value {
            ..2.5 => format!("{part:.0} %"),
            2.5..3.5 => format!("{part:.1} %"),
            3.5..4.5 => format!("{part:.2} %"),
            4.5..5.5 => format!("{part:.3} %"),
            _ => format!("{part} %"),
        }
    }
}

impl Ranged for Tail {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "a place on a picture")]
    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (f64::from(limit.1 - limit.0) * (value / self.0)) as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        let half = 2_f64.log10();
        std::iter::once(half).chain((1..).map(f64::from).take_while(|&tens| tens <= self.0)).collect()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.0
    }
}

fn latencies(area: &Area<'_>, all: &Histogram<u64>) -> Drawn {
    let nines = (all.len().max(2) as f64).log10();
    let points: Vec<(f64, f64)> = all
        .iter_quantiles(20)
        .map(|value| {
            let left = (1.0 - value.quantile_iterated_to()).max(1.0 / all.len().max(2) as f64);
            (-left.log10(), value.value_iterated_to() as f64 / 1e6)
        })
        .collect();
    let least = points.first().map_or(0.01, |point| point.1).max(1e-3);
    let most = points.last().map_or(1.0, |point| point.1).max(least * 10.0);
    let mut chart = ChartBuilder::on(area)
        .caption("latency by percentile", ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(Tail(nines), (least * 0.8..most * 1.2).log_scale())?;
    chart.configure_mesh().light_line_style(TRANSPARENT).y_desc("ms").y_label_formatter(&short).draw()?;
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
    Ok(())
}

/// A number without more figures than it needs.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "what plotters wants")]
fn short(value: &f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What happened, in steps of that many seconds.
struct TimeLine {
    width: f64,
    ok: Vec<f64>,
    failed: Vec<f64>,
    max_ms: Vec<f64>,
}

impl TimeLine {
    fn of(record: &Record) -> Self {
        let join = record.steps.len().div_ceil(MAX_STEPS).max(1);
        let width = STEP.as_secs_f64() * join as f64;
        let (mut ok, mut failed, mut max_ms) = (Vec::new(), Vec::new(), Vec::new());
        for steps in record.steps.chunks(join) {
            let seconds = STEP.as_secs_f64() * steps.len() as f64;
            ok.push(steps.iter().map(|step| step.ok).sum::<u64>() as f64 / seconds);
            failed.push(steps.iter().map(|step| step.failed).sum::<u64>() as f64 / seconds);
            max_ms.push(steps.iter().map(|step| step.max_us).max().unwrap_or(0) as f64 / 1000.0);
        }
        Self { width, ok, failed, max_ms }
    }

    fn end(&self) -> f64 {
        (self.width * self.ok.len() as f64).max(self.width)
    }

    /// A step as a level line from its beginning to its end.
    fn points<'a>(&'a self, values: &'a [f64]) -> impl Iterator<Item = (f64, f64)> + 'a {
        let at = |index: usize| self.width * index as f64;
        values
            .iter()
            .enumerate()
            .flat_map(move |(index, &value)| [(at(index), value), (at(index + 1), value)])
    }
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn rates(area: &Area<'_>, line: &TimeLine, report: &Report) -> Drawn {
    let top = most(&line.ok).max(most(&line.failed)).max(1.0) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption("requests in a second: served (blue), failed (red)", ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..line.end(), 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .y_desc("requests/s")
        .y_label_formatter(&|rate| format!("{rate:.0}"))
        .draw()?;
    faults(&mut chart, report, 0.0..top, true)?;
    chart.draw_series(AreaSeries::new(line.points(&line.ok), 0.0, BLUE.mix(0.25)).border_style(BLUE))?;
    if most(&line.failed) > 0.0 {
        chart.draw_series(LineSeries::new(line.points(&line.failed), RED.stroke_width(2)))?;
    }
    Ok(())
}

fn longest(area: &Area<'_>, line: &TimeLine, report: &Report) -> Drawn {
    let most = most(&line.max_ms).max(0.1);
    let least = line.max_ms.iter().copied().filter(|&ms| ms > 0.0).fold(most, f64::min);
    let range = least * 0.8..most * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption("the longest latency of those served in each step; a gap: nobody was", ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..line.end(), range.clone().log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("seconds")
        .y_desc("ms")
        .y_label_formatter(&short)
        .draw()?;
    faults(&mut chart, report, range.clone(), false)?;
    // Where nobody was served there is a gap: that is no short time.
    let points: Vec<(f64, f64)> = line.points(&line.max_ms).collect();
    for served in points.split(|(_, ms)| *ms <= 0.0).filter(|served| !served.is_empty()) {
        chart.draw_series(LineSeries::new(served.iter().copied(), ORANGE.stroke_width(2)))?;
    }
    Ok(())
}

/// A line for each server that was struck, with a word where there is room.
fn faults<Y>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<plotters::coord::types::RangedCoordf64, Y>>,
    report: &Report,
    height: Range<f64>,
    with_words: bool,
) -> Drawn
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let marks = report.faults.iter().map(|fault| {
        PathElement::new(vec![(fault.at_s, height.start), (fault.at_s, height.end)], GREY.mix(0.6))
    });
    chart.draw_series(marks)?;
    if with_words {
        let style = ("sans-serif", 11).into_font().transform(FontTransform::Rotate90).color(&GREY);
        let words = legible(report, report.duration_s / WORDS_ACROSS);
        chart.draw_series(
            words.into_iter().map(|(at, text)| Text::new(text, (at, height.end), style.clone())),
        )?;
    }
    Ok(())
}

/// The words for the faults: one for all that come so close to it that nobody could read theirs.
fn legible(report: &Report, apart: f64) -> Vec<(f64, String)> {
    let mut words: Vec<(f64, String, usize)> = Vec::new();
    for fault in &report.faults {
        match words.last_mut() {
            Some((at, _, more)) if fault.at_s - *at < apart => *more += 1,
            _ => words.push((fault.at_s, fault.what.clone(), 0)),
        }
    }
    let with_rest = |(at, what, more)| match more {
        0 => (at, what),
        more => (at, format!("{what}, {more} more")),
    };
    words.into_iter().map(with_rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::faults::Fault;
    use crate::stress::record::Failed;
    use std::time::Duration;

    #[test]
    fn a_picture_has_all_three_parts_and_the_faults_by_name() {
        let mut record = Record::new(["echo"]);
        for number in 0..1000_u64 {
            record.serve(0, Duration::from_micros(100 + number), Duration::from_millis(number * 2));
        }
        record.fail(0, Failed::Reset, String::new, Duration::from_millis(700));
        let (plan, target) = (crate::stress::report::tests::plan(), crate::stress::report::tests::target());
        let faults = vec![Fault { at_s: 0.7, what: "killed secondary 2".to_owned() }];
        let report = Report::new(&plan, &target, &record, faults, Duration::from_secs(2));
        let svg = svg("a title", &record, &report).unwrap();
        for part in [
            "<svg",
            "a title",
            "latency by percentile",
            "requests/s",
            "killed secondary 2",
            "99.9 %",
            "seconds",
        ] {
            assert!(svg.contains(part), "{part}");
        }
        let at = |at_s, what: &str| Fault { at_s, what: what.to_owned() };
        let close = Report {
            faults: vec![at(0.5, "one"), at(0.51, "two"), at(0.52, "three"), at(1.0, "four")],
            ..report
        };
        let words = [(0.5, "one, 2 more".to_owned()), (1.0, "four".to_owned())];
        assert_eq!(legible(&close, 0.03), words);
        let nothing = Record::new(["echo"]);
        let report = Report::new(&plan, &target, &nothing, Vec::new(), Duration::from_secs(2));
        assert!(super::svg("nothing", &nothing, &report).unwrap().ends_with("</svg>\n"));
    }
}
