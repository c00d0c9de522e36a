//! Rules for jobs and the books: what became of each job, and whether the books say so.

use std::net::IpAddr;
use std::time::Duration;

use osps::core::job::{End, Job, JobNumber, Reason, State, Table, Word};
use osps::core::moment::Moment;
use osps::core::slots::MARGIN;
use osps::wire::jeton::Jeton;

use crate::arrivals::Turned;
use crate::audit::Rule;
use crate::books::{Fact, What};
use crate::machine::{Machine, Memory, Proc, WATCHDOG};
use crate::net::{ConnId, Input};
use crate::plan::{TYPES, micros};

/// What became of one job.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    slot: usize,
    kind: usize,
    pub client: IpAddr,
    given_at: Moment,
    pub jeton: Option<Jeton>,
    pub claimed_by: Option<Proc>,
    /// Why it is about to fail, as its holder says.
    blamed: Option<Reason>,
    /// When it must have ended, once it was claimed.
    until: Option<Moment>,
    /// The principal that killed its holder because its handler did not come back in time.
    timed_out: Option<Proc>,
    pub end: Option<End>,
    /// Who has written its end into its table.
    pub ended_by: Option<Proc>,
}

fn ending(state: State) -> usize {
    match state {
        State::Done => 0,
        State::Failed => 1,
        State::Expired => 2,
        State::Free | State::Waiting | State::Claimed => unreachable!("{state:?} is no end"),
    }
}

impl Machine {
    /// Hears what was done to the books since the last time.
    pub fn audit_facts(&mut self) {
        let facts = std::mem::take(&mut *self.facts.borrow_mut());
        for fact in facts {
            self.trace.note(self.now, || format!("    {fact:?}"));
            self.audit_keeper_of(fact.by);
            match fact.what {
                What::Given(number, job) => self.audit_given(fact.slot, number, job),
                What::Became(word) => self.audit_word(fact, word),
                What::Blamed(number, reason) => {
                    self.audit.stories.entry(number).and_modify(|story| story.blamed = Some(reason));
                }
                What::Overwritten(word) => {
                    self.complain(Rule::ServedOnce, format!("a table was mended: {word:?}, {fact:?}"));
                }
            }
        }
    }

    fn audit_given(&mut self, slot: usize, number: JobNumber, job: Job) {
        self.audit.coverage.count("given");
        let Job { kind, client, given_at, jeton } = job;
        let (claimed_by, blamed, until, timed_out, end) = (None, None, None, None, None);
        let ended_by = None;
        let story = Story {
            slot,
            kind,
            client,
            given_at,
            jeton,
            claimed_by,
            blamed,
            until,
            timed_out,
            end,
            ended_by,
        };
        self.audit.reports.given(number, jeton);
        let again = self.audit.stories.insert(number, story).is_some();
        self.ensure(!again, Rule::BooksExact, || format!("number {number} was given twice"));
    }

    fn audit_word(&mut self, fact: Fact, word: Word) {
        let Some(story) = self.audit.stories.get(&word.number).copied() else {
            return self.complain(Rule::BooksExact, format!("nobody gave {word:?}"));
        };
        let waits = story.claimed_by.is_none() && story.end.is_none();
        match word.state {
            State::Free | State::Waiting => self.complain(Rule::ServedOnce, format!("{word:?}")),
            State::Claimed => {
                let incarnation = self.processes[fact.by].name().map(|name| name.incarnation);
                let is_its_own = incarnation == Some(word.holder);
                self.ensure(waits && is_its_own, Rule::ServedOnce, || {
                    format!("{} claims {word:?}, of which {story:?}", fact.by)
                });
                self.audit.stories.entry(word.number).and_modify(|story| story.claimed_by = Some(fact.by));
            }
            State::Done | State::Failed | State::Expired => self.audit_end(fact, word, story),
        }
    }

    /// The time of a job is limited.
    pub fn audit_limit(&mut self, number: JobNumber, until: Moment) {
        self.audit_facts();
        self.audit.stories.entry(number).and_modify(|story| story.until = Some(until));
    }

    fn is_over_time(&self, story: Story, margin: Duration) -> bool {
        story.until.is_some_and(|until| until + margin <= self.now)
    }

    /// A principal kills a secondary whose handler does not come back.
    pub fn audit_kill_for_time(&mut self, by: Proc, holder: Proc, number: JobNumber) {
        self.audit_facts();
        self.audit.coverage.count("killed: TimeLimit");
        let story = self.audit.stories.get(&number).copied();
        // It may have come back between the look and the kill. Tables count whole microseconds.
        let margin = MARGIN - micros(1);
        let right =
            story.is_some_and(|story| story.claimed_by == Some(holder) && self.is_over_time(story, margin));
        self.ensure(right, Rule::KillsHaveCause, || format!("{holder} is killed for {number}: {story:?}"));
        self.audit.stories.entry(number).and_modify(|story| story.timed_out = Some(by));
    }

