//! Who lives in the system, read from shared memory and `/proc`; and how much each holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use osps::core::job::Incarnation;
use osps::core::name::Role;
use osps::core::slots::Occupied;
use osps::os::pidfd::Pidfd;
use osps::os::rundir::Rundir;
use osps::page::Access;
use osps::page::principal::PrincipalPage;
use osps::page::watchdog::{Verdict, WatchdogPage};

/// A server of the system, alive a moment ago.
#[derive(Debug)]
pub struct Server {
    /// 0 for the principal.
    pub slot: u16,
    pub incarnation: Incarnation,
    /// It still finishes its exchanges; another serves in its place, or will.
    pub is_predecessor: bool,
    /// The only way it is struck: never a process that got its pid later.
    pub pidfd: Pidfd,
}

/// The pages that tell who lives.
pub struct Household {
    watchdog: WatchdogPage,
    principal: PrincipalPage,
}

impl Household {
    pub fn of(rundir: &Path) -> Self {
        let rundir = Rundir::at(rundir);
        Self {
            watchdog: WatchdogPage::attach(&rundir.watchdog_page(), Access::ReadOnly).unwrap(),
            principal: PrincipalPage::attach(&rundir.principal_page(), Access::ReadOnly).unwrap(),
        }
    }

    /// The request types, and the slot and type of each data port.
    pub fn ports(&self) -> (Vec<String>, BTreeMap<u16, u16>) {
        let directory = self.watchdog.directory().unwrap();
        let of_slot =
            |(slot, ports): (u16, &Vec<u16>)| ports.iter().map(|&port| (port, slot)).collect::<Vec<_>>();
        let ports = (1..).zip(&directory.ports).flat_map(of_slot).collect();
        (directory.requests, ports)
    }

    /// Everybody that the watchdog or the principal knows of and that has not ended.
    pub fn servers(&self) -> Vec<Server> {
        let mut servers: Vec<Server> = Vec::new();
        let watched = self.watchdog.watched().map(|watched| {
            let slot = if watched.name.role == Role::Principal { 0 } else { watched.name.slot };
            let is_predecessor = matches!(watched.verdict, Verdict::Draining | Verdict::Recycling);
            (slot, watched.name.incarnation, is_predecessor, watched.pid, watched.start_time)
        });
        // The watchdog may not have met them yet, or sleep.
        let occupied = (1..=self.principal.slots()).filter_map(|number| {
            let slot = self.principal.slot(number);
            let lives = matches!(slot.occupied, Occupied::Starting | Occupied::Ready);
            lives.then_some((number, slot.incarnation, false, slot.pid, slot.start_time))
        });
        for (slot, incarnation, is_predecessor, pid, start_time) in watched.chain(occupied) {
            let known = |server: &Server| (server.slot, server.incarnation) == (slot, incarnation);
            if servers.iter().any(known) {
                continue;
            }
            if let Ok(pidfd) = Pidfd::of_process(pid, start_time)
                && !pidfd.has_ended()
            {
                servers.push(Server { slot, incarnation, is_predecessor, pidfd });
            }
        }
        servers
    }
}

/// One process of a process group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub pid: u32,
    pub parent: u32,
    /// The state letter of proc_pid_stat(5).
    pub letter: char,
    /// How many threads it has.
    pub threads: usize,
}

/// All processes of a group, zombies included.
pub fn members(group: u32) -> Vec<Member> {
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    processes.filter_map(|pid| member(pid, group)).collect()
}

fn member(pid: u32, group: u32) -> Option<Member> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let letter = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let its_group: u32 = fields.next()?.parse().ok()?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    (its_group == group).then_some(Member { pid, parent, letter, threads })
}

/// What the descriptors of a process are open on, sorted; what differs from one incarnation to
/// the next (pids, inodes, numbers in names) is left out, and the program, which a watchdog holds since its first
/// reload.
pub fn descriptors(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let targets = entries.filter_map(|entry| entry.ok()?.path().read_link().ok());
    let mut targets: Vec<String> = targets
        .map(|target| target.display().to_string().replace(|letter: char| letter.is_ascii_digit(), ""))
        .filter(|target| !target.ends_with("/osps"))
        .collect();
    targets.sort();
    targets
}

/// Memory that is its own, in KiB: what the kernel calls anonymous (proc_pid_status(5)).
pub fn own_memory_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
