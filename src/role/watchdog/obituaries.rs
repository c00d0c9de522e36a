//! Who reaps a process writes its obituary: the watchdog those of principals, and of
//! secondaries whose principal died before them.

use crate::core::moment::Moment;
use crate::core::name::Role;
use crate::os::pidfd::Exit;
use crate::page::obituary::Obituary;
use crate::role::watchdog::Watchdog;
use crate::role::watchdog::processes::Process;

/// Deaths that another process is to reap are remembered this far back.
const DEPARTED_KEPT: usize = 64;

impl Watchdog {
    /// A process has ended: writes its obituary, or leaves that to the principal that reaps it.
    pub(super) fn remember(&mut self, process: &Process, exit: Exit, now: Moment) {
        let mut obituary = process.obituary(Some(exit), now);
        if obituary.name.role == Role::Principal {
            let open = (1..=self.force.slots).map(|slot| self.principal_page.slot(slot).open);
            obituary.jobs = open.fold(0, u64::wrapping_add);
        }
        let has_handed_over = obituary.name.role == Role::Principal
            && self.principal_page.has_handed_over(obituary.name.incarnation);
        if exit == Exit::Unknown {
            self.note_departed(obituary);
            return;
        }
        // Its principal, who would know, may have left before it.
        obituary.recycled = exit == Exit::Code(0) && process.has_recycled();
        let is_leaving = self.tree.is_stopping() || self.tree.is_leaving(obituary.name);
        let expected = is_leaving || has_handed_over;
        self.publish(&obituary, expected && exit == Exit::Code(0));
    }

    /// A secondary has ended that its principal is to reap: should that die before it has, the
    /// zombie comes to us.
    pub(super) fn note_departed(&mut self, obituary: Obituary) {
        let is = |departed: &Obituary| (departed.pid, departed.name) == (obituary.pid, obituary.name);
        if self.departed.iter().any(is) {
            // It was supervised until it died; who comes across it now knows nothing more of it.
            return;
        }
        self.departed.retain(|departed| departed.pid != obituary.pid);
        self.departed.truncate(DEPARTED_KEPT - 1);
        self.departed.push_front(obituary);
    }

    /// A child was reaped that is under no supervision any more.
    pub(super) fn remember_orphan(&mut self, pid: u32, exit: Exit) {
        let departed = self.departed.iter().position(|departed| departed.pid == pid);
        match departed.and_then(|position| self.departed.remove(position)) {
            Some(departed) => self.publish(&Obituary { exit: Some(exit), ..departed }, false),
            None => log::debug!("reaped an orphan, pid {pid}: {exit}"),
        }
    }

    fn publish(&self, obituary: &Obituary, expected: bool) {
        let level = if expected { log::Level::Info } else { log::Level::Warn };
        obituary.tell(level);
        let name = obituary.name;
        let by_reload = match name.role {
            Role::Principal => self.principal_page.has_handed_over(name.incarnation),
            Role::Secondary => obituary.recycled,
            // It was told to go.
            Role::Observer => expected,
        };
        if by_reload {
            return;
        }
        self.page.obituaries().push(obituary);
    }
}
