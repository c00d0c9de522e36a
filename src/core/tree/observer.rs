//! The observer: supervised like the others, and needed by none of them. It is there only where it is wanted, it is
//! replaced when what it shows may have changed, and it is the last to end.

use std::time::Duration;

use crate::core::job::{Incarnation, next_incarnation};
use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::core::restart::{Death, Restart, Verdict};
use crate::core::supervision::{Input, State};
use crate::core::tree::{Action, Phase, Seat, Tree};

/// How long an observer that was ordered to end may take: it owes nothing to anybody.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);

/// What the tree knows of its observer.
#[derive(Debug)]
pub(super) struct Observing {
    /// Whether there is to be one.
    wanted: bool,
    pub(super) seat: Option<Seat>,
    restart: Restart,
    pub(super) start_at: Option<Moment>,
    /// The one that was started last.
    last: Incarnation,
}

impl Observing {
    pub(super) fn new(seed: u64) -> Self {
        // Its jitter is not the principal's.
        Self { wanted: false, seat: None, restart: Restart::new(!seed), start_at: None, last: 0 }
    }
}

impl Tree {
    /// From now on there is to be an observer, or none. One that is there is replaced: what it was started with may be
    /// outdated.
    pub fn handle_observed(&mut self, now: Moment, wanted: bool) {
        self.void_if_late(now);
        if self.phase != Phase::Running {
            return;
        }
        self.observing.wanted = wanted;
        self.observing.start_at = None;
        self.actions.retain(|action| !matches!(action, Action::StartObserver(_)));
        if self.observing.seat.is_some() {
            self.dismiss_observer(now);
        } else if wanted {
            self.observing.restart.forgive();
            self.observing.start_at = Some(now);
        }
    }

    /// The shell could not start the observer.
    pub fn handle_observer_not_started(&mut self, now: Moment) {
        self.timeout.set(None);
        self.schedule_observer(now, Death { ready_since: None, cannot_start: false });
    }

    /// The observer, if one lives.
    #[must_use]
    pub fn observer(&self) -> Option<Name> {
        self.observing.seat.map(|seat| seat.name)
    }

    /// Whether a process was ordered to end, as far as anybody was.
    #[must_use]
    pub fn is_leaving(&self, name: Name) -> bool {
        self.is_draining(name) || self.has_limit(name)
    }

    pub(super) fn seat_observer(&mut self, now: Moment, name: Name) {
        debug_assert!(self.observing.seat.is_none(), "two observers");
        debug_assert_eq!(name.role, Role::Observer);
        self.observing.seat = Some(Seat::empty(name));
        self.input(now, name, Input::Started);
        self.condemn_if_at_once(now, name);
        self.check_invariants();
    }

    pub(super) fn start_observer_if_due(&mut self, now: Moment) {
        if self.observing.start_at.is_some_and(|at| at <= now) {
            self.observing.start_at = None;
            self.observing.last = next_incarnation(self.observing.last);
            self.actions.push_back(Action::StartObserver(self.observing.last));
        }
    }

    /// It has ended. `seat`: what was known of it.
    pub(super) fn replace_observer(&mut self, now: Moment, seat: Seat, cannot_start: bool) {
        self.observing.seat = None;
        if seat.drain_until.is_some() {
            // It was told to go.
            let again = self.observing.wanted && self.phase == Phase::Running;
            self.observing.start_at = again.then_some(now);
            return;
        }
        self.schedule_observer(now, Death { ready_since: seat.ready_since, cannot_start });
    }

    fn schedule_observer(&mut self, now: Moment, death: Death) {
        if self.phase != Phase::Running || !self.observing.wanted {
            return;
        }
        match self.observing.restart.after_death(now, death) {
            Verdict::StartAt(at) => self.observing.start_at = Some(at),
            Verdict::GiveUp => self.actions.push_back(Action::GiveUpObserver),
        }
    }

