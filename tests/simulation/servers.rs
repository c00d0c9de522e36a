//! The shell of the principal: its secondaries, as in `src/role/principal/servers.rs`.

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::rc::Rc;

use osps::core::job::{Incarnation, Job};
use osps::core::name::Name;
use osps::core::slots::{Action, Handling};
use osps::page::Access;
use osps::page::record::Condition;
use osps::page::secondary::{Counts, Introduced, SecondaryPage, introduced};
use osps::wire::tube::Command;

use crate::audit::Rule;
use crate::fifo::{FifoId, FifoName, Line, Writer};
use crate::kernel::{CANNOT_START, Exit, Own, Sheet};
use crate::machine::{Key, Machine, Proc, Progress};
use crate::plan::TYPES;
use crate::principal::Principal;
use crate::sabotage::Sabotage;

/// A slot, whoever is in it.
#[derive(Default)]
pub struct Slot {
    pub current: Option<Server>,
    pub predecessors: Vec<Predecessor>,
    pub counts: Counts,
}

pub struct Server {
    pub incarnation: Incarnation,
    pub pidfd: Proc,
    pub page: SecondaryPage,
    pub tube: FifoId,
    pub writer: Writer,
}

pub struct Predecessor {
    pub incarnation: Incarnation,
    pidfd: Proc,
    tube: Option<FifoId>,
}

impl Slot {
    fn pidfd(&self, incarnation: Incarnation) -> Option<Proc> {
        let current = self.current.iter().map(|known| (known.incarnation, known.pidfd));
        let predecessors = self.predecessors.iter().map(|known| (known.incarnation, known.pidfd));
        current.chain(predecessors).find(|known| known.0 == incarnation).map(|known| known.1)
    }

    fn tube(&self, incarnation: Incarnation) -> Option<FifoId> {
        match &self.current {
            Some(server) if server.incarnation == incarnation => Some(server.tube),
            _ => self.predecessors.iter().find(|known| known.incarnation == incarnation)?.tube,
        }
    }
}

/// Slots count from 0 in memory, from 1 in names and files.
pub fn number(slot: usize) -> u16 {
    u16::try_from(slot + 1).expect("a few")
}

pub fn ended(slot: usize, incarnation: Incarnation) -> Key {
    Key::Ended(Name::secondary(number(slot), incarnation))
}

impl Principal {
    pub fn take_over(&mut self, sys: &mut Machine) {
        sys.system_call();
        let introduced = introduced(sys.rundir.pages().expect("our own directory")).expect("our own pages");
        let living = (0..self.slots.len())
            .map(|slot| {
                if sys.sabotage != Sabotage::ForgetLiving {
                    self.adopt_living(sys, slot, &introduced);
                }
                self.slots[slot].predecessors.iter().map(|predecessor| predecessor.incarnation).collect()
            })
            .collect();
        self.core.handle_takeover(self.now, living);
        sys.books_were_recovered();
        self.carry_out(sys);
    }

    /// Watches all of a slot who live but the one that serves it, if any does.
    pub fn adopt_living(&mut self, sys: &mut Machine, slot: usize, introduced: &[Introduced]) {
        let number = number(slot);
        let last = self.page().slot(number);
        sys.system_call();
        if let Ok(page) = SecondaryPage::attach(&sys.rundir.secondary_page(number), Access::ReadOnly) {
            self.slots[slot].counts = page.counts();
        }
        let watched: Vec<(Incarnation, u32, u64)> = self
            .liveness
            .page
            .watched()
            .filter(|watched| watched.name == Name::secondary(number, watched.name.incarnation))
            .map(|watched| (watched.name.incarnation, watched.pid, watched.start_time))
            .chain([(last.incarnation, last.pid, last.start_time)])
            .chain(introduced.iter().filter(|known| known.name.slot == number).map(Introduced::as_watched))
            .collect();
        for (incarnation, pid, start_time) in watched {
            if self.slots[slot].pidfd(incarnation).is_some() {
                continue;
            }
            if let Some(pidfd) = sys.pidfd(pid, start_time) {
                sys.audit_meeting(pidfd, Name::secondary(number, incarnation));
                if incarnation == last.incarnation {
                    Self::retire_files(sys, slot, incarnation);
                }
                self.adopt(sys, slot, incarnation, pidfd);
            }
        }
    }

