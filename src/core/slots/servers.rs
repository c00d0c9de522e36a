//! Births and deaths of secondaries.

use std::time::Duration;

use crate::core::job::{Incarnation, next_incarnation};
use crate::core::moment::Moment;
use crate::core::restart::{Death, Verdict};
use crate::core::slots::{Action, Books, Loss, Occupied, Server, Slots, Timer};

/// How much longer than its grace a predecessor may take: longer than the watchdog allows.
const OVERDUE_AFTER: Duration = Duration::from_secs(2);

impl<B: Books> Slots<B> {
    /// Takes over from a dead principal: finishes its last step, finds out what has become of
    /// its jobs, and starts a secondary in each slot. `living` says for each slot which of
    /// the dead one's secondaries live.
    pub fn handle_takeover(&mut self, now: Moment, living: Vec<Vec<Incarnation>>) {
        debug_assert_eq!(living.len(), self.slots.len());
        self.books.redo();
        for (slot, living) in living.into_iter().enumerate() {
            for &incarnation in &living {
                self.expect_end(now, slot, incarnation);
            }
            self.slots[slot].predecessors = living;
            self.recover(now, slot, std::iter::empty());
            self.books.set_occupied(slot, Occupied::Down);
        }
        for slot in 0..self.slots.len() {
            self.start(slot);
        }
        self.check_invariants();
    }

    /// Starts a secondary in an empty slot.
    pub(super) fn start(&mut self, slot: usize) {
        if self.slots[slot].current.is_some() || self.slots[slot].start_timer.is_some() {
            return;
        };
        if !self.may_start(slot) {
            self.books.set_occupied(slot, self.state_when_vacant(slot));
            return;
        }
        let mut incarnation = next_incarnation(self.books.last_incarnation(slot));
        // Numbers come again, and a predecessor may take so long that its own does.
        while self.slots[slot].predecessors.contains(&incarnation) {
            incarnation = next_incarnation(incarnation);
        }
        self.books.reserve(slot, incarnation);
        self.slots[slot].current = Some(Server { incarnation, ..Server::default() });
        self.actions.push_back(Action::Start { slot, incarnation });
    }

    /// The shell could not do what [`Action::Start`] says.
    pub fn handle_start_failed(&mut self, now: Moment, slot: usize, incarnation: Incarnation) {
        if self.is_current(slot, incarnation) {
            self.slots[slot].current = None;
            self.schedule_start(now, slot, None);
        }
    }

    /// A secondary says, in its tube or its record, that its loop runs.
    pub fn handle_ready(&mut self, now: Moment, slot: usize, incarnation: Incarnation) {
        let Some(server) = self.server_mut(slot, incarnation) else {
            return;
        };
        if server.ready_since.is_none() {
            server.ready_since = Some(now);
            self.books.set_occupied(slot, Occupied::Ready);
            self.update_availability(now, slot);
        }
    }

    /// A secondary was sent SIGTERM: it finishes what it has, its successor takes the slot.
    pub fn handle_draining(&mut self, now: Moment, slot: usize, incarnation: Incarnation) {
        if self.is_current(slot, incarnation) {
            self.expect_end(now, slot, incarnation);
            self.retire(now, slot, incarnation);
        }
    }

    /// A secondary has served for long enough: its successor takes the slot at once, which is no
    /// death to back off from. What it has under way may take as long as it needs; a stop sees to
    /// it that it ends, and so does the watchdog when this principal dies.
    pub fn handle_recycling(&mut self, now: Moment, slot: usize, incarnation: Incarnation) {
        if self.is_current(slot, incarnation) {
            self.retire(now, slot, incarnation);
        }
    }

    fn retire(&mut self, now: Moment, slot: usize, incarnation: Incarnation) {
        self.slots[slot].current = None;
        self.slots[slot].predecessors.push(incarnation);
        self.actions.push_back(Action::Retire { slot, incarnation });
        self.books.set_occupied(slot, self.state_when_vacant(slot));
        self.update_availability(now, slot);
        self.start(slot);
        self.check_invariants();
    }

    /// A predecessor ends by itself when its grace is over, and the watchdog kills it if it does not.
    /// But a watchdog that was late may never have met it.
    pub(super) fn expect_end(&mut self, now: Moment, slot: usize, incarnation: Incarnation) {
        self.timers.arm(now + self.settings.grace + OVERDUE_AFTER, Timer::Overdue(slot, incarnation));
    }

