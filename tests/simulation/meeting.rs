//! Meeting secondaries, as in `src/role/watchdog/meeting.rs`.

use osps::core::name::{Name, Role};
use osps::core::slots::Occupied;
use osps::page::Access;
use osps::page::principal::Slot;
use osps::page::secondary::SecondaryPage;

use crate::audit::Rule;
use crate::fifo::FifoName;
use crate::machine::Machine;
use crate::watchdog::Watchdog;

impl Watchdog {
    /// Looks through the principal's table for processes that are new to us. Returns whether all of them are known.
    pub fn look_at_slots(&mut self, sys: &mut Machine) -> bool {
        let mut all_seen = true;
        for number in 1..=sys.plan.secondaries {
            let slot = self.principal_page.slot(number);
            if !matches!(slot.occupied, Occupied::Starting | Occupied::Ready) {
                continue;
            }
            let name = Name::secondary(number, slot.incarnation);
            if !self.processes.iter().any(|process| process.name == name) {
                all_seen &= self.meet_secondary(sys, name, slot);
            }
        }
        all_seen
    }

    fn meet_secondary(&mut self, sys: &mut Machine, name: Name, slot: Slot) -> bool {
        let ended: Vec<Name> = self
            .processes
            .iter()
            .filter(|process| process.name.role == Role::Secondary && process.name.slot == name.slot)
            .filter(|process| sys.has_ended(process.pidfd))
            .map(|process| process.name)
            .collect();
        for ended in ended {
            self.on_ended(sys, ended);
        }
        for index in 0..self.processes.len() {
            if self.processes[index].name.slot == name.slot {
                self.look_at(sys, index);
            }
        }
        let pidfd = match sys.pidfd(slot.pid, slot.start_time) {
            Some(pidfd) if !sys.has_ended(pidfd) => pidfd,
            Some(_) | None => return true,
        };
        sys.system_call();
        let page = SecondaryPage::attach(&sys.rundir.secondary_page(name.slot), Access::ReadOnly);
        let orders = sys.open_fifo(FifoName::Orders(name.slot, None));
        let now = self.principal_page.slot(name.slot);
        if now.pid != slot.pid || !matches!(now.occupied, Occupied::Starting | Occupied::Ready) {
            sys.audit.coverage.count("met too late");
            return false;
        }
        match (page, orders) {
            (Ok(page), Some(orders)) => {
                self.supervise(sys, name, pidfd, Some(page), orders);
                true
            }
            (_, _) => {
                sys.complain(Rule::NobodyForgotten, format!("the files of {name} are gone"));
                false
            }
        }
    }
}
