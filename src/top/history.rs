//! The last minutes, second by second, and as the columns of a graph.

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::moment::{Moment, nanos};

/// The shortest stretch that is remembered by itself.
pub const STEP: Duration = Duration::from_secs(1);
/// What a graph shows, at least.
const SHOWN: Duration = Duration::from_secs(180);
/// What is remembered: a graph of many columns shows more.
const KEPT: Duration = Duration::from_secs(600);

/// What happened in a stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// When it began.
    pub from: Moment,
    /// When it ended.
    pub to: Moment,
    /// Jobs that ended, in a second.
    pub rate: f64,
    /// What 99 of 100 of them did not exceed, from being claimed to their end; `None` where none ended.
    pub p99: Option<Duration>,
}

/// One column of a graph; `None` where nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Column {
    /// The mean rate.
    pub rate: Option<f64>,
    /// The highest of the latencies.
    pub p99: Option<Duration>,
}

/// The last minutes.
#[derive(Debug, Default)]
pub struct History {
    stretches: VecDeque<Stretch>,
}

impl History {
    /// Adds what came last, and forgets what is too old.
    pub fn push(&mut self, stretch: Stretch) {
        self.stretches.push_back(stretch);
        while self.stretches.front().is_some_and(|first| stretch.to.since(first.to) > KEPT) {
            self.stretches.pop_front();
        }
    }

    /// When the last stretch ended.
    #[must_use]
    pub fn end(&self) -> Option<Moment> {
        self.stretches.back().map(|last| last.to)
    }

    /// So many columns, the last of them the one in which `now` falls, and how long each is. Columns begin at whole
    /// multiples of their length, so that what was drawn once stays as it is and only moves on.
    #[must_use]
    pub fn columns(&self, now: Moment, columns: usize) -> (Vec<Column>, Duration) {
        let seconds = SHOWN.as_secs().div_ceil(columns.max(1) as u64);
        let length = Duration::from_secs(seconds);
        let place = |at: Moment| at.as_nanos() / nanos(length);
        let last = place(now);
        let mut sums = vec![(0.0, 0.0, None); columns];
        for stretch in &self.stretches {
            // One that ends in a column is of that column; one that is longer is of all that it covers.
            let from = (place(stretch.from) + 1).min(place(stretch.to));
            for at in from..=place(stretch.to) {
                let back = last.checked_sub(at).and_then(|back| usize::try_from(back).ok());
                let Some(index) = back.and_then(|back| columns.checked_sub(back + 1)) else {
                    continue;
                };
                let (sum, count, p99) = &mut sums[index];
                *sum += stretch.rate;
                *count += 1.0;
                *p99 = stretch.p99.max(*p99);
            }
        }
        let column = |(sum, count, p99)| Column { rate: (count > 0.0).then(|| sum / count), p99 };
        (sums.into_iter().map(column).collect(), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn stretch(from: u64, to: u64, rate: f64) -> Stretch {
        Stretch { from: at(from), to: at(to), rate, p99: Some(Duration::from_millis(to)) }
    }

    fn rates(history: &History, now: u64, columns: usize) -> Vec<Option<f64>> {
        history.columns(at(now), columns).0.iter().map(|column| column.rate).collect()
    }

    #[test]
    fn a_column_is_the_mean_of_its_seconds_and_their_highest_latency() {
        let mut history = History::default();
        (1000..1006).for_each(|second| history.push(stretch(second, second + 1, second as f64)));
        let (columns, length) = history.columns(at(1006), 60);
        assert_eq!(length, Duration::from_secs(3));
        let last = columns[58..].iter().map(|column| (column.rate, column.p99)).collect::<Vec<_>>();
        let p99 = |millis| Some(Duration::from_millis(millis));
        assert_eq!(last, [(Some(1002.0), p99(1004)), (Some(1004.5), p99(1006))]);
        assert_eq!(columns[56].rate, None, "nothing is known of before");
    }

    #[test]
    fn what_was_drawn_only_moves_on() {
        let mut history = History::default();
        (1000..1060).for_each(|second| history.push(stretch(second, second + 1, (second % 7) as f64)));
        let (early, late) = (rates(&history, 1060, 60), rates(&history, 1062, 60));
        assert_eq!(early[1..], late[..59]);
        assert_eq!(late[59], None);
    }

    #[test]
    fn a_long_stretch_fills_all_its_columns_and_a_gap_stays_empty() {
        let mut history = History::default();
        history.push(stretch(1000, 1010, 5.0));
        history.push(stretch(1013, 1014, 7.0));
        let shown = rates(&history, 1014, 180);
        assert_eq!(shown[179], Some(7.0));
        assert_eq!(shown[176..179], [None; 3]);
        assert_eq!(shown[166..176], [Some(5.0); 10]);
        assert_eq!(shown[165], None);
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let mut history = History::default();
        (0..10_000).for_each(|second| history.push(stretch(second, second + 1, 1.0)));
        assert_eq!(history.stretches.len(), 601);
        assert_eq!(history.columns(at(20_000), 10).0, [Column::default(); 10]);
        assert_eq!(history.columns(at(20_000), 0).0, []);
    }
}