    fn adopt(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation, pidfd: Proc) {
        sys.audit.coverage.count("a successor adopted a predecessor's secondary");
        let tube = sys.open_fifo(FifoName::FromSecondary(number(slot), Some(incarnation)));
        if let Some(tube) = tube {
            sys.watch_fifo(tube, self.me, Key::Tube(slot, incarnation));
        }
        sys.watch_end(pidfd, self.me, ended(slot, incarnation));
        self.slots[slot].predecessors.push(Predecessor { incarnation, pidfd, tube });
    }

    pub fn carry_out(&mut self, sys: &mut Machine) {
        while let Some(action) = self.core.poll_action() {
            sys.trace.note(sys.now, || format!("    principal {}: {action:?}", self.me));
            match action {
                Action::Tell { slot, command } => {
                    if let Some(server) = self.slots[slot].current.as_mut() {
                        server.writer.push(sys, command);
                    }
                }
                Action::Report { client, number, news } => self.report(sys, client, number, news),
                Action::Start { slot, incarnation } => self.start_secondary(sys, slot, incarnation),
                Action::Retire { slot, incarnation } => self.retire(sys, slot, incarnation),
                Action::BackOff { .. } => sys.audit.coverage.count("backed off"),
                Action::GiveUp { .. } => sys.audit.coverage.count("gave a slot up"),
                // Nobody writes into job tables here who has no business there.
                Action::Mended { slot, entry } => {
                    sys.complain(Rule::BooksExact, format!("entry {entry} of slot {slot} had to be mended"));
                }
                // Nobody runs commands here.
                Action::Ended { job, .. } => {
                    // Who forgets reasons is to be found out by what clients hear.
                    if !matches!(sys.sabotage, Sabotage::ForgetRecords | Sabotage::ForgetReasons) {
                        sys.audit_record(&job);
                    }
                }
                Action::EndFamily { .. } => {}
                Action::RefuseWaiting => self.refuse_all_waiting(sys),
                Action::StopAccepting => self.stop_accepting(sys),
                Action::LookAtHandler { slot, incarnation, job } => {
                    let handling = self.handling(sys, slot, incarnation);
                    self.core.handle_handling(self.now, slot, incarnation, job, handling);
                }
                Action::KillForTime { slot, incarnation, job, .. } => {
                    let handling = self.handling(sys, slot, incarnation);
                    let still_at_work = handling.is_some_and(|handling| handling.job == job);
                    if let Some(pidfd) = self.slots[slot].pidfd(incarnation).filter(|_| still_at_work) {
                        sys.audit_kill_for_time(self.me, pidfd, job.number);
                        sys.kill(pidfd, "its handler blocks");
                    }
                }
                Action::Kill { slot, incarnation } => self.kill_overdue(sys, slot, incarnation),
                Action::KillAll => self.kill_all(sys),
                Action::HandOver => {
                    self.hands_over = true;
                    sys.audit_principal_ends(self.me, false);
                    self.over = true;
                }
                Action::End { remove_files } => {
                    if remove_files {
                        self.remove_files(sys);
                    }
                    sys.audit_principal_ends(self.me, remove_files);
                    self.over = true;
                }
            }
        }
    }

    fn start_secondary(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation) {
        match self.spawn(sys, slot, incarnation) {
            Some(server) => {
                let process = &sys.processes[server.pidfd];
                let (pid, start_time) = (process.pid, process.start_time);
                sys.system_call();
                sys.audit_writes(self.me);
                self.page().occupy(number(slot), incarnation, pid, start_time);
                sys.processes[server.pidfd].told = true;
                if incarnation > 1 {
                    self.page().count_restart(number(slot));
                }
                self.slots[slot].current = Some(server);
                self.liveness.ring(sys);
            }
            None => self.core.handle_start_failed(self.now, slot, incarnation),
        }
    }

    fn spawn(&self, sys: &mut Machine, slot: usize, incarnation: Incarnation) -> Option<Server> {
        let number = number(slot);
        self.make_files(sys, slot);
        let tube = sys.open_fifo(FifoName::FromSecondary(number, None))?;
        let to_them = sys.open_fifo(FifoName::ToSecondary(number, None))?;
        let orders = sys.open_fifo(FifoName::Orders(number, None))?;
        sys.system_call();
        let path = sys.rundir.secondary_page(number);
        let file = OpenOptions::new().read(true).write(true).open(path).expect("it was created");
        let page = SecondaryPage::attach(&file, Access::ReadOnly).expect("it was created");
        let own = Some(Own { page: Rc::new(file), tube: to_them, to_principal: tube });
        let name = Name::secondary(number, incarnation);
        let pidfd = sys.spawn(self.me, Sheet::of(name, orders, own))?;
        sys.watch_end(pidfd, self.me, ended(slot, incarnation));
        sys.watch_fifo(tube, self.me, Key::Tube(slot, incarnation));
        Some(Server { incarnation, pidfd, page, tube, writer: Writer::new(to_them) })
    }

