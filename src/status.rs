//! `osps status`: what each process is doing, read from shared memory alone. It
//! asks nobody, so it works while servers hang.

mod model;
mod text;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::core::job::{Incarnation, State, Table};
use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::core::slots::Occupied;
use crate::exit::{Code, Failure};
use crate::os::clock;
use crate::os::pidfd::Pidfd;
use crate::os::proc;
use crate::os::rundir::Rundir;
use crate::page::jobs::JobTable;
use crate::page::obituary::Obituary;
use crate::page::observer::ObserverPage;
use crate::page::principal::{Ends, PrincipalPage};
use crate::page::record::Record;
use crate::page::secondary::SecondaryPage;
use crate::page::watchdog::{Directory, Verdict, WatchdogPage, Watched};
use crate::page::{Access, PageError};

pub use crate::page::principal::{Connections, Times};
pub use model::{Death, EndsOf, Ledger, Refusals, Server, ServerState, Status, Usage};

/// How often the books are read again while they do not balance.
const READ_AGAIN: usize = 1000;

/// The pages of a running system, mapped for reading.
struct Pages<'a> {
    rundir: &'a Rundir,
    watchdog: WatchdogPage,
    principal: PrincipalPage,
    directory: Directory,
    now: Moment,
}

/// Reads the status of the system that runs in that directory.
///
/// # Errors
/// [`Code::Unavailable`] where none runs there.
pub fn read(rundir: &Rundir) -> Result<Status, Failure> {
    require_running(rundir)?;
    let starting = |error: PageError| {
        Failure::new(Code::Unavailable, format!("osps is starting or cannot be read: {error}"))
    };
    let watchdog = WatchdogPage::attach(&rundir.watchdog_page(), Access::ReadOnly).map_err(starting)?;
    let principal = PrincipalPage::attach(&rundir.principal_page(), Access::ReadOnly).map_err(starting)?;
    let directory = watchdog
        .directory()
        .ok_or_else(|| Failure::new(Code::Unavailable, "the directory in watchdog.page cannot be read"))?;
    let pages = Pages { rundir, watchdog, principal, directory, now: clock::now() };
    Ok(pages.status())
}

/// Makes sure that a system runs in a directory.
///
/// # Errors
/// [`Code::Unavailable`] where none does, [`Code::NoPermission`] where that is not to be known.
pub fn require_running(rundir: &Rundir) -> Result<(), Failure> {
    let path = rundir.path().display();
    match rundir.is_locked() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(Code::Unavailable, format!("no osps is running in {path}"))),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Failure::new(Code::NoPermission, format!("no permission to look into {path}: {error}")))
        }
        Err(error) => Err(Failure::new(Code::Unavailable, format!("cannot look into {path}: {error}"))),
    }
}

