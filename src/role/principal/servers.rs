//! Starting secondaries, hearing from them, and burying them.

use rustix::process::Signal;

use crate::core::job::{Incarnation, next_incarnation};
use crate::core::name::Name;
use crate::core::restart::{Death, Verdict as RestartVerdict};
use crate::exit::Code;
use crate::os::fifo::{self, Reader, Writer};
use crate::os::pidfd::{Exit, Pidfd};
use crate::os::proc;
use crate::os::reactor::{Handle, Progress};
use crate::os::rundir;
use crate::page::principal::Occupied;
use crate::page::record::Condition;
use crate::page::secondary::SecondaryPage;
use crate::page::{Access, PageError};
use crate::role::launch::{self, Sheet};
use crate::role::principal::slot::{Predecessor, Server, Slot};
use crate::role::principal::{Key, Principal, Timer};
use crate::wire::tube::Command;

/// Slots that are looked through at one probe.
const RECONCILED_AT_A_PROBE: usize = 16;

impl Principal {
    /// Takes a slot over from a dead principal: finds who of its secondaries still lives,
    /// then what has become of their jobs.
    pub(super) fn take_over(&mut self, reactor: &mut Handle<Key>, index: usize) {
        let number = self.slots[index].number;
        let last = self.page.slot(number);
        if let Ok(page) = SecondaryPage::attach(&self.rundir.secondary_page(number), Access::ReadOnly) {
            self.slots[index].counts = page.counts();
        }
        let watched: Vec<(Incarnation, u32, u64)> = self
            .liveness
            .watchdog_page()
            .watched()
            .filter(|watched| watched.name == Name::secondary(number, watched.name.incarnation))
            .map(|watched| (watched.name.incarnation, watched.pid, watched.start_time))
            .chain([(last.incarnation, last.pid, last.start_time)])
            .collect();
        for (incarnation, pid, start_time) in watched {
            if self.slots[index].is_living(incarnation) {
                continue;
            }
            if let Ok(pidfd) = Pidfd::of_process(pid, start_time) {
                if incarnation == last.incarnation
                    && let Err(error) = self.rundir.retire_secondary(number, incarnation)
                {
                    log::warn!("secondary {number}: cannot rename its files: {error}");
                }
                self.adopt(reactor, index, incarnation, pidfd);
            }
        }
        self.recover(reactor, index);
        self.page.set_occupied(number, Occupied::Down);
    }

    /// Watches a draining predecessor: its doorbells and its end.
    fn adopt(&mut self, reactor: &mut Handle<Key>, index: usize, incarnation: Incarnation, mut pidfd: Pidfd) {
        let path = self.rundir.from_predecessor(self.slots[index].number, incarnation);
        let tube = Reader::open(&path).ok().map(|mut tube| {
            watch_tube(reactor, &mut tube, index, incarnation);
            tube
        });
        watch_end(reactor, &mut pidfd, index, incarnation);
        self.slots[index].predecessors.push(Predecessor { incarnation, pidfd, tube });
    }

    /// Starts a secondary in an empty slot.
    pub(super) fn start_secondary(&mut self, reactor: &mut Handle<Key>, index: usize) {
        let slot = &self.slots[index];
        if slot.current.is_some() || slot.start_timer.is_some() {
            return;
        }
        let number = slot.number;
        if !self.may_start(index) {
            return;
        }
        let incarnation = next_incarnation(self.page.slot(number).incarnation);
        self.page.reserve(number, incarnation);
        match self.spawn(reactor, index, incarnation) {
            Ok(server) => {
                let start_time = proc::stat(server.pidfd.pid()).map_or(0, |stat| stat.start_time);
                self.page.occupy(number, incarnation, server.pidfd.pid(), start_time);
                if incarnation > 1 {
                    self.page.count_restart(number);
                }
                self.slots[index].current = Some(server);
                self.liveness.ring();
            }
            Err(error) => {
                log::error!("cannot start secondary {number}.{incarnation}: {error}");
                self.schedule_start(reactor, index, Death { ready_since: None, cannot_start: false });
            }
        }
    }

