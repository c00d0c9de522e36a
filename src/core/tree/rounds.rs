//! Rounds of probes: when each process has its turn, and when a round says nothing.

use crate::core::moment::{Moment, nanos};
use crate::core::name::Name;
use crate::core::supervision::{Evidence, Input, Reason, RunState};
use crate::core::tree::Tree;

impl Tree {
    /// A watchdog that was stopped or starved cannot tell who was silent: where it is later
    /// than a quarter of `kill_after`, all silences begin anew.
    pub(super) fn void_if_late(&mut self, now: Moment) {
        let late = self.poll_timeout().is_some_and(|at| now.since(at) > self.settings.kill_after / 4);
        // Whoever asks is about to change something.
        self.timeout.set(None);
        // Once a turn: deadlines that are over stay so until the turn comes to them.
        if late && self.voided_at.replace(now) != Some(now) {
            let names: Vec<Name> = self.living().collect();
            for name in names {
                self.input(now, name, Input::Void);
            }
        }
    }

    /// A watchdog that is always late must still replace who stays stopped.
    pub(super) fn evidence_in_void_round(&mut self, now: Moment, name: Name, evidence: Evidence) {
        let stopped = evidence.run_state == RunState::Stopped;
        let Some(seat) = self.seat_mut(name) else {
            return;
        };
        let stopped_before = std::mem::replace(&mut seat.found_stopped, stopped);
        if stopped && stopped_before {
            self.input(now, name, Input::Condemned(Reason::Stopped));
        }
    }

    /// Each slot has its own phase of the period, so that probes are spread over it.
    pub(super) fn next_probe(&self, now: Moment, slot: u16) -> Moment {
        let period = nanos(self.settings.period).max(1);
        let seats = u64::try_from(self.seats.len()).unwrap_or(1);
        let phase = period / seats * u64::from(slot);
        let start = now.as_nanos() - now.as_nanos() % period;
        let at = start + phase;
        Moment::from_nanos(if at > now.as_nanos() { at } else { at + period })
    }
}
