//! Giving jobs, and entering their ends in the books.

use std::net::IpAddr;

use crate::core::dispatch::NoSlot;
use crate::core::job::{Incarnation, State, Word};
use crate::os::reactor::Handle;
use crate::page::books;
use crate::page::jobs::Job;
use crate::role::principal::{Key, Principal, Timer};
use crate::wire::client::TypeIndex;
use crate::wire::tube::{Command, JobRef};

impl Principal {
    /// Gives a job to the least loaded secondary and returns the port for it.
    pub(super) fn give(
        &mut self,
        reactor: &mut Handle<Key>,
        kind: TypeIndex,
        client: IpAddr,
    ) -> Result<u16, NoSlot> {
        let index = self.dispatch.choose()?;
        let slot = &mut self.slots[index];
        let Some(server) = slot.current.as_mut() else {
            debug_assert!(false, "slot {index} is available and empty");
            return Err(NoSlot::NoneReady);
        };
        let Some(entry) = slot.free.pop() else {
            debug_assert!(false, "slot {index} has room by its load, none in its table");
            return Err(NoSlot::AllFull);
        };
        let job = Job { kind, client, given_at: reactor.now() };
        let number = books::give(&self.page, &slot.table, slot.number, entry, job);
        server.writer.push(Command::Job(JobRef { index: entry, number }));
        slot.links.push_back(&mut slot.waiting, entry);
        self.change_open(index, |open| open + 1);
        if self.slots[index].expire_timer.is_none() {
            let at = reactor.now() + self.config.claim_within;
            self.slots[index].expire_timer = Some(self.timers.arm(at, Timer::Expire(index)));
        }
        Ok(self.sheet.ports[index][kind])
    }

    /// A secondary has begun an exchange: the job waits no longer.
    pub(super) fn on_debut(&mut self, slot: usize, job: JobRef) {
        let slot = &mut self.slots[slot];
        // The table has the last word: a stray line must not make a waiting job immortal.
        let claimed = slot
            .table
            .state(job.index)
            .is_ok_and(|word| word.number == job.number && word.state != State::Waiting);
        if claimed && slot.links.contains(job.index) {
            slot.links.remove(&mut slot.waiting, job.index);
        }
    }

    /// A job is said to have ended: enters what its state word says.
    pub(super) fn on_end(&mut self, slot: usize, job: JobRef) {
        match self.slots[slot].table.state(job.index) {
            Ok(word) if word.number == job.number && word.has_ended() => {
                self.settle_job(slot, job.index, word)
            }
            // A doorbell that came twice, or garbage: the table says otherwise.
            Ok(_) | Err(_) => {}
        }
    }

    /// Looks through the table for jobs that have ended without our knowing.
    pub(super) fn look_through(&mut self, slot: usize) {
        for index in self.slots[slot].table.indices() {
            if let Ok(word) = self.slots[slot].table.state(index)
                && word.has_ended()
            {
                self.settle_job(slot, index, word);
            }
        }
    }

    /// An incarnation has died: what it had claimed has failed, and only that.
    pub(super) fn fail_claims_of(&mut self, slot: usize, incarnation: Incarnation) -> u32 {
        let mut failed = 0;
        for index in self.slots[slot].table.indices() {
            let Ok(word) = self.slots[slot].table.state(index) else {
                continue;
            };
            if word.state == State::Claimed && word.holder == incarnation {
                let ended = word.in_state(State::Failed);
                if self.slots[slot].table.swap(index, word, ended) {
                    failed += 1;
                }
            }
        }
        self.look_through(slot);
        failed
    }

