//! The real books and job tables, with a witness who writes down what is done to them; and
//! keepers of them that are wrong.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;

use osps::core::job::{Garbage, Incarnation, Job, JobNumber, Reason, State, Table, Word};
use osps::core::moment::Moment;
use osps::core::slots::{self, Occupied};
use osps::page::books::Books;
use osps::page::jobs::JobTable;
use osps::page::principal::PrincipalPage;

use crate::machine::{Machine, Proc};
use crate::plan::TYPES;
use crate::sabotage::Sabotage;

/// Something that was done to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    pub slot: usize,
    pub entry: u32,
    pub by: Proc,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Given(JobNumber, Job),
    /// The state word became that one.
    Became(Word),
    /// The same, without asking what it was.
    Overwritten(Word),
    /// Its holder says why this job is about to fail.
    Blamed(JobNumber, Reason),
}

/// The mapping of a job table: that of the secondaries, or one of a principal's.
#[derive(Debug)]
enum Mapping {
    Own(Rc<JobTable>),
    InBooks(Rc<Books>, usize),
}

impl Deref for Mapping {
    type Target = JobTable;

    fn deref(&self) -> &JobTable {
        match self {
            Self::Own(table) => table,
            Self::InBooks(books, slot) => &books.tables()[*slot],
        }
    }
}

/// A job table and its witness.
#[derive(Debug)]
pub struct SimTable {
    inner: Mapping,
    slot: usize,
    by: Proc,
    of_principal: bool,
    facts: Rc<RefCell<Vec<Fact>>>,
    sabotage: Sabotage,
}

impl SimTable {
    /// A secondary maps the table of its slot, counted from 0.
    pub fn attach(sys: &mut Machine, slot: usize, by: Proc) -> Self {
        sys.system_call();
        Self::witnessed(sys, Mapping::Own(Rc::clone(&sys.tables[slot])), slot, by)
    }

    fn witnessed(sys: &Machine, inner: Mapping, slot: usize, by: Proc) -> Self {
        let of_principal = matches!(inner, Mapping::InBooks(..));
        Self { inner, slot, by, of_principal, facts: Rc::clone(&sys.facts), sabotage: sys.sabotage }
    }

    fn forgets_tracked(&self) -> bool {
        self.sabotage == Sabotage::ForgetTracked && !self.of_principal
    }

    fn testify(&self, entry: u32, what: What) {
        let Self { slot, by, .. } = *self;
        self.facts.borrow_mut().push(Fact { slot, entry, by, what });
    }
}

impl Table for SimTable {
    fn capacity(&self) -> u32 {
        self.inner.capacity()
    }

    fn state(&self, index: u32) -> Result<Word, Garbage> {
        self.inner.state(index)
    }

    fn job(&self, index: u32) -> Option<Job> {
        let job = self.inner.job(index)?;
        let jeton = job.jeton.filter(|_| !self.forgets_tracked());
        Some(Job { jeton, ..job })
    }

    fn swap(&self, index: u32, from: Word, to: Word) -> bool {
        let claims = to.state == State::Claimed;
        let tracked = self.forgets_tracked() && self.state(index).is_ok_and(|word| word.tracked);
        let (from, to) = (
            Word { tracked: from.tracked || tracked, ..from },
            Word { tracked: to.tracked || tracked, ..to },
        );
        let fails = from.state == State::Claimed && to.state == State::Failed;
        let swapped = match self.sabotage {
            Sabotage::ClaimWithoutSwap if claims => {
                self.inner.overwrite(index, to);
                true
            }
            Sabotage::KeepDeadClaims if fails && self.of_principal => false,
            _ => self.inner.swap(index, from, to),
        };
        if swapped && to.state != State::Free {
            self.testify(index, What::Became(to));
        }
        swapped
    }

    fn overwrite(&self, index: u32, word: Word) {
        self.inner.overwrite(index, word);
        self.testify(index, What::Overwritten(word));
    }

    fn note_claim(&self, index: u32, now: Moment) {
        self.inner.note_claim(index, now);
    }

    fn claimed_at(&self, index: u32) -> Option<Moment> {
        self.inner.claimed_at(index)
    }

