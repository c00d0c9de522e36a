//! The watchdog's judgement over the whole tree: one principal, its secondaries,
//! and predecessors that still finish their exchanges.
//!
//! Pure: the shell reports what it sees through `handle_*`, then carries out what
//! [`Tree::poll_action`] says, then sleeps until [`Tree::poll_timeout`].

mod leaving;
mod observer;
mod rounds;
mod succession;

use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::core::restart::{Death, Restart, Verdict};
use crate::core::supervision::{
    Act, Evidence, Input, Judgement, Reason, RunState, Settings, State, Turn, judge, step,
};
use crate::core::tree::observer::Observing;

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a principal of this incarnation; report with [`Tree::handle_started`],
    /// or [`Tree::handle_start_failed`].
    StartPrincipal(Incarnation),
    /// Start an observer of this incarnation; report in the same ways.
    StartObserver(Incarnation),
    /// Do this to that process.
    To(Name, Act),
    /// Order a process to drain.
    Drain(Name),
    /// Order the principal to stop gracefully.
    Stop(Name),
    /// Order the principal to stop at once.
    StopNow(Name),
    /// Log that a process was forgiven because the machine starves it.
    Forgiven(Name),
    /// The principal said that it cannot start: it stays down.
    GiveUp,
    /// The observer said that it cannot start: it stays down, and all else goes on.
    GiveUpObserver,
    /// Everything has ended as asked: the watchdog may end.
    Finished,
}

