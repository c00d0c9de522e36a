//! Taking over from a dead principal: whoever of its secondaries lives drains, and is watched.

use crate::core::job::Incarnation;
use crate::core::name::Name;
use crate::exit::Failure;
use crate::os::fifo::Reader;
use crate::os::pidfd::Pidfd;
use crate::os::reactor::Handle;
use crate::page::Access;
use crate::page::secondary::{Introduced, SecondaryPage, introduced};
use crate::role::principal::servers::{watch_end, watch_tube};
use crate::role::principal::slot::Predecessor;
use crate::role::principal::{Key, Principal, number};

impl Principal {
    /// Finds out who of a dead principal's secondaries lives, and goes on from there.
    pub(super) fn take_over(&mut self, reactor: &mut Handle<Key>) -> Result<(), Failure> {
        let introduced = self.introduced()?;
        let mut living = Vec::new();
        for slot in 0..self.slots.len() {
            self.adopt_living(reactor, slot, &introduced)?;
            let predecessors = self.slots[slot].predecessors.iter();
            living.push(predecessors.map(|predecessor| predecessor.incarnation).collect());
        }
        self.core.handle_takeover(reactor.now(), living);
        self.end_families_of_departed(reactor);
        self.carry_out(reactor);
        Ok(())
    }

    /// Secondaries that have pages of their own: the watchdog may have met nobody for a while, and a
    /// principal's page names one in each slot, but not those who drain there, too.
    pub(super) fn introduced(&self) -> Result<Vec<Introduced>, Failure> {
        let pages = self.rundir.pages().or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(Failure::internal("list the runtime directory", &error)),
        })?;
        introduced(pages).map_err(|error| Failure::internal("find secondaries", &error))
    }

    /// Watches all secondaries of a slot that live but the one that serves it, if any does.
    pub(super) fn adopt_living(
        &mut self,
        reactor: &mut Handle<Key>,
        slot: usize,
        introduced: &[Introduced],
    ) -> Result<(), Failure> {
        let number = number(slot);
        let last = self.page().slot(number);
        if let Ok(page) = SecondaryPage::attach(&self.rundir.secondary_page(number), Access::ReadOnly) {
            self.slots[slot].counts = page.counts();
        }
        let watched: Vec<(Incarnation, u32, u64)> = self
            .liveness
            .watchdog_page()
            .watched()
            .filter(|watched| watched.name == Name::secondary(number, watched.name.incarnation))
            .map(|watched| (watched.name.incarnation, watched.pid, watched.start_time))
            .chain([(last.incarnation, last.pid, last.start_time)])
            .chain(introduced.iter().filter(|known| known.name.slot == number).map(Introduced::as_watched))
            .collect();
        for (incarnation, pid, start_time) in watched {
            if self.slots[slot].is_home_of(incarnation) {
                continue;
            }
            match Pidfd::of_process(pid, start_time) {
                Ok(pidfd) => {
                    if incarnation == last.incarnation {
                        self.retire_files(slot, incarnation);
                    }
                    self.adopt(reactor, slot, incarnation, pidfd);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // Whoever it is must not be taken for dead: the next principal may see it.
                Err(error) => return Err(Failure::internal(&format!("look for pid {pid}"), &error)),
            }
        }
        Ok(())
    }

    /// Watches a draining predecessor: its doorbells and its end.
    fn adopt(&mut self, reactor: &mut Handle<Key>, slot: usize, incarnation: Incarnation, mut pidfd: Pidfd) {
        let path = self.rundir.from_predecessor(number(slot), incarnation);
        let tube = Reader::open(&path).ok().map(|mut tube| {
            watch_tube(reactor, &mut tube, slot, incarnation);
            tube
        });
        watch_end(reactor, &mut pidfd, slot, incarnation);
        let page = self.rundir.predecessor_page(number(slot), incarnation);
        let page = SecondaryPage::attach(&page, Access::ReadOnly).ok();
        let page = page.filter(|page| page.record().incarnation == incarnation);
        let predecessor = Predecessor { incarnation, pidfd, tube, page, killed: None };
        self.slots[slot].predecessors.push(predecessor);
    }
}
