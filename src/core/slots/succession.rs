//! What a principal that is replaced on purpose leaves to its successor: its secondaries go on serving until
//! each is replaced in its turn, and the clients still hear what becomes of their jobs.

use serde::{Deserialize, Serialize};

use crate::core::following::News;
use crate::core::job::{ClientId, End, Incarnation, JobNumber, Reason};
use crate::core::moment::Moment;
use crate::core::slots::{Action, Books, Phase, Server, Slots};

/// A job of which a client is to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The slot.
    pub slot: usize,
    /// The entry of its table.
    pub entry: u32,
    /// Which job.
    pub number: JobNumber,
    /// The client follows it to its end.
    pub tracked: bool,
    /// The client knows that it was claimed.
    pub claimed: bool,
}

/// Who is in a slot when its principal is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Household {
    /// The secondary that serves it, and since when it is ready, if it is.
    pub current: Option<(Incarnation, Option<Moment>)>,
    /// Those before it that still finish their exchanges, and whether they have a limit.
    pub predecessors: Vec<(Incarnation, bool)>,
}

impl<B: Books> Slots<B> {
    /// The jobs of which clients are to hear.
    pub fn followed(&self) -> impl Iterator<Item = (ClientId, Followed)> + '_ {
        self.slots.iter().enumerate().flat_map(|(slot, known)| {
            known.given.open().filter_map(move |(entry, given)| {
                let (number, tracked, claimed) = (given.number, given.tracked, given.claimed);
                Some((given.client?, Followed { slot, entry, number, tracked, claimed }))
            })
        })
    }

    /// Takes over from a principal that has handed over and ended: whoever serves goes on and, where that is
    /// wanted, is replaced when those before it have been. `followed` says which of this principal's clients wait to
    /// hear of which job.
    pub fn handle_succession(
        &mut self,
        now: Moment,
        households: Vec<Household>,
        followed: &[(ClientId, Followed)],
        renews: bool,
    ) {
        debug_assert_eq!(households.len(), self.slots.len());
        self.books.redo();
        for (index, Household { current, predecessors }) in households.into_iter().enumerate() {
            for &(incarnation, _) in predecessors.iter().filter(|(_, has_limit)| *has_limit) {
                self.expect_end(now, index, incarnation);
            }
            let slot = &mut self.slots[index];
            slot.predecessors = predecessors.into_iter().map(|(incarnation, _)| incarnation).collect();
            slot.current = current.map(|(incarnation, ready_since)| Server {
                incarnation,
                ready_since,
                ..Server::default()
            });
            self.inherited.extend(current.filter(|_| renews).map(|(incarnation, _)| (index, incarnation)));
            let of_slot = followed.iter().filter(|(_, followed)| followed.slot == index);
            self.recover(now, index, of_slot.copied());
            self.update_availability(now, index);
            // It has served since then, whoever was told.
            let slot = &mut self.slots[index];
            slot.serving_since = slot.serving_since.and(slot.current.and_then(|server| server.ready_since));
        }
        for slot in 0..self.slots.len() {
            self.start(slot);
        }
        self.check_invariants();
    }

    /// Somebody has written over a job while nobody kept the books: its client hears of an end all the same.
    pub(super) fn report_lost(&mut self, client: ClientId, Followed { number, claimed, .. }: Followed) {
        let end = End::Failed(Reason::SecondaryLost);
        let news = News::Ended { end, was_claimed: claimed };
        self.actions.push_back(Action::Report { client, number, news });
    }

    /// Whether no secondary is left that a predecessor has started.
    #[must_use]
    pub fn is_renewed(&self) -> bool {
        self.inherited.is_empty()
    }

    /// The secondaries that a predecessor has started leave one after another: the next when the successor of
    /// the one before serves. Where that does not start, the others stay as they are.
    pub(super) fn renew(&mut self) {
        while let Some(&(index, incarnation)) = self.inherited.front() {
            let slot = &mut self.slots[index];
            match slot.current.as_mut() {
                _ if self.phase != Phase::Serving => return,
                Some(server) if server.incarnation == incarnation => {
                    if !std::mem::replace(&mut server.leave_wanted, true) {
                        self.watch_for_leaving(index);
                    }
                    return;
                }
                Some(server) if server.ready_since.is_none() => return,
                None if !slot.rests => return,
                Some(_) | None => self.inherited.pop_front(),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::job::{Job, State, Table as _, Word};
    use crate::core::slots::tests::{PlainBooks, actions, at, claim, job, serving};
    use crate::wire::jeton::Jeton;
    use crate::wire::tube::Command;

    fn leave(slot: usize) -> Action {
        Action::Tell { slot, command: Command::Leave }
    }

    fn settled(slots: &mut Slots<&PlainBooks>) -> Vec<Action> {
        slots.finish_turn(at(50));
        actions(slots)
    }

    fn household(incarnation: Incarnation) -> Household {
        Household { current: Some((incarnation, Some(at(1)))), predecessors: Vec::new() }
    }

    #[test]
    fn secondaries_are_replaced_one_after_another() {
        let books = PlainBooks::default();
        let settings = serving(&books).settings;
        let mut slots = Slots::new(&books, 2, settings, 1);
        slots.handle_succession(at(3), vec![household(1), household(1)], &[], true);
        assert_eq!(settled(&mut slots), [leave(0)]);
        assert!(slots.give(job(at(4)), None).is_ok(), "both serve meanwhile");
        actions(&mut slots);
        assert_eq!(settled(&mut slots), []);
        slots.handle_recycling(at(5), 0, 1);
        let started = [Action::Retire { slot: 0, incarnation: 1 }, Action::Start { slot: 0, incarnation: 2 }];
        assert_eq!(settled(&mut slots), started);
        // It does not start: the other stays.
        slots.handle_exited(at(6), 0, 2, true);
        assert_eq!(settled(&mut slots), [Action::GiveUp { slot: 0 }]);
        slots.handle_restart(at(7), 0);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 0, incarnation: 3 }]);
        slots.handle_ready(at(8), 0, 3);
        assert_eq!(settled(&mut slots), [leave(1)]);
        slots.handle_recycling(at(9), 1, 1);
        slots.handle_ready(at(10), 1, 2);
        actions(&mut slots);
        assert_eq!(settled(&mut slots), []);
        assert!(slots.inherited.is_empty());
    }

    #[test]
    fn an_empty_slot_is_started_and_one_that_rests_is_passed_over() {
        let books = PlainBooks::default();
        let settings = serving(&books).settings;
        let mut slots = Slots::new(&books, 2, settings, 1).with_resting([0]);
        slots.handle_succession(at(3), vec![household(1), Household::default()], &[], true);
        assert_eq!(settled(&mut slots), [Action::Start { slot: 1, incarnation: 2 }, leave(0)]);
        slots.handle_recycling(at(5), 0, 1);
        assert_eq!(settled(&mut slots), [Action::Retire { slot: 0, incarnation: 1 }]);
        assert!(slots.inherited.is_empty());
    }

    #[test]
    fn clients_hear_of_the_jobs_that_they_were_given_before() {
        let books = PlainBooks::default();
        let (old, new) = (ClientId { place: 3, serial: 9 }, ClientId { place: 0, serial: 1 });
        let mut slots = serving(&books);
        slots.handle_suspicion(at(2), 1, 1, true);
        let tracked = Job { jeton: Some(Jeton::from_bytes([7; 16])), ..job(at(2)) };
        let first = slots.give(tracked, Some(old)).unwrap().number;
        let second = slots.give(job(at(2)), Some(old)).unwrap().number;
        let followed: Vec<_> = slots.followed().collect();
        assert_eq!(followed.len(), 2);
        assert!(followed.iter().all(|(client, followed)| *client == old && !followed.claimed));
        let settings = slots.settings;
        // One is claimed while nobody keeps the books, the other has ended.
        let entry = |number| followed.iter().find(|(_, known)| known.number == number).unwrap().1.entry;
        claim(&books, 0, entry(first), 1);
        claim(&books, 0, entry(second), 1);
        let word = books.tables[0].state(entry(second)).unwrap();
        assert!(books.tables[0].swap(entry(second), word, word.in_state(State::Done)));
        let followed: Vec<_> = followed.iter().map(|&(_, followed)| (new, followed)).collect();
        let mut slots = Slots::new(&books, 2, settings, 1);
        slots.handle_succession(at(3), vec![household(1), household(1)], &followed, true);
        let claimed = |number| Action::Report { client: new, number, news: News::Claimed };
        let news = actions(&mut slots);
        assert!(news.contains(&claimed(first)) && news.contains(&claimed(second)), "{news:?}");
        let word = books.tables[0].state(entry(first)).unwrap();
        assert!(books.tables[0].swap(entry(first), word, word.in_state(State::Done)));
        slots.look_through(0);
        let ended = News::Ended { end: End::Done, was_claimed: true };
        assert_eq!(actions(&mut slots), [Action::Report { client: new, number: first, news: ended }]);
    }

    #[test]
    fn a_job_that_was_written_over_meanwhile_has_an_end_for_its_client() {
        let books = PlainBooks::default();
        let client = ClientId { place: 3, serial: 9 };
        let mut slots = serving(&books);
        slots.give(job(at(2)), Some(client)).unwrap();
        let followed: Vec<_> = slots.followed().collect();
        let settings = slots.settings;
        let Followed { slot, entry, number, .. } = followed[0].1;
        books.tables[slot].overwrite(entry, Word::FREE);
        let mut slots = Slots::new(&books, 2, settings, 1);
        slots.handle_succession(at(3), vec![household(1), household(1)], &followed, true);
        let ended = News::Ended { end: End::Failed(Reason::SecondaryLost), was_claimed: false };
        assert_eq!(actions(&mut slots), [Action::Report { client, number, news: ended }]);
    }
}
