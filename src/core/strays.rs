//! Whose are the processes that have come to a secondary because their parents have ended: with
//! whom does each of them end?

use crate::core::mark::Whose;

/// A child of a secondary that it has not started itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Whom it serves, by its mark.
    pub mark: Option<Whose>,
    /// Whom the leader of its process group serves, where that is one of a command or of a worker that
    /// lives, or the one who is being ended.
    pub group: Option<Whose>,
    /// How many commands and workers had been started when it was first seen: it comes from one of those.
    pub met: u64,
}

/// Who lives in a secondary beside the one who is being ended.
pub trait Household {
    /// Whether that job or worker is there.
    fn lives(&self, whose: Whose) -> bool;

    /// The start of the oldest command or worker: it was the n-th.
    fn oldest(&self) -> Option<u64>;
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
    pub fn fate(self, ended: Option<Whose>, household: &impl Household) -> Fate {
        match self.mark.or(self.group) {
            Some(whose) if ended == Some(whose) => Fate::Ends,
            Some(whose) if household.lives(whose) => Fate::Stays,
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

    /// Those who live, each with the number of its start.
    struct Living(Vec<(Whose, u64)>);

    impl Household for Living {
        fn lives(&self, whose: Whose) -> bool {
            self.0.iter().any(|(living, _)| *living == whose)
        }

        fn oldest(&self) -> Option<u64> {
            self.0.iter().map(|(_, start)| *start).min()
        }
    }

    const ENDED: Whose = Whose::Job(3);
    const LIVING: Whose = Whose::Job(5);
    const WORKER: Whose = Whose::Worker(3);
    const GONE: Whose = Whose::Job(2);

    fn fate(mark: Option<Whose>, group: Option<Whose>) -> [Fate; 2] {
        let household = Living(vec![(LIVING, 5), (WORKER, 6)]);
        let stray = Stray { mark, group, met: 4 };
        [Some(ENDED), None].map(|ended| stray.fate(ended, &household))
    }

    #[test]
    fn a_mark_tells_then_the_group() {
        assert_eq!(fate(Some(ENDED), None), [Fate::Ends, Fate::IsOverdue]);
        assert_eq!(fate(Some(ENDED), Some(LIVING)), [Fate::Ends, Fate::IsOverdue]);
        assert_eq!(fate(Some(LIVING), Some(ENDED)), [Fate::Stays; 2]);
        assert_eq!(fate(Some(WORKER), Some(ENDED)), [Fate::Stays; 2], "numbers of workers are others");
        assert_eq!(fate(Some(GONE), Some(LIVING)), [Fate::IsOverdue; 2]);
        assert_eq!(fate(None, Some(ENDED)), [Fate::Ends, Fate::IsOverdue]);
        assert_eq!(fate(None, Some(WORKER)), [Fate::Stays; 2]);
    }

    #[test]
    fn who_bears_no_sign_ends_with_the_last_who_may_have_started_it() {
        let stray = |met| Stray { mark: None, group: None, met };
        let household = Living(vec![(LIVING, 5), (WORKER, 6)]);
        assert_eq!(stray(4).fate(Some(ENDED), &household), Fate::Ends);
        assert_eq!(stray(5).fate(Some(ENDED), &household), Fate::Stays);
        assert_eq!(stray(5).fate(None, &household), Fate::Stays);
        let nobody = Living(Vec::new());
        assert_eq!(stray(5).fate(Some(ENDED), &nobody), Fate::Ends);
        assert_eq!(stray(5).fate(None, &nobody), Fate::IsOverdue);
    }
}
