//! A principal that is replaced on purpose: its successor is started beside it, takes over what it hands
//! over, and has its seat when it has ended. The secondaries go on.

use std::time::Duration;

use crate::core::job::{Incarnation, next_incarnation};
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::supervision::{Input, Reason, Settings, State};
use crate::core::tree::{Phase, Seat, Tree};

impl Tree {
    /// The principal that serves, if it does: who is silent is about to be replaced anyway.
    #[must_use]
    pub fn serving_principal(&self) -> Option<Name> {
        (self.phase == Phase::Running && self.answers(0)).then_some(self.seats[0].name)
    }

    /// Whether the server in that seat is ready and answers; 0 is the principal's.
    #[must_use]
    pub fn answers(&self, slot: u16) -> bool {
        self.seats.get(usize::from(slot)).is_some_and(|seat| {
            seat.ready_since.is_some() && matches!(seat.state, State::Healthy { .. } | State::Probed { .. })
        })
    }

    /// The principal in its seat, or the one that was there last.
    #[must_use]
    pub fn principal(&self) -> Name {
        self.seats[0].name
    }

    /// Whether a principal lives, or is about to end, that was to succeed another.
    #[must_use]
    pub fn has_candidate(&self) -> bool {
        self.candidate.is_some()
    }

    /// Names a principal that is to be started.
    pub fn next_principal(&mut self) -> Incarnation {
        self.last_principal = next_incarnation(self.last_principal);
        self.last_principal
    }

    /// A principal was started beside the one that serves.
    pub fn handle_candidate_started(&mut self, now: Moment, name: Name) {
        self.void_if_late(now);
        debug_assert!(self.candidate.is_none(), "two are to succeed one");
        self.candidate = Some(Seat::empty(name));
        self.input(now, name, Input::Started);
        self.check_invariants();
    }

    /// The candidate is not wanted any more.
    pub fn handle_candidate_dismissed(&mut self, now: Moment) {
        self.void_if_late(now);
        self.dismiss_candidate(now);
    }

    pub(super) fn dismiss_candidate(&mut self, now: Moment) {
        if let Some(name) = self.candidate.map(|seat| seat.name) {
            self.input(now, name, Input::Condemned(Reason::Dismissed));
        }
    }

    /// The principal has handed over and ended: the candidate has its seat, and the secondaries stay in
    /// theirs. Returns whether there was a candidate; if not, that is [`Tree::handle_exited`].
    pub fn handle_succeeded(&mut self, now: Moment, name: Name) -> bool {
        let is_wanted = |seat: &mut Seat| !matches!(seat.state, State::Killing { .. });
        if self.phase != Phase::Running || self.seats[0].name != name {
            return false;
        }
        self.void_if_late(now);
        let Some(candidate) = self.candidate.take_if(is_wanted) else {
            return false;
        };
        self.input(now, name, Input::Exited);
        self.actions.retain(|action| action.target() != Some(name));
        // It has prepared and heard as long as that took: from here on it has the time of any other start.
        self.seats[0] = Seat { state: State::Down, ..candidate };
        self.input(now, candidate.name, Input::Started);
        self.check_invariants();
        true
    }

    /// There are so many slots for secondaries, or were before.
    pub fn handle_slots(&mut self, secondaries: u16) {
        self.timeout.set(None);
        let seats = u16::try_from(self.seats.len()).unwrap_or(u16::MAX);
        self.seats.extend((seats..=secondaries).map(|slot| Seat::empty(Name::secondary(slot, 0))));
    }

    /// The longest time that a graceful stop may take.
    #[must_use]
    pub fn stop_within(&self) -> Duration {
        self.stop_within
    }

