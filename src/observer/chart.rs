//! The last minutes as pictures: SVG that the browser stretches to the room there is. One unit across is a second;
//! upright, 0 is the top and 100 the bottom.
//!
//! Logarithms are the crate libm's: those of [`f64`] would make every process of the tree load the C library's
//! mathematics at its start, 50 KiB each.

use std::fmt::Write as _;
use std::time::Duration;

use crate::core::latency::BOUNDS_US;
use crate::core::moment::{Moment, nanos};
use crate::observer::figures;
use crate::observer::history::{Sample, Series};
use crate::observer::html::Html;

const HEIGHT: f64 = 100.0;
/// Points that are further apart are not joined.
const JOINED_WITHIN: Duration = Duration::from_secs(10);
/// What becomes one point of a small picture.
const SMALL_STEP: Duration = Duration::from_secs(5);

/// How far back a picture goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    seconds: u16,
    /// In words.
    pub words: &'static str,
    /// What stands below, all as far from one another.
    pub labels: &'static [&'static str],
}

const SPANS: [Span; 3] = [
    Span {
        seconds: 60,
        words: "the last minute",
        labels: &["1 min ago", "50 s", "40 s", "30 s", "20 s", "10 s", "now"],
    },
    Span {
        seconds: 120,
        words: "the last two minutes",
        labels: &["2 min ago", "90 s", "60 s", "30 s", "now"],
    },
    Span {
        seconds: 300,
        words: "the last five minutes",
        labels: &["5 min ago", "4 min", "3 min", "2 min", "1 min", "now"],
    },
];

impl Span {
    /// As far as there are samples: the beginning of a series is not lost in an empty picture.
    #[must_use]
    pub fn of(now: Moment, series: &Series) -> Self {
        let oldest = series.front().map_or(0, |sample| now.since(sample.at).as_secs());
        SPANS.into_iter().find(|span| oldest <= u64::from(span.seconds)).unwrap_or(SPANS[2])
    }
}

/// A scale from the bottom to the top of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    kind: Kind,
    /// What stands beside the lines across, from the top, all as far from one another.
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// From 0 to this.
    Linear(f64),
    /// Powers of ten of a second: from this one, for so many decades.
    Decades(i32, f64),
}

impl Scale {
    /// For rates.
    #[must_use]
    pub fn of_rates(series: &Series) -> Self {
        let top = round_up(series.iter().map(|sample| sample.rate).fold(0.0, f64::max));
        Self { kind: Kind::Linear(top), labels: [top, top / 2.0, 0.0].map(figures::rate).to_vec() }
    }

    /// For times, which may differ by orders of magnitude.
    #[must_use]
    pub fn of_times(series: &Series) -> Self {
        let times = series.iter().filter_map(|sample| sample.service);
        let (least, most) = times.fold((f64::MAX, 0.0_f64), |(least, most), (half, nearly_all)| {
            (least.min(seconds(half)), most.max(seconds(nearly_all)))
        });
        let (least, most) = if most == 0.0 { (0.001, 0.01) } else { (least, most) };
        #[expect(clippy::cast_possible_truncation, reason = "a power of ten")]
        let power = |value: f64| value as i32;
        let from = power(libm::log10(least).floor());
        let to = power(libm::log10(most).ceil()).max(from + 1);
        let label = |power: i32| figures::time(Duration::from_secs_f64(10_f64.powi(power)));
        let labels = (from..=to).rev().map(label).collect();
        Self { kind: Kind::Decades(from, f64::from(to - from)), labels }
    }

    fn place(&self, value: f64) -> f64 {
        let part = match self.kind {
            Kind::Linear(top) => value / top,
            Kind::Decades(from, decades) => (libm::log10(value) - f64::from(from)) / decades,
        };
        HEIGHT * (1.0 - part.clamp(0.0, 1.0))
    }
}

/// The next number upwards that has a half one can say.
fn round_up(most: f64) -> f64 {
    let power = libm::exp10(libm::log10(most.max(1.0)).floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|&step| step >= most).unwrap_or(most)
}

fn seconds(time: Duration) -> f64 {
    // A time of zero has no logarithm.
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let least = BOUNDS_US[0] as f64 / 2e6;
    time.as_secs_f64().max(least)
}

/// What a line shows of a sample.
type Value = fn(&Sample) -> Option<f64>;

/// Jobs that ended.
pub const RATE: Value = |sample| Some(sample.rate);
/// Jobs that failed or expired; a line only where there were some.
pub const TROUBLE: Value = |sample| Some(sample.trouble).filter(|&trouble| trouble > 0.0);
/// How long half were served.
pub const HALF: Value = |sample| sample.service.map(|(half, _)| seconds(half));
/// How long 99 of a hundred were served at most.
pub const NEARLY_ALL: Value = |sample| sample.service.map(|(_, nearly_all)| seconds(nearly_all));