    fn make_files(&self, sys: &mut Machine, slot: usize) {
        let number = number(slot);
        sys.remove_fifos(number, None);
        sys.rundir.remove_secondary(number, None).expect("our own directory");
        sys.system_call();
        let path = sys.rundir.secondary_page(number);
        SecondaryPage::create(&path, number, self.slots[slot].counts).expect("no file is there");
        for fifo in [
            FifoName::ToSecondary(number, None),
            FifoName::FromSecondary(number, None),
            FifoName::Orders(number, None),
        ] {
            assert!(sys.mkfifo(fifo), "{fifo:?} is there");
        }
    }

    fn retire(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation) {
        sys.audit.coverage.count("a slot's server was retired");
        let known = &mut self.slots[slot];
        if let Some(server) = known.current.take_if(|server| server.incarnation == incarnation) {
            server.writer.unwatch(sys, self.me);
            known.counts = server.page.counts();
            let Server { pidfd, tube, .. } = server;
            known.predecessors.push(Predecessor { incarnation, pidfd, tube: Some(tube) });
        }
        Self::retire_files(sys, slot, incarnation);
    }

    fn retire_files(sys: &mut Machine, slot: usize, incarnation: Incarnation) {
        sys.retire_fifos(number(slot), incarnation);
        sys.system_call();
        sys.rundir.retire_secondary(number(slot), incarnation).expect("our own directory");
    }

    pub fn read_tube(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation) -> Progress {
        let Some(tube) = self.slots[slot].tube(incarnation) else {
            return Progress::Drained;
        };
        let (lines, more) = sys.take(tube);
        if lines.iter().any(|line| !matches!(line, Line::Command(_))) {
            self.core.look_through(slot);
        }
        for line in lines {
            if let Line::Command(command) = line {
                self.hear(sys, slot, incarnation, command);
            }
        }
        if more { Progress::Again } else { Progress::Drained }
    }

    fn hear(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation, command: Command) {
        match command {
            Command::Ready => self.core.handle_ready(self.now, slot, incarnation),
            Command::Draining => self.core.handle_draining(self.now, slot, incarnation),
            Command::Recycling if sys.sabotage == Sabotage::LimitTheWorn => {
                self.core.handle_draining(self.now, slot, incarnation);
            }
            Command::Recycling => self.core.handle_recycling(self.now, slot, incarnation),
            Command::Debut(job) => self.core.handle_debut(slot, job),
            Command::Fin(job) | Command::Err(job) => self.core.handle_end(slot, job),
            Command::Resync => self.core.look_through(slot),
            Command::Uninvited { kind, client } => {
                self.let_in(sys, slot, incarnation, usize::from(kind), client);
            }
            Command::Job(_) | Command::Stop | Command::Leave | Command::Ping(_) | Command::Pong(_) => {}
        }
    }

    fn let_in(
        &mut self,
        sys: &mut Machine,
        slot: usize,
        incarnation: Incarnation,
        kind: usize,
        client: IpAddr,
    ) {
        let serves = self.core.current(slot) == Some(incarnation) && !self.core.refuses_requests();
        if serves && sys.plan.open && kind < TYPES && sys.sabotage != Sabotage::ForgetUninvited {
            let job = Job { kind, client, given_at: self.now, jeton: None };
            if self.core.give_uninvited(slot, job).is_err() {
                sys.audit.coverage.count("no room for who came uninvited");
            }
        }
    }

    pub fn on_ended(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation) {
        for _ in 0..8 {
            if self.read_tube(sys, slot, incarnation) == Progress::Drained {
                break;
            }
        }
        let current = self.slots[slot].current.as_ref();
        let record = current.map(|server| server.page.record());
        if record.is_some_and(|record| {
            record.incarnation == incarnation && record.condition == Condition::Recycling
        }) {
            self.core.handle_recycling(self.now, slot, incarnation);
        }
        self.carry_out(sys);
        if let Some(server) = self.slots[slot].current.take_if(|server| server.incarnation == incarnation) {
            let exit = sys.reap(self.me, server.pidfd).unwrap_or(Exit::Unknown);
            self.slots[slot].counts = server.page.counts();
            sys.unwatch_fifo(server.tube, self.me);
            server.writer.unwatch(sys, self.me);
            self.enter_death(slot, incarnation, exit);
            self.liveness.ring(sys);
        } else {
            self.bury_predecessor(sys, slot, incarnation);
        }
        self.carry_out(sys);
    }

