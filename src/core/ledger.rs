//! The intent: what makes the books exact although their keeper may be killed between
//! any two stores.
//!
//! Before the principal changes a counter it writes down, in shared memory, which job it is
//! about and what the counters will be *afterwards*. Its successor looks at the job's state
//! word: if the word shows that the step was taken, the counters are set to what the intent
//! says, which does no harm if they were set already; else the intent is void. There is one
//! intent at a time, and the next begins only when the last is done with.

use crate::core::job::{JobNumber, State, Word};
use crate::wire::client::TypeIndex;

/// Words of an intent in shared memory; the first one is stored last.
pub const INTENT_WORDS: usize = 5;

/// Which job an intent is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The slot, counted from 1.
    pub slot: u16,
    /// The index in its job table.
    pub entry: u32,
    /// The job's number.
    pub number: JobNumber,
}

/// A step in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A job is given out.
    Give {
        /// Which.
        place: Place,
        /// Jobs accepted, this one included.
        accepted: u64,
    },
    /// The end of a job is entered, and its entry freed.
    End {
        /// Which.
        place: Place,
        /// How it ended.
        end: State,
        /// Its request type.
        kind: TypeIndex,
        /// Jobs of this type that ended so, this one included.
        of_type: u64,
        /// Jobs of this slot that ended so, this one included.
        of_slot: u64,
    },
}

impl Intent {
    /// Which job it is about.
    #[must_use]
    pub fn place(self) -> Place {
        match self {
            Self::Give { place, .. } | Self::End { place, .. } => place,
        }
    }

    /// Whether the state word of its job shows that the step was taken.
    #[must_use]
    pub fn was_taken(self, word: Word) -> bool {
        match self {
            // Whoever has it by now: the number says that it was published.
            Self::Give { place, .. } => word.number == place.number,
            Self::End { place, end, .. } => {
                word.number == place.number && (word.state == end || word.state == State::Free)
            }
        }
    }

    /// The intent as it stands in memory.
    #[must_use]
    pub fn pack(self) -> [u64; INTENT_WORDS] {
        let Place { slot, entry, number } = self.place();
        let head = |step: u64| step | u64::from(slot) << 16 | u64::from(entry) << 32;
        match self {
            Self::Give { accepted, .. } => [head(1), number, 0, accepted, 0],
            Self::End { end, kind, of_type, of_slot, .. } => {
                let end = Word::FREE.in_state(end).pack();
                [head(2), number, end | (kind as u64) << 8, of_type, of_slot]
            }
        }
    }

    /// Reads an intent from memory; `None` where there is none, or nonsense.
    #[must_use]
    pub fn unpack(words: [u64; INTENT_WORDS]) -> Option<Self> {
        let [head, number, what, first, second] = words;
        let slot = u16::try_from(head >> 16 & 0xffff).ok()?;
        let place = Place { slot, entry: u32::try_from(head >> 32).ok()?, number };
        match head & 0xffff {
            1 => Some(Self::Give { place, accepted: first }),
            2 => {
                let end = Word::unpack(what & 0xff).ok()?;
                let kind = usize::try_from(what >> 8).ok()?;
                end.has_ended().then_some(Self::End {
                    place,
                    end: end.state,
                    kind,
                    of_type: first,
                    of_slot: second,
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(slot: u16, entry: u32, number: u64, counts: (u64, u64), kind in 0usize..4096) {
            let place = Place { slot, entry, number };
            let give = Intent::Give { place, accepted: counts.0 };
            prop_assert_eq!(Intent::unpack(give.pack()), Some(give));
            for end in [State::Done, State::Failed, State::Expired] {
                let end = Intent::End { place, end, kind, of_type: counts.0, of_slot: counts.1 };
                prop_assert_eq!(Intent::unpack(end.pack()), Some(end));
            }
        }

        #[test]
        fn garbage_is_no_panic(words: [u64; INTENT_WORDS]) {
            let _ = Intent::unpack(words);
        }
    }

    #[test]
    fn an_untouched_page_holds_no_intent() {
        assert_eq!(Intent::unpack([0; INTENT_WORDS]), None);
    }
}
