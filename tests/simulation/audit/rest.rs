//! What must be true once nobody disturbs any more: all is well before long, or all is over.

use osps::core::name::Role;
use osps::core::slots::Occupied;
use osps::core::supervision::State;

use crate::audit::Rule;
use crate::clients::{Asks, Client, Ending, Standing};
use crate::kernel::{Life, Mood, Process};
use crate::machine::{Event, Machine, Memory, WATCHDOG};
use crate::plan::millis;

/// How far a world has come since the quiet began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Recovering,
    /// New clients see whether they are served.
    Tested,
    /// So does one who comes without having asked.
    OpenTested,
}

impl Machine {
    /// Looks whether all is well, now and again.
    pub fn inspect(&mut self) {
        if self.is_over() {
            return;
        }
        match self.why_restless() {
            Some(_) => {}
            None if self.has_ended(WATCHDOG) => {
                self.audit_end_of_all();
                self.over = true;
            }
            None if self.audit.stage == Stage::Recovering => {
                self.audit.coverage.count("recovered");
                self.audit.stage = Stage::Tested;
                for _ in 0..=self.plan.secondaries {
                    let asks = self.draw_asks();
                    self.add_client(true, asks);
                }
            }
            None if self.audit.stage == Stage::Tested && self.plan.open && !self.nobody_serves() => {
                self.audit.stage = Stage::OpenTested;
                self.add_client(true, Asks::Not);
            }
            None => {
                self.audit_tests();
                self.audit_closed_books();
                self.audit_all_was_reported();
                self.count_observer_at_rest();
                self.over = true;
            }
        }
        self.at(self.now + millis(50), Event::Inspect);
    }

    /// The time is over.
    pub fn never_came_to_rest(&mut self) {
        if self.plan.watchdog_dies.is_some() && self.has_ended(WATCHDOG) && !self.audit.finished {
            self.all_end_without_watchdog();
        } else if let Some(why) = self.why_restless() {
            let follows = |client: &Client| matches!(client.standing, Standing::Following(_));
            let rule = match self.audit.stops.is_empty() {
                true if self.clients.iter().any(follows) => Rule::Reported,
                true => Rule::Recovers,
                false => Rule::StopEnds,
            };
            self.complain(rule, why);
        }
    }

    /// What is not yet as it should be.
    fn why_restless(&self) -> Option<String> {
        let waits = |client: &Client| match client.standing {
            Standing::Over(_) => false,
            // Its slot said that it cannot start: the backlog is all that there is.
            Standing::Waiting => !self.is_given_up(client.slot) || !self.audit.stops.is_empty(),
            Standing::Retrying
            | Standing::Asking
            | Standing::Told
            | Standing::Exchanging
            | Standing::Following(_) => true,
        };
        let matters = !self.has_ended(WATCHDOG) || self.audit.finished;
        if let Some(client) = self.clients.iter().position(waits).filter(|_| matters) {
            return Some(format!("client {client} waits: {:?}", self.clients[client]));
        }
        if self.has_ended(WATCHDOG) || !self.audit.stops.is_empty() {
            let left = self.processes.iter().position(|process| process.life != Life::Reaped);
            let left = left.filter(|proc| *proc != WATCHDOG);
            let left = left.or_else(|| (!self.has_ended(WATCHDOG)).then_some(WATCHDOG));
            return left.map(|proc| format!("{proc} is left: {:?}", self.processes[proc]));
        }
        self.why_not_served()
    }

    /// Slots are counted from 0.
    pub fn is_given_up(&self, slot: usize) -> bool {
        let number = u16::try_from(slot + 1).expect("a few");
        self.audit.page.slot(number).occupied == Occupied::GivenUp
    }

    fn why_not_served(&self) -> Option<String> {
        let Some(Memory::Watchdog(watchdog)) = &self.memories[WATCHDOG] else {
            return Some("the watchdog is in its turn".into());
        };
        if watchdog.reload.is_some() {
            return Some(format!("a reload is under way: {:?}", watchdog.reload));
        }
        let mut expected = 2;
        for slot in 0..=self.plan.secondaries {
            if slot > 0 && self.audit.page.slot(slot).occupied == Occupied::GivenUp {
                continue;
            }
            expected += usize::from(slot > 0);
            let trusted = self.audit.dossiers.iter().any(|(name, dossier)| {
                name.role != Role::Observer
                    && name.slot == slot
                    && dossier.ready.is_some()
                    && !dossier.suspect
                    && !watchdog.tree.is_draining(*name)
                    && watchdog.tree.state(*name).is_some_and(State::is_healthy)
            });
            let occupied = slot == 0 || self.audit.page.slot(slot).occupied == Occupied::Ready;
            if !trusted || !occupied {
                return Some(format!("nobody serves in slot {slot}"));
            }
        }
        if self.is_observer_owed() {
            expected += 1;
            if !self.is_observer_ready(watchdog) {
                return Some("there is no observer that is ready".into());
            }
        }
        let here = self.processes.iter().filter(|process| process.life != Life::Reaped).count();
        if here != expected {
            return Some(format!("{here} processes are there, {expected} should be"));
        }
        if let Some(inherited) = self.is_to_be_replaced() {
            return Some(format!("{inherited} is still to be replaced"));
        }
        let stuck = |process: &&Process| process.is_alive() && matches!(process.mood, Mood::Stuck(_));
        if let Some(stuck) = self.processes.iter().find(stuck) {
            return Some(format!("{:?} is {:?}", stuck.name(), stuck.mood));
        }
        let open = self.open_entries();
        (open > 0).then(|| format!("{open} jobs are open"))
    }

    fn nobody_serves(&self) -> bool {
        let mut slots = 1..=self.audit.page.slots();
        slots.all(|slot| self.audit.page.slot(slot).occupied == Occupied::GivenUp)
    }

    fn audit_tests(&mut self) {
        let nobody_serves = self.nobody_serves();
        let unserved = self.clients.iter().position(|client| {
            client.tests && !nobody_serves && client.standing != Standing::Over(Ending::Served)
        });
        if let Some(client) = unserved {
            let client = format!("{:?}", self.clients[client]);
            self.complain(Rule::Recovers, format!("a new client is not served: {client}"));
        }
        let one_serves_each = (0..self.audit.tables.len()).all(|slot| {
            let serving: Vec<_> = self.net.accepting(crate::net::data_listener(slot, 0)).collect();
            serving.len() <= 1
        });
        self.ensure(one_serves_each, Rule::OneServes, || "two accept at one port".into());
    }

    /// A stop has come to its end.
    fn audit_end_of_all(&mut self) {
        let ended_in_order = self.audit.finished && self.audit.closed;
        self.audit.coverage.count(if ended_in_order {
            "closed the books"
        } else {
            "ended without a principal"
        });
        if ended_in_order {
            let open = self.open_entries();
            self.ensure(open == 0, Rule::BooksExact, || format!("{open} jobs are open after the end"));
            self.audit_closed_books();
        }
        let principal = self.processes.iter().any(|process| {
            process.is_alive() && process.name().is_some_and(|name| name.role == Role::Principal)
        });
        self.ensure(!principal, Rule::StopEnds, || "a principal is left".into());
    }
}