/// A picture of a series as it is seen from `now`.
pub struct Picture<'a> {
    now: Moment,
    span: Span,
    series: &'a Series,
    scale: &'a Scale,
    html: Html,
}

impl<'a> Picture<'a> {
    /// An empty picture; `words` tell who cannot see it what it shows.
    #[must_use]
    pub fn new(now: Moment, span: Span, series: &'a Series, scale: &'a Scale, words: &str) -> Self {
        let mut html = Html::default();
        html.around("<svg viewBox=\"0 0 ", &span.seconds.to_string(), " 100\" preserveAspectRatio=\"none\"");
        html.around(" role=\"img\" aria-label=\"", words, "\">");
        Self { now, span, series, scale, html }
    }

    /// Lines across, where the scale has labels.
    #[must_use]
    pub fn grid(mut self) -> Self {
        let gaps = u32::try_from(self.scale.labels.len()).unwrap_or(2).max(2) - 1;
        let mut path = String::new();
        for line in 0..=gaps {
            let _ =
                write!(path, "M0 {:.1}h{}", HEIGHT * f64::from(line) / f64::from(gaps), self.span.seconds);
        }
        self.path("grid", &path);
        self
    }

    /// A line.
    #[must_use]
    pub fn line(mut self, class: &'static str, value: Value) -> Self {
        let mut path = String::new();
        for run in self.runs(value) {
            trace(&mut path, &run);
            // A point alone is a line without length, which has round ends.
            path.push_str(if run.len() == 1 { "h0" } else { "" });
        }
        self.path(class, &path);
        self
    }

    /// What is between two lines, or a line and the bottom.
    #[must_use]
    pub fn area(mut self, class: &'static str, upper: Value, lower: Option<Value>) -> Self {
        let mut path = String::new();
        let lower = lower.map(|lower| self.runs(lower));
        for (index, mut run) in self.runs(upper).into_iter().enumerate() {
            let below = lower.as_ref().and_then(|lower| lower.get(index)).cloned();
            let below = below.unwrap_or_else(|| {
                let ends = [run.first(), run.last()];
                ends.into_iter().flatten().map(|&(x, _)| (x, HEIGHT)).collect()
            });
            run.extend(below.into_iter().rev());
            trace(&mut path, &run);
            path.push('Z');
        }
        self.path(class, &path);
        self
    }

    /// The picture.
    #[must_use]
    pub fn done(mut self) -> Html {
        self.html.raw("</svg>");
        self.html
    }

    fn path(&mut self, class: &'static str, path: &str) {
        self.html.raw("<path class=\"").raw(class).around("\" d=\"", path, "\"/>");
    }

    /// Points that are to be joined.
    fn runs(&self, value: Value) -> Vec<Vec<(f64, f64)>> {
        let mut runs: Vec<Vec<(f64, f64)>> = Vec::new();
        let mut last = None;
        for sample in self.series {
            let across = f64::from(self.span.seconds) - self.now.since(sample.at).as_secs_f64();
            let Some(value) = value(sample).filter(|_| across >= 0.0) else { continue };
            let point = (across, self.scale.place(value));
            let is_near = last.is_some_and(|last| sample.at.since(last) <= JOINED_WITHIN);
            match runs.last_mut() {
                Some(run) if is_near => run.push(point),
                _ => runs.push(vec![point]),
            }
            last = Some(sample.at);
        }
        runs
    }
}

/// Draws through these points, each told from the one before: half as long as where it is, and each second is told
/// anew. What was rounded away is not lost.
fn trace(path: &mut String, points: &[(f64, f64)]) {
    let tenths = |value: f64| (value * 10.0).round();
    let mut before = None;
    for point in points.iter().map(|&(x, y)| (tenths(x), tenths(y))) {
        let (command, (x, y)) = match before {
            None => ('M', point),
            Some((x, y)) => ('l', (point.0 - x, point.1 - y)),
        };
        let _ = write!(path, "{command}{} {}", x / 10.0, y / 10.0);
        before = Some(point);
    }
}

/// A series with fewer points, for a small picture: means of rates, and the longest times.
#[must_use]
pub fn coarse(series: &Series) -> Series {
    let step = |sample: &Sample| sample.at.as_nanos() / nanos(SMALL_STEP);
    let samples: Vec<Sample> = series.iter().copied().collect();
    samples.chunk_by(|one, next| step(one) == step(next)).filter_map(join).collect()
}

