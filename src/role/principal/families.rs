//! What is left of commands whose secondary has died: ended here, for nobody else knows of it.
//!
//! The leader of a command dies with its secondary (`PR_SET_PDEATHSIG`); whom it has started comes
//! to the watchdog, the nearest subreaper.

use rustix::process::Signal;

use crate::core::command::{GIVE_UP_AFTER, LOOK_EVERY};
use crate::core::mark::Mark;
use crate::core::moment::Moment;
use crate::os::reactor::Handle;
use crate::os::reserve::Reserve;
use crate::os::{descendants, proc};
use crate::role::principal::{Key, Principal, Timer};

/// Processes without a secondary.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    whose: Whose,
    /// When it is enough.
    until: Moment,
    /// Nobody was found at the last look. One look may miss who is just being born.
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Those whose marks name a secondary that is no more.
    Departed,
    /// Those of a process group that bear no mark.
    Group(u32),
}

impl Principal {
    /// A process group served a job of a secondary that has died.
    pub(super) fn end_family(&mut self, reactor: &mut Handle<Key>, group: u32) {
        self.look_for_family(reactor, Whose::Group(group));
    }

    /// A secondary has died, or may have died before this principal came.
    pub(super) fn end_families_of_departed(&mut self, reactor: &mut Handle<Key>) {
        // Who was started before a reload may have had others.
        if self.sheet.succeeds || self.config.request.iter().any(|request| !request.command.is_empty()) {
            self.look_for_family(reactor, Whose::Departed);
        }
    }

    fn look_for_family(&mut self, reactor: &mut Handle<Key>, whose: Whose) {
        if self.families.is_empty() {
            self.timers.arm(reactor.now(), Timer::Families);
        }
        self.families.retain(|family| family.whose != whose);
        self.families.push(Family { whose, until: reactor.now() + GIVE_UP_AFTER, quiet: false });
    }

    /// Kills whom it finds of those families, and looks again until nobody is found.
    pub(super) fn sweep_families(&mut self, reactor: &mut Handle<Key>) {
        // A look that finds no descriptor would find nobody.
        self.reserve = Reserve::default();
        self.look_for_families(reactor);
        self.reserve = Reserve::new();
    }

    fn look_for_families(&mut self, reactor: &mut Handle<Key>) {
        let now = reactor.now();
        let (watchdog, _) = self.liveness.watchdog_page().watchdog();
        let ours = proc::group(std::process::id());
        let mut found = vec![false; self.families.len()];
        for (pid, parent) in descendants::below(watchdog) {
            let mark = descendants::mark_of(pid);
            // Orphans of secondaries that live come to those. As PID 1 it gets everybody's. And after a reload its
            // servers may run another program than we do: they bear no mark, and are of its process group.
            let is_server = || mark.is_none() && proc::group(pid).is_some_and(|group| ours == Some(group));
            let is_stranger = || !proc::is_same_program(pid) && !is_server();
            let is_orphan = parent == watchdog && watchdog != 1 && is_stranger();
            let whose = match mark {
                // Whatever it says of itself.
                _ if is_orphan => Whose::Departed,
                Some(mark) if self.is_alive(mark) => continue,
                Some(_) => Whose::Departed,
                // Who has lost its mark, or is about to end, is told by its group.
                None => Whose::Group(proc::group(pid).unwrap_or(0)),
            };
            if let Some(of) = self.families.iter().position(|family| family.whose == whose) {
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

    /// Whether the secondary that has set the mark, its slot counted from 1, serves or drains.
    fn is_alive(&self, Mark { slot, incarnation, .. }: Mark) -> bool {
        let slot = usize::from(slot).checked_sub(1).and_then(|slot| self.slots.get(slot));
        slot.is_some_and(|slot| slot.is_home_of(incarnation))
    }
}
