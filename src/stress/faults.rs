//! Faults: servers of a system on this machine are killed or frozen at random while it is measured.

use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::core::name::Role;
use crate::core::slots::Occupied;
use crate::os::pidfd::Pidfd;
use crate::os::rundir::Rundir;
use crate::os::{proc, random};
use crate::page::Access;
use crate::page::principal::PrincipalPage;
use crate::page::watchdog::{Verdict, WatchdogPage};

/// A server that was struck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// When, in seconds from the start on.
    pub at_s: f64,
    /// What was done to whom, in words.
    pub what: String,
}

/// Strikes at random moments.
pub struct Faults {
    rundir: Rundir,
    /// In a second, on average.
    rate: f64,
    next: Duration,
    /// Those so far.
    pub done: Vec<Fault>,
}

impl Faults {
    /// So many faults a second, on average, to the system of that directory.
    #[must_use]
    pub fn new(rundir: Rundir, rate: f64) -> Self {
        let mut faults = Self { rundir, rate, next: Duration::ZERO, done: Vec::new() };
        faults.next = faults.gap();
        faults
    }

    /// When the next one comes, from the start on.
    #[must_use]
    pub fn next(&self) -> Duration {
        self.next
    }

    /// Strikes, if the time has come. Returns what was done.
    pub fn strike(&mut self, at: Duration) -> Option<&Fault> {
        if at < self.next {
            return None;
        }
        self.next = at + self.gap();
        let mut servers = self.servers();
        if servers.is_empty() {
            return None;
        }
        let (name, server) = servers.swap_remove(below(servers.len()));
        let (word, signal) = if below(2) == 0 { ("killed", Signal::KILL) } else { ("froze", Signal::STOP) };
        server.signal(signal).ok()?;
        self.done.push(Fault { at_s: at.as_secs_f64(), what: format!("{word} {name}") });
        self.done.last()
    }

    /// Who serves now, by name, and is not frozen already; never a process that has got the pid of one.
    fn servers(&self) -> Vec<(String, Pidfd)> {
        let mut servers = Vec::new();
        let (Ok(watchdog), Ok(principal)) = (
            WatchdogPage::attach(&self.rundir.watchdog_page(), Access::ReadOnly),
            PrincipalPage::attach(&self.rundir.principal_page(), Access::ReadOnly),
        ) else {
            return servers;
        };
        let mut add = |name: String, pid, start_time| {
            let is_stopped = proc::stat(pid).is_ok_and(|stat| stat.letter == 'T');
            if let Ok(pidfd) = Pidfd::of_process(pid, start_time)
                && !pidfd.has_ended()
                && !is_stopped
            {
                servers.push((name, pidfd));
            }
        };
        for watched in watchdog.watched() {
            if watched.name.role == Role::Principal && watched.verdict == Verdict::Healthy {
                add("principal".to_owned(), watched.pid, watched.start_time);
            }
        }
        for number in 1..=principal.slots() {
            let slot = principal.slot(number);
            if slot.occupied == Occupied::Ready {
                add(format!("secondary {number}"), slot.pid, slot.start_time);
            }
        }
        servers
    }

    /// Gaps between events that know nothing of each other are distributed exponentially.
    fn gap(&self) -> Duration {
        let part = (below(1 << 20) as f64 + 1.0) / f64::from(1 << 20);
        Duration::from_secs_f64((-part.ln() / self.rate).min(1e6))
    }
}

/// A random number below `end`.
fn below(end: usize) -> usize {
    let number = u64::from_le_bytes(random::bytes().unwrap_or_default());
    usize::try_from(number % end as u64).unwrap_or(0)
}
