//! What people want of a slot: a new secondary, or none.

use crate::core::moment::Moment;
use crate::core::slots::{Action, Books, Occupied, Phase, Slot, Slots};
use crate::wire::tube::Command;

impl<B: Books> Slots<B> {
    /// These slots rest from the start: a dead principal was told so.
    #[must_use]
    pub fn with_resting(mut self, slots: impl IntoIterator<Item = usize>) -> Self {
        for slot in slots {
            if let Some(known) = self.slots.get_mut(slot) {
                known.rests = true;
                self.attend_to(slot);
            }
        }
        self
    }

    /// A new secondary is wanted in a slot: the one there leaves, and takes as long as it needs for what it has.
    /// Where there is none it is started now, whatever its back-off.
    pub fn handle_restart(&mut self, now: Moment, index: usize) {
        let stopping = self.is_stopping();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        slot.rests = false;
        if let Some(server) = slot.current.as_mut() {
            server.leave_wanted = true;
            self.attend_to(index);
        } else if !stopping {
            slot.restart.forgive();
            if let Some(timer) = slot.start_timer.take() {
                self.timers.cancel(timer);
            }
            self.books.set_occupied(index, Occupied::Down);
            self.start(index);
        }
        self.update_availability(now, index);
        self.check_invariants();
    }

    /// No secondary is wanted in a slot: it is given no more jobs, and its secondary leaves when none waits
    /// to be claimed.
    pub fn handle_rest(&mut self, now: Moment, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        slot.rests = true;
        self.attend_to(index);
        let slot = &self.slots[index];
        if slot.current.is_none() && !self.may_start(index) {
            if let Some(timer) = self.slots[index].start_timer.take() {
                self.timers.cancel(timer);
            }
            self.books.set_occupied(index, Occupied::Resting);
        }
        self.update_availability(now, index);
        self.check_invariants();
    }

    /// Tells secondaries that are not wanted to leave: once they are ready to hear of it, and, where no other
    /// follows, have served what waited for them.
    pub(super) fn relieve(&mut self) {
        if self.phase != Phase::Serving || self.attended.is_empty() {
            return;
        }
        let mut attended = std::mem::take(&mut self.attended);
        attended.retain(|&index| {
            let Slot { current, rests, .. } = &self.slots[index];
            let (rests, server) = (*rests, *current);
            if let Some(server) = server.filter(|server| server.ready_since.is_some() && !server.leave_sent)
                && (server.leave_wanted || rests && !self.has_waiting(index))
            {
                self.send_leave(index);
            }
            rests || server.is_some_and(|server| server.leave_wanted && server.ready_since.is_none())
        });
        self.attended = attended;
    }

    fn attend_to(&mut self, slot: usize) {
        if !self.attended.contains(&slot) {
            self.attended.push(slot);
        }
    }

    /// How a slot without a process stands in the books.
    pub(super) fn empty(&self, slot: usize) -> Occupied {
        if self.slots[slot].rests && !self.may_start(slot) { Occupied::Resting } else { Occupied::Down }
    }

    fn send_leave(&mut self, slot: usize) {
        if let Some(server) = self.slots[slot].current.as_mut() {
            server.leave_sent = true;
            self.actions.push_back(Action::Tell { slot, command: Command::Leave });
        }
    }
}
