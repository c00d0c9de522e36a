//! The ways in which a principal ends.
//!
//! Gracefully, by order: no new jobs; each secondary is told to end once it has none
//! left; they end first and are reaped here, then the principal ends and is reaped by
//! the watchdog. On the death of the watchdog: the same, with the listener closed at
//! once. By a plain SIGTERM: at once, for a successor will take over.

use std::time::Duration;

use crate::core::moment::Moment;
use crate::os::reactor::Handle;
use crate::role::principal::{Key, Principal, Timer};
use crate::wire::client::Refusal;
use crate::wire::tube::Command;

/// A signal to a process group reaches all its members within this time.
pub const GROUP_SIGNAL_WITHIN: Duration = Duration::from_millis(50);
/// How long secondaries get to obey before they are killed.
const OBEY_WITHIN: Duration = Duration::from_millis(300);

/// Where a stop stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
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

impl Principal {
    pub(super) fn is_stopping(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Whether requests are refused because the whole system stops. A principal that hands
    /// over still gives jobs in its last turn: its successor finds them in the tables.
    pub(super) fn refuses_requests(&self) -> bool {
        match self.phase {
            Phase::Finishing { .. } | Phase::Cutting | Phase::Killing => true,
            Phase::Serving | Phase::Ended => false,
        }
    }

    /// Whether a successor may be started in a slot: during a stop only for waiting jobs.
    pub(super) fn may_start(&self, slot: usize) -> bool {
        match self.phase {
            Phase::Serving => true,
            Phase::Finishing { .. } => self.listener.is_some() && self.slots[slot].has_waiting(),
            Phase::Cutting | Phase::Killing | Phase::Ended => false,
        }
    }

    /// Stops gracefully.
    pub(super) fn begin_stop(&mut self, reactor: &mut Handle<Key>) {
        if self.is_stopping() {
            return;
        }
        let cut_at = reactor.now() + self.config.watchdog.grace;
        self.phase = Phase::Finishing { cut_at };
        self.arm_stop(cut_at);
        let waiting: Vec<usize> = self.waiting.drain().collect();
        for key in waiting {
            self.refuse_waiting(reactor, key, Refusal::Stopping);
        }
    }

    /// The watchdog is no more: nobody would accept in our stead, so nothing is accepted.
    pub(super) fn watchdog_died(&mut self, reactor: &mut Handle<Key>) {
        if let Some((mut listener, id)) = self.listener.take() {
            log::warn!("the watchdog has died: finishing what is under way");
            reactor.deregister(&mut listener, id);
        }
        for slot in &mut self.slots {
            slot.listeners.clear();
        }
        self.begin_stop(reactor);
    }

    /// SIGTERM: for this process alone, or for the whole group, in which case the watchdog is
    /// about to order a stop. A moment tells.
    pub(super) fn on_sigterm(&mut self, reactor: &mut Handle<Key>) {
        if self.liveness.watchdog().has_ended() {
            self.watchdog_died(reactor);
        } else if !self.stop_is_ordered(reactor) {
            self.timers.arm(reactor.now() + GROUP_SIGNAL_WITHIN, Timer::HandOver);
        }
    }

    /// Stops if the watchdog's page says so, its order notwithstanding.
    pub(super) fn stop_is_ordered(&mut self, reactor: &mut Handle<Key>) -> bool {
        if self.liveness.watchdog_page().is_stopping() {
            self.begin_stop(reactor);
        }
        self.is_stopping()
    }

    /// Leaves the place to a successor: secondaries see it and drain, clients connect again.
    pub(super) fn hand_over(&mut self, reactor: &mut Handle<Key>) {
        log::info!("told to end: a successor takes over");
        self.phase = Phase::Ended;
        reactor.stop();
    }

    /// Ends all at once: what is open fails.
    pub(super) fn stop_now(&mut self, reactor: &mut Handle<Key>) {
        if matches!(self.phase, Phase::Serving) {
            self.begin_stop(reactor);
        }
        if matches!(self.phase, Phase::Finishing { .. }) {
            self.cut(reactor);
        }
    }

    /// The timer of a stop has come.
    pub(super) fn stop_is_over(&mut self, reactor: &mut Handle<Key>) {
        match self.phase {
            Phase::Serving | Phase::Ended => {}
            // `advance_stop` cuts off slot by slot: a job may still be claimed.
            Phase::Finishing { .. } => {
                self.arm_stop(reactor.now() + Duration::from_millis(100));
            }
            Phase::Cutting => {
                log::warn!("secondaries that do not end are killed");
                self.kill_all();
                self.phase = Phase::Killing;
                self.arm_stop(reactor.now() + OBEY_WITHIN);
            }
            Phase::Killing => self.kill_all(),
        }
    }

    /// There is one timer for a stop, whatever its phase.
    fn arm_stop(&mut self, at: Moment) {
        if let Some(timer) = self.stop_timer.take() {
            self.timers.cancel(timer);
        }
        self.stop_timer = Some(self.timers.arm(at, Timer::Stop));
    }

    /// Tells the slots that are done to end, and ends when all have.
    pub(super) fn advance_stop(&mut self, reactor: &mut Handle<Key>) {
        if let Phase::Finishing { cut_at } = self.phase {
            let over = cut_at <= reactor.now();
            // A job that was given may be claimed until it expires, but not for ever.
            let all_over = cut_at + self.config.claim_within <= reactor.now();
            for index in 0..self.slots.len() {
                let idle = self.dispatch.load(index).open == 0;
                if idle || all_over || over && !self.slots[index].has_waiting() {
                    self.send_stop(index);
                }
            }
            if over
                && self.slots.iter().all(|slot| slot.current.as_ref().is_none_or(|server| server.stop_sent))
            {
                self.cut(reactor);
            }
        }
        let all_ended = self.slots.iter().all(|slot| slot.current.is_none() && slot.predecessors.is_empty());
        let may_end = match self.phase {
            Phase::Finishing { .. } => self.dispatch.open() == 0 || self.listener.is_none(),
            Phase::Cutting | Phase::Killing => true,
            Phase::Serving | Phase::Ended => false,
        };
        if all_ended && may_end {
            self.phase = Phase::Ended;
            self.expire_all();
            // Without a watchdog the next start cleans up: the names may be its own by now.
            if self.listener.is_some() {
                self.remove_files();
            }
            reactor.stop();
        }
    }

    fn cut(&mut self, reactor: &mut Handle<Key>) {
        for index in 0..self.slots.len() {
            self.send_stop(index);
        }
        self.phase = Phase::Cutting;
        self.arm_stop(reactor.now() + OBEY_WITHIN);
    }

    fn send_stop(&mut self, slot: usize) {
        if let Some(server) = self.slots[slot].current.as_mut()
            && !std::mem::replace(&mut server.stop_sent, true)
        {
            server.writer.push(Command::Stop);
        }
    }
}