    pub(super) fn overdue(&mut self, slot: usize, incarnation: Incarnation) {
        if self.slots[slot].predecessors.contains(&incarnation) {
            self.actions.push_back(Action::Kill { slot, incarnation });
        }
    }

    /// The watchdog's opinion of a secondary.
    pub fn handle_suspicion(&mut self, now: Moment, slot: usize, incarnation: Incarnation, suspect: bool) {
        if let Some(server) = self.server_mut(slot, incarnation)
            && server.suspect != suspect
        {
            server.suspect = suspect;
            self.update_availability(now, slot);
        }
    }

    /// A secondary has ended, and all that it had said was heard. `cannot_start`: it said that
    /// starting it again is of no use. Returns `None` where it was not known.
    pub fn handle_exited(
        &mut self,
        now: Moment,
        slot: usize,
        incarnation: Incarnation,
        cannot_start: bool,
    ) -> Option<Loss> {
        let known = &mut self.slots[slot];
        let server = known.current.take_if(|server| server.incarnation == incarnation);
        let drained = known.predecessors.iter().position(|&predecessor| predecessor == incarnation);
        if let Some(position) = drained {
            known.predecessors.swap_remove(position);
        }
        if server.is_none() && drained.is_none() {
            return None;
        }
        let failed = self.fail_claims_of(slot, incarnation);
        self.look_at_what_was_given(slot);
        if let Some(server) = server {
            self.books.set_occupied(slot, self.state_when_vacant(slot));
            self.update_availability(now, slot);
            if self.may_start(slot) {
                let death = Death { ready_since: server.ready_since, cannot_start };
                self.schedule_start(now, slot, Some(death));
            }
        }
        self.check_invariants();
        Some(Loss { failed, expected: server.is_none_or(|server| server.stop_sent || server.leave_sent) })
    }

    /// How many secondaries of a slot have died young, one after another.
    #[must_use]
    pub fn young_deaths(&self, slot: usize) -> u32 {
        self.slots[slot].restart.young_deaths()
    }

    /// Whether a secondary has been started and is not ready yet.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.slots.iter().any(|slot| slot.current.is_some_and(|server| server.ready_since.is_none()))
    }

    /// The incarnation that serves a slot, if any.
    #[must_use]
    pub fn current(&self, slot: usize) -> Option<Incarnation> {
        self.slots[slot].current.map(|server| server.incarnation)
    }

    /// Without a death, no process could be started.
    fn schedule_start(&mut self, now: Moment, slot: usize, death: Option<Death>) {
        let died = death.is_some();
        let death = death.unwrap_or(Death { ready_since: None, cannot_start: false });
        let restart = &mut self.slots[slot].restart;
        match restart.after_death(now, death) {
            Verdict::StartAt(at) if at <= now => self.start(slot),
            Verdict::StartAt(at) => {
                let (deaths, wait) = (restart.young_deaths(), at.since(now));
                self.slots[slot].start_timer = Some(self.timers.arm(at, Timer::Start(slot)));
                self.actions.push_back(Action::BackOff { slot, died, deaths, wait });
            }
            Verdict::GiveUp => {
                self.books.set_occupied(slot, Occupied::GivenUp);
                self.actions.push_back(Action::GiveUp { slot });
            }
        }
    }

    pub(super) fn update_availability(&mut self, now: Moment, index: usize) {
        let slot = &mut self.slots[index];
        let serves = slot.current.is_some_and(|server| server.ready_since.is_some() && !server.suspect);
        let available = serves && !slot.rests;
        self.dispatch.load_mut(index).available = available;
        slot.serving_since = match (serves, slot.serving_since) {
            (true, None) => Some(now),
            (true, since) => since,
            (false, _) => None,
        };
    }

    fn is_current(&self, slot: usize, incarnation: Incarnation) -> bool {
        self.current(slot) == Some(incarnation)
    }

    fn server_mut(&mut self, slot: usize, incarnation: Incarnation) -> Option<&mut Server> {
        self.slots[slot].current.as_mut().filter(|server| server.incarnation == incarnation)
    }
}