    /// Orders it to end, if it was not told yet.
    pub(super) fn dismiss_observer(&mut self, now: Moment) {
        let Some(seat) = self.observing.seat.as_mut().filter(|seat| seat.drain_until.is_none()) else {
            return;
        };
        seat.drain_until = Some(now + LEAVES_WITHIN);
        if !matches!(seat.state, State::Killing { .. }) {
            self.actions.push_back(Action::Drain(seat.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::supervision::{Act, Evidence, Reason, RunState};
    use crate::core::tree::tests::{actions, at, running};

    /// A tree with an observer that is ready.
    fn observed() -> (Tree, Name) {
        let mut tree = running(1);
        actions(&mut tree);
        tree.handle_observed(at(3), true);
        tree.handle_timeout(at(3));
        assert_eq!(actions(&mut tree), [Action::StartObserver(1)]);
        let name = Name::observer(1);
        tree.handle_started(at(3), name);
        tree.handle_ready(at(4), name);
        (tree, name)
    }

    /// Everybody answers, until this moment, but for those who are `silent`. Returns what else was to be done.
    fn pass(tree: &mut Tree, until: u64, silent: &[Name]) -> Vec<Action> {
        let mut others = Vec::new();
        while let Some(next) = tree.poll_timeout().filter(|&next| next <= at(until)) {
            tree.handle_timeout(next);
            for action in actions(tree) {
                match action {
                    Action::To(name, Act::Probe(number)) if !silent.contains(&name) => {
                        tree.handle_answer(next, name, number);
                    }
                    Action::To(name, Act::Examine) => {
                        let evidence = Evidence { run_state: RunState::Waiting, cpu_since_probe: None };
                        tree.handle_evidence(next, name, evidence);
                    }
                    Action::To(_, Act::Probe(_)) => {}
                    other => others.push(other),
                }
            }
        }
        others
    }

    #[test]
    fn there_is_none_unless_it_is_wanted() {
        let mut tree = running(1);
        actions(&mut tree);
        assert_eq!(pass(&mut tree, 1000, &[]), []);
        assert_eq!(tree.observer(), None);
    }

    #[test]
    fn one_that_is_frozen_is_killed_and_replaced_and_nobody_else_notices() {
        let (mut tree, name) = observed();
        let done = pass(&mut tree, 1500, &[name]);
        assert_eq!(done, [Action::To(name, Act::Suspect), Action::To(name, Act::Kill(Reason::NoAnswer))]);
        tree.handle_exited(at(1500), name, false);
        tree.handle_timeout(at(1500));
        assert_eq!(actions(&mut tree), [Action::StartObserver(2)]);
        assert!(tree.serving_principal().is_some());
        assert!(!tree.living().any(|name| tree.is_draining(name)));
    }

    #[test]
    fn early_deaths_are_put_off_more_and_more_and_who_cannot_start_is_left_alone() {
        let (mut tree, name) = observed();
        tree.handle_exited(at(5), name, false);
        assert_eq!(pass(&mut tree, 12, &[]), [], "it was young");
        assert_eq!(pass(&mut tree, 20, &[]), [Action::StartObserver(2)]);
        tree.handle_observer_not_started(at(20));
        assert_eq!(pass(&mut tree, 60, &[]), [Action::StartObserver(3)]);
        tree.handle_started(at(60), Name::observer(3));
        tree.handle_exited(at(61), Name::observer(3), true);
        assert_eq!(pass(&mut tree, 60_000, &[]), [Action::GiveUpObserver]);
        assert!(tree.serving_principal().is_some());
        tree.handle_observed(at(60_000), true);
        assert_eq!(pass(&mut tree, 60_000, &[]), [Action::StartObserver(4)], "a reload tries again");
    }

    #[test]
    fn a_reload_replaces_it_or_takes_it_away() {
        let (mut tree, name) = observed();
        tree.handle_observed(at(10), true);
        tree.handle_observed(at(11), true);
        assert_eq!(actions(&mut tree), [Action::Drain(name)], "it is told once");
        assert!(tree.is_leaving(name) && tree.has_limit(name) && !tree.is_draining(name));
        tree.handle_exited(at(12), name, false);
        assert_eq!(pass(&mut tree, 12, &[]), [Action::StartObserver(2)], "at once, however young it was");
        let name = Name::observer(2);
        tree.handle_started(at(12), name);
        tree.handle_observed(at(13), false);
        assert_eq!(actions(&mut tree), [Action::Drain(name)]);
        let done = pass(&mut tree, 2000, &[name]);
        assert_eq!(done, [Action::To(name, Act::Kill(Reason::GraceOver))], "it does not obey");
        tree.handle_exited(at(2000), name, false);
        assert_eq!(pass(&mut tree, 4000, &[]), []);
        assert_eq!(tree.observer(), None);
    }

    #[test]
    fn it_is_the_last_to_end_and_one_that_dies_during_the_stop_is_not_replaced() {
        for dies in [false, true] {
            let (mut tree, name) = observed();
            tree.handle_stop(at(10));
            assert_eq!(actions(&mut tree), [Action::Stop(Name::principal(1))]);
            if dies {
                tree.handle_exited(at(11), name, false);
                assert_eq!(pass(&mut tree, 50, &[]), []);
            }
            tree.handle_exited(at(60), Name::secondary(1, 1), false);
            tree.handle_exited(at(60), Name::principal(1), false);
            if !dies {
                assert_eq!(actions(&mut tree), [Action::Drain(name)]);
                tree.handle_exited(at(61), name, false);
            }
            assert_eq!(actions(&mut tree), [Action::Finished]);
        }
    }

    #[test]
    fn nobody_has_to_go_where_there_is_no_room_for_it() {
        let (mut tree, name) = observed();
        tree.handle_started(at(5), Name::secondary(1, 2));
        assert_eq!(actions(&mut tree), [Action::Drain(Name::secondary(1, 1))]);
        tree.handle_crowded(at(6), name);
        assert_eq!(actions(&mut tree), []);
        tree.handle_crowded(at(6), Name::secondary(1, 2));
        let killed = Action::To(Name::secondary(1, 1), Act::Kill(Reason::Crowded));
        assert_eq!(actions(&mut tree), [killed]);
    }

    #[test]
    fn a_stop_at_once_ends_it_with_the_others() {
        let (mut tree, name) = observed();
        tree.handle_stop(at(10));
        tree.handle_stop(at(11));
        actions(&mut tree);
        let killed = pass(&mut tree, 600, &[]);
        assert!(killed.contains(&Action::To(name, Act::Kill(Reason::Stopping))), "{killed:?}");
    }
}