    /// From now on these times are in force.
    pub fn handle_settings(&mut self, settings: Settings, stop_within: Duration) {
        self.timeout.set(None);
        (self.settings, self.stop_within) = (settings, stop_within);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::supervision::Act;
    use crate::core::tree::Action;
    use crate::core::tree::tests::{actions, at, running};

    /// A tree whose principal has a candidate beside it.
    fn with_candidate() -> (Tree, Name, Name) {
        let mut tree = running(2);
        actions(&mut tree);
        let old = tree.serving_principal().unwrap();
        let new = Name::principal(tree.next_principal());
        assert_eq!(new, Name::principal(2));
        tree.handle_candidate_started(at(10), new);
        (tree, old, new)
    }

    #[test]
    fn who_succeeds_has_the_seat_and_nobody_is_drained() {
        let (mut tree, old, new) = with_candidate();
        assert_eq!(tree.serving_principal(), Some(old));
        assert!(tree.handle_succeeded(at(12), old));
        assert_eq!(tree.state(old), None);
        assert!(!tree.living().any(|name| tree.is_draining(name)));
        assert_eq!(actions(&mut tree), []);
        assert_eq!(tree.serving_principal(), None);
        // However long it has prepared, it has time to get ready.
        let ready_by = tree.poll_timeout().unwrap();
        assert!(ready_by > at(12), "{ready_by}");
        assert!(matches!(tree.state(new), Some(State::Starting { since, .. }) if since == at(12)));
        tree.handle_ready(at(13), new);
        assert_eq!(tree.serving_principal(), Some(new));
        // Now its death is a principal's.
        tree.handle_exited(at(5000), new, false);
        assert!(tree.living().all(|name| tree.is_draining(name)));
        tree.handle_timeout(at(5000));
        assert!(actions(&mut tree).contains(&Action::StartPrincipal(3)));
    }

    #[test]
    fn it_may_succeed_at_any_time_of_the_round() {
        for rounds in 0..64 {
            let (mut tree, old, new) = with_candidate();
            let mut now = 10;
            for _ in 0..rounds {
                now = tree.poll_timeout().unwrap().as_nanos() / 1_000_000 + 1;
                tree.handle_timeout(at(now));
                for action in actions(&mut tree) {
                    if let Action::To(name, Act::Probe(number)) = action {
                        tree.handle_answer(at(now), name, number);
                    }
                }
            }
            assert!(tree.poll_timeout().is_some());
            assert!(tree.handle_succeeded(at(now), old));
            assert_eq!((tree.principal(), tree.has_candidate()), (new, false));
            assert!(tree.poll_timeout().is_some());
        }
    }

    #[test]
    fn a_candidate_that_dies_or_is_not_wanted_changes_nothing() {
        let (mut tree, old, new) = with_candidate();
        tree.handle_exited(at(11), new, true);
        assert_eq!((actions(&mut tree), tree.serving_principal()), (vec![], Some(old)));
        assert!(!tree.handle_succeeded(at(12), old));
        let next = Name::principal(tree.next_principal());
        assert_eq!(next, Name::principal(3));
        tree.handle_candidate_started(at(13), next);
        tree.handle_candidate_dismissed(at(14));
        assert_eq!(actions(&mut tree), [Action::To(next, Act::Kill(Reason::Dismissed))]);
        assert!(!tree.handle_succeeded(at(15), old), "one that was killed succeeds nobody");
        tree.handle_exited(at(16), next, false);
        assert_eq!((actions(&mut tree), tree.serving_principal()), (vec![], Some(old)));
    }

    #[test]
    fn a_candidate_that_is_not_ready_in_time_is_killed() {
        let (mut tree, old, new) = with_candidate();
        let killed = loop {
            let now = tree.poll_timeout().unwrap().as_nanos() / 1_000_000 + 1;
            tree.handle_timeout(at(now));
            for action in actions(&mut tree) {
                match action {
                    Action::To(name, Act::Probe(number)) => tree.handle_answer(at(now), name, number),
                    Action::To(name, Act::Kill(reason)) => {
                        assert_eq!((name, reason), (new, Reason::SlowStart));
                    }
                    _ => {}
                }
            }
            if matches!(tree.state(new), Some(State::Killing { .. })) {
                break now;
            }
        };
        assert!(killed >= 10_000, "{killed}");
        assert_eq!(tree.serving_principal(), Some(old));
    }

    #[test]
    fn a_stop_dismisses_the_candidate() {
        let (mut tree, old, new) = with_candidate();
        tree.handle_stop(at(11));
        let actions = actions(&mut tree);
        assert!(actions.contains(&Action::To(new, Act::Kill(Reason::Dismissed))), "{actions:?}");
        assert!(actions.contains(&Action::Stop(old)));
        assert!(!tree.handle_succeeded(at(12), old));
    }
}
