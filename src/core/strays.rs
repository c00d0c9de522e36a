//! Whose are the processes that have come to a secondary because their parents have ended: with
//! whom does each of them end?

use crate::core::mark::Start;

/// A child of a secondary that it has not started itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// From which start it descends, by its mark.
    pub mark: Option<Start>,
    /// The start of the leader of its process group, where that lives or is being ended.
    pub group: Option<Start>,
    /// The last start before it was first seen: it descends from that one or one before.
    pub met: Start,
}

/// Who lives in a secondary beside the one who is being ended.
pub trait Household {
    /// Whether the command or worker of that start is there.
    fn lives(&self, start: Start) -> bool;

    /// The start of the oldest command. Workers do not count: they may stay for ever, and then so would who
    /// has made himself unknown.
    fn oldest(&self) -> Option<Start>;
}

/// What becomes of a stray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ends with the one who is being ended, which waits for it.
    Ends,
    /// It ends now; nobody waits for it, for whom it has served is long gone.
    IsOverdue,
    /// It stays: who lives will end it.
    Stays,
}

impl Stray {
    /// Decides, while `ended` is being ended; or while nobody is.
    #[must_use]
    pub fn fate(self, ended: Option<Start>, household: &impl Household) -> Fate {
        match self.mark.or(self.group) {
            Some(start) if ended == Some(start) => Fate::Ends,
            Some(start) if household.lives(start) => Fate::Stays,
            Some(_) => Fate::IsOverdue,
            // It bears no sign: it is anybody's who was there before it.
            None if household.oldest().is_some_and(|oldest| oldest <= self.met) => Fate::Stays,
            None if ended.is_some() => Fate::Ends,
            None => Fate::IsOverdue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The starts of those who live.
    struct Living(Vec<u64>);

    impl Household for Living {
        fn lives(&self, start: Start) -> bool {
            self.0.iter().any(|&living| Start::new(living) == start)
        }

        fn oldest(&self) -> Option<Start> {
            self.0.iter().copied().min().map(Start::new)
        }
    }

    const GONE: u64 = 2;
    const ENDED: u64 = 3;
    const LIVING: u64 = 5;

    fn fate(mark: Option<u64>, group: Option<u64>) -> [Fate; 2] {
        let stray = Stray { mark: mark.map(Start::new), group: group.map(Start::new), met: Start::new(4) };
        [Some(ENDED), None].map(|ended| stray.fate(ended.map(Start::new), &Living(vec![LIVING, 6])))
    }

    #[test]
    fn a_mark_tells_then_the_group() {
        assert_eq!(fate(Some(ENDED), None), [Fate::Ends, Fate::IsOverdue]);
        assert_eq!(fate(Some(ENDED), Some(LIVING)), [Fate::Ends, Fate::IsOverdue]);
        assert_eq!(fate(Some(LIVING), Some(ENDED)), [Fate::Stays; 2]);
        assert_eq!(fate(Some(GONE), Some(LIVING)), [Fate::IsOverdue; 2]);
        assert_eq!(fate(None, Some(ENDED)), [Fate::Ends, Fate::IsOverdue]);
        assert_eq!(fate(None, Some(LIVING)), [Fate::Stays; 2]);
    }

    #[test]
    fn who_bears_no_sign_ends_with_the_last_who_may_have_started_it() {
        let stray = |met| Stray { mark: None, group: None, met: Start::new(met) };
        let ended = Some(Start::new(ENDED));
        assert_eq!(stray(4).fate(ended, &Living(vec![LIVING, 6])), Fate::Ends);
        assert_eq!(stray(5).fate(ended, &Living(vec![LIVING, 6])), Fate::Stays);
        assert_eq!(stray(5).fate(None, &Living(vec![LIVING, 6])), Fate::Stays);
        assert_eq!(stray(5).fate(ended, &Living(Vec::new())), Fate::Ends);
        assert_eq!(stray(5).fate(None, &Living(Vec::new())), Fate::IsOverdue);
    }
}