    /// Takes over a table that a dead principal left, before anybody is in the slot but
    /// predecessors that live.
    pub(super) fn recover(&mut self, reactor: &mut Handle<Key>, index: usize) {
        let slot = &mut self.slots[index];
        let (mut waiting, mut open) = (Vec::new(), 0);
        let mut dead = Vec::new();
        for entry in slot.table.indices().rev() {
            match slot.table.state(entry) {
                Ok(Word { state: State::Free, .. }) => slot.free.push(entry),
                Ok(word) => {
                    open += 1;
                    match word.state {
                        State::Waiting => waiting.push((word.number, entry)),
                        State::Claimed if !slot.is_living(word.holder) => dead.push(word.holder),
                        State::Free | State::Claimed | State::Done | State::Failed | State::Expired => {}
                    }
                }
                Err(garbage) => {
                    log::error!("secondary {}: entry {entry} of the job table: {garbage}", slot.number);
                    slot.table.reset(entry);
                    slot.free.push(entry);
                }
            }
        }
        waiting.sort_unstable();
        for (_, entry) in &waiting {
            slot.links.push_back(&mut slot.waiting, *entry);
        }
        if !waiting.is_empty() {
            let at = reactor.now() + self.config.claim_within;
            slot.expire_timer = Some(self.timers.arm(at, Timer::Expire(index)));
        }
        self.change_open(index, |_| open);
        self.look_through(index);
        dead.sort_unstable();
        dead.dedup();
        for incarnation in dead {
            self.fail_claims_of(index, incarnation);
        }
    }

    /// Jobs that nobody came for in time expire; but while a slot has no server that could
    /// accept, their clients may stand in its backlog, and time does not count.
    pub(super) fn expire(&mut self, reactor: &mut Handle<Key>, index: usize) {
        let now = reactor.now();
        self.slots[index].expire_timer = None;
        while let Some(entry) = self.slots[index].waiting.first() {
            let slot = &mut self.slots[index];
            let word = slot.table.state(entry).unwrap_or(Word::FREE);
            if word.state != State::Waiting {
                // Claimed: the doorbell that says so is still under way.
                slot.links.remove(&mut slot.waiting, entry);
                continue;
            }
            let given_at = slot.table.job(entry).map_or(now, |job| job.given_at);
            let expires_at = match slot.serving_since {
                Some(since) => given_at.max(since) + self.config.claim_within,
                None => now + self.config.claim_within,
            };
            if expires_at > now {
                slot.expire_timer = Some(self.timers.arm(expires_at, Timer::Expire(index)));
                return;
            }
            slot.links.remove(&mut slot.waiting, entry);
            let expired = word.in_state(State::Expired);
            if slot.table.swap(entry, word, expired) {
                self.settle_job(index, entry, expired);
            }
        }
    }

    /// The end of everything: what still waits has expired.
    pub(super) fn expire_all(&mut self) {
        for index in 0..self.slots.len() {
            for entry in self.slots[index].table.indices() {
                if let Ok(word) = self.slots[index].table.state(entry)
                    && word.state == State::Waiting
                {
                    let expired = word.in_state(State::Expired);
                    if self.slots[index].table.swap(entry, word, expired) {
                        self.settle_job(index, entry, expired);
                    }
                }
            }
        }
    }

    /// Enters an end in the books and frees the entry.
    fn settle_job(&mut self, index: usize, entry: u32, word: Word) {
        let slot = &mut self.slots[index];
        if slot.links.contains(entry) {
            slot.links.remove(&mut slot.waiting, entry);
        }
        if books::settle(&self.page, &slot.table, slot.number, entry, word) {
            slot.free.push(entry);
            self.change_open(index, |open| open.saturating_sub(1));
        }
    }

    /// Finishes the step in the books at which a dead principal was interrupted.
    pub(super) fn redo_intent(&self) {
        books::redo(&self.page, |number| {
            self.slots.iter().find(|slot| slot.number == number).map(|slot| &slot.table)
        });
    }

    fn change_open(&mut self, slot: usize, change: impl FnOnce(u32) -> u32) {
        let load = self.dispatch.load_mut(slot);
        load.open = change(load.open);
        self.page.set_open(self.slots[slot].number, load.open);
    }
}