impl Pages<'_> {
    fn status(&self) -> Status {
        let tables: Vec<Option<JobTable>> = (1..=self.principal.slots())
            .map(|slot| JobTable::attach(&self.rundir.jobs(slot), Access::ReadOnly).ok())
            .collect();
        let ledger = self.ledger(&tables);
        let names = self.directory.requests.iter().take(self.principal.types());
        let requests =
            names.clone().cloned().zip((0..).map(|kind| self.principal.ends(kind).into())).collect();
        let times = names.cloned().zip((0..).map(|kind| self.principal.times(kind))).collect();
        let mut servers = vec![self.principal_server(&ledger)];
        let slots = (1..=self.principal.slots()).zip(&tables);
        let of_slots = slots.map(|(slot, table)| self.secondary_server(slot, table.as_ref()));
        // A slot that was taken out of service is there while somebody is in it.
        let is_there = |server: &Server| server.slot <= self.directory.secondaries || server.pid.is_some();
        servers.extend(of_slots.filter(is_there));
        servers.extend(
            self.watchdog
                .watched()
                .filter(|watched| watched.name.role == Role::Secondary)
                .filter(|watched| matches!(watched.verdict, Verdict::Draining | Verdict::Recycling))
                .map(|watched| self.predecessor_server(&watched, &tables)),
        );
        Status {
            version: self.directory.version.clone(),
            pid: self.watchdog.watchdog().0,
            uptime_ms: millis(self.now, self.watchdog.started_at()),
            listen: self.directory.listen.clone(),
            observe: self.directory.observe.clone(),
            stopping: self.watchdog.is_stopping(),
            requests,
            times,
            ledger,
            refusals: self.principal.refused().into(),
            clients: self.principal.connections(),
            servers,
            watchdog: usage(Some(self.watchdog.watchdog().0)),
            observer: (!self.directory.observe.is_empty()).then(|| self.observer_server()),
            obituaries: self.obituaries(),
        }
    }

    fn obituaries(&self) -> Vec<Death> {
        let of_both = self.watchdog.obituaries().records().chain(self.principal.obituaries().records());
        let mut obituaries: Vec<Obituary> = of_both.collect();
        obituaries.sort_by_key(|obituary| Reverse(obituary.at));
        obituaries.into_iter().map(|obituary| Death::new(obituary, self.now)).collect()
    }

    /// The books. Nobody is stopped for reading them, so a read may fall between two steps
    /// of the principal: then it is repeated until the books balance.
    fn ledger(&self, tables: &[Option<JobTable>]) -> Ledger {
        let mut ledger = self.read_ledger(tables);
        for _ in 0..READ_AGAIN {
            let Ledger { accepted, done, failed, expired, open, .. } = ledger;
            let ends = [done, failed, expired, open].into_iter().fold(0, u64::wrapping_add);
            if accepted == ends && accepted == self.principal.accepted() {
                break;
            }
            ledger = self.read_ledger(tables);
        }
        let pages = (1..=self.principal.slots()).filter_map(|slot| self.secondary_page(slot));
        ledger.rejected = pages.map(|page| page.counts().rejected).fold(0, u64::wrapping_add);
        ledger.refused = Refusals::from(self.principal.refused()).sum();
        ledger
    }

    fn read_ledger(&self, tables: &[Option<JobTable>]) -> Ledger {
        let mut ledger = Ledger { accepted: self.principal.accepted(), ..Ledger::default() };
        for Ends { done, failed, expired } in
            (0..self.principal.types()).map(|kind| self.principal.ends(kind))
        {
            ledger.done = ledger.done.wrapping_add(done);
            ledger.failed = ledger.failed.wrapping_add(failed);
            ledger.expired = ledger.expired.wrapping_add(expired);
        }
        ledger.open = tables.iter().flatten().map(|table| count(table, |_, _| true)).sum();
        ledger
    }

    fn secondary_page(&self, slot: u16) -> Option<SecondaryPage> {
        SecondaryPage::attach(&self.rundir.secondary_page(slot), Access::ReadOnly).ok()
    }

    fn principal_server(&self, ledger: &Ledger) -> Server {
        let watched = self.watchdog.watched().find(|watched| watched.name.role == Role::Principal);
        let record = self.principal.record();
        Server {
            role: "principal",
            slot: 0,
            incarnation: watched.map_or(record.incarnation, |watched| watched.name.incarnation),
            pid: watched.map(|watched| watched.pid),
            usage: usage(watched.map(|watched| watched.pid)),
            state: state_of(watched),
            restarts: self.watchdog.principal_restarts(),
            kills: self.watchdog.kills(Role::Principal, 0),
            rtt_us: round_trip(watched),
            answered_ms_ago: self.answered_ago(watched, Some(record)),
            ports: BTreeMap::new(),
            open: ledger.open,
            done: ledger.done,
            failed: ledger.failed,
            recycled: 0,
            reason: None,
        }
    }

    fn observer_server(&self) -> Server {
        let watched = self.watchdog.watched().find(|watched| watched.name.role == Role::Observer);
        let page = ObserverPage::attach(&self.rundir.observer_page(), Access::ReadOnly).ok();
        let record = page.as_ref().map(ObserverPage::record);
        let last = record.map_or(0, |record| record.incarnation);
        let incarnation = watched.map_or(last, |watched| watched.name.incarnation);
        let visits = page.map(|page| page.visits()).unwrap_or_default();
        Server {
            role: "observer",
            slot: 0,
            incarnation,
            pid: watched.map(|watched| watched.pid),
            usage: usage(watched.map(|watched| watched.pid)),
            state: state_of(watched),
            restarts: u64::from(incarnation.saturating_sub(1)),
            kills: self.watchdog.kills(Role::Observer, 0),
            rtt_us: round_trip(watched),
            answered_ms_ago: self.answered_ago(watched, record),
            ports: BTreeMap::new(),
            open: visits.connected,
            done: visits.requests.saturating_sub(visits.errors),
            failed: visits.errors,
            recycled: 0,
            reason: None,
        }
    }

    fn secondary_server(&self, number: u16, table: Option<&JobTable>) -> Server {
        let slot = self.principal.slot(number);
        let name = Name::secondary(number, slot.incarnation);
        let watched = self.watchdog.find(name).and_then(|index| self.watchdog.load(index));
        let state = match (slot.occupied, watched.map(|watched| watched.verdict)) {
            (Occupied::Down | Occupied::GivenUp | Occupied::Resting, _) => ServerState::Down,
            (_, Some(Verdict::Draining | Verdict::Recycling)) => ServerState::Down,
            // The principal may hang and not know that it has died.
            (_, None) if !is_alive(slot.pid, slot.start_time) => ServerState::Down,
            (_, Some(Verdict::Suspect)) => ServerState::Suspect,
            (Occupied::Starting, _) => ServerState::Starting,
            (Occupied::Ready, _) => ServerState::Ready,
        };
        let is_down = matches!(state, ServerState::Down);
        let page = self.secondary_page(number);
        let record = page.as_ref().map(SecondaryPage::record);
        // What predecessors have claimed stands in their own rows, and so does what the last one has that leaves
        // its slot to nobody.
        let has_left =
            matches!(watched.map(|watched| watched.verdict), Some(Verdict::Draining | Verdict::Recycling));
        let held = table.map_or(0, |table| {
            let has_row = |holder| holder != slot.incarnation || has_left;
            count(table, |state, holder| state == State::Claimed && has_row(holder))
        });
        let reason = match slot.occupied {
            Occupied::GivenUp => Some("it says that it cannot start: see the log"),
            Occupied::Resting => Some("drained: \"osps restart\" with its number starts it again"),
            Occupied::Down | Occupied::Starting | Occupied::Ready => None,
        };
        let pid = (!is_down && slot.pid != 0).then_some(slot.pid);
        Server {
            role: "secondary",
            slot: number,
            incarnation: slot.incarnation,
            pid,
            usage: usage(pid),
            state,
            restarts: slot.restarts,
            kills: self.watchdog.kills(Role::Secondary, number),
            rtt_us: if is_down { None } else { round_trip(watched) },
            answered_ms_ago: if is_down { None } else { self.answered_ago(watched, record) },
            ports: self.ports(number),
            open: slot.open.saturating_sub(held),
            done: slot.done,
            failed: slot.failed,
            recycled: page.map_or(0, |page| page.counts().recycled),
            reason,
        }
    }

    fn predecessor_server(&self, watched: &Watched, tables: &[Option<JobTable>]) -> Server {
        let Name { slot, incarnation, .. } = watched.name;
        let path = self.rundir.predecessor_page(slot, incarnation);
        let record = SecondaryPage::attach(&path, Access::ReadOnly).ok().map(|page| page.record());
        let table = usize::from(slot).checked_sub(1).and_then(|index| tables.get(index)?.as_ref());
        let held = table.map_or(0, |table| {
            count(table, |state, holder| state == State::Claimed && holder == incarnation)
        });
        Server {
            role: "secondary",
            slot,
            incarnation,
            pid: Some(watched.pid),
            usage: usage(Some(watched.pid)),
            state: ServerState::Draining,
            restarts: 0,
            kills: 0,
            rtt_us: round_trip(Some(*watched)),
            answered_ms_ago: self.answered_ago(Some(*watched), record),
            ports: BTreeMap::new(),
            open: held,
            done: 0,
            failed: 0,
            recycled: 0,
            reason: None,
        }
    }

    fn ports(&self, slot: u16) -> BTreeMap<String, u16> {
        let ports = self.directory.ports.get(usize::from(slot) - 1);
        let ports = ports.into_iter().flatten().copied();
        self.directory.requests.iter().cloned().zip(ports).filter(|&(_, port)| port != 0).collect()
    }

    fn answered_ago(&self, watched: Option<Watched>, record: Option<Record>) -> Option<u64> {
        let record = record.filter(|record| watched.is_some_and(|watched| watched.pid == record.pid))?;
        Some(millis(self.now, record.answered_at?))
    }
}

