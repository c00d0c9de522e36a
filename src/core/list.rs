//! Doubly linked lists threaded through one array of indices.
//!
//! The entries of a job table stand in one list at most: the jobs that wait for a
//! certain address, or the jobs in the order in which they expire. Linking by
//! index makes leaving the middle of a list `O(1)` without an allocation, and
//! memory is bounded by the table. Low entries are used first, so it is touched only as far as
//! there were ever entries in a list; room for all is set aside at the start.

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    linked: bool,
}

impl Link {
    const NOWHERE: Self = Self { previous: NONE, next: NONE, linked: false };
}

/// The links of the entries of a table.
#[derive(Debug)]
pub struct Links {
    links: Vec<Link>,
}

/// The two ends of one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    first: u32,
    last: u32,
}

impl Default for Ends {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Ends {
    /// The entry at the front.
    #[must_use]
    pub fn first(self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Whether the list has no entry.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.first == NONE
    }
}

impl Links {
    /// Links for entries `0..capacity`, none of them in a list.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { links: Vec::with_capacity(capacity) }
    }

    /// Whether an entry stands in a list.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.links.get(index as usize).is_some_and(|link| link.linked)
    }

    /// The entries of a list, first to last.
    pub fn iter(&self, ends: Ends) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(ends.first(), |&index| {
            Some(self.links[index as usize].next).filter(|&next| next != NONE)
        })
    }

    /// Appends an entry that stands in no list.
    pub fn push_back(&mut self, ends: &mut Ends, index: u32) {
        debug_assert!(!self.contains(index), "entry {index} is in a list already");
        if self.links.len() <= index as usize {
            self.links.resize(index as usize + 1, Link::NOWHERE);
        }
        self.links[index as usize] = Link { previous: ends.last, next: NONE, linked: true };
        match ends.last {
            NONE => ends.first = index,
            last => self.links[last as usize].next = index,
        }
        ends.last = index;
    }

    /// Takes an entry out of the list that `ends` belongs to.
    pub fn remove(&mut self, ends: &mut Ends, index: u32) {
        let link = self.links[index as usize];
        debug_assert!(link.linked, "entry {index} is in no list");
        match link.previous {
            NONE => ends.first = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        match link.next {
            NONE => ends.last = link.previous,
            next => self.links[next as usize].previous = link.previous,
        }
        self.links[index as usize].linked = false;
    }

    /// Takes the entry at the front.
    pub fn pop_front(&mut self, ends: &mut Ends) -> Option<u32> {
        let first = ends.first()?;
        self.remove(ends, first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_deque(steps in prop::collection::vec((0u32..16, 0u8..3), 0..200)) {
            let mut links = Links::new(16);
            let mut ends = Ends::default();
            let mut model = VecDeque::new();
            for (index, what) in steps {
                if what == 0 {
                    prop_assert_eq!(links.pop_front(&mut ends), model.pop_front());
                } else if links.contains(index) {
                    links.remove(&mut ends, index);
                    model.retain(|&entry| entry != index);
                } else {
                    links.push_back(&mut ends, index);
                    model.push_back(index);
                }
                prop_assert!(links.iter(ends).eq(model.iter().copied()));
                prop_assert_eq!(ends.first(), model.front().copied());
                prop_assert_eq!(ends.is_empty(), model.is_empty());
            }
        }
    }
}
