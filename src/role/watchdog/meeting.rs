//! Meeting secondaries: the principal starts them and lists them in its page; the watchdog finds
//! them there and takes them under supervision.

use std::fs::File;

use crate::core::name::{Name, Role};
use crate::core::slots::Occupied;
use crate::os::fifo;
use crate::os::pidfd::Pidfd;
use crate::os::reactor::Handle;
use crate::page::obituary::Obituary;
use crate::page::principal::Slot;
use crate::page::secondary::SecondaryPage;
use crate::page::{Access, PageError};
use crate::role::watchdog::processes::Process;
use crate::role::watchdog::{Key, Watchdog};

impl Watchdog {
    /// Looks through the principal's table for processes that are new to us. Returns
    /// whether all that it lists could be taken under supervision or are gone.
    pub(super) fn look_at_slots(&mut self, reactor: &mut Handle<Key>) -> bool {
        let mut all_seen = true;
        for number in 1..=self.force.slots {
            let slot = self.principal_page.slot(number);
            if !matches!(slot.occupied, Occupied::Starting | Occupied::Ready) {
                continue;
            }
            let name = Name::secondary(number, slot.incarnation);
            if !self.processes.iter().any(|process| process.name() == name) {
                all_seen &= self.meet_secondary(reactor, name, slot);
            }
        }
        all_seen
    }

    fn meet_secondary(&mut self, reactor: &mut Handle<Key>, name: Name, slot: Slot) -> bool {
        // Its predecessor may have ended without our having heard of it yet.
        let ended: Vec<Name> = self
            .processes
            .iter()
            .filter(|process| process.name().role == Role::Secondary && process.name().slot == name.slot)
            .filter(|process| process.has_ended())
            .map(Process::name)
            .collect();
        for ended in ended {
            self.on_ended(reactor, ended);
        }
        // Or it has left in its own time, which an order to drain would cut short.
        for index in 0..self.processes.len() {
            if self.processes[index].name().slot == name.slot {
                self.look_at(index, reactor.now());
            }
        }
        let pidfd = match Pidfd::of_process(slot.pid, slot.start_time) {
            Ok(pidfd) if !pidfd.has_ended() => pidfd,
            // It has ended already, and its principal will tell of the next; or it has ended, too.
            Ok(pidfd) => {
                self.note_departed(Obituary {
                    name,
                    pid: pidfd.pid(),
                    at: reactor.now(),
                    exit: None,
                    killed: None,
                    answered_at: None,
                    recycled: false,
                    jobs: 0,
                });
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
            Err(error) => {
                if self.meeting_trouble.is_news(reactor.now()) {
                    log::warn!("cannot supervise {name} yet: {error}");
                }
                return false;
            }
        };
        let page = SecondaryPage::attach(&self.rundir.secondary_page(name.slot), Access::ReadOnly);
        let orders = fifo::open_end(&self.rundir.secondary_orders(name.slot));
        // The names are the successor's once there is one: what was opened may be its own.
        let now = self.principal_page.slot(name.slot);
        if now.pid != slot.pid || !matches!(now.occupied, Occupied::Starting | Occupied::Ready) {
            return false;
        }
        match (page, orders) {
            (Ok(page), Ok(orders)) => {
                self.supervise(reactor, name, pidfd, slot.start_time, Some(page), Some(orders));
                self.tree.handle_started(reactor.now(), name);
                true
            }
            (page, orders) if is_missing(&page, &orders) => {
                log::warn!("somebody removed the files of {name}: it will be replaced");
                self.supervise(reactor, name, pidfd, slot.start_time, None, None);
                self.tree.handle_started(reactor.now(), name);
                true
            }
            (page, orders) => {
                let page = page.err().map(|error: PageError| error.to_string());
                let orders = orders.err().map(|error| format!("its orders: {error}"));
                if self.meeting_trouble.is_news(reactor.now()) {
                    log::warn!("cannot supervise {name} yet: {}", page.or(orders).unwrap_or_default());
                }
                false
            }
        }
    }
}

/// Whether the files of a secondary are not there: they were, before it was started.
fn is_missing(page: &Result<SecondaryPage, PageError>, orders: &std::io::Result<File>) -> bool {
    let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    matches!(page, Err(PageError::Io { source, .. }) if missing(source))
        || matches!(orders, Err(error) if missing(error))
}
