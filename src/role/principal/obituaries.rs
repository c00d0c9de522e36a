//! The deaths of secondaries: who reaps a process writes its obituary, and the principal reaps
//! those that it has started.

use rustix::process::Signal;

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::supervision::Reason;
use crate::exit::Code;
use crate::os::pidfd::{Exit, Pidfd};
use crate::os::reactor::Handle;
use crate::page::obituary::{Condition, Obituary};
use crate::page::secondary::SecondaryPage;
use crate::role::principal::{Key, Principal, number};

/// A secondary that has ended.
pub struct Deceased {
    /// Which one.
    pub incarnation: Incarnation,
    /// The process.
    pub pidfd: Pidfd,
    /// How it ended, where that is known by now.
    pub exit: Option<Exit>,
    /// Its last answer to a probe.
    pub answered_at: Option<Moment>,
    /// It had said that it leaves for its age.
    pub recycled: bool,
    /// What we have killed it for, if we have.
    pub killed: Option<Condition>,
}

/// The dead with whom we are not done.
#[derive(Debug, Default)]
pub struct Dead {
    /// For the log, as soon as no successor waits to be started.
    untold: Vec<(Obituary, log::Level)>,
    /// They could not be reaped yet.
    unreaped: Vec<(Pidfd, Obituary)>,
    /// Killed before they were told who they are, to be reaped.
    pub stillborn: Vec<Pidfd>,
}

/// When a secondary answered last, if the page is its own.
pub fn answered_at(page: &SecondaryPage, incarnation: Incarnation) -> Option<Moment> {
    let record = page.record();
    record.answered_at.filter(|_| record.incarnation == incarnation)
}

/// How a process ended; `None` where that is not to be known yet: whoever traces it is told
/// first (ptrace(2)).
pub fn reap(pidfd: &Pidfd) -> Option<Exit> {
    pidfd.reap().unwrap_or_else(|error| {
        log::warn!("cannot reap pid {}: {error}", pidfd.pid());
        Some(Exit::Unknown)
    })
}

impl Principal {
    /// Enters a death in the books and in the memory of the tree.
    pub(super) fn enter_death(&mut self, reactor: &mut Handle<Key>, slot: usize, deceased: Deceased) {
        let Deceased { incarnation, pidfd, exit, answered_at, killed: by_us, recycled } = deceased;
        let cannot_start = matches!(exit, Some(Exit::Code(code)) if Code::means_cannot_start(code));
        let Some(loss) = self.core.handle_exited(reactor.now(), slot, incarnation, cannot_start) else {
            return;
        };
        self.end_families_of_departed(reactor);
        let name = Name::secondary(number(slot), incarnation);
        let by_watchdog = self.liveness.watchdog_page().killed().find(name).and_then(|kill| kill.killed);
        let killed = by_us.or(by_watchdog);
        let obituary = Obituary {
            name,
            pid: pidfd.pid(),
            at: reactor.now(),
            exit,
            killed,
            answered_at,
            recycled: recycled && exit == Some(Exit::Code(0)),
            jobs: u64::from(loss.failed),
        };
        match exit {
            Some(exit) => self.publish(obituary, exit, loss.expected),
            None => self.dead.unreaped.push((pidfd, obituary)),
        }
    }

    fn publish(&mut self, mut obituary: Obituary, exit: Exit, expected: bool) {
        if exit == Exit::Unknown {
            // Another principal's: the watchdog reaps it and writes the obituary.
            let Obituary { name, pid, jobs, .. } = obituary;
            log::info!("{name} (pid {pid}) has ended; {jobs} jobs failed with it");
            return;
        }
        let stopping = self.kills_all && exit == Exit::Signal(Signal::KILL.as_raw());
        if obituary.killed.is_none() && stopping {
            let (letter, wchan) = (None, String::new());
            obituary.killed = Some(Condition { reason: Reason::Stopping, letter, wchan });
        }
        obituary.exit = Some(exit);
        let level = if expected && exit == Exit::Code(0) { log::Level::Info } else { log::Level::Warn };
        if !obituary.recycled {
            self.page().obituaries().push(&obituary);
        }
        self.dead.untold.push((obituary, level));
    }

    /// Writes them to the log, which takes a while: after the start of a successor, before all else that is told of its
    /// slot.
    pub(super) fn tell_obituaries(&mut self) {
        self.dead.untold.drain(..).for_each(|(obituary, level)| obituary.tell(level));
    }

    /// Reaps those whose tracers had to be told first, and those who never were anybody.
    pub(super) fn reap_the_rest(&mut self) {
        self.dead.stillborn.retain(|pidfd| reap(pidfd).is_none());
        for (pidfd, obituary) in std::mem::take(&mut self.dead.unreaped) {
            match reap(&pidfd) {
                Some(exit) => self.publish(obituary, exit, false),
                None => self.dead.unreaped.push((pidfd, obituary)),
            }
        }
    }
}