    fn spawn(
        &self,
        reactor: &mut Handle<Key>,
        index: usize,
        incarnation: Incarnation,
    ) -> Result<Server, String> {
        let slot = &self.slots[index];
        let page = self.make_files(slot).map_err(|error| error.to_string())?;
        let open = |error| format!("its tubes cannot be opened: {error}");
        let mut tube = Reader::open(&self.rundir.from_secondary(slot.number)).map_err(open)?;
        let writer = Writer::open(&self.rundir.to_secondary(slot.number)).map_err(open)?;
        let sheet =
            Sheet { slot: slot.number, incarnation, parent: std::process::id(), ..self.sheet.clone() };
        let mut pidfd = launch::spawn(&sheet, self.liveness.watchdog(), None, slot.listeners.iter())
            .map_err(|error| error.to_string())?;
        watch_end(reactor, &mut pidfd, index, incarnation);
        watch_tube(reactor, &mut tube, index, incarnation);
        Ok(Server {
            incarnation,
            pidfd,
            page,
            tube,
            writer,
            ready_since: None,
            suspect: false,
            stop_sent: false,
        })
    }

    /// New files for a new incarnation: no stale byte survives in a FIFO.
    fn make_files(&self, slot: &Slot) -> Result<SecondaryPage, PageError> {
        let number = slot.number;
        let io = |what| move |source| PageError::Io { what, path: self.rundir.path().to_owned(), source };
        self.rundir.remove_secondary(number, None).map_err(io("clean"))?;
        let page = SecondaryPage::create(&self.rundir.secondary_page(number), number, slot.counts)?;
        for fifo in [
            self.rundir.to_secondary(number),
            self.rundir.from_secondary(number),
            self.rundir.secondary_orders(number),
        ] {
            fifo::create(&fifo).map_err(io("create FIFOs in"))?;
        }
        Ok(page)
    }

    pub(super) fn read_tube(
        &mut self,
        reactor: &mut Handle<Key>,
        index: usize,
        incarnation: Incarnation,
    ) -> Progress {
        let slot = &mut self.slots[index];
        let tube = match slot.current.as_mut() {
            Some(server) if server.incarnation == incarnation => Some(&mut server.tube),
            _ => slot
                .predecessors
                .iter_mut()
                .find(|predecessor| predecessor.incarnation == incarnation)
                .and_then(|predecessor| predecessor.tube.as_mut()),
        };
        let Some(tube) = tube else {
            return Progress::Drained;
        };
        let mut commands = Vec::new();
        let mut malformed = 0;
        let read = tube.read(|line| match Command::parse(line) {
            Ok(command) => commands.push(command),
            Err(_) => malformed += 1,
        });
        if malformed > 0 {
            log::warn!("secondary {}.{incarnation}: {malformed} lines are no commands", slot.number);
            self.look_through(index);
        }
        for command in commands {
            self.hear(reactor, index, incarnation, command);
        }
        read.unwrap_or_else(|error| {
            log::warn!("cannot read a tube: {error}");
            Progress::Drained
        })
    }

    /// A secondary says something.
    fn hear(&mut self, reactor: &mut Handle<Key>, index: usize, incarnation: Incarnation, command: Command) {
        match command {
            Command::Ready => self.on_server_ready(reactor, index, incarnation),
            Command::Draining => self.on_server_draining(reactor, index, incarnation),
            Command::Debut(job) => self.on_debut(index, job),
            Command::Fin(job) | Command::Err(job) => self.on_end(index, job),
            Command::Resync => self.look_through(index),
            Command::Job(_) | Command::Stop | Command::Ping(_) | Command::Pong(_) => {
                log::warn!("secondary {}.{incarnation} says {command:?}", self.slots[index].number);
            }
        }
    }

    fn on_server_ready(&mut self, reactor: &mut Handle<Key>, index: usize, incarnation: Incarnation) {
        let slot = &mut self.slots[index];
        let Some(server) = slot.current.as_mut().filter(|server| server.incarnation == incarnation) else {
            return;
        };
        if server.ready_since.is_none() {
            server.ready_since = Some(reactor.now());
            self.page.set_occupied(slot.number, Occupied::Ready);
            self.update_availability(reactor, index);
        }
    }