/// The state of a process, as the watchdog alone knows it.
fn state_of(watched: Option<Watched>) -> ServerState {
    match watched.map(|watched| watched.verdict) {
        None => ServerState::Down,
        Some(Verdict::Starting) => ServerState::Starting,
        Some(Verdict::Healthy) => ServerState::Ready,
        Some(Verdict::Suspect) => ServerState::Suspect,
        Some(Verdict::Draining | Verdict::Recycling) => ServerState::Draining,
    }
}

fn is_alive(pid: u32, start_time: u64) -> bool {
    Pidfd::of_process(pid, start_time).is_ok_and(|pidfd| !pidfd.has_ended())
}

/// What the kernel says that a process uses.
fn usage(pid: Option<u32>) -> Usage {
    let cpu = pid.and_then(|pid| proc::cpu_time(pid).ok());
    let cpu_ms = cpu.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    Usage { memory_bytes: pid.and_then(|pid| proc::resident_bytes(pid).ok()), cpu_ms }
}

/// Counts the entries of a table that hold a job.
fn count(table: &JobTable, which: impl Fn(State, Incarnation) -> bool) -> u64 {
    let entries = table.indices().filter_map(|index| table.state(index).ok());
    let held = entries.filter(|word| word.state != State::Free && which(word.state, word.holder));
    held.count() as u64
}

