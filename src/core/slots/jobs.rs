//! Giving jobs, and entering their ends in the books.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::core::crowd::Network;
use crate::core::dispatch::NoSlot;
use crate::core::following::News;
use crate::core::job::{
    ClientId, End, Ended, Garbage, Incarnation, Job, JobNumber, Reason, State, Table, Word,
};
use crate::core::moment::Moment;
use crate::core::slots::given::Given;
use crate::core::slots::{Action, Books, Followed, Placed, Slot, Slots, Timer};
use crate::wire::tube::{Command, JobRef};

/// Entries of a table without jobs that are looked at in one turn.
const INSPECTED_IN_TURN: u32 = 64;

impl<B: Books> Slots<B> {
    /// Gives a job to the least loaded secondary, tells it, and says which it is. What becomes of
    /// the job is reported to `client`.
    ///
    /// # Errors
    /// Says why nobody can take it.
    pub fn give(&mut self, job: Job, client: Option<ClientId>) -> Result<Placed, NoSlot> {
        self.may_give(job.client)?;
        let slot = self.dispatch.choose()?;
        self.give_at(slot, job, client)
    }

    /// Whether a job of that client could be given now.
    ///
    /// # Errors
    /// Says why it could not.
    pub fn may_give(&self, client: IpAddr) -> Result<(), NoSlot> {
        self.dispatch.find()?;
        let is_allowed = self.shares.allow(client.into(), self.dispatch.room());
        if is_allowed { Ok(()) } else { Err(NoSlot::OverShare) }
    }

    /// Gives a job for a connection that came without one, where all are let in.
    ///
    /// # Errors
    /// Says why it cannot be taken there.
    pub fn give_uninvited(&mut self, slot: usize, job: Job) -> Result<Placed, NoSlot> {
        let room = self.settings.max_jobs.saturating_sub(self.dispatch.load(slot).open);
        if room == 0 {
            return Err(NoSlot::AllFull);
        }
        if !self.shares.allow(job.client.into(), room.into()) {
            return Err(NoSlot::OverShare);
        }
        self.give_at(slot, job, None)
    }

    fn give_at(&mut self, index: usize, job: Job, client: Option<ClientId>) -> Result<Placed, NoSlot> {
        let slot = &mut self.slots[index];
        let Some(entry) = slot.free.pop() else {
            debug_assert!(false, "slot {index} has room by its load, none in its table");
            return Err(NoSlot::AllFull);
        };
        let number = self.books.give(index, entry, job);
        let network = Network::from(job.client);
        let tracked = job.jeton.is_some();
        let given = Given { number, client, network: Some(network), tracked, claimed: false, lost: None };
        slot.given.put(entry, given);
        self.shares.add(network);
        slot.links.push_back(&mut slot.waiting, entry);
        if slot.expire_timer.is_none() {
            let at = job.given_at + self.settings.claim_within;
            slot.expire_timer = Some(self.timers.arm(at, Timer::Expire(index)));
        }
        let command = Command::Job(JobRef { index: entry, number });
        self.actions.push_back(Action::Tell { slot: index, command });
        self.change_open(index, |open| open + 1);
        Ok(Placed { slot: index, number })
    }

    /// A secondary says that it has begun an exchange: the job waits no longer.
    pub fn handle_debut(&mut self, slot: usize, job: JobRef) {
        // The table has the last word: a stray line must not make a waiting job immortal.
        let word = self.books.table(slot).state(job.index);
        if word.is_ok_and(|word| word.number == job.number && word.holder != 0) {
            self.begin(slot, job.index);
            if word.is_ok_and(|word| word.state == State::Claimed) {
                self.limit(slot, job.index);
            }
        }
    }

    /// Somebody has come for the job at an entry: it waits no longer, and its client is told.
    fn begin(&mut self, slot: usize, entry: u32) {
        let slot = &mut self.slots[slot];
        if slot.links.contains(entry) {
            slot.links.remove(&mut slot.waiting, entry);
        }
        let Some(given) = slot.given.get_mut(entry) else { return };
        if given.number == 0 || std::mem::replace(&mut given.claimed, true) {
            return;
        }
        if let Given { number, client: Some(client), .. } = *given {
            self.actions.push_back(Action::Report { client, number, news: News::Claimed });
        }
    }

    /// A job is said to have ended: enters what its state word says.
    pub fn handle_end(&mut self, slot: usize, job: JobRef) {
        // A doorbell that came twice, or garbage: the table says otherwise.
        if self.given(slot, job.index) == Some(job.number) {
            self.look_at(slot, job.index);
        }
    }

