//! The steps of a job's life in the books, each such that a successor can finish it
//! wherever its keeper was killed.

use crate::core::job::{Incarnation, Job, JobNumber, State, Table, Word};
use crate::core::ledger::{Intent, Place};
use crate::core::slots::{self, Occupied};
use crate::page::jobs::JobTable;
use crate::page::principal::PrincipalPage;
use crate::page::{Access, PageError, Source};

/// The books of a tree: the principal's page and the job table of each slot.
#[derive(Debug)]
pub struct Books {
    page: PrincipalPage,
    tables: Vec<JobTable>,
}

impl Books {
    /// The books in this page; `tables` are the job tables in the order of their slots.
    ///
    /// # Errors
    /// [`PageError`].
    pub fn attach<'a, T: Into<Source<'a>>>(
        page: PrincipalPage,
        tables: impl IntoIterator<Item = T>,
    ) -> Result<Self, PageError> {
        let attach = |table| JobTable::attach(table, Access::ReadWrite);
        let tables = tables.into_iter().map(attach).collect::<Result<_, _>>()?;
        Ok(Self { page, tables })
    }

    /// The principal's page.
    #[must_use]
    pub fn page(&self) -> &PrincipalPage {
        &self.page
    }

    /// The job tables, in the order of their slots.
    #[must_use]
    pub fn tables(&self) -> &[JobTable] {
        &self.tables
    }
}

/// In the pages slots are counted from 1.
fn number(slot: usize) -> u16 {
    u16::try_from(slot + 1).unwrap_or(u16::MAX)
}

impl slots::Books for Books {
    type Table = JobTable;

    fn table(&self, slot: usize) -> &JobTable {
        &self.tables[slot]
    }

    /// First the intent, then the job, then the counters.
    fn give(&self, slot: usize, entry: u32, job: Job) -> JobNumber {
        let intent = self.page.intend_to_give(number(slot), entry);
        let number = intent.place().number;
        self.tables[slot].publish(entry, number, job);
        self.page.enter(intent);
        number
    }

    /// First the intent, then the counters, then the entry.
    fn settle(&self, slot: usize, entry: u32, word: Word) -> bool {
        debug_assert!(word.has_ended());
        let table = &self.tables[slot];
        // Who overwrote the type of a job does not get it out of the books.
        let kind = table.job(entry).map(|job| job.kind).filter(|&kind| kind < self.page.types());
        // What stands there may be of an earlier job, unless somebody has claimed this one.
        let times = table.times(entry).filter(|_| word.holder != 0);
        let place = Place { slot: number(slot), entry, number: word.number };
        self.page.enter(self.page.intend_to_end(place, kind.unwrap_or(0), word.state));
        // Where a stranger was quicker, the job is in the books all the same, and only once.
        if !table.swap(entry, word, word.in_state(State::Free)) {
            table.overwrite(entry, Word::FREE);
        }
        if let (Some(kind), Some((waited, served))) = (kind, times) {
            self.page.count_times(kind, waited, served);
        }
        true
    }

    fn redo(&self) {
        let Some(intent) = self.page.intent() else {
            return;
        };
        let Place { slot, entry, .. } = intent.place();
        let Some(table) = usize::from(slot).checked_sub(1).and_then(|slot| self.tables.get(slot)) else {
            return;
        };
        let Some(word) = table.state(entry).ok().filter(|word| intent.was_taken(*word)) else {
            return;
        };
        self.page.enter(intent);
        if let Intent::End { end, .. } = intent
            && word.state == end
        {
            let freed = table.swap(entry, word, word.in_state(State::Free));
            debug_assert!(freed, "nobody but the principal frees an entry");
        }
    }

    fn set_open(&self, slot: usize, open: u32) {
        self.page.set_open(number(slot), open);
    }

    fn set_occupied(&self, slot: usize, occupied: Occupied) {
        self.page.set_occupied(number(slot), occupied);
    }

    fn last_incarnation(&self, slot: usize) -> Incarnation {
        self.page.slot(number(slot)).incarnation
    }

    fn reserve(&self, slot: usize, incarnation: Incarnation) {
        self.page.reserve(number(slot), incarnation);
    }
}

// The fuse is there with debug assertions only.
#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use super::*;
    use crate::core::moment::Moment;
    use crate::core::slots::Books as _;
    use crate::page::fuse;
    use std::path::Path;

    /// A principal's view of its books; dropped where it is "killed".
    struct Keeper(Books);

    impl Keeper {
        fn attach(dir: &Path) -> Self {
            let page = PrincipalPage::attach(&dir.join("principal"), Access::ReadWrite).unwrap();
            Self(Books::attach(page, [&dir.join("jobs")]).unwrap())
        }

        fn table(&self) -> &JobTable {
            self.0.table(0)
        }

        fn give(&self, entry: u32, kind: usize) {
            let client = std::net::Ipv4Addr::LOCALHOST.into();
            self.0.give(0, entry, Job { kind, client, given_at: Moment::from_nanos(1), jeton: None });
        }

        fn settle_all(&self) {
            for entry in self.table().indices() {
                let word = self.table().state(entry).unwrap();
                if word.has_ended() {
                    assert!(self.0.settle(0, entry, word));
                }
            }
        }

        fn expire(&self, entry: u32) {
            let word = self.table().state(entry).unwrap();
            if word.state == State::Waiting && self.table().swap(entry, word, word.in_state(State::Expired)) {
                self.settle_all();
            }
        }

        fn open(&self) -> u64 {
            let words = self.table().indices().map(|entry| self.table().state(entry).unwrap());
            words.filter(|word| word.state != State::Free).count() as u64
        }

        /// Each entry that ended was counted once, by type and by slot.
        fn assert_exact(&self, when: &str) {
            let ends: Vec<_> = (0..2).map(|kind| self.0.page().ends(kind)).collect();
            let sum = |count: fn(&crate::page::principal::Ends) -> u64| ends.iter().map(count).sum::<u64>();
            let (done, failed, expired) = (sum(|e| e.done), sum(|e| e.failed), sum(|e| e.expired));
            assert_eq!(self.0.page().accepted(), done + failed + expired + self.open(), "{when}");
            let slot = self.0.page().slot(1);
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
                successor.0.redo();
                successor.settle_all();
                successor.assert_exact(&format!("killed before store {stores}"));
                successor.0.redo();
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