    fn audit_end(&mut self, fact: Fact, word: Word, story: Story) {
        let (number, by_holder) = (word.number, story.claimed_by == Some(fact.by));
        let input = self.audit.conns.get(&number).map(|conn| self.net.conns[*conn].input);
        let over = story.given_at + self.plan.claim_within <= self.now;
        let orphaned = self.has_ended(WATCHDOG);
        let stopping = !self.audit.stops.is_empty() || orphaned;
        let cut = self.processes[fact.by].excused || orphaned;
        let right = match word.state {
            State::Done => by_holder && input == Some(Input::End),
            State::Failed if by_holder => match story.blamed {
                Some(Reason::ConnectionLost) => input == Some(Input::Reset),
                Some(Reason::Stopping) => cut,
                Some(Reason::TimeLimit) => self.is_over_time(story, Duration::ZERO),
                // No other reason can come about here.
                Some(_) | None => false,
            },
            // Who was sent SIGKILL does nothing more, whenever the kernel lets it end.
            State::Failed => {
                story.claimed_by.is_some_and(|holder| self.has_ended(holder) || self.processes[holder].doomed)
            }
            State::Expired => story.claimed_by.is_none() && (over || stopping),
            State::Free | State::Waiting | State::Claimed => false,
        };
        let once = story.end.is_none();
        self.ensure(right && once, Rule::EndsAsItHappened, || {
            format!("{} ends {word:?} ({input:?}) of which {story:?}", fact.by)
        });
        let how = if word.state == State::Failed && !by_holder {
            "Failed with its server".to_owned()
        } else {
            format!("{:?}", word.state)
        };
        self.audit.coverage.count(format!("job: {how}"));
        let end = match word.state {
            State::Done => End::Done,
            State::Expired => End::Expired,
            _ if by_holder => End::Failed(story.blamed.unwrap_or(Reason::SecondaryLost)),
            // A successor does not know for what its predecessor has killed.
            _ if story.timed_out == Some(fact.by) => End::Failed(Reason::TimeLimit),
            _ => End::Failed(Reason::SecondaryLost),
        };
        let by = Some(fact.by);
        self.audit.stories.entry(number).and_modify(|story| (story.end, story.ended_by) = (Some(end), by));
        self.audit.by_type[story.kind][ending(word.state)] += 1;
        self.audit.by_slot[story.slot][ending(word.state)] += 1;
    }

    /// A process died in the middle of its turn: it may have published a job of which its
    /// witness could not tell any more.
    pub fn audit_after_crash(&mut self) {
        for slot in 0..self.audit.tables.len() {
            for entry in self.audit.tables[slot].indices() {
                let table = &self.audit.tables[slot];
                let (Ok(word), Some(job)) = (table.state(entry), table.job(entry)) else {
                    continue;
                };
                if word.state != State::Free && !self.audit.stories.contains_key(&word.number) {
                    self.audit.coverage.count("died after a job was published");
                    self.audit_given(slot, word.number, job);
                }
            }
        }
    }

    /// A principal has taken over.
    pub fn books_were_recovered(&mut self) {
        self.audit_facts();
        self.audit_books();
    }

    pub fn audit_turn(&mut self, memory: &Memory) {
        match memory {
            Memory::Watchdog(watchdog) => self.audit_watchdog(watchdog),
            Memory::Principal(principal) => {
                self.audit_books();
                self.audit_followings(principal);
            }
            Memory::Secondary(_) | Memory::Observer(_) => {}
        }
    }

    /// accepted = done + failed + expired + open, with open counted from the tables; and no
    /// end is in the books that did not happen.
    fn audit_books(&mut self) {
        let audit = &self.audit;
        let given = audit.stories.len() as u64;
        let accepted = audit.page.accepted();
        let mut ended = 0;
        let mut invented = None;
        for kind in 0..TYPES {
            let ends = audit.page.ends(kind);
            let entered = [ends.done, ends.failed, ends.expired];
            ended += entered.iter().sum::<u64>();
            if (0..3).any(|end| entered[end] > audit.by_type[kind][end]) {
                invented =
                    Some(format!("type {kind}: {entered:?} entered, {:?} happened", audit.by_type[kind]));
            }
        }
        let open = self.open_entries();
        self.ensure(accepted == given, Rule::BooksExact, || format!("{given} given, {accepted} accepted"));
        self.ensure(invented.is_none(), Rule::BooksExact, || invented.unwrap_or_default());
        self.ensure(accepted == ended + open, Rule::BooksExact, || {
            format!("{accepted} accepted, {ended} ended, {open} open")
        });
    }

