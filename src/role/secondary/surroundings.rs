//! What a secondary sees of those who started it: whether they live, stop, or have left it to others.

use crate::core::moment::Moment;
use crate::core::service::Surroundings;
use crate::os::process;
use crate::role::secondary::Secondary;

impl Secondary {
    pub(super) fn is_orphan(&self) -> bool {
        process::parent_pid() != self.parent && !self.is_handed_over()
    }

    /// Whether it is for the watchdog to say what becomes of us: the principal leaves its secondaries to a
    /// successor, or its end was seen to already, perhaps long ago, where we were late. Should it have died
    /// before it was done, the watchdog orders us to drain.
    fn is_handed_over(&self) -> bool {
        let page = self.liveness.watchdog_page();
        self.was_handed_over
            || page.is_handing_over(self.parent)
            || !page.is_principal(self.parent, self.page.record().start_time)
    }

    pub(super) fn on_sigterm(&mut self, now: Moment) {
        let parent_has_ended = process::parent_pid() != self.parent && !self.liveness.watchdog().has_ended();
        if parent_has_ended && !self.was_handed_over && self.is_handed_over() {
            self.was_handed_over = true;
            log::debug!("the principal has ended: a successor takes over");
            return;
        }
        self.service.handle_term(now, self.surroundings());
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            is_orphan: self.is_orphan() || self.liveness.watchdog().has_ended(),
            is_stopping: self.liveness.watchdog_page().is_stopping(),
        }
    }
}
