//! Many deadlines, of which the earliest decides how long a poll may wait.
//!
//! An indexed binary heap: arming, moving and cancelling cost `O(log n)`, and
//! nothing is allocated once the heap has reached its working size. A cancelled
//! timer leaves no trace, so a flood of short connections cannot pile up the
//! idle timers of those long gone.

use crate::core::moment::Moment;

/// Names one armed timer. Once it fired or was cancelled, the name means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId {
    entry: usize,
    generation: u64,
}

#[derive(Debug)]
struct Entry<K> {
    at: Moment,
    /// Where this entry stands in `heap`; meaningless while `key` is `None`.
    position: usize,
    /// Tells a timer from an earlier one that used the same entry.
    generation: u64,
    key: Option<K>,
}

/// A set of timers, each with the key that its owner wants back when it fires.
#[derive(Debug)]
pub struct Timers<K> {
    entries: Vec<Entry<K>>,
    free: Vec<usize>,
    heap: Vec<usize>,
    generation: u64,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), heap: Vec::new(), generation: 0 }
    }
}

impl<K> Timers<K> {
    /// The earliest deadline, or `None` where nothing is armed.
    #[must_use]
    pub fn next(&self) -> Option<Moment> {
        self.heap.first().map(|&entry| self.entries[entry].at)
    }

    /// How many timers are armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no timer is armed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Arms a timer.
    pub fn arm(&mut self, at: Moment, key: K) -> TimerId {
        self.generation += 1;
        let generation = self.generation;
        let position = self.heap.len();
        let armed = Entry { at, position, generation, key: Some(key) };
        let entry = match self.free.pop() {
            Some(entry) => {
                self.entries[entry] = armed;
                entry
            }
            None => {
                self.entries.push(armed);
                self.entries.len() - 1
            }
        };
        self.heap.push(entry);
        self.sift_up(position);
        TimerId { entry, generation }
    }

    /// Moves a timer to another moment; does nothing where it is no longer armed.
    pub fn move_to(&mut self, id: TimerId, at: Moment) {
        if !self.is_armed(id) {
            return;
        }
        self.entries[id.entry].at = at;
        let position = self.entries[id.entry].position;
        self.sift_up(position);
        self.sift_down(self.entries[id.entry].position);
    }

    /// Disarms a timer and gives its key back, if it was still armed.
    pub fn cancel(&mut self, id: TimerId) -> Option<K> {
        if !self.is_armed(id) {
            return None;
        }
        self.remove_at(self.entries[id.entry].position)
    }

    /// Takes the earliest timer whose moment has come.
    pub fn pop_due(&mut self, now: Moment) -> Option<K> {
        let &first = self.heap.first()?;
        if self.entries[first].at > now {
            return None;
        }
        self.remove_at(0)
    }

    fn is_armed(&self, id: TimerId) -> bool {
        self.entries
            .get(id.entry)
            .is_some_and(|entry| entry.generation == id.generation && entry.key.is_some())
    }

    fn remove_at(&mut self, position: usize) -> Option<K> {
        let entry = self.heap.swap_remove(position);
        if let Some(&moved) = self.heap.get(position) {
            self.entries[moved].position = position;
            self.sift_up(position);
            self.sift_down(self.entries[moved].position);
        }
        self.free.push(entry);
        self.entries[entry].key.take()
    }

    fn sift_up(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.at(parent) <= self.at(position) {
                break;
            }
            self.swap(parent, position);
            position = parent;
        }
    }

    fn sift_down(&mut self, mut position: usize) {
        loop {
            let left = 2 * position + 1;
            let right = left + 1;
            let mut earliest = position;
            for child in [left, right] {
                if child < self.heap.len() && self.at(child) < self.at(earliest) {
                    earliest = child;
                }
            }
            if earliest == position {
                break;
            }
            self.swap(earliest, position);
            position = earliest;
        }
    }

    fn at(&self, position: usize) -> Moment {
        self.entries[self.heap[position]].at
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.entries[self.heap[a]].position = a;
        self.entries[self.heap[b]].position = b;
    }
}