    fn bury_predecessor(&mut self, sys: &mut Machine, slot: usize, incarnation: Incarnation) {
        let predecessors = &mut self.slots[slot].predecessors;
        let found = predecessors.iter().position(|known| known.incarnation == incarnation);
        let Some(found) = found else {
            return;
        };
        let Predecessor { pidfd, tube, .. } = predecessors.swap_remove(found);
        let exit = sys.reap(self.me, pidfd).unwrap_or(Exit::Unknown);
        if let Some(tube) = tube {
            sys.unwatch_fifo(tube, self.me);
        }
        self.enter_death(slot, incarnation, exit);
        sys.remove_fifos(number(slot), Some(incarnation));
        sys.rundir.remove_secondary(number(slot), Some(incarnation)).expect("our own directory");
    }

    fn enter_death(&mut self, slot: usize, incarnation: Incarnation, exit: Exit) {
        self.core.handle_exited(self.now, slot, incarnation, exit == CANNOT_START);
    }

    pub fn read_verdicts(&mut self) {
        let suspects = self.liveness.suspects();
        for slot in 0..self.slots.len() {
            if let Some(incarnation) = self.core.current(slot) {
                let suspect = suspects.contains(&Name::secondary(number(slot), incarnation));
                self.core.handle_suspicion(self.now, slot, incarnation, suspect);
            }
        }
    }

    pub fn reconcile(&mut self, sys: &mut Machine) {
        if sys.sabotage == Sabotage::NeverReconcile {
            return;
        }
        self.read_stop();
        self.read_verdicts();
        for _ in 0..self.slots.len() {
            let slot = self.reconcile_next % self.slots.len();
            self.reconcile_next = slot + 1;
            self.reconcile_slot(sys, slot);
        }
    }

    fn reconcile_slot(&mut self, sys: &mut Machine, slot: usize) {
        self.core.look_through_in_turn(slot);
        self.core.repeat_stop(slot);
        let Some(server) = self.slots[slot].current.as_ref() else {
            return;
        };
        let (incarnation, record) = (server.incarnation, server.page.record());
        if record.incarnation != incarnation || record.pid != sys.processes[server.pidfd].pid {
            return;
        }
        match record.condition {
            Condition::Ready => self.core.handle_ready(self.now, slot, incarnation),
            Condition::Draining => self.core.handle_draining(self.now, slot, incarnation),
            Condition::Recycling => self.core.handle_recycling(self.now, slot, incarnation),
            Condition::None | Condition::Starting => {}
        }
    }

    pub fn flush_tubes(&mut self, sys: &mut Machine) {
        for server in self.slots.iter_mut().filter_map(|slot| slot.current.as_mut()) {
            server.writer.flush_or_watch(sys, self.me);
        }
    }

    /// What the handler of a secondary does; a predecessor's page has another name.
    fn handling(&self, sys: &mut Machine, slot: usize, incarnation: Incarnation) -> Option<Handling> {
        sys.system_call();
        match &self.slots[slot].current {
            Some(server) if server.incarnation == incarnation => server.page.handling(),
            _ => {
                let path = sys.rundir.predecessor_page(number(slot), incarnation);
                SecondaryPage::attach(&path, Access::ReadOnly).ok()?.handling()
            }
        }
    }

    fn kill_overdue(&self, sys: &mut Machine, slot: usize, incarnation: Incarnation) {
        let mut predecessors = self.slots[slot].predecessors.iter();
        if let Some(overdue) = predecessors.find(|predecessor| predecessor.incarnation == incarnation) {
            sys.audit.coverage.count("outstayed its grace");
            sys.audit_overdue(overdue.pidfd);
            sys.kill(overdue.pidfd, "its grace is over");
        }
    }

    fn kill_all(&mut self, sys: &mut Machine) {
        for slot in 0..self.slots.len() {
            let known = &self.slots[slot];
            let current = known.current.iter().map(|server| server.pidfd);
            let all: Vec<Proc> =
                current.chain(known.predecessors.iter().map(|predecessor| predecessor.pidfd)).collect();
            for pidfd in all {
                sys.audit_kill_all();
                sys.kill(pidfd, "it does not end");
            }
        }
    }

    fn remove_files(&self, sys: &mut Machine) {
        for number in (0..self.slots.len()).map(number) {
            sys.remove_fifos(number, None);
            sys.rundir.remove_secondary(number, None).expect("our own directory");
        }
    }
}
