//! What a reload has taken out of service: request types, slots, and control listeners. They serve out what they
//! have, then their ports are closed.

use crate::core::job::Table;
use crate::core::slots::Occupied;
use crate::os::reactor::Handle;
use crate::role::principal::{Key, Principal, number};
use crate::wire::client::TypeIndex;

impl Principal {
    /// The request types that the next secondary of a slot serves: those that are offered, and those of which
    /// jobs wait there, unless it is they that keep it from starting.
    pub(super) fn kinds_served(&self, slot: usize) -> Vec<TypeIndex> {
        let table = &self.core.books().tables()[slot];
        let starts = self.core.young_deaths(slot) == 0;
        let listeners = self.slots[slot].listeners.iter().enumerate();
        let listened = listeners.filter(|(_, listeners)| !listeners.is_empty()).map(|(kind, _)| kind);
        listened
            .filter(|kind| !self.sheet.retired.contains(kind) || starts && table.has_job(*kind, true))
            .collect()
    }

    /// Every secondary serves what has come with a reload, once all are new.
    pub(super) fn offer_what_is_fresh(&mut self) {
        if !self.sheet.fresh.is_empty() && self.core.is_renewed() {
            self.sheet.fresh.clear();
            self.types = super::offered(&self.sheet, false);
        }
    }

    /// Closes data ports of which nobody has a job any more, and that nobody will be given.
    pub(super) fn close_what_is_retired(&mut self) {
        if self.sheet.retired.is_empty() && self.sheet.slots == self.config.secondaries {
            return;
        }
        for slot in 0..self.slots.len() {
            let page = self.page().slot(number(slot));
            let is_removed = number(slot) > self.config.secondaries && page.occupied == Occupied::Resting;
            let kinds = 0..self.slots[slot].listeners.len();
            for kind in kinds.filter(|kind| is_removed || self.sheet.retired.contains(kind)) {
                if !self.slots[slot].listeners[kind].is_empty()
                    && !self.core.books().tables()[slot].has_job(kind, false)
                {
                    self.slots[slot].listeners[kind].clear();
                }
            }
        }
    }

    /// Hears whoever has come to control listeners that a reload has removed, and closes them.
    pub(super) fn empty_what_is_closing(&mut self, reactor: &mut Handle<Key>) {
        let listened = self.config.listen.addresses().len();
        for index in (listened..self.listeners.len()).rev() {
            while self.listeners.len() > index && self.accept(reactor, index) == super::Progress::Again {}
            let (mut listener, id) = self.listeners.remove(index);
            reactor.deregister(&mut listener, id);
        }
    }
}
