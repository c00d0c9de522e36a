//! Starting secondaries, hearing from them, and burying them: what the core decides about
//! slots is done here.

use std::fs::File;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Admission;
use crate::core::job::{Ended, Incarnation, Job};
use crate::core::moment::Moment;
use crate::core::name::Name;
use crate::core::slots::Action;
use crate::os::fifo::{self, Reader, Writer};
use crate::os::pidfd::Pidfd;
use crate::os::reactor::{Handle, Progress};
use crate::os::{proc, process};
use crate::page::Access;
use crate::page::record::Condition;
use crate::page::secondary::SecondaryPage;
use crate::role::access::AccessRecord;
use crate::role::launch::{Nascent, Outfit, Sheet};
use crate::role::principal::kills::Blocked;
use crate::role::principal::obituaries::{Deceased, answered_at, reap};
use crate::role::principal::slot::{Predecessor, Server, Slot};
use crate::role::principal::{Key, Principal, number};
use crate::wire::client::{Refusal, TypeIndex};
use crate::wire::tube::Command;

/// Slots that are looked through at one probe.
const RECONCILED_AT_A_PROBE: usize = 16;

/// So many who came uninvited may wait for room.
const MAX_UNINVITED: usize = 1024;

/// Somebody who came to a secondary without a job.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Uninvited {
    slot: usize,
    kind: TypeIndex,
    client: IpAddr,
    until: Moment,
}

impl Uninvited {
    /// Of another principal, whose patience may have been longer.
    pub fn at_latest(self, until: Moment) -> Self {
        Self { until: self.until.min(until), ..self }
    }
}

/// What a dead secondary leaves, to be thrown away when there is time.
type Remains = (SecondaryPage, Reader, Writer);

impl Principal {
    /// Does what the core says.
    pub(super) fn carry_out(&mut self, reactor: &mut Handle<Key>) {
        while let Some(action) = self.core.poll_action() {
            if !matches!(action, Action::Start { .. }) {
                self.tell_obituaries();
            }
            match action {
                Action::Tell { slot, command } => {
                    if let Some(server) = self.slots[slot].current.as_mut() {
                        server.writer.push(command);
                    }
                }
                Action::Start { slot, incarnation } => self.start_secondary(reactor, slot, incarnation),
                Action::Retire { slot, incarnation } => self.retire(reactor, slot, incarnation),
                Action::BackOff { slot, died, deaths, wait } => {
                    let number = number(slot);
                    let level = if died { log::Level::Warn } else { log::Level::Debug };
                    log::log!(
                        level,
                        "secondary {number}: {deaths} young deaths in a row, next start in {wait:?}"
                    );
                }
                Action::GiveUp { slot } => {
                    log::error!("secondary {} says that it cannot start: it stays down", number(slot));
                }
                Action::Mended { slot, entry } => {
                    let number = number(slot);
                    log::error!(
                        "secondary {number}: somebody wrote into entry {entry} of the job table: mended"
                    );
                }
                Action::Ended { slot, job } => self.tell_of(slot, &job),
                Action::EndFamily { group } => self.end_family(reactor, group),
                Action::Report { client, number, news } => self.report(reactor, client, number, news),
                Action::RefuseWaiting => {
                    for key in self.waiting.drain() {
                        self.refuse_waiting(reactor, key, Refusal::Stopping);
                    }
                }
                Action::StopAccepting => self.stop_accepting(reactor),
                Action::Kill { slot, incarnation } => self.kill_overdue(slot, incarnation),
                Action::LookAtHandler { slot, incarnation, job } => {
                    let handling = self.slots[slot].page(incarnation).and_then(SecondaryPage::handling);
                    self.core.handle_handling(reactor.now(), slot, incarnation, job, handling);
                }
                Action::KillForTime { slot, incarnation, job, since, limit } => {
                    let blocked = Blocked { job, limit, for_so_long: reactor.now().since(since) };
                    self.kill_for_time(slot, incarnation, blocked);
                }
                Action::KillAll => self.kill_all(),
                Action::HandOver => {
                    log::info!("told to end: a successor takes over");
                    reactor.stop();
                }
                Action::End { remove_files } => {
                    if remove_files {
                        self.remove_files();
                    }
                    reactor.stop();
                }
            }
        }
        self.tell_obituaries();
    }

    /// What the turn has produced.
    pub(super) fn work_off(&mut self, reactor: &mut Handle<Key>) {
        self.carry_out(reactor);
        self.serve_waiting(reactor);
        self.let_in(reactor.now());
        self.core.finish_turn(reactor.now());
        self.offer_what_is_fresh();
        self.carry_out(reactor);
        self.flush_tubes(reactor);
        self.answer_clients(reactor);
        self.make_room(reactor);
        self.tell_connections();
        self.leave_if_asked(reactor);
    }