    /// A secondary was sent SIGTERM: it finishes what it has, its successor takes the slot.
    fn on_server_draining(&mut self, reactor: &mut Handle<Key>, index: usize, incarnation: Incarnation) {
        let slot = &mut self.slots[index];
        let Some(mut server) = slot.current.take_if(|server| server.incarnation == incarnation) else {
            return;
        };
        server.writer.unwatch(reactor);
        slot.counts = server.page.counts();
        let Server { pidfd, tube, .. } = server;
        slot.predecessors.push(Predecessor { incarnation, pidfd, tube: Some(tube) });
        let number = slot.number;
        if let Err(error) = self.rundir.retire_secondary(number, incarnation) {
            log::warn!("secondary {number}: cannot rename its files: {error}");
        }
        self.page.set_occupied(number, Occupied::Down);
        self.update_availability(reactor, index);
        self.start_secondary(reactor, index);
    }

    /// The kernel says that a secondary has ended.
    pub(super) fn on_ended(&mut self, reactor: &mut Handle<Key>, index: usize, incarnation: Incarnation) {
        // What it said before it died may still stand in its tube: 64 KiB at most (pipe(7)).
        for _ in 0..8 {
            if self.read_tube(reactor, index, incarnation) == Progress::Drained {
                break;
            }
        }
        if self.slots[index].current.as_ref().is_some_and(|server| server.incarnation == incarnation) {
            self.bury_server(reactor, index);
        } else {
            self.bury_predecessor(reactor, index, incarnation);
        }
    }

    fn bury_server(&mut self, reactor: &mut Handle<Key>, index: usize) {
        let Some(server) = self.slots[index].current.take() else {
            return;
        };
        let (number, incarnation) = (self.slots[index].number, server.incarnation);
        let exit = reap(&server.pidfd);
        self.slots[index].counts = server.page.counts();
        let Server { mut pidfd, mut tube, mut writer, ready_since, stop_sent, .. } = server;
        pidfd.unwatch(reactor);
        tube.unwatch(reactor);
        writer.unwatch(reactor);
        let failed = self.fail_claims_of(index, incarnation);
        let cannot_start = matches!(exit, Exit::Code(code) if Code::means_cannot_start(code));
        if !stop_sent {
            log::warn!(
                "secondary {number}.{incarnation} (pid {}) has ended: {exit}; {failed} jobs failed with it",
                pidfd.pid()
            );
        }
        self.page.set_occupied(number, Occupied::Down);
        self.update_availability(reactor, index);
        self.liveness.ring();
        if self.may_start(index) {
            self.schedule_start(reactor, index, Death { ready_since, cannot_start });
        }
    }

    fn bury_predecessor(&mut self, reactor: &mut Handle<Key>, index: usize, incarnation: Incarnation) {
        let slot = &mut self.slots[index];
        let found = slot.predecessors.iter().position(|predecessor| predecessor.incarnation == incarnation);
        let Some(found) = found else {
            return;
        };
        let Predecessor { mut pidfd, tube, .. } = slot.predecessors.swap_remove(found);
        let number = slot.number;
        let exit = reap(&pidfd);
        pidfd.unwatch(reactor);
        if let Some(mut tube) = tube {
            tube.unwatch(reactor);
        }
        let failed = self.fail_claims_of(index, incarnation);
        log::info!(
            "secondary {number}.{incarnation} (pid {}) has drained: {exit}; {failed} jobs failed with it",
            pidfd.pid()
        );
        if let Err(error) = self.rundir.remove_secondary(number, Some(incarnation)) {
            log::warn!("secondary {number}: cannot remove its files: {error}");
        }
    }

    fn schedule_start(&mut self, reactor: &mut Handle<Key>, index: usize, death: Death) {
        let now = reactor.now();
        let slot = &mut self.slots[index];
        let number = slot.number;
        match slot.restart.after_death(now, death) {
            RestartVerdict::StartAt(at) if at <= now => self.start_secondary(reactor, index),
            RestartVerdict::StartAt(at) => {
                let deaths = slot.restart.young_deaths();
                log::warn!(
                    "secondary {number}: {deaths} young deaths in a row, next start in {:?}",
                    at.since(now)
                );
                slot.start_timer = Some(self.timers.arm(at, Timer::Start(index)));
            }
            RestartVerdict::GiveUp => {
                log::error!("secondary {number} says that it cannot start: it stays down");
                self.page.set_occupied(number, Occupied::GivenUp);
            }
        }
    }

