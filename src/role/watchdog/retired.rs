//! What a reload has taken out of service: its ports are closed when nobody has a job of them any more. The principal
//! closes its own copies by the same rule (`src/role/principal/retired.rs`).

use crate::core::job::Table;
use crate::core::slots::Occupied;
use crate::page::Access;
use crate::page::jobs::JobTable;
use crate::role::watchdog::Watchdog;

impl Watchdog {
    /// Tells tools what names and ports there are.
    pub(super) fn write_directory(&self) {
        if !self.page.set_directory(&self.force.directory()) {
            log::error!("there is no room for all names and ports: tools do not see the last change");
        }
    }

    /// Closes data ports that nobody will be given.
    pub(super) fn close_what_is_retired(&mut self) {
        let secondaries = self.force.config.secondaries;
        if self.is_reloading() || self.force.retired.is_empty() && self.force.slots == secondaries {
            return;
        }
        let mut closed = false;
        for (slot, ports) in self.force.bound.ports().into_iter().enumerate() {
            let number = u16::try_from(slot + 1).unwrap_or(u16::MAX);
            let is_removed = number > secondaries
                && self.principal_page.slot(number).occupied == Occupied::Resting
                && self.living_in(number) == 0;
            let goes = |kind: &usize| ports[*kind] != 0 && (is_removed || self.force.retired.contains(kind));
            let kinds: Vec<usize> = (0..ports.len()).filter(goes).collect();
            if kinds.is_empty() {
                continue;
            }
            let Ok(table) = JobTable::attach(&self.heirlooms.tables[slot], Access::ReadOnly) else {
                continue;
            };
            for kind in kinds.into_iter().filter(|&kind| !table.has_job(kind, false)) {
                self.force.bound.close(slot, kind);
                closed = true;
            }
        }
        if closed {
            self.write_directory();
        }
    }
}