    /// A job has ended that no secondary can tell of.
    fn tell_of(&self, slot: usize, job: &Ended) {
        if crate::os::log::tells_access() {
            let (requests, slot) = (&self.config.request[..], number(slot));
            AccessRecord { job, requests, slot, peer: job.client, peer_port: None, bytes: None }.tell();
        }
    }

    fn start_secondary(&mut self, reactor: &mut Handle<Key>, slot: usize, incarnation: Incarnation) {
        let number = number(slot);
        match self.spawn(reactor, slot, incarnation) {
            Ok((server, start_time)) => {
                self.page().occupy(number, incarnation, server.pidfd.pid(), start_time);
                if incarnation > 1 {
                    self.page().count_restart(number);
                }
                self.slots[slot].current = Some(server);
                self.liveness.ring_later();
            }
            Err(error) => {
                if self.slots[slot].start_trouble.is_news(reactor.now()) {
                    log::error!("cannot start secondary {number}.{incarnation}: {error}");
                }
                self.core.handle_start_failed(reactor.now(), slot, incarnation);
            }
        }
    }

    fn spawn(
        &mut self,
        reactor: &mut Handle<Key>,
        slot: usize,
        incarnation: Incarnation,
    ) -> Result<(Server, u64), String> {
        let number = number(slot);
        let kinds = self.kinds_served(slot);
        let Slot { table, listeners, .. } = &self.slots[slot];
        let listeners =
            kinds.iter().flat_map(|&kind| &listeners[kind]).map(TcpListener::as_fd).collect::<Vec<_>>();
        let watchdog = self.liveness.watchdog();
        let nascent = Nascent::start(number, watchdog, self.watchdog_page.as_fd(), table.as_fd(), &listeners);
        self.tell_obituaries();
        let nascent = nascent.map_err(|error| error.to_string())?;
        // Field 22 of /proc/<pid>/stat.
        let start_time = proc::stat(nascent.pid()).map_or(0, |stat| stat.start_time);
        let sheet = self.sheet.for_secondary(number, incarnation, start_time, kinds);
        match self.equip(&nascent, slot, &sheet) {
            Ok((page, mut tube, writer)) => {
                let mut pidfd = nascent.into_pidfd();
                watch_end(reactor, &mut pidfd, slot, incarnation);
                watch_tube(reactor, &mut tube, slot, incarnation);
                Ok((Server { incarnation, pidfd, page, tube, writer, killed: None }, start_time))
            }
            Err(error) => {
                self.dead.stillborn.push(nascent.give_up());
                Err(error)
            }
        }
    }

