//! Whom the principal kills: whose handler has blocked it for too long, and who outstays the end.
//! All others are killed by the watchdog.

use std::time::Duration;

use rustix::process::Signal;

use crate::core::job::{Incarnation, Table};
use crate::core::name::Name;
use crate::core::supervision::Reason;
use crate::os::log::KILL;
use crate::os::proc;
use crate::page::obituary::Condition;
use crate::page::secondary::SecondaryPage;
use crate::role::principal::{Principal, number};
use crate::wire::tube::JobRef;

/// A handler that has not come back in time.
#[derive(Clone, Copy)]
pub struct Blocked {
    /// For whom it is at work.
    pub job: JobRef,
    /// How long the job might take.
    pub limit: Duration,
    /// How long it has been at work.
    pub for_so_long: Duration,
}

impl Principal {
    /// Kills a secondary whose handler blocks it beyond the time of its job.
    pub(super) fn kill_for_time(&mut self, slot: usize, incarnation: Incarnation, blocked: Blocked) {
        let Blocked { job: JobRef { index, number: job }, limit, for_so_long } = blocked;
        let kind = self.core.books().tables()[slot].job(index).map(|job| job.kind);
        let kind = kind.and_then(|kind| self.config.request.get(kind));
        let kind = kind.map_or("?", |request| request.name.as_str()).to_owned();
        let Some(pid) = self.slots[slot].process(incarnation).map(|(pidfd, _)| pidfd.pid()) else {
            return;
        };
        let (letter, wchan) = (proc::stat(pid).ok().map(|stat| stat.letter), proc::wchan(pid));
        let handling = self.slots[slot].page(incarnation).and_then(SecondaryPage::handling);
        let Some((pidfd, killed)) = self.slots[slot].process(incarnation) else {
            return;
        };
        if handling.is_none_or(|handling| handling.job != blocked.job) {
            // It has come back in the last moment.
            return;
        }
        *killed = Some(Condition { reason: Reason::TimeLimit, letter, wchan });
        let name = Name::secondary(number(slot), incarnation);
        log::warn!(
            target: KILL,
            "killing {name} (pid {pid}, state {}): the handler of job {job} (\"{kind}\") has been at work for \
             {for_so_long:?}, and the job's time_limit of {limit:?} is over",
            letter.unwrap_or('?')
        );
        if let Err(error) = pidfd.signal(Signal::KILL) {
            log::error!("cannot kill {name}: {error}");
        }
    }

    pub(super) fn kill_overdue(&self, slot: usize, incarnation: Incarnation) {
        let mut predecessors = self.slots[slot].predecessors.iter();
        if let Some(overdue) = predecessors.find(|predecessor| predecessor.incarnation == incarnation) {
            let pid = overdue.pidfd.pid();
            let number = number(slot);
            log::warn!(target: KILL, "secondary {number}.{incarnation} (pid {pid}) is killed: its grace is over");
            if let Err(error) = overdue.pidfd.signal(Signal::KILL) {
                log::warn!("cannot kill pid {pid}: {error}");
            }
        }
    }

    pub(super) fn kill_all(&mut self) {
        self.kills_all = true;
        log::warn!(target: KILL, "secondaries that do not end are killed");
        for slot in &self.slots {
            let current = slot.current.iter().map(|server| &server.pidfd);
            for pidfd in current.chain(slot.predecessors.iter().map(|predecessor| &predecessor.pidfd)) {
                if let Err(error) = pidfd.signal(Signal::KILL) {
                    log::warn!("cannot kill pid {}: {error}", pidfd.pid());
                }
            }
        }
    }
}
