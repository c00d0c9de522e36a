//! The steps of a job's life in the books, each such that a successor can finish it
//! wherever its keeper was killed.

use crate::core::job::{JobNumber, State, Word};
use crate::core::ledger::{Intent, Place};
use crate::page::jobs::{Job, JobTable};
use crate::page::principal::PrincipalPage;

/// Gives a job out at a free entry: first the intent, then the job, then the counters.
pub fn give(page: &PrincipalPage, table: &JobTable, slot: u16, entry: u32, job: Job) -> JobNumber {
    let intent = page.intend_to_give(slot, entry);
    let number = intent.place().number;
    table.publish(entry, number, job);
    page.enter(intent);
    number
}

/// Enters the end of a job that has ended and frees its entry: first the intent, then the
/// counters, then the entry. Returns whether the entry is free.
pub fn settle(page: &PrincipalPage, table: &JobTable, slot: u16, entry: u32, word: Word) -> bool {
    debug_assert!(word.has_ended());
    let kind = table.job(entry).map_or(usize::MAX, |job| job.kind);
    if kind < page.types() {
        let place = Place { slot, entry, number: word.number };
        page.enter(page.intend_to_end(place, kind, word.state));
    } else {
        log::error!("secondary {slot}: job {} has no known type: not in the books", word.number);
    }
    table.swap(entry, word, word.in_state(State::Free))
}

/// Finishes what a predecessor was about to do when it was killed. To be called once, before
/// anything else is done to the books; `table_of` finds the table of a slot.
pub fn redo<'a>(page: &PrincipalPage, table_of: impl FnOnce(u16) -> Option<&'a JobTable>) {
    let Some(intent) = page.intent() else {
        return;
    };
    let Place { slot, entry, .. } = intent.place();
    let Some(table) = table_of(slot) else {
        return;
    };
    let Some(word) = table.state(entry).ok().filter(|word| intent.was_taken(*word)) else {
        return;
    };
    page.enter(intent);
    if let Intent::End { end, .. } = intent
        && word.state == end
    {
        let freed = table.swap(entry, word, word.in_state(State::Free));
        debug_assert!(freed, "nobody but the principal frees an entry");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::moment::Moment;
    use crate::page::{Access, fuse};
    use std::path::Path;

    const SLOT: u16 = 1;

    /// A principal's view of its books; dropped where it is "killed".
    struct Keeper {
        page: PrincipalPage,
        table: JobTable,
    }

    impl Keeper {
        fn attach(dir: &Path) -> Self {
            let page = PrincipalPage::attach(&dir.join("principal"), Access::ReadWrite).unwrap();
            let table = JobTable::attach(&dir.join("jobs"), Access::ReadWrite).unwrap();
            Self { page, table }
        }

        fn give(&self, entry: u32, kind: usize) {
            let client = std::net::Ipv4Addr::LOCALHOST.into();
            let job = Job { kind, client, given_at: Moment::from_nanos(1) };
            give(&self.page, &self.table, SLOT, entry, job);
        }

        fn settle_all(&self) {
            for entry in self.table.indices() {
                let word = self.table.state(entry).unwrap();
                if word.has_ended() {
                    assert!(settle(&self.page, &self.table, SLOT, entry, word));
                }
            }
        }

        fn expire(&self, entry: u32) {
            let word = self.table.state(entry).unwrap();
            if word.state == State::Waiting && self.table.swap(entry, word, word.in_state(State::Expired)) {
                self.settle_all();
            }
        }

        fn open(&self) -> u64 {
            let words = self.table.indices().map(|entry| self.table.state(entry).unwrap());
            words.filter(|word| word.state != State::Free).count() as u64
        }

        /// Each entry that ended was counted once, by type and by slot.
        fn assert_exact(&self, when: &str) {
            let ends: Vec<_> = (0..2).map(|kind| self.page.ends(kind)).collect();
            let sum = |count: fn(&crate::page::principal::Ends) -> u64| ends.iter().map(count).sum::<u64>();
            let (done, failed, expired) = (sum(|e| e.done), sum(|e| e.failed), sum(|e| e.expired));
            assert_eq!(self.page.accepted(), done + failed + expired + self.open(), "{when}");
            let slot = self.page.slot(SLOT);
            assert_eq!((slot.done, slot.failed), (done, failed), "{when}");
        }
    }

    /// What a secondary does to an entry, from another mapping.
    fn serve(dir: &Path, entry: u32, end: State) {
        let table = JobTable::attach(&dir.join("jobs"), Access::ReadWrite).unwrap();
        let word = table.state(entry).unwrap();
        if word.state == State::Waiting {
            let claimed = word.claimed_by(7);
            assert!(table.swap(entry, word, claimed) && table.swap(entry, claimed, claimed.in_state(end)));
        }
    }

    /// The life of three jobs, the third at an entry that was used before.
    fn live(keeper: &Keeper, dir: &Path) {
        keeper.give(0, 0);
        keeper.give(1, 1);
        fuse::spare(|| serve(dir, 0, State::Done));
        keeper.settle_all();
        keeper.expire(1);
        keeper.give(0, 1);
        fuse::spare(|| serve(dir, 0, State::Failed));
        keeper.settle_all();
    }

    fn new_books(dir: &Path) {
        PrincipalPage::create(&dir.join("principal"), 1, 2).unwrap();
        JobTable::create(&dir.join("jobs"), 2).unwrap();
    }

    /// Kills the keeper before its n-th store, for every n; also with a secondary that swaps
    /// between the death and the recovery.
    #[test]
    fn the_books_are_exact_wherever_their_keeper_is_killed() {
        for secondary_swaps in [false, true] {
            let mut stores = 0;
            loop {
                let dir = tempfile::tempdir().unwrap();
                new_books(dir.path());
                let finished = fuse::burns_after(stores, || live(&Keeper::attach(dir.path()), dir.path()));
                if secondary_swaps {
                    (0..2).for_each(|entry| serve(dir.path(), entry, State::Done));
                }
                let successor = Keeper::attach(dir.path());
                redo(&successor.page, |_| Some(&successor.table));
                successor.settle_all();
                successor.assert_exact(&format!("killed before store {stores}"));
                redo(&successor.page, |_| Some(&successor.table));
                successor.assert_exact("what was finished is not finished again");
                (0..2).for_each(|entry| serve(dir.path(), entry, State::Done));
                successor.settle_all();
                successor.give(0, 0);
                successor.expire(0);
                successor.assert_exact(&format!("{stores} stores, then a day of work"));
                assert_eq!(successor.open(), 0);
                if finished {
                    break;
                }
                stores += 1;
            }
            assert!(stores > 50, "only {stores} stores: the fuse is not where the stores are");
        }
    }
}