impl Action {
    /// The process that it is done to.
    fn target(self) -> Option<Name> {
        match self {
            Self::To(name, _)
            | Self::Drain(name)
            | Self::Stop(name)
            | Self::StopNow(name)
            | Self::Forgiven(name) => Some(name),
            Self::StartPrincipal(_)
            | Self::StartObserver(_)
            | Self::GiveUp
            | Self::GiveUpObserver
            | Self::Finished => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    name: Name,
    state: State,
    ready_since: Option<Moment>,
    /// When a draining process is killed; `None` for one that serves, or leaves in its own time.
    drain_until: Option<Moment>,
    /// Found stopped when its round was void: the second time in a row is proof.
    found_stopped: bool,
    /// It was told that this one is starved and forgiven.
    forgiven: bool,
}

impl Seat {
    fn empty(name: Name) -> Self {
        Self {
            name,
            state: State::Down,
            ready_since: None,
            drain_until: None,
            found_stopped: false,
            forgiven: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Ends when the last process has; until then everything is killed at `kill_at`.
    Stopping {
        kill_at: Moment,
        at_once: bool,
    },
    Finished,
}

/// The supervisor of one tree.
#[derive(Debug)]
pub struct Tree {
    settings: Settings,
    /// The longest time a graceful stop may take before everything is killed.
    stop_within: Duration,
    /// Index 0: the principal; index n: secondary n.
    seats: Vec<Seat>,
    predecessors: Vec<Seat>,
    /// A principal that is to succeed the one in its seat, once that has handed over.
    candidate: Option<Seat>,
    observing: Observing,
    /// The principal that was started last.
    last_principal: Incarnation,
    restart: Restart,
    start_at: Option<Moment>,
    last_unproven_kill: Option<Moment>,
    /// The last turn in which all silences began anew.
    voided_at: Option<Moment>,
    last_number: u64,
    phase: Phase,
    actions: VecDeque<Action>,
    /// What [`Tree::poll_timeout`] has found, until an input may have changed it: a look at all seats is
    /// long where there are a thousand.
    timeout: Cell<Option<Option<Moment>>>,
}

/// How much longer than the principal's own patience the watchdog waits in a stop.
const STOP_MARGIN: Duration = Duration::from_secs(1);
/// How long a stop "at once" leaves to the servers' own clean-up.
const AT_ONCE: Duration = Duration::from_millis(500);

impl Tree {
    /// A tree whose principal is to be started at `now`.
    ///
    /// `stop_within` is how long a graceful stop may take; `seed` decides jitter.
    #[must_use]
    pub fn new(now: Moment, secondaries: u16, settings: Settings, stop_within: Duration, seed: u64) -> Self {
        let mut seats = vec![Seat::empty(Name::principal(0))];
        seats.extend((1..=secondaries).map(|slot| Seat::empty(Name::secondary(slot, 0))));
        Self {
            settings,
            stop_within,
            seats,
            predecessors: Vec::new(),
            candidate: None,
            observing: Observing::new(seed),
            last_principal: 0,
            restart: Restart::new(seed),
            start_at: Some(now),
            last_unproven_kill: None,
            voided_at: None,
            last_number: 0,
            phase: Phase::Running,
            actions: VecDeque::new(),
            timeout: Cell::new(None),
        }
    }

    /// A process was started. In an occupied slot it succeeds one that drains.
    pub fn handle_started(&mut self, now: Moment, name: Name) {
        self.void_if_late(now);
        if name.role == Role::Observer {
            self.seat_observer(now, name);
            return;
        }
        let index = usize::from(name.slot);
        if self.seats[index].state != State::Down {
            self.retire(now, index);
        }
        self.seats[index] = Seat::empty(name);
        self.input(now, name, Input::Started);
        self.condemn_if_at_once(now, name);
        self.check_invariants();
    }

    /// The shell could not start the principal.
    pub fn handle_start_failed(&mut self, now: Moment) {
        self.timeout.set(None);
        self.schedule_start(now, Death { ready_since: None, cannot_start: false });
    }

    /// A process declared itself ready.
    pub fn handle_ready(&mut self, now: Moment, name: Name) {
        self.void_if_late(now);
        if let Some(seat) = self.seat_mut(name)
            && seat.ready_since.is_none()
        {
            seat.ready_since = Some(now);
            self.input(now, name, Input::Ready);
        }
    }

    /// A process's record holds this number.
    pub fn handle_answer(&mut self, now: Moment, name: Name, number: u64) {
        self.void_if_late(now);
        self.input(now, name, Input::Answered(number));
    }

    /// What `/proc` says, as asked by [`Act::Examine`].
    pub fn handle_evidence(&mut self, now: Moment, name: Name, evidence: Evidence) {
        self.timeout.set(None);
        let sent_at = match self.state(name) {
            Some(State::Suspect { sent_at, judge_at, .. }) if judge_at <= now => sent_at,
            Some(State::Starting { since, .. }) if since < now => {
                // It has nothing to answer yet; but who is stopped will never get ready.
                if evidence.run_state == RunState::Stopped {
                    self.input(now, name, Input::Condemned(Reason::Stopped));
                }
                return;
            }
            Some(State::Suspect { .. } | State::Starting { .. }) => {
                self.evidence_in_void_round(now, name, evidence);
                return;
            }
            Some(State::Down | State::Healthy { .. } | State::Probed { .. } | State::Killing { .. })
            | None => return,
        };
        let next_allowed = self.last_unproven_kill.map_or(now, |last| last + self.settings.period);
        match judge(evidence, now.since(sent_at), &self.settings) {
            Judgement::Proven(reason) => self.input(now, name, Input::Condemned(reason)),
            Judgement::Unexcused if next_allowed > now => {
                self.input(now, name, Input::Spared(next_allowed));
            }
            Judgement::Unexcused => {
                self.last_unproven_kill = Some(now);
                self.input(now, name, Input::Condemned(Reason::NoAnswer));
            }
            Judgement::Starved => {
                let told =
                    self.seat_mut(name).is_some_and(|seat| std::mem::replace(&mut seat.forgiven, true));
                self.actions.extend((!told).then_some(Action::Forgiven(name)));
                self.input(now, name, Input::Spared(now + self.settings.period));
            }
            Judgement::Gone => self.input(now, name, Input::Spared(now + self.settings.period)),
        }
    }

    /// A process has ended. `cannot_start`: it said that starting it again is of no use.
    pub fn handle_exited(&mut self, now: Moment, name: Name, cannot_start: bool) {
        self.void_if_late(now);
        let Some(seat) = self.seat_mut(name).copied() else {
            return;
        };
        if seat.state == State::Down {
            return;
        }
        self.input(now, name, Input::Exited);
        self.predecessors.retain(|seat| seat.name != name);
        self.actions.retain(|action| action.target() != Some(name));
        let was_candidate = self.candidate.take_if(|seat| seat.name == name).is_some();
        if name.role == Role::Observer {
            self.replace_observer(now, seat, cannot_start);
        } else if name.role == Role::Principal && !was_candidate {
            self.orphan_secondaries(now);
            self.schedule_start(now, Death { ready_since: seat.ready_since, cannot_start });
        }
        self.finish_if_empty(now);
        self.check_invariants();
    }

    /// Asked to stop: gracefully, and at once where asked again.
    pub fn handle_stop(&mut self, now: Moment) {
        self.void_if_late(now);
        // Asking again and again must not put the end off.
        let (kill_at, at_once) = match self.phase {
            Phase::Running => (now + self.stop_within + STOP_MARGIN, false),
            Phase::Stopping { kill_at, .. } => (kill_at.min(now + AT_ONCE), true),
            Phase::Finished => return,
        };
        self.phase = Phase::Stopping { kill_at, at_once };
        self.start_at = None;
        self.observing.start_at = None;
        let starts = |action: &Action| matches!(action, Action::StartPrincipal(_) | Action::StartObserver(_));
        self.actions.retain(|action| !starts(action));
        if self.seats[0].state != State::Down {
            let principal = self.seats[0].name;
            let order = if at_once { Action::StopNow(principal) } else { Action::Stop(principal) };
            self.actions.push_back(order);
        }
        self.limit_all(now);
        self.dismiss_candidate(now);
        if at_once {
            for index in 0..self.predecessors.len() {
                let name = self.predecessors[index].name;
                self.input(now, name, Input::Condemned(Reason::Stopping));
            }
        }
        self.finish_if_empty(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.void_if_late(now);
        if self.start_at.is_some_and(|at| at <= now) {
            self.start_at = None;
            let incarnation = self.next_principal();
            self.seats[0].name.incarnation = incarnation;
            self.actions.push_back(Action::StartPrincipal(incarnation));
        }
        self.start_observer_if_due(now);
        if let Phase::Stopping { kill_at, .. } = self.phase
            && kill_at <= now
        {
            let names: Vec<Name> = self.processes().map(|seat| seat.name).collect();
            for name in names {
                self.input(now, name, Input::Condemned(Reason::Stopping));
            }
            self.phase = Phase::Stopping { kill_at: now + AT_ONCE, at_once: true };
        }
        let names: Vec<Name> = self
            .processes()
            .filter(|seat| self.deadline(seat).is_some_and(|deadline| deadline <= now))
            .map(|seat| seat.name)
            .collect();
        for name in names {
            let drain_over = self.seat_mut(name).is_some_and(|seat| {
                let killed = matches!(seat.state, State::Killing { .. });
                !killed && seat.drain_until.is_some_and(|until| until <= now)
            });
            let input = if drain_over { Input::Condemned(Reason::GraceOver) } else { Input::Due };
            self.input(now, name, input);
        }
        self.check_invariants();
    }

    /// The next thing to do, if any.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Tree::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        if let Some(known) = self.timeout.get() {
            debug_assert_eq!(known, self.next_deadline(), "something has changed it");
            return known;
        }
        let next = self.next_deadline();
        self.timeout.set(Some(next));
        next
    }

    fn next_deadline(&self) -> Option<Moment> {
        let stop = match self.phase {
            Phase::Stopping { kill_at, .. } => Some(kill_at),
            Phase::Running | Phase::Finished => None,
        };
        self.processes()
            .filter_map(|seat| self.deadline(seat))
            .chain(self.start_at)
            .chain(self.observing.start_at)
            .chain(stop)
            .min()
    }

    /// What is believed of a process; `None` once it has ended.
    #[must_use]
    pub fn state(&self, name: Name) -> Option<State> {
        self.seat(name).map(|seat| seat.state)
    }

    /// Whether a process has declared itself ready.
    #[must_use]
    pub fn is_ready(&self, name: Name) -> bool {
        self.seat(name).is_some_and(|seat| seat.ready_since.is_some())
    }

    /// The processes that are not known to have ended.
    pub fn living(&self) -> impl Iterator<Item = Name> {
        self.processes().map(|seat| seat.name)
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.phase != Phase::Running
    }

    fn processes(&self) -> impl Iterator<Item = &Seat> {
        self.seats
            .iter()
            .filter(|seat| seat.state != State::Down)
            .chain(&self.predecessors)
            .chain(&self.candidate)
            .chain(&self.observing.seat)
    }

    /// The seat of a process that has not ended.
    fn seat(&self, name: Name) -> Option<&Seat> {
        let own = self.seats.get(usize::from(name.slot));
        own.into_iter()
            .filter(|seat| seat.state != State::Down)
            .chain(&self.predecessors)
            .chain(&self.candidate)
            .chain(&self.observing.seat)
            .find(|seat| seat.name == name)
    }

    /// The seat of a process, or the one that it has left.
    fn seat_mut(&mut self, name: Name) -> Option<&mut Seat> {
        let own = self.seats.get_mut(usize::from(name.slot));
        own.into_iter()
            .filter(|seat| seat.state != State::Down || seat.name.incarnation != 0)
            .chain(&mut self.predecessors)
            .chain(&mut self.candidate)
            .chain(&mut self.observing.seat)
            .find(|seat| seat.name == name)
    }

    fn deadline(&self, seat: &Seat) -> Option<Moment> {
        let drain = match seat.state {
            State::Killing { .. } | State::Down => None,
            State::Starting { .. } | State::Healthy { .. } | State::Probed { .. } | State::Suspect { .. } => {
                seat.drain_until
            }
        };
        seat.state.deadline(&self.settings).into_iter().chain(drain).min()
    }

    /// Feeds one input to one process and queues what comes out.
    fn input(&mut self, now: Moment, name: Name, input: Input) {
        let next_probe = self.next_probe(now, name.slot);
        let (fresh, settings) = (self.last_number + 1, self.settings);
        let Some(seat) = self.seat_mut(name) else {
            return;
        };
        let (state, act) = step(seat.state, input, Turn { now, next_probe, fresh, settings: &settings });
        seat.state = state;
        seat.found_stopped &= !state.is_healthy();
        seat.forgiven &= !state.is_healthy();
        if act == Some(Act::Probe(fresh)) {
            self.last_number = fresh;
        }
        self.actions.extend(act.map(|act| Action::To(name, act)));
    }

    fn schedule_start(&mut self, now: Moment, death: Death) {
        if self.phase != Phase::Running {
            return;
        }
        match self.restart.after_death(now, death) {
            Verdict::StartAt(at) => self.start_at = Some(at),
            Verdict::GiveUp => self.actions.push_back(Action::GiveUp),
        }
    }

    fn condemn_if_at_once(&mut self, now: Moment, name: Name) {
        if let Phase::Stopping { at_once: true, .. } = self.phase {
            self.input(now, name, Input::Condemned(Reason::Stopping));
        }
    }

    fn finish_if_empty(&mut self, now: Moment) {
        if !matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        if self.processes().all(|seat| seat.name.role == Role::Observer) {
            // It has shown the stop to its end.
            self.dismiss_observer(now);
        }
        if self.processes().next().is_none() {
            self.phase = Phase::Finished;
            self.actions.push_back(Action::Finished);
        }
    }

    /// What must hold after each entry into the core.
    fn check_invariants(&self) {
        debug_assert!(self.predecessors.iter().all(|seat| seat.state != State::Down));
        debug_assert!(
            self.phase == Phase::Running || self.predecessors.iter().all(|seat| seat.drain_until.is_some()),
            "a predecessor takes its time while all stops"
        );
        debug_assert!(self.seats.iter().all(|seat| seat.drain_until.is_none()));
        debug_assert!(
            self.start_at.is_none() || self.seats[0].state == State::Down,
            "a principal is to be started beside another"
        );
    }
}

#[cfg(test)]
mod tests;
