//! What people want of a slot: a new secondary, or none.

use crate::core::moment::Moment;
use crate::core::slots::{Action, Books, Occupied, Phase, Slot, Slots};
use crate::wire::tube::Command;

impl<B: Books> Slots<B> {
    /// After the death of a principal: the slots that it was told to leave empty.
    #[must_use]
    pub fn with_resting(mut self, slots: impl IntoIterator<Item = usize>) -> Self {
        for slot in slots {
            if let Some(known) = self.slots.get_mut(slot) {
                known.rests = true;
                self.watch_for_leaving(slot);
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
            self.watch_for_leaving(index);
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
        self.watch_for_leaving(index);
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
    pub(super) fn tell_to_leave(&mut self) {
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

    pub(super) fn watch_for_leaving(&mut self, slot: usize) {
        if !self.attended.contains(&slot) {
            self.attended.push(slot);
        }
    }

    /// How a slot without a process stands in the books.
    pub(super) fn state_when_vacant(&self, slot: usize) -> Occupied {
        if self.slots[slot].rests && !self.may_start(slot) { Occupied::Resting } else { Occupied::Down }
    }

    fn send_leave(&mut self, slot: usize) {
        if let Some(server) = self.slots[slot].current.as_mut() {
            server.leave_sent = true;
            self.actions.push_back(Action::Tell { slot, command: Command::Leave });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::dispatch::NoSlot;
    use crate::core::job::Table as _;
    use crate::core::slots::tests::{PlainBooks, actions, at, claim, job, serving};

    const LEAVE: Action = Action::Tell { slot: 0, command: Command::Leave };

    /// The end of a turn, and what came of it.
    fn settled(slots: &mut Slots<&PlainBooks>) -> Vec<Action> {
        slots.finish_turn(at(50));
        actions(slots)
    }

    #[test]
    fn who_is_replaced_is_told_once_and_its_successor_is_left_alone() {
        let books = PlainBooks::default();
        let mut slots = serving(&books);
        slots.handle_restart(at(2), 0);
        assert_eq!(settled(&mut slots), [LEAVE]);
        assert_eq!(settled(&mut slots), []);
        slots.handle_recycling(at(3), 0, 1);
        let started = [Action::Retire { slot: 0, incarnation: 1 }, Action::Start { slot: 0, incarnation: 2 }];
        assert_eq!(settled(&mut slots), started);
        slots.handle_ready(at(4), 0, 2);
        assert_eq!(settled(&mut slots), []);
        // Another is wanted before this one is ready: it is told when it can hear.
        slots.handle_recycling(at(5), 0, 2);
        actions(&mut slots);
        slots.handle_restart(at(6), 0);
        assert_eq!(settled(&mut slots), []);
        slots.handle_ready(at(7), 0, 3);
        assert_eq!(settled(&mut slots), [LEAVE]);
        slots.handle_restart(at(8), 9);
        slots.handle_rest(at(8), 9);
    }

    #[test]
    fn a_slot_that_rests_serves_what_waits_and_is_then_left_empty() {
        let books = PlainBooks::default();
        let mut slots = serving(&books);
        slots.handle_suspicion(at(2), 1, 1, true);
        slots.give(job(at(2)), None).unwrap();
        actions(&mut slots);
        slots.handle_rest(at(3), 0);
        assert_eq!(settled(&mut slots), [], "a job waits");
        assert_eq!(slots.give(job(at(3)), None), Err(NoSlot::NoneReady));
        // Its secondary dies: who else would serve that job?
        slots.handle_exited(at(2000), 0, 1, false);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 0, incarnation: 2 }]);
        slots.handle_ready(at(2001), 0, 2);
        assert_eq!(settled(&mut slots), []);
        let entry = (0..2).find(|&entry| books.tables[0].state(entry).unwrap().number == 1).unwrap();
        claim(&books, 0, entry, 2);
        assert_eq!(settled(&mut slots), [LEAVE]);
        slots.handle_recycling(at(2003), 0, 2);
        assert_eq!(settled(&mut slots), [Action::Retire { slot: 0, incarnation: 2 }]);
        slots.handle_timeout(at(60_000));
        assert_eq!(settled(&mut slots), []);
        slots.handle_restart(at(60_001), 0);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 0, incarnation: 3 }]);
    }

    #[test]
    fn a_slot_that_waits_for_its_back_off_is_started_by_hand() {
        let books = PlainBooks::default();
        let mut slots = serving(&books);
        slots.handle_exited(at(2), 0, 1, false);
        assert!(matches!(settled(&mut slots)[..], [Action::BackOff { .. }]));
        slots.handle_restart(at(3), 0);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 0, incarnation: 2 }]);
        slots.handle_exited(at(4), 0, 2, true);
        assert_eq!(settled(&mut slots), [Action::GiveUp { slot: 0 }]);
        slots.handle_restart(at(5), 0);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 0, incarnation: 3 }]);
    }

    #[test]
    fn what_a_dead_principal_was_told_its_successor_knows() {
        let books = PlainBooks::default();
        let settings = serving(&books).settings;
        let mut slots = Slots::new(&books, 2, settings, 1).with_resting([0, 7]);
        slots.handle_takeover(at(9), vec![vec![], vec![]]);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 1, incarnation: 2 }]);
        assert_eq!(slots.state_when_vacant(0), Occupied::Resting);
    }
}