    /// Looks through a slot's table: doorbells may have been lost, or stolen (`cat wdtube1`
    /// takes lines away).
    pub fn look_through(&mut self, slot: usize) {
        for entry in self.books.table(slot).indices() {
            self.look_at(slot, entry);
        }
    }

    /// The same where a secondary has ended: what has become of its jobs. Its successor does not wait for more.
    pub(super) fn look_at_what_was_given(&mut self, slot: usize) {
        for entry in self.slots[slot].given.reached() {
            self.look_at(slot, entry);
        }
    }

    /// The same from time to time: where no job is given a stretch of the table is enough, for nobody waits
    /// for what is put right there.
    pub fn look_through_in_turn(&mut self, slot: usize) {
        let Slot { free, given, inspected, .. } = &mut self.slots[slot];
        let entries = given.entries();
        if free.len() < entries as usize {
            self.look_through(slot);
            return;
        }
        let first = if *inspected < entries { *inspected } else { 0 };
        let end = entries.min(first + INSPECTED_IN_TURN);
        *inspected = end;
        for entry in first..end {
            self.look_at(slot, entry);
        }
    }

    /// Enters an end, or puts right what somebody else has written.
    fn look_at(&mut self, slot: usize, entry: u32) {
        let given = self.slots[slot].given.get(entry).number;
        match (given, self.books.table(slot).state(entry)) {
            (0, Ok(Word { state: State::Free, .. })) => {}
            (0, Ok(_) | Err(_)) => {
                self.books.table(slot).overwrite(entry, Word::FREE);
                self.actions.push_back(Action::Mended { slot, entry });
            }
            (_, Ok(word)) if word.number == given && word.has_ended() => self.enter_end(slot, entry, word),
            (_, Ok(word)) if word.number == given && word.state == State::Waiting => {}
            (_, Ok(word)) if word.number == given && self.is_claimed_by_living(slot, word) => {
                self.begin(slot, entry);
                self.limit(slot, entry);
            }
            (_, Ok(_) | Err(_)) => {
                let failed = Word::waiting(given).in_state(State::Failed);
                self.books.table(slot).overwrite(entry, failed);
                self.actions.push_back(Action::Mended { slot, entry });
                self.enter_end(slot, entry, failed);
            }
        }
    }

    fn is_claimed_by_living(&self, slot: usize, word: Word) -> bool {
        word.state == State::Claimed && self.slots[slot].is_home_of(word.holder)
    }

    /// An incarnation has died: what it had claimed has failed, and only that. To be entered by
    /// [`Slots::look_at_what_was_given`].
    pub(super) fn fail_claims_of(&mut self, index: usize, incarnation: Incarnation) -> u32 {
        let mut failed = 0;
        for entry in self.slots[index].given.reached() {
            let (table, slot) = (self.books.table(index), &self.slots[index]);
            if let Ok(word) = table.state(entry)
                && word.state == State::Claimed
                && word.holder == incarnation
                && word.number == slot.given.get(entry).number
                && table.swap(entry, word, word.in_state(State::Failed))
            {
                let group = table.group(entry);
                let over_time = self.forget_limit(index, entry);
                let reason = if over_time { Reason::TimeLimit } else { Reason::SecondaryLost };
                if let Some(given) = self.slots[index].given.get_mut(entry) {
                    given.lost = Some(reason);
                }
                failed += 1;
                if group != 0 {
                    self.actions.push_back(Action::EndFamily { group });
                }
            }
        }
        failed
    }