    fn note_end(&self, index: u32, now: Moment) {
        self.inner.note_end(index, now);
    }

    fn note_reason(&self, index: u32, reason: Reason) {
        self.inner.note_reason(index, reason);
        if let Ok(word) = self.state(index) {
            self.testify(index, What::Blamed(word.number, reason));
        }
    }

    fn reason(&self, index: u32) -> Option<Reason> {
        self.inner.reason(index).filter(|_| self.sabotage != Sabotage::ForgetReasons)
    }

    fn note_group(&self, index: u32, group: u32) {
        self.inner.note_group(index, group);
    }

    fn group(&self, index: u32) -> u32 {
        self.inner.group(index)
    }

    fn last_published(&self) -> JobNumber {
        match self.sabotage {
            Sabotage::NeverLook => 0,
            _ => self.inner.last_published(),
        }
    }

    fn tracked_jobs(&self) -> u64 {
        match self.sabotage {
            Sabotage::NeverLook | Sabotage::LetInBlindly => 0,
            _ => self.inner.tracked_jobs(),
        }
    }
}

/// The books of a principal, and their witness.
#[derive(Debug)]
pub struct SimBooks {
    inner: Rc<Books>,
    tables: Vec<SimTable>,
    sabotage: Sabotage,
}

impl SimBooks {
    pub fn attach(sys: &mut Machine, page: PrincipalPage, by: Proc) -> Self {
        let slots = usize::from(page.slots());
        let paths = (1..=page.slots()).map(|number| sys.rundir.jobs(number)).collect::<Vec<_>>();
        let inner = Rc::new(Books::attach(page, &paths).expect("they were created"));
        let of_slot = |slot| SimTable::witnessed(sys, Mapping::InBooks(Rc::clone(&inner), slot), slot, by);
        let tables = (0..slots).map(of_slot).collect();
        Self { inner, tables, sabotage: sys.sabotage }
    }

    pub fn page(&self) -> &PrincipalPage {
        self.inner.page()
    }

    /// Counts an end and frees the entry, with no intent written before.
    fn settle_without_intent(&self, slot: usize, entry: u32, word: Word) -> bool {
        let kind = self.tables[slot].job(entry).map_or(0, |job| job.kind.min(TYPES - 1));
        let (of_type, of_slot) = match word.state {
            State::Done => (0, Some(5)),
            State::Failed => (1, Some(6)),
            State::Free | State::Waiting | State::Claimed | State::Expired => (2, None),
        };
        let page = self.page().page();
        page.add(48 + kind * 4 + of_type, 1);
        if let Some(field) = of_slot {
            page.add(48 + TYPES * 4 + slot * 8 + field, 1);
        }
        self.tables[slot].swap(entry, word, word.in_state(State::Free))
    }
}

impl slots::Books for SimBooks {
    type Table = SimTable;

    fn table(&self, slot: usize) -> &SimTable {
        &self.tables[slot]
    }

    fn give(&self, slot: usize, entry: u32, job: Job) -> JobNumber {
        let number = self.inner.give(slot, entry, job);
        self.tables[slot].testify(entry, What::Given(number, job));
        number
    }

    fn settle(&self, slot: usize, entry: u32, word: Word) -> bool {
        match self.sabotage {
            Sabotage::SettleTwice => {
                let settled = self.inner.settle(slot, entry, word);
                self.inner.settle(slot, entry, word);
                settled
            }
            Sabotage::NoIntent => self.settle_without_intent(slot, entry, word),
            _ => self.inner.settle(slot, entry, word),
        }
    }

    fn redo(&self) {
        if self.sabotage != Sabotage::ForgetRedo {
            self.inner.redo();
        }
    }

    fn set_open(&self, slot: usize, open: u32) {
        self.inner.set_open(slot, open);
    }

    fn set_occupied(&self, slot: usize, occupied: Occupied) {
        self.inner.set_occupied(slot, occupied);
    }

    fn last_incarnation(&self, slot: usize) -> Incarnation {
        self.inner.last_incarnation(slot)
    }

    fn reserve(&self, slot: usize, incarnation: Incarnation) {
        if self.sabotage != Sabotage::ReuseNames {
            self.inner.reserve(slot, incarnation);
        }
    }
}
