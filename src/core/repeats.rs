//! Messages that come again and again: the first few are told, the rest is counted, and the count is told.
//!
//! Two messages are the same where their levels are, and their texts but for the numbers in them: who fails in a
//! loop says another pid, or another job, each time.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use crate::core::moment::Moment;

/// So many of the same are told within [`WINDOW`].
pub const TOLD: u32 = 10;
/// How long the same are counted together, from the first of them.
pub const WINDOW: Duration = Duration::from_secs(10);
/// So many different messages are remembered; then the oldest is forgotten for each new one.
const KINDS: usize = 64;

/// Messages that were not told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld<L> {
    /// Their level.
    pub level: L,
    /// The text of the first of them.
    pub text: String,
    /// How many there were.
    pub times: u64,
    /// Since the first that was told.
    pub within: Duration,
}

#[derive(Debug)]
struct Kind<L> {
    hash: u64,
    level: L,
    since: Moment,
    told: u32,
    withheld: u64,
    /// Of the first that was withheld.
    text: String,
}

/// The messages of a process.
#[derive(Debug)]
pub struct Repeats<L> {
    kinds: Vec<Kind<L>>,
    /// Counts of those that were forgotten before their time.
    due: Vec<Withheld<L>>,
}

impl<L> Default for Repeats<L> {
    fn default() -> Self {
        Self { kinds: Vec::new(), due: Vec::new() }
    }
}

impl<L: Copy + PartialEq> Repeats<L> {
    /// Somebody has something to say. Whether it is to be told; before it, all that [`Repeats::poll`] gives.
    pub fn handle(&mut self, now: Moment, level: L, text: &str) -> bool {
        let hash = hash(text);
        self.expire(now);
        if let Some(kind) = self.kinds.iter_mut().find(|kind| kind.hash == hash && kind.level == level) {
            if kind.told < TOLD {
                kind.told += 1;
                return true;
            }
            if kind.withheld == 0 {
                kind.text = text.to_owned();
            }
            kind.withheld += 1;
            return false;
        }
        if self.kinds.len() == KINDS {
            let oldest = self.kinds.iter().enumerate().min_by_key(|(_, kind)| kind.since);
            let oldest = oldest.map_or(0, |(index, _)| index);
            self.forget(now, oldest);
        }
        self.kinds.push(Kind { hash, level, since: now, told: 1, withheld: 0, text: String::new() });
        true
    }

    /// What was withheld and is to be told now.
    pub fn poll(&mut self, now: Moment) -> Option<Withheld<L>> {
        self.expire(now);
        self.due.pop()
    }

    /// When [`Repeats::poll`] has something to tell, if nothing more is said.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let counting = self.kinds.iter().filter(|kind| kind.withheld > 0);
        counting.map(|kind| kind.since + WINDOW).min()
    }

    /// The end: whatever is withheld is told by [`Repeats::poll`].
    pub fn handle_end(&mut self, now: Moment) {
        while !self.kinds.is_empty() {
            self.forget(now, 0);
        }
    }

    fn expire(&mut self, now: Moment) {
        let mut index = 0;
        while let Some(kind) = self.kinds.get(index) {
            if kind.since + WINDOW <= now {
                self.forget(now, index);
            } else {
                index += 1;
            }
        }
    }

    fn forget(&mut self, now: Moment, index: usize) {
        let Kind { level, since, withheld, text, .. } = self.kinds.swap_remove(index);
        if withheld > 0 {
            let within = now.since(since).min(WINDOW);
            self.due.push(Withheld { level, text, times: withheld, within });
        }
    }
}

/// Of a text, each number in it being as good as any other.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for piece in text.as_bytes().chunk_by(|one, other| one.is_ascii_digit() == other.is_ascii_digit()) {
        hasher.write(if piece[0].is_ascii_digit() { b"0" } else { piece });
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn ten_are_told_and_the_rest_is_counted_and_told_when_the_window_ends() {
        let mut repeats = Repeats::default();
        let told = (0..133).filter(|pid| repeats.handle(at(*pid), 2, &format!("cannot probe pid {pid}")));
        assert_eq!(told.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert!(repeats.handle(at(140), 3, "cannot probe pid 1"), "another level");
        assert!(repeats.handle(at(150), 2, "cannot find pid 1"), "another text");
        assert_eq!((repeats.poll(at(9_999)), repeats.poll_timeout()), (None, Some(at(10_000))));
        let text = "cannot probe pid 10".to_owned();
        assert_eq!(repeats.poll(at(10_300)), Some(Withheld { level: 2, text, times: 123, within: WINDOW }));
        assert_eq!((repeats.poll(at(10_300)), repeats.poll_timeout()), (None, None));
        assert!(repeats.handle(at(10_300), 2, "cannot probe pid 7"), "another window");
    }

    #[test]
    fn what_is_withheld_at_the_end_is_told() {
        let mut repeats = Repeats::default();
        assert_eq!((0..12).filter(|_| repeats.handle(at(5), (), "no room")).count(), 10);
        repeats.handle_end(at(2_005));
        let told = repeats.poll(at(2_005)).unwrap();
        assert_eq!((told.times, told.within), (2, Duration::from_secs(2)));
        assert_eq!(repeats.poll(at(2_005)), None);
    }

    #[test]
    fn numbers_make_no_difference_and_their_place_does() {
        assert_eq!(hash("secondary 3.1 (pid 12)"), hash("secondary 64.512 (pid 3)"));
        assert_ne!(hash("secondary 3"), hash("secondary "));
        assert_ne!(hash("3 lines"), hash(" lines3"));
    }

    proptest! {
        /// Told and counted together are all that was said, and neither grows beyond its bounds.
        #[test]
        fn nothing_is_lost(said in prop::collection::vec((0u64..2_000, 0u8..200), 0..2_000)) {
            let (mut repeats, mut now, mut told, mut withheld) = (Repeats::default(), 0, 0u64, 0);
            for &(pause, which) in &said {
                now += pause / 100;
                // Letters, for digits are all the same.
                let text = "x".repeat(usize::from(which));
                told += u64::from(repeats.handle(at(now), (), &text));
                while let Some(more) = repeats.poll(at(now)) {
                    withheld += more.times;
                }
                prop_assert!(repeats.kinds.len() <= KINDS && repeats.due.is_empty());
            }
            repeats.handle_end(at(now));
            while let Some(more) = repeats.poll(at(now)) {
                withheld += more.times;
            }
            prop_assert_eq!(told + withheld, said.len() as u64);
        }
    }
}