    /// Takes over a table that another principal left, before anybody is in the slot but those that
    /// live. These clients follow these jobs of it.
    pub(super) fn recover(
        &mut self,
        now: Moment,
        index: usize,
        followed: impl Iterator<Item = (ClientId, Followed)>,
    ) {
        let mut followed: HashMap<_, _> = followed.map(|known| (known.1.entry, known)).collect();
        let (mut waiting, mut dead) = (Vec::new(), Vec::new());
        for entry in self.books.table(index).indices().rev() {
            let state = self.books.table(index).state(entry);
            let slot = &mut self.slots[index];
            match state {
                Ok(Word { state: State::Free, .. }) => slot.free.push(entry),
                // No job has the number zero.
                Ok(word) if word.number != 0 => {
                    let network = self.books.table(index).job(entry).map(|job| Network::from(job.client));
                    network.into_iter().for_each(|network| self.shares.add(network));
                    let follower = followed.remove(&entry).filter(|(_, known)| known.number == word.number);
                    slot.given.put(entry, Given { network, ..Given::followed_by(word.number, follower) });
                    match word.state {
                        State::Waiting => waiting.push((word.number, entry)),
                        State::Claimed if !slot.is_home_of(word.holder) => dead.push(word.holder),
                        State::Free | State::Claimed | State::Done | State::Failed | State::Expired => {}
                    }
                }
                Ok(_) | Err(Garbage(_)) => {
                    slot.free.push(entry);
                    self.books.table(index).overwrite(entry, Word::FREE);
                    self.actions.push_back(Action::Mended { slot: index, entry });
                }
            }
        }
        followed.into_values().for_each(|(client, lost)| self.report_lost(client, lost));
        waiting.sort_unstable();
        let slot = &mut self.slots[index];
        for (_, entry) in &waiting {
            slot.links.push_back(&mut slot.waiting, *entry);
        }
        if !waiting.is_empty() {
            // How long they may wait still is found out at once.
            slot.expire_timer = Some(self.timers.arm(now, Timer::Expire(index)));
        }
        let open = slot.given.open().count();
        self.change_open(index, |_| u32::try_from(open).unwrap_or(u32::MAX));
        dead.sort_unstable();
        dead.dedup();
        for incarnation in dead {
            self.fail_claims_of(index, incarnation);
        }
        self.look_through(index);
    }

    /// Jobs that nobody came for in time expire; but while a slot waits for a server that could
    /// accept, their clients may stand in its backlog, and time does not count.
    pub(super) fn expire(&mut self, now: Moment, index: usize) {
        self.slots[index].expire_timer = None;
        while let Some(entry) = self.slots[index].waiting.first() {
            let table = self.books.table(index);
            let word = table.state(entry).unwrap_or(Word::FREE);
            if word.state != State::Waiting {
                // Claimed: the doorbell that says so is still under way.
                let slot = &mut self.slots[index];
                slot.links.remove(&mut slot.waiting, entry);
                self.look_at(index, entry);
                continue;
            }
            let slot = &mut self.slots[index];
            let given_at = table.job(entry).map_or(now, |job| job.given_at.min(now));
            let expires_at = match slot.serving_since {
                Some(since) => given_at.max(since) + self.settings.claim_within,
                // Nobody is started there any more: waiting longer would be waiting for ever.
                None if slot.current.is_none() && slot.start_timer.is_none() => {
                    given_at + self.settings.claim_within
                }
                None => now + self.settings.claim_within,
            };
            if expires_at > now {
                slot.expire_timer = Some(self.timers.arm(expires_at, Timer::Expire(index)));
                return;
            }
            slot.links.remove(&mut slot.waiting, entry);
            self.expire_one(index, entry, word);
        }
    }

    /// The end of everything: what still waits has expired.
    pub(super) fn expire_all(&mut self) {
        for slot in 0..self.slots.len() {
            for entry in self.books.table(slot).indices() {
                if let Ok(word) = self.books.table(slot).state(entry)
                    && word.state == State::Waiting
                {
                    self.expire_one(slot, entry, word);
                }
            }
        }
    }

    fn expire_one(&mut self, slot: usize, entry: u32, word: Word) {
        if self.books.table(slot).swap(entry, word, word.in_state(State::Expired)) {
            self.look_at(slot, entry);
        }
    }

    /// Whether any job of the slot waits to be claimed.
    pub(super) fn has_waiting(&self, slot: usize) -> bool {
        let table = self.books.table(slot);
        self.slots[slot].given.open().any(|(entry, given)| {
            table.state(entry).is_ok_and(|word| word.state == State::Waiting && word.number == given.number)
        })
    }

    /// Enters an end in the books, frees the entry, and tells the client.
    fn enter_end(&mut self, index: usize, entry: u32, word: Word) {
        if word.holder != 0 {
            // The doorbell of its start was lost, or comes after this look.
            self.begin(index, entry);
        }
        self.forget_limit(index, entry);
        let slot = &mut self.slots[index];
        if slot.links.contains(entry) {
            slot.links.remove(&mut slot.waiting, entry);
        }
        let given = slot.given.get(entry);
        // What stands there may be of an earlier job, unless this one's secondary has ended it.
        let told = self.books.table(index).reason(entry).filter(|_| word.holder != 0);
        let end = match word.state {
            State::Done => End::Done,
            State::Expired => End::Expired,
            State::Failed | State::Free | State::Waiting | State::Claimed => {
                End::Failed(given.lost.or(told).unwrap_or(Reason::SecondaryLost))
            }
        };
        // A secondary that ends a job says why it fails, and tells of it.
        let is_told = match end {
            End::Done => word.holder != 0,
            End::Failed(_) => given.lost.is_none() && told.is_some(),
            End::Expired => false,
        };
        let ended = Ended::at(self.books.table(index), entry, word, end);
        if self.books.settle(index, entry, word) {
            let untold = ended.filter(|_| !is_told);
            self.actions.extend(untold.map(|job| Action::Ended { slot: index, job }));
            slot.given.remove(entry);
            slot.free.push(entry);
            given.network.into_iter().for_each(|network| self.shares.remove(network));
            self.change_open(index, |open| open.saturating_sub(1));
        }
        // Of a plain job a client hears no more once it was claimed.
        if let Given { number, client: Some(client), tracked, claimed: was_claimed, .. } = given
            && (tracked || !was_claimed)
        {
            self.actions.push_back(Action::Report { client, number, news: News::Ended { end, was_claimed } });
        }
    }

