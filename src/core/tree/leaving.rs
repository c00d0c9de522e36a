//! Those who leave their place to a successor: by an order to drain, which has a limit, or because
//! they have served for long enough, which has none.

use std::time::Duration;

use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::core::supervision::{Input, Reason, State};
use crate::core::tree::{Action, Phase, Seat, Tree};

/// How much longer than a draining server's own patience the watchdog waits for its end.
const GRACE_MARGIN: Duration = Duration::from_secs(1);

impl Tree {
    /// A secondary drains by itself (it was sent SIGTERM): its slot is free for a successor.
    pub fn handle_draining(&mut self, now: Moment, name: Name) {
        self.void_if_late(now);
        if self.serves(name) {
            self.retire(now, usize::from(name.slot));
        } else if let Some(index) = self.predecessors.iter().position(|seat| seat.name == name) {
            self.limit(now, index);
        }
        self.check_invariants();
    }

    /// A secondary leaves because it has served for long enough: it may take as long as it needs,
    /// until something else asks for its end.
    pub fn handle_recycling(&mut self, now: Moment, name: Name) {
        self.void_if_late(now);
        if self.serves(name) {
            let index = usize::from(name.slot);
            match self.phase {
                Phase::Running => self.set_aside(index),
                Phase::Stopping { .. } | Phase::Finished => self.retire(now, index),
            }
        }
        self.check_invariants();
    }

    /// Whether it is the secondary in its slot.
    fn serves(&self, name: Name) -> bool {
        name.role == Role::Secondary
            && self.seats[usize::from(name.slot)].name == name
            && self.seats[usize::from(name.slot)].state != State::Down
    }

    /// There are more processes than can be supervised, now that this one is there: the predecessor that has drained
    /// longest must go. For an observer nobody has to: it does without until there is room.
    pub fn handle_crowded(&mut self, now: Moment, newcomer: Name) {
        self.timeout.set(None);
        if newcomer.role == Role::Observer {
            return;
        }
        let mut living = self.predecessors.iter().filter(|seat| !matches!(seat.state, State::Killing { .. }));
        let oldest = living.clone().find(|seat| seat.drain_until.is_some()).or_else(|| living.next());
        if let Some(name) = oldest.map(|seat| seat.name) {
            self.input(now, name, Input::Condemned(Reason::Crowded));
        }
    }

    /// Whether a process was ordered to drain.
    #[must_use]
    pub fn is_draining(&self, name: Name) -> bool {
        self.predecessors.iter().any(|seat| seat.name == name)
    }

    /// Whether a process that drains will be killed if it takes too long.
    #[must_use]
    pub fn has_limit(&self, name: Name) -> bool {
        let mut leaving = self.predecessors.iter().chain(&self.observing.seat);
        leaving.any(|seat| seat.name == name && seat.drain_until.is_some())
    }

    /// Moves the process in a seat to the predecessors and has it drained. Silent or not
    /// yet ready, it keeps its deadlines.
    pub(super) fn retire(&mut self, now: Moment, index: usize) {
        if self.seats[index].state != State::Down {
            self.set_aside(index);
            self.limit(now, self.predecessors.len() - 1);
        }
    }

    /// Moves the process in a seat to the predecessors.
    fn set_aside(&mut self, index: usize) {
        let seat = self.seats[index];
        self.seats[index] = Seat::empty(Name { incarnation: 0, ..seat.name });
        self.predecessors.push(seat);
    }

    /// Has a predecessor drained, if it was not told yet.
    fn limit(&mut self, now: Moment, predecessor: usize) {
        let seat = &mut self.predecessors[predecessor];
        if seat.drain_until.is_some() {
            return;
        }
        // It cuts its exchanges off by itself when its grace is over: leave it the time to do so.
        seat.drain_until = Some(now + self.settings.grace + GRACE_MARGIN);
        match seat.state {
            State::Down | State::Killing { .. } => {}
            State::Starting { .. } | State::Healthy { .. } | State::Probed { .. } | State::Suspect { .. } => {
                self.actions.push_back(Action::Drain(seat.name));
            }
        }
    }

    /// Nobody has all the time in the world any more.
    pub(super) fn limit_all(&mut self, now: Moment) {
        for predecessor in 0..self.predecessors.len() {
            self.limit(now, predecessor);
        }
    }

    pub(super) fn orphan_secondaries(&mut self, now: Moment) {
        self.limit_all(now);
        for index in 1..self.seats.len() {
            let Seat { name, state, .. } = self.seats[index];
            // Who is only suspect keeps its exchanges until it is judged: a handler may block for less
            // than `kill_after`. Who is not ready has none.
            if matches!(state, State::Starting { .. }) {
                self.input(now, name, Input::Condemned(Reason::Orphaned));
            }
            self.retire(now, index);
        }
    }
}
