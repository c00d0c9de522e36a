//! Taking resources away from processes that run, by their soft limits (prlimit(2)).

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// A limit that was lowered.
#[must_use]
pub struct Scarce {
    pid: Pid,
    resource: Resource,
    before: Rlimit,
}

impl Scarce {
    /// Gives the process what it had before.
    pub fn ends(self) {
        prlimit(Some(self.pid), self.resource, self.before).unwrap();
    }
}

/// Lowers a soft limit of a process.
pub fn take(pid: u32, resource: Resource, current: u64) -> Scarce {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let maximum = getrlimit(resource).maximum;
    let before = prlimit(Some(pid), resource, Rlimit { current: Some(current), maximum }).unwrap();
    Scarce { pid, resource, before }
}

/// The numbers of the descriptors that a process has open.
pub fn descriptors(pid: u32) -> BTreeSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// Leaves a process so many descriptors to open.
pub fn leave_descriptors(pid: u32, left: u64) -> Scarce {
    let open = descriptors(pid);
    // The limit is one above the highest number (getrlimit(2)): free ones below it count, too.
    let free = (0..).filter(|number| !open.contains(number));
    let limit = free.take(usize::try_from(left + 1).unwrap()).last().unwrap();
    take(pid, Resource::Nofile, limit)
}
