//! What is left of commands whose secondary has died: ended here, for nobody else knows of it.
//!
//! The leader of a command dies with its secondary (`PR_SET_PDEATHSIG`); whom it has started comes
//! to the watchdog, the nearest subreaper.

use rustix::process::Signal;

use crate::core::command::{GIVE_UP_AFTER, LOOK_EVERY};
use crate::core::job::JobNumber;
use crate::core::moment::Moment;
use crate::os::reactor::Handle;
use crate::os::{descendants, proc};
use crate::role::principal::{Key, Principal, Timer};

/// A family without a secondary.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    number: JobNumber,
    group: u32,
    /// When it is enough.
    until: Moment,
    /// Nobody was found at the last look. One look may miss who is just being born.
    quiet: bool,
}

impl Principal {
    pub(super) fn end_family(&mut self, reactor: &mut Handle<Key>, number: JobNumber, group: u32) {
        self.families.push(Family { number, group, until: reactor.now() + GIVE_UP_AFTER, quiet: false });
        if self.families.len() == 1 {
            self.timers.arm(reactor.now(), Timer::Families);
        }
    }

    /// Kills whom it finds of those families, and looks again until nobody is found.
    pub(super) fn sweep_families(&mut self, reactor: &mut Handle<Key>) {
        let now = reactor.now();
        let (watchdog, since) = self.liveness.watchdog_page().watchdog();
        let tree = format!("{watchdog}.{since}");
        let mut found = vec![false; self.families.len()];
        for (pid, parent) in descendants::below(watchdog) {
            let job = descendants::job_of(pid, &tree);
            let group = || proc::stat(pid).map_or(0, |stat| u32::try_from(stat.group).unwrap_or(0));
            // Who has an empty environment, or is about to end, is told by its group.
            let of = self.families.iter().position(|family| match job {
                Some(job) => job == family.number,
                None => group() == family.group,
            });
            if let Some(of) = of {
                found[of] |= descendants::signal(pid, &[parent, watchdog], Signal::KILL);
            }
        }
        let mut found = found.into_iter();
        self.families.retain_mut(|family| {
            let is_quiet = !found.next().unwrap_or(false);
            let was_quiet = std::mem::replace(&mut family.quiet, is_quiet);
            !(is_quiet && was_quiet) && now < family.until
        });
        if !self.families.is_empty() {
            self.timers.arm(now + LOOK_EVERY, Timer::Families);
        }
    }
}