    fn given(&self, slot: usize, entry: u32) -> Option<JobNumber> {
        Some(self.slots[slot].given.get(entry).number).filter(|&number| number != 0)
    }

    fn change_open(&mut self, slot: usize, change: impl FnOnce(u32) -> u32) {
        let load = self.dispatch.load_mut(slot);
        load.open = change(load.open);
        self.books.set_open(slot, load.open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::slots::tests::{PlainBooks, at, claim, job, serving};

    /// A job that waits in the slot 0, and where.
    fn given(books: &PlainBooks) -> (Slots<&PlainBooks>, JobRef) {
        let mut slots = serving(books);
        slots.handle_suspicion(at(2), 1, 1, true);
        let number = slots.give(job(at(2)), None).unwrap().number;
        let is_its = |entry: &u32| books.tables[0].state(*entry).unwrap().number == number;
        let index = (0..2).find(is_its).unwrap();
        (slots, JobRef { index, number })
    }

    /// The jobs of which the principal is to tell: who had claimed them, since when, and how they ended.
    fn told(slots: &mut Slots<&PlainBooks>) -> Vec<(Incarnation, Option<Moment>, End)> {
        let ended = std::iter::from_fn(|| slots.poll_action()).filter_map(|action| match action {
            Action::Ended { slot: 0, job } => Some((job.holder, job.claimed_at, job.end)),
            _ => None,
        });
        ended.collect()
    }

    #[test]
    fn of_a_job_that_its_secondary_has_ended_that_one_tells() {
        for end in [End::Done, End::Failed(Reason::Exit(3))] {
            let books = PlainBooks::default();
            let (mut slots, job) = given(&books);
            claim(&books, 0, job.index, 1);
            if let End::Failed(reason) = end {
                books.tables[0].note_reason(job.index, reason);
            }
            let word = books.tables[0].state(job.index).unwrap();
            books.tables[0].overwrite(job.index, word.in_state(end.state()));
            slots.handle_end(0, job);
            assert_eq!((told(&mut slots), slots.dispatch().open()), (vec![], 0));
        }
    }

    #[test]
    fn of_all_others_the_principal_tells_once() {
        let lost = End::Failed(Reason::SecondaryLost);
        let books = PlainBooks::default();
        let (mut slots, job) = given(&books);
        claim(&books, 0, job.index, 1);
        books.tables[0].note_claim(job.index, at(9));
        // It was about to fail: that is its own reason, and not what ended it.
        books.tables[0].note_reason(job.index, Reason::TimeLimit);
        slots.handle_exited(at(2000), 0, 1, false);
        slots.look_through(0);
        assert_eq!(told(&mut slots), [(1, Some(at(9)), lost)]);

        let books = PlainBooks::default();
        let (mut slots, _) = given(&books);
        slots.handle_timeout(at(5002));
        slots.look_through(0);
        assert_eq!(told(&mut slots), [(0, None, End::Expired)]);

        let books = PlainBooks::default();
        let (mut slots, job) = given(&books);
        books.tables[0].overwrite(job.index, Word::waiting(77));
        slots.look_through(0);
        assert_eq!(told(&mut slots), [(0, None, lost)], "somebody has written over it");

        // A principal dies when it has failed a job, and before that is in the books.
        let books = PlainBooks::default();
        let (_, job) = given(&books);
        claim(&books, 0, job.index, 1);
        let word = books.tables[0].state(job.index).unwrap();
        books.tables[0].overwrite(job.index, word.in_state(State::Failed));
        let mut second = Slots::new(&books, 2, crate::core::slots::tests::SETTINGS, 2);
        second.handle_takeover(at(3), vec![vec![], vec![]]);
        assert_eq!(told(&mut second), [(1, None, lost)]);
    }
}
