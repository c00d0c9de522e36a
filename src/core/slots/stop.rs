//! The ways in which a principal ends.
//!
//! Gracefully, by order: no new jobs; each secondary is told to end once it has none
//! left; they end first and are reaped by the principal, which ends then and is reaped by
//! the watchdog. On the death of the watchdog: the same, with the listener closed at
//! once. By a plain SIGTERM: at once, for a successor will take over.

use std::time::Duration;

use crate::core::moment::Moment;
use crate::core::slots::{Action, Books, Slots, Timer};
use crate::wire::tube::Command;

/// A signal to a process group reaches all its members within this time.
pub const GROUP_SIGNAL_WITHIN: Duration = Duration::from_millis(50);
/// How long secondaries get to obey before they are killed.
const OBEY_WITHIN: Duration = Duration::from_millis(300);
/// How often a stop whose grace is over looks at who still has to be cut off.
const CUT_EVERY: Duration = Duration::from_millis(100);

/// Where a stop stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No stop was asked for.
    Serving,
    /// Each slot is told to end when its last job has.
    Finishing {
        /// When exchanges under way are cut off.
        cut_at: Moment,
    },
    /// All were told to end, and are killed when the timer comes.
    Cutting,
    /// All were killed.
    Killing,
    /// The loop ends with this turn.
    Ended,
}

impl<B: Books> Slots<B> {
    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Whether requests are refused because the whole system stops. A principal that hands
    /// over still gives jobs in its last turn: its successor finds them in the tables.
    #[must_use]
    pub fn refuses_requests(&self) -> bool {
        match self.phase {
            Phase::Finishing { .. } | Phase::Cutting | Phase::Killing => true,
            Phase::Serving | Phase::Ended => false,
        }
    }

    /// Whether a successor may be started in a slot: during a stop only for waiting jobs.
    pub(super) fn may_start(&self, slot: usize) -> bool {
        match self.phase {
            Phase::Serving => !self.slots[slot].rests || self.has_waiting(slot),
            Phase::Finishing { .. } => !self.orphaned && self.has_waiting(slot),
            Phase::Cutting | Phase::Killing | Phase::Ended => false,
        }
    }

    /// All is to stop gracefully.
    pub fn handle_stop(&mut self, now: Moment) {
        if self.is_stopping() {
            return;
        }
        let cut_at = now + self.settings.grace;
        self.phase = Phase::Finishing { cut_at };
        self.arm_stop(cut_at);
        self.actions.push_back(Action::RefuseWaiting);
    }

    /// All is to stop at once: what is open fails.
    pub fn handle_stop_now(&mut self, now: Moment) {
        self.handle_stop(now);
        if matches!(self.phase, Phase::Finishing { .. }) {
            self.cut(now);
        }
    }

    /// The watchdog is no more.
    pub fn handle_watchdog_died(&mut self, now: Moment) {
        if !std::mem::replace(&mut self.orphaned, true) {
            self.actions.push_back(Action::StopAccepting);
        }
        self.handle_stop(now);
    }

    /// SIGTERM: for this process alone, or for the whole group, in which case the watchdog is
    /// about to order a stop. A moment tells.
    pub fn handle_term(&mut self, now: Moment) {
        if !self.is_stopping() {
            self.timers.arm(now + GROUP_SIGNAL_WITHIN, Timer::HandOver);
        }
    }

    /// Leaves the place to a successor: secondaries see it and drain, clients connect again.
    pub fn handle_hand_over(&mut self) {
        self.phase = Phase::Ended;
        self.actions.push_back(Action::HandOver);
    }

    /// The moment after a SIGTERM is over.
    pub(super) fn hand_over(&mut self) {
        if !self.is_stopping() {
            self.handle_hand_over();
        }
    }

    /// Says again what a secondary that is told to end, or to leave, may have missed.
    pub fn repeat_stop(&mut self, slot: usize) {
        let Some(server) = self.slots[slot].current else {
            return;
        };
        if server.stop_sent {
            self.actions.push_back(Action::Tell { slot, command: Command::Stop });
        } else if server.leave_sent {
            self.actions.push_back(Action::Tell { slot, command: Command::Leave });
        }
    }

    /// The timer of a stop has come.
    pub(super) fn stop_is_over(&mut self, now: Moment) {
        match self.phase {
            Phase::Serving | Phase::Ended => {}
            // `finish_turn` cuts off slot by slot: a job may still be claimed.
            Phase::Finishing { .. } => self.arm_stop(now + CUT_EVERY),
            Phase::Cutting | Phase::Killing => {
                self.actions.push_back(Action::KillAll);
                self.phase = Phase::Killing;
                self.arm_stop(now + OBEY_WITHIN);
            }
        }
    }

    /// There is one timer for a stop, whatever its phase.
    fn arm_stop(&mut self, at: Moment) {
        if let Some(timer) = self.stop_timer.take() {
            self.timers.cancel(timer);
        }
        self.stop_timer = Some(self.timers.arm(at, Timer::Stop));
    }

    /// The end of a turn: tells the slots that are done to end, and ends when all have.
    pub fn finish_turn(&mut self, now: Moment) {
        self.renew();
        self.tell_to_leave();
        if let Phase::Finishing { cut_at } = self.phase {
            let over = cut_at <= now;
            // A job that was given may be claimed until it expires, but not for ever.
            let all_over = cut_at + self.settings.claim_within <= now;
            for slot in 0..self.slots.len() {
                let idle = self.dispatch.load(slot).open == 0;
                if idle || all_over || over && !self.has_waiting(slot) {
                    self.send_stop(slot);
                }
            }
            if over && self.slots.iter().all(|slot| slot.current.is_none_or(|server| server.stop_sent)) {
                self.cut(now);
            }
        }
        let all_ended = self.slots.iter().all(|slot| slot.current.is_none() && slot.predecessors.is_empty());
        let may_end = match self.phase {
            Phase::Finishing { .. } => self.dispatch.open() == 0 || self.orphaned,
            Phase::Cutting | Phase::Killing => true,
            Phase::Serving | Phase::Ended => false,
        };
        if all_ended && may_end {
            self.phase = Phase::Ended;
            self.expire_all();
            // Without a watchdog the next start cleans up: the names may be its own by now.
            self.actions.push_back(Action::End { remove_files: !self.orphaned });
        }
    }

    fn cut(&mut self, now: Moment) {
        for slot in 0..self.slots.len() {
            self.send_stop(slot);
        }
        self.phase = Phase::Cutting;
        self.arm_stop(now + OBEY_WITHIN);
    }

    fn send_stop(&mut self, slot: usize) {
        if let Some(server) = self.slots[slot].current.as_mut()
            && !std::mem::replace(&mut server.stop_sent, true)
        {
            self.actions.push_back(Action::Tell { slot, command: Command::Stop });
        }
    }
}