/// The timer of something whose deadline mostly moves later, as that of a busy connection
/// does at each request. It is moved only when it must come earlier; one that comes too
/// early is armed again by whoever finds that nothing is due.
#[derive(Debug, Default)]
pub struct LazyTimer {
    armed: Option<(TimerId, Moment)>,
}

impl LazyTimer {
    /// Makes sure that the timer comes at that moment or before.
    pub fn arm<K>(&mut self, timers: &mut Timers<K>, at: Moment, key: K) {
        match self.armed {
            Some((_, armed)) if armed <= at => {}
            Some((timer, _)) => {
                timers.move_to(timer, at);
                self.armed = Some((timer, at));
            }
            None => self.armed = Some((timers.arm(at, key), at)),
        }
    }

    /// The timer has come.
    pub fn fired(&mut self) {
        self.armed = None;
    }

    /// The timer must not come any more.
    pub fn cancel<K>(&mut self, timers: &mut Timers<K>) {
        if let Some((timer, _)) = self.armed.take() {
            timers.cancel(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_name_outlives_neither_its_firing_nor_its_entry() {
        let mut timers = Timers::default();
        let first = timers.arm(at(1), 'a');
        assert_eq!(timers.pop_due(at(1)), Some('a'));
        let second = timers.arm(at(2), 'b');
        assert_eq!(timers.cancel(first), None, "the entry is used again, the name is not");
        assert_eq!(timers.cancel(second), Some('b'));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_lazy_timer_moves_only_earlier_and_leaves_nothing_behind() {
        let (mut timers, mut lazy) = (Timers::default(), LazyTimer::default());
        for (wanted, armed) in [(20, 20), (30, 20), (10, 10), (15, 10)] {
            lazy.arm(&mut timers, at(wanted), 'a');
            assert_eq!((timers.next(), timers.len()), (Some(at(armed)), 1));
        }
        assert_eq!(timers.pop_due(at(10)), Some('a'));
        lazy.fired();
        lazy.arm(&mut timers, at(30), 'a');
        assert_eq!(timers.next(), Some(at(30)));
        lazy.cancel(&mut timers);
        assert!(timers.is_empty());
    }

    proptest! {
        /// Against the plainest model: a list that is searched for its minimum.
        #[test]
        fn behaves_like_a_sorted_list(steps in prop::collection::vec((0u8..4, 0u64..50, 0usize..40), 1..300)) {
            let mut timers = Timers::default();
            let mut model: Vec<(Moment, usize, TimerId)> = Vec::new();
            for (number, (what, millis, which)) in steps.into_iter().enumerate() {
                match what {
                    0 => {
                        let id = timers.arm(at(millis), number);
                        model.push((at(millis), number, id));
                    }
                    1 if !model.is_empty() => {
                        let (_, key, id) = model.swap_remove(which % model.len());
                        prop_assert_eq!(timers.cancel(id), Some(key));
                        prop_assert_eq!(timers.cancel(id), None);
                    }
                    2 if !model.is_empty() => {
                        let index = which % model.len();
                        model[index].0 = at(millis);
                        timers.move_to(model[index].2, at(millis));
                    }
                    _ => {
                        while let Some(key) = timers.pop_due(at(millis)) {
                            let index = model.iter().position(|entry| entry.1 == key).unwrap();
                            prop_assert!(model.iter().all(|entry| entry.0 >= model[index].0));
                            prop_assert!(model[index].0 <= at(millis));
                            model.swap_remove(index);
                        }
                        prop_assert!(model.iter().all(|entry| entry.0 > at(millis)));
                    }
                }
                prop_assert_eq!(timers.len(), model.len());
                prop_assert_eq!(timers.next(), model.iter().map(|entry| entry.0).min());
            }
        }
    }
}