fn round_trip(watched: Option<Watched>) -> Option<u64> {
    watched.map(|watched| watched.round_trip_ns / 1000).filter(|&micros| micros > 0)
}

fn millis(now: Moment, then: Moment) -> u64 {
    u64::try_from(now.since(then).as_millis()).unwrap_or(u64::MAX)
}

impl Status {
    /// One JSON object.
    ///
    /// # Errors
    /// Never in practice: all of it can be written as JSON.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only secondaries have a row for each predecessor that still finishes.
    #[test]
    fn an_observer_that_was_told_to_end_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let rundir = Rundir::at(dir.path());
        let observe = vec!["127.0.0.1:2221".to_owned()];
        let directory = Directory { secondaries: 1, observe, ..Directory::default() };
        let watchdog = WatchdogPage::create(&rundir.watchdog_page(), 1, &directory).unwrap();
        let principal = PrincipalPage::create(&rundir.principal_page(), 1, 1).unwrap();
        for name in [Name::observer(3), Name::secondary(1, 2)] {
            let record = watchdog.watch(name, std::process::id(), 1).unwrap();
            watchdog.set_verdict(record, Verdict::Draining);
        }
        let status = Pages { rundir: &rundir, watchdog, principal, directory, now: clock::now() }.status();
        let rows: Vec<_> =
            status.servers.iter().map(|server| (server.role, server.slot, server.state)).collect();
        let down = ServerState::Down;
        let expected =
            [("principal", 0, down), ("secondary", 1, down), ("secondary", 1, ServerState::Draining)];
        assert_eq!(rows, expected);
        let observer = status.observer.unwrap();
        assert_eq!((observer.state, observer.incarnation, observer.restarts), (ServerState::Draining, 3, 2));
    }
}