    /// Makes the files of a secondary, and tells it who it is.
    fn equip(
        &mut self,
        nascent: &Nascent,
        slot: usize,
        sheet: &Sheet,
    ) -> Result<(SecondaryPage, Reader, Writer), String> {
        let number = number(slot);
        self.make_files(slot).map_err(|error| error.to_string())?;
        let open = |path: PathBuf| {
            fifo::open_end(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))
        };
        let tube = Reader::from(open(self.rundir.from_secondary(number))?);
        let writer = Writer::from(open(self.rundir.to_secondary(number))?);
        let theirs = [
            open(self.rundir.secondary_orders(number))?,
            open(self.rundir.secondary_page(number))?,
            open(self.rundir.to_secondary(number))?,
            open(self.rundir.from_secondary(number))?,
        ];
        let page = SecondaryPage::attach(&theirs[1], Access::ReadOnly).map_err(|error| error.to_string())?;
        let [orders, own_page, to_secondary, from_secondary] = theirs.each_ref().map(File::as_fd);
        let outfit = Outfit { orders, page: own_page, to_secondary, from_secondary };
        nascent.tell(sheet, outfit).map_err(|error| error.to_string())?;
        Ok((page, tube, writer))
    }

    /// The server of a slot drains: another needs its names.
    fn retire(&mut self, reactor: &mut Handle<Key>, slot: usize, incarnation: Incarnation) {
        let known = &mut self.slots[slot];
        if let Some(mut server) = known.current.take_if(|server| server.incarnation == incarnation) {
            server.writer.unwatch(reactor);
            known.counts = server.page.counts();
            let Server { pidfd, tube, page, killed, .. } = server;
            let (tube, page) = (Some(tube), Some(page));
            known.predecessors.push(Predecessor { incarnation, pidfd, tube, page, killed });
        }
        self.retire_files(slot, incarnation);
    }

    pub(super) fn retire_files(&self, slot: usize, incarnation: Incarnation) {
        let number = number(slot);
        if let Err(error) = self.rundir.retire_secondary(number, incarnation) {
            log::warn!("secondary {number}: cannot rename its files: {error}");
        }
    }

    pub(super) fn read_tube(
        &mut self,
        reactor: &mut Handle<Key>,
        slot: usize,
        incarnation: Incarnation,
    ) -> Progress {
        let Some(tube) = self.slots[slot].tube(incarnation) else {
            return Progress::Drained;
        };
        // Kept from one time to the next: what is said often shall allocate nothing.
        let mut commands = std::mem::take(&mut self.heard);
        let mut malformed = 0;
        let read = tube.read(|line| match Command::parse(line) {
            Ok(command) => commands.push(command),
            Err(_) => malformed += 1,
        });
        if malformed > 0 {
            log::warn!("secondary {}.{incarnation}: {malformed} lines are no commands", number(slot));
            self.core.look_through(slot);
        }
        for command in commands.drain(..) {
            self.hear(reactor, slot, incarnation, command);
        }
        self.heard = commands;
        read.unwrap_or_else(|error| {
            log::warn!("cannot read a tube: {error}");
            Progress::Drained
        })
    }

    /// A secondary says something.
    fn hear(&mut self, reactor: &mut Handle<Key>, slot: usize, incarnation: Incarnation, command: Command) {
        let now = reactor.now();
        log::debug!("secondary {}.{incarnation}: {command:?}", number(slot));
        match command {
            Command::Ready => {
                process::tidy_up();
                self.core.handle_ready(now, slot, incarnation);
            }
            Command::Draining => self.core.handle_draining(now, slot, incarnation),
            Command::Recycling => self.core.handle_recycling(now, slot, incarnation),
            Command::Debut(job) => self.core.handle_debut(slot, job),
            Command::Fin(job) | Command::Err(job) => self.core.handle_end(slot, job),
            Command::Resync => self.core.look_through(slot),
            Command::Uninvited { kind, client } => {
                self.ask_uninvited(now, slot, usize::from(kind), client);
            }
            Command::Job(_) | Command::Stop | Command::Leave | Command::Ping(_) | Command::Pong(_) => {
                log::warn!("secondary {}.{incarnation} says {command:?}", number(slot));
            }
        }
    }

    /// Somebody came to a secondary without a job, and all are let in: as soon as there is room.
    fn ask_uninvited(&mut self, now: Moment, slot: usize, kind: TypeIndex, client: IpAddr) {
        let wanted = self.config.admission == Admission::Open && kind < self.config.request.len();
        if wanted && self.uninvited.len() < MAX_UNINVITED {
            self.uninvited.push(Uninvited { slot, kind, client, until: now + self.config.queue_within });
        }
    }

    /// The books know who comes uninvited like any other. Who gets no job is turned away by the
    /// secondary when `queue_within` is over.
    pub(super) fn let_in(&mut self, now: Moment) {
        let Self { core, uninvited, .. } = self;
        if core.refuses_requests() {
            uninvited.clear();
        }
        uninvited.retain(|&Uninvited { slot, kind, client, until }| {
            let job = Job { kind, client, given_at: now, jeton: None };
            until > now && core.give_uninvited(slot, job).is_err()
        });
    }

    /// The kernel says that a secondary has ended.
    pub(super) fn on_ended(&mut self, reactor: &mut Handle<Key>, slot: usize, incarnation: Incarnation) {
        // What it said before it died may still stand in its tube: 64 KiB at most (pipe(7)).
        for _ in 0..8 {
            if self.read_tube(reactor, slot, incarnation) == Progress::Drained {
                break;
            }
        }
        if self.slots[slot].has_recycled(incarnation) {
            // The line may have been stolen: its end is no death to back off from.
            self.core.handle_recycling(reactor.now(), slot, incarnation);
        }
        self.carry_out(reactor);
        let server = self.slots[slot].current.take_if(|server| server.incarnation == incarnation);
        let remains = server.map(|server| self.bury_server(reactor, slot, server));
        if remains.is_none() {
            self.bury_predecessor(reactor, slot, incarnation);
        }
        self.carry_out(reactor);
        // A disk takes its time to free files without a name: the successor is on its way by now.
        drop(remains);
    }

    fn bury_server(&mut self, reactor: &mut Handle<Key>, slot: usize, server: Server) -> Remains {
        let exit = reap(&server.pidfd);
        self.slots[slot].counts = server.page.counts();
        let Server { incarnation, mut pidfd, mut tube, mut writer, page, killed } = server;
        pidfd.unwatch(reactor);
        tube.unwatch(reactor);
        writer.unwatch(reactor);
        let answered_at = answered_at(&page, incarnation);
        let deceased = Deceased { incarnation, pidfd, exit, answered_at, killed, recycled: false };
        self.enter_death(reactor, slot, deceased);
        self.liveness.ring_later();
        (page, tube, writer)
    }

    fn bury_predecessor(&mut self, reactor: &mut Handle<Key>, slot: usize, incarnation: Incarnation) {
        let recycled = self.slots[slot].has_recycled(incarnation);
        let predecessors = &mut self.slots[slot].predecessors;
        let found = predecessors.iter().position(|predecessor| predecessor.incarnation == incarnation);
        let Some(found) = found else {
            return;
        };
        let Predecessor { mut pidfd, tube, page, killed, .. } = predecessors.swap_remove(found);
        let exit = reap(&pidfd);
        pidfd.unwatch(reactor);
        if let Some(mut tube) = tube {
            tube.unwatch(reactor);
        }
        let answered_at = page.and_then(|page| answered_at(&page, incarnation));
        let deceased = Deceased { incarnation, pidfd, exit, answered_at, killed, recycled };
        self.enter_death(reactor, slot, deceased);
        if let Err(error) = self.rundir.remove_secondary(number(slot), Some(incarnation)) {
            log::warn!("secondary {}: cannot remove its files: {error}", number(slot));
        }
    }

    /// The watchdog's verdicts have changed.
    pub(super) fn read_verdicts(&mut self, reactor: &mut Handle<Key>) {
        let suspects = self.liveness.suspects();
        for slot in 0..self.slots.len() {
            if let Some(incarnation) = self.core.current(slot) {
                let suspect = suspects.contains(&Name::secondary(number(slot), incarnation));
                self.core.handle_suspicion(reactor.now(), slot, incarnation, suspect);
            }
        }
    }

    /// At each probe: looks at the truth, whose doorbells may have been lost or stolen
    /// (`cat wdtube1` takes lines away). A few slots at a time.
    pub(super) fn reconcile(&mut self, reactor: &mut Handle<Key>) {
        self.read_stop(reactor);
        self.read_verdicts(reactor);
        self.reap_the_rest();
        self.close_what_is_retired();
        if !self.core.is_stopping() {
            self.spares.make_one(&self.rundir);
        }
        for _ in 0..self.slots.len().min(RECONCILED_AT_A_PROBE) {
            let slot = self.reconcile_next % self.slots.len();
            self.reconcile_next = slot + 1;
            self.reconcile_slot(reactor, slot);
        }
    }

    fn reconcile_slot(&mut self, reactor: &mut Handle<Key>, slot: usize) {
        self.core.look_through_in_turn(slot);
        self.core.repeat_stop(slot);
        let Some(server) = self.slots[slot].current.as_ref() else {
            return;
        };
        let (incarnation, pid, record) = (server.incarnation, server.pidfd.pid(), server.page.record());
        if !server.pidfd.is_watched() && server.pidfd.has_ended() {
            self.on_ended(reactor, slot, incarnation);
            return;
        }
        if record.incarnation != incarnation || record.pid != pid {
            return;
        }
        if self.page().slot(number(slot)).start_time == 0 {
            // It could not be read when the process was started: the watchdog knows it by that.
            self.page().occupy(number(slot), incarnation, pid, record.start_time);
            self.liveness.ring_later();
        }
        match record.condition {
            Condition::Ready => self.core.handle_ready(reactor.now(), slot, incarnation),
            Condition::Draining => self.core.handle_draining(reactor.now(), slot, incarnation),
            Condition::Recycling => self.core.handle_recycling(reactor.now(), slot, incarnation),
            Condition::None | Condition::Starting => {}
        }
    }

    /// Rings each secondary once with all that the turn produced for it.
    pub(super) fn flush_tubes(&mut self, reactor: &mut Handle<Key>) {
        let servers = self.slots.iter_mut().filter_map(|slot| slot.current.as_mut());
        for server in servers.filter(|server| server.writer.has_pending()) {
            server.writer.flush_or_watch(reactor, Key::TubeRoom);
        }
    }

    /// The watchdog has died: nobody would accept in our stead, so nothing is accepted.
    fn stop_accepting(&mut self, reactor: &mut Handle<Key>) {
        if !self.listeners.is_empty() {
            log::warn!("the watchdog has died: finishing what is under way");
        }
        for (mut listener, id) in self.listeners.drain(..) {
            reactor.deregister(&mut listener, id);
        }
        for slot in &mut self.slots {
            slot.listeners.iter_mut().for_each(Vec::clear);
        }
    }
}

pub(super) fn watch_end(reactor: &mut Handle<Key>, pidfd: &mut Pidfd, slot: usize, incarnation: Incarnation) {
    if let Err(error) = pidfd.watch(reactor, Key::Ended(slot, incarnation)) {
        log::error!("cannot watch pid {}: {error}", pidfd.pid());
    }
}

pub(super) fn watch_tube(
    reactor: &mut Handle<Key>,
    tube: &mut Reader,
    slot: usize,
    incarnation: Incarnation,
) {
    if let Err(error) = tube.watch(reactor, Key::Tube(slot, incarnation)) {
        log::error!("cannot watch a tube: {error}");
    }
}