    /// The watchdog's verdicts have changed.
    pub(super) fn read_verdicts(&mut self, reactor: &mut Handle<Key>) {
        let suspects = self.liveness.suspects();
        for index in 0..self.slots.len() {
            let number = self.slots[index].number;
            let Some(server) = self.slots[index].current.as_mut() else {
                continue;
            };
            let suspect = suspects.contains(&Name::secondary(number, server.incarnation));
            if suspect != server.suspect {
                server.suspect = suspect;
                self.update_availability(reactor, index);
            }
        }
    }

    /// At each probe: looks at the truth, whose doorbells may have been lost or stolen
    /// (`cat wdtube1` takes lines away). A few slots at a time.
    pub(super) fn reconcile(&mut self, reactor: &mut Handle<Key>) {
        self.stop_is_ordered(reactor);
        self.read_verdicts(reactor);
        for _ in 0..self.slots.len().min(RECONCILED_AT_A_PROBE) {
            let index = self.reconcile_next % self.slots.len();
            self.reconcile_next = index + 1;
            self.reconcile_slot(reactor, index);
        }
    }

    fn reconcile_slot(&mut self, reactor: &mut Handle<Key>, index: usize) {
        if self.dispatch.load(index).open > 0 {
            self.look_through(index);
        }
        let Some(server) = self.slots[index].current.as_mut() else {
            return;
        };
        if server.stop_sent {
            server.writer.push(Command::Stop);
        }
        let (incarnation, record) = (server.incarnation, server.page.record());
        if record.incarnation != incarnation || record.pid != server.pidfd.pid() {
            return;
        }
        match record.condition {
            Condition::Ready => self.on_server_ready(reactor, index, incarnation),
            Condition::Draining => self.on_server_draining(reactor, index, incarnation),
            Condition::None | Condition::Starting => {}
        }
    }

    fn update_availability(&mut self, reactor: &mut Handle<Key>, index: usize) {
        let slot = &mut self.slots[index];
        let available =
            slot.current.as_ref().is_some_and(|server| server.ready_since.is_some() && !server.suspect);
        self.dispatch.load_mut(index).available = available;
        slot.serving_since = match (available, slot.serving_since) {
            (true, None) => Some(reactor.now()),
            (true, since) => since,
            (false, _) => None,
        };
    }

    /// Rings each secondary once with all that the turn produced for it.
    pub(super) fn flush_tubes(&mut self, reactor: &mut Handle<Key>) {
        let servers = self.slots.iter_mut().filter_map(|slot| slot.current.as_mut());
        for server in servers.filter(|server| server.writer.has_pending()) {
            server.writer.flush_or_watch(reactor, Key::TubeRoom);
        }
    }

    /// Kills what is left when a stop has lasted too long.
    pub(super) fn kill_all(&self) {
        for slot in &self.slots {
            let current = slot.current.iter().map(|server| &server.pidfd);
            for pidfd in current.chain(slot.predecessors.iter().map(|predecessor| &predecessor.pidfd)) {
                if let Err(error) = pidfd.signal(Signal::KILL) {
                    log::warn!("cannot kill pid {}: {error}", pidfd.pid());
                }
            }
        }
    }

    /// Removes what the last incarnations leave, when all have ended.
    pub(super) fn remove_files(&self) {
        for slot in &self.slots {
            if let Err(error) = self.rundir.remove_secondary(slot.number, None) {
                log::warn!("secondary {}: cannot remove its files: {error}", slot.number);
            }
            if let Err(error) = rundir::remove(&self.rundir.jobs(slot.number)) {
                log::warn!("secondary {}: cannot remove its job table: {error}", slot.number);
            }
        }
    }
}

fn watch_end(reactor: &mut Handle<Key>, pidfd: &mut Pidfd, slot: usize, incarnation: Incarnation) {
    if let Err(error) = pidfd.watch(reactor, Key::Ended(slot, incarnation)) {
        log::error!("cannot watch pid {}: {error}", pidfd.pid());
    }
}

fn watch_tube(reactor: &mut Handle<Key>, tube: &mut Reader, slot: usize, incarnation: Incarnation) {
    if let Err(error) = tube.watch(reactor, Key::Tube(slot, incarnation)) {
        log::error!("cannot watch a tube: {error}");
    }
}

fn reap(pidfd: &Pidfd) -> Exit {
    match pidfd.reap() {
        Ok(exit) => exit.unwrap_or(Exit::Unknown),
        Err(error) => {
            log::warn!("cannot reap pid {}: {error}", pidfd.pid());
            Exit::Unknown
        }
    }
}
