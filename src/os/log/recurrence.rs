//! Failures that last, told once.

use std::time::Duration;

use crate::core::moment::Moment;

/// Longer than the longest back-off between two tries.
const QUIET: Duration = Duration::from_secs(30);

/// A failure that comes again and again while something is short: told once, not at each try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recurrence {
    last: Option<Moment>,
}

impl Recurrence {
    /// It has failed. Whether that is news: the first time, or the first after a quiet while.
    pub fn is_news(&mut self, now: Moment) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.since(last) > QUIET)
    }
}

/// Failures of several kinds, each told as a [`Recurrence`].
#[derive(Clone, Debug, Default)]
pub struct Recurrences(Vec<(String, Recurrence)>);

impl Recurrences {
    /// Kinds that are remembered.
    const MAX_KINDS: usize = 16;

    /// It has failed so. Whether that is news.
    pub fn is_news(&mut self, now: Moment, what: &str) -> bool {
        if let Some((_, recurrence)) = self.0.iter_mut().find(|(kind, _)| kind == what) {
            return recurrence.is_news(now);
        }
        if self.0.len() == Self::MAX_KINDS {
            let quietest = self.0.iter().enumerate().min_by_key(|(_, (_, recurrence))| recurrence.last);
            let quietest = quietest.map_or(0, |(index, _)| index);
            self.0.swap_remove(quietest);
        }
        self.0.push((what.to_owned(), Recurrence { last: Some(now) }));
        true
    }
}