fn join(samples: &[Sample]) -> Option<Sample> {
    let parts = f64::from(u32::try_from(samples.len()).unwrap_or(u32::MAX));
    let mean = |value: fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / parts;
    let longer =
        |one: (Duration, Duration), other: (Duration, Duration)| (one.0.max(other.0), one.1.max(other.1));
    Some(Sample {
        at: samples.last()?.at,
        rate: mean(|sample| sample.rate),
        trouble: mean(|sample| sample.trouble),
        service: samples.iter().filter_map(|sample| sample.service).reduce(longer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const NOW: Moment = Moment::from_nanos(400 * SECOND);

    fn series(samples: &[(u64, f64, Option<u64>)]) -> Series {
        let sample = |&(second, rate, millis): &(u64, f64, Option<u64>)| Sample {
            at: Moment::from_nanos(second * SECOND),
            rate,
            trouble: 0.0,
            service: millis.map(|millis| (Duration::from_millis(millis), Duration::from_millis(10 * millis))),
        };
        samples.iter().map(sample).collect()
    }

    fn plain(labels: &[String]) -> Vec<String> {
        labels.iter().map(|label| label.replace('\u{a0}', " ")).collect()
    }

    #[test]
    fn a_line_is_where_its_figures_are() {
        let series = series(&[(100, 0.0, None), (101, 5.0, None), (400, 10.0, None)]);
        let scale = Scale::of_rates(&series);
        assert_eq!(plain(&scale.labels), ["10.0", "5.0", "0"]);
        let picture = Picture::new(NOW, Span::of(NOW, &series), &series, &scale, "\"<words>");
        let svg = picture.grid().line("rate", RATE).area("fill", RATE, None).done();
        for part in [
            "aria-label=\"&quot;&lt;words&gt;\"",
            "class=\"grid\" d=\"M0 0.0h300M0 50.0h300M0 100.0h300\"",
            "class=\"rate\" d=\"M0 100l1 -50M300 0h0\"",
            "class=\"fill\" d=\"M0 100l1 -50l0 50l-1 0Z",
        ] {
            assert!(svg.as_str().contains(part), "{part} in {}", svg.as_str());
        }
    }

    #[test]
    fn times_go_by_decades() {
        let series = series(&[(399, 1.0, Some(3)), (400, 1.0, Some(100))]);
        let scale = Scale::of_times(&series);
        assert_eq!(plain(&scale.labels), ["1 s", "100 ms", "10 ms", "1 ms"]);
        let picture = Picture::new(NOW, Span::of(NOW, &series), &series, &scale, "");
        let svg = picture.line("half", HALF).area("band", NEARLY_ALL, Some(HALF)).done();
        for part in
            ["class=\"half\" d=\"M59 84.1l1 -50.8\"", "class=\"band\" d=\"M59 50.8l1 -50.8l0 33.3l-1 50.8Z\""]
        {
            assert!(svg.as_str().contains(part), "{part} in {}", svg.as_str());
        }
    }

    #[test]
    fn a_picture_goes_as_far_back_as_there_are_samples() {
        let seconds = |second| Span::of(NOW, &series(&[(second, 1.0, None)])).seconds;
        assert_eq!([400, 340, 339, 280, 279, 100, 0].map(seconds), [60, 60, 120, 120, 300, 300, 300]);
        let old = series(&[(0, 5.0, None), (400, 5.0, None)]);
        let scale = Scale::of_rates(&old);
        let svg = Picture::new(NOW, SPANS[0], &old, &scale, "").line("rate", RATE).done();
        assert!(svg.as_str().contains("d=\"M60 16.7h0\""), "{}", svg.as_str());
    }

    #[test]
    fn nothing_has_a_scale_too() {
        assert_eq!(plain(&Scale::of_rates(&Series::new()).labels), ["1.0", "0.50", "0"]);
        assert_eq!(plain(&Scale::of_times(&Series::new()).labels), ["10 ms", "1 ms"]);
        let zero = series(&[(400, 1.0, Some(0))]);
        assert_eq!(plain(&Scale::of_times(&zero).labels), ["10 µs", "1 µs"]);
    }

    #[test]
    fn a_small_picture_has_a_point_for_five_seconds() {
        let samples: Vec<_> =
            (100..400_u32).map(|second| (second.into(), second.into(), Some(second.into()))).collect();
        let coarse = coarse(&series(&samples));
        assert_eq!((coarse.len(), coarse[0].rate), (60, 102.0));
        assert_eq!(coarse[0].service.unwrap().0, Duration::from_millis(104));
    }
}