    /// Counted from the tables.
    pub fn open_entries(&self) -> u64 {
        let entries = self.audit.tables.iter().flat_map(|table| {
            table.indices().map(|entry| table.state(entry).is_ok_and(|word| word.state == State::Free))
        });
        entries.filter(|is_free| !is_free).count() as u64
    }

    /// When nothing is open, the books say exactly what happened.
    pub fn audit_closed_books(&mut self) {
        self.audit_books();
        self.audit_each_end_was_recorded();
        let audit = &self.audit;
        let by_type: Vec<[u64; 3]> = (0..TYPES)
            .map(|kind| audit.page.ends(kind))
            .map(|ends| [ends.done, ends.failed, ends.expired])
            .collect();
        let rows = (1..=audit.page.slots()).map(|slot| audit.page.slot(slot));
        let by_slot: Vec<[u64; 3]> = rows.map(|row| [row.done, row.failed, row.open]).collect();
        let happened: Vec<[u64; 3]> =
            audit.by_slot.iter().map(|[done, failed, _]| [*done, *failed, 0]).collect();
        let types = audit.by_type;
        self.ensure(by_type == types, Rule::BooksExact, || {
            format!("by type {by_type:?} are entered, {types:?} happened")
        });
        self.ensure(by_slot == happened, Rule::BooksExact, || {
            format!("by slot {by_slot:?} are entered, {happened:?} happened")
        });
    }

    /// A secondary turns a connection away: no job may wait for it.
    pub fn audit_rejection(&mut self, slot: usize, kind: usize, conn: ConnId, why: Turned) {
        self.audit.coverage.count(format!("turned away: {}", why.word()));
        let (client, open) = (self.peer(conn), self.plan.open);
        let is_wanted = |job: &Job| match why {
            Turned::Plain | Turned::Tired => job.jeton.is_none() && (open || job.client == client),
            Turned::Jeton(jeton) => job.jeton == Some(jeton),
            Turned::Wrong | Turned::Crowded | Turned::Broken => false,
        };
        let waits = self.waiting_jobs(slot, kind).find(|(_, job)| is_wanted(job));
        let number = waits.map(|(number, _)| number);
        self.ensure(number.is_none(), Rule::NobodyRejected, || {
            format!("connection {conn} to slot {slot} is turned away ({why:?}), job {number:?} waits for it")
        });
        let known = &self.net.conns[conn];
        let is_whole = known.jeton.is_some() && known.unsaid.is_empty();
        self.ensure(why != Turned::Wrong || !is_whole, Rule::NobodyRejected, || {
            format!("the jeton of connection {conn} is not understood")
        });
    }

    /// The jobs of that type that wait in a slot.
    pub fn waiting_jobs(&self, slot: usize, kind: usize) -> impl Iterator<Item = (JobNumber, Job)> + '_ {
        let table = &self.audit.tables[slot];
        // Who died in the middle of publishing a job has told nobody of it.
        let waits = |word: &Word| word.state == State::Waiting && word.number <= table.last_published();
        table.indices().filter_map(move |entry| {
            let word = table.state(entry).ok().filter(waits)?;
            Some((word.number, table.job(entry).filter(|job| job.kind == kind)?))
        })
    }

    /// A connection was let in without a look at what it says.
    pub fn audit_on_accept(&mut self, slot: usize, kind: usize, conn: ConnId) {
        let Some(jeton) = self.net.conns[conn].jeton else {
            return;
        };
        self.audit.coverage.count("who has a jeton was let in as plain");
        let waits = self.waiting_jobs(slot, kind).any(|(_, job)| job.jeton == Some(jeton));
        self.ensure(!waits, Rule::ItsOwnJob, || {
            format!("connection {conn} is let in as plain, while its own job waits in slot {slot}")
        });
    }

    pub fn audit_admission(&mut self, number: JobNumber, conn: ConnId) {
        self.audit_facts();
        let twice = self.audit.conns.insert(number, conn).is_some();
        self.ensure(!twice, Rule::ServedOnce, || format!("job {number} is served twice"));
        let Some(Story { jeton, client, .. }) = self.audit.stories.get(&number).copied() else {
            return self.complain(Rule::BooksExact, format!("nobody gave job {number}"));
        };
        let meant = match jeton {
            Some(_) => self.net.conns[conn].jeton == jeton,
            None => self.plan.open || self.peer(conn) == client,
        };
        self.ensure(meant, Rule::ItsOwnJob, || format!("job {number} is not for connection {conn}"));
        self.audit.coverage.count(if jeton.is_some() { "served: tracked" } else { "served: plain" });
    }

    /// A request is answered -1: after it had waited for nothing, or because all stops.
    pub fn audit_refusal(&mut self, waited_in_vain: bool) {
        let stopping = !self.audit.stops.is_empty() || self.has_ended(WATCHDOG);
        self.ensure(waited_in_vain || stopping, Rule::NobodyRejected, || "a client is refused".into());
    }
}
