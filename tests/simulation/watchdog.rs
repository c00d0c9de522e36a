//! The shell of the watchdog, as far as its core can tell it from
//! `src/role/watchdog/processes.rs`.

use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::{Name, Role as TreeRole};
use osps::core::slots::Occupied;
use osps::core::supervision::{Act, Evidence};
use osps::core::tree::{Action, Tree};
use osps::page::Access;
use osps::page::principal::{PrincipalPage, Slot};
use osps::page::record::{Condition, Record};
use osps::page::secondary::SecondaryPage;
use osps::page::watchdog::{RecordIndex, Verdict, WatchdogPage};
use osps::wire::order::Order;

use crate::audit::Rule;
use crate::fifo::{FifoId, FifoName, Line};
use crate::kernel::{CANNOT_START, Exit, Sheet};
use crate::machine::{Key, Machine, Proc, Progress, Role, Signal, WATCHDOG};
use crate::plan::secs;
use crate::promotion::Reload;
use crate::sabotage::Sabotage;

pub struct Watched {
    name: Name,
    pub pidfd: Proc,
    pub pid: u32,
    start_time: u64,
    record: Option<RecordIndex>,
    pub page: Option<SecondaryPage>,
    orders: FifoId,
    cpu_at_probe: Option<Duration>,
    answered: u64,
}

pub struct Watchdog {
    /// When its turn began.
    pub now: Moment,
    pub tree: Tree,
    pub page: WatchdogPage,
    pub principal_page: PrincipalPage,
    pub processes: Vec<Watched>,
    pub reload: Option<Reload>,
    seen_changes: Option<u64>,
    over: bool,
    /// Something was noticed in this turn.
    pub busy: bool,
}

impl Watchdog {
    pub fn start(sys: &mut Machine, page: WatchdogPage, seed: u64) -> Self {
        let mut settings = sys.plan.settings;
        match sys.sabotage {
            Sabotage::HalvePatience => settings.kill_after /= 2,
            Sabotage::RushKills => settings.period /= 100,
            _ => {}
        }
        let principal_page = PrincipalPage::attach(&sys.rundir.principal_page(), Access::ReadOnly)
            .expect("the audit created it");
        page.introduce(1, 1, sys.now);
        let tree = Tree::new(sys.now, sys.plan.secondaries, settings, sys.plan.stop_within, seed);
        Self {
            now: sys.now,
            tree,
            page,
            principal_page,
            processes: Vec::new(),
            reload: None,
            seen_changes: None,
            over: false,
            busy: false,
        }
    }

    fn look(&mut self, sys: &mut Machine) {
        let changes = self.principal_page.changes();
        if self.seen_changes != Some(changes) {
            let all_seen = self.look_at_slots(sys);
            self.seen_changes = all_seen.then_some(changes);
        }
        for index in 0..self.processes.len() {
            self.look_at(sys, index);
        }
    }

    fn look_at(&mut self, sys: &mut Machine, index: usize) {
        let process = &mut self.processes[index];
        if process.record.is_none() {
            process.record = self.page.watch(process.name, process.pid, process.start_time);
            let name = process.name;
            if self.tree.is_draining(name) {
                let bounded = self.tree.has_limit(name);
                self.set_verdict(index, if bounded { Verdict::Draining } else { Verdict::Recycling });
            } else if self.tree.is_ready(name) {
                self.set_verdict(index, Verdict::Healthy);
            }
        }
        let process = &self.processes[index];
        let name = process.name;
        let record = match &process.page {
            Some(page) => page.record(),
            None => self.principal_page.record(),
        };
        if record.incarnation == name.incarnation && record.pid == process.pid {
            self.look_at_record(sys, index, name, record);
        }
    }

    fn look_at_record(&mut self, sys: &mut Machine, index: usize, name: Name, record: Record) {
        let now = self.now;
        let was_ready = self.tree.is_ready(name);
        let is_ready = !matches!(record.condition, Condition::None | Condition::Starting);
        if !was_ready && is_ready {
            sys.audit.ready(now, name);
            self.tree.handle_ready(now, name);
            self.set_verdict(index, Verdict::Healthy);
            self.reload_has_come_true(sys, name);
        }
        if record.condition == Condition::Recycling && !self.tree.is_draining(name) {
            sys.audit.recycles(now, name);
            if sys.sabotage == Sabotage::HurryTheWorn {
                self.tree.handle_draining(now, name);
            } else {
                self.tree.handle_recycling(now, name);
            }
            self.set_verdict(index, Verdict::Recycling);
        }
        if record.condition == Condition::Draining && !self.tree.has_limit(name) {
            sys.audit.drains(now, name);
            self.tree.handle_draining(now, name);
            self.set_verdict(index, Verdict::Draining);
        }
        let process = &mut self.processes[index];
        if record.answered != process.answered && sys.sabotage != Sabotage::DropAnswers {
            process.answered = record.answered;
            self.tree.handle_answer(now, name, record.answered);
        }
    }

    fn look_at_slots(&mut self, sys: &mut Machine) -> bool {
        let mut all_seen = true;
        for number in 1..=sys.plan.secondaries {
            let slot = self.principal_page.slot(number);
            if !matches!(slot.occupied, Occupied::Starting | Occupied::Ready) {
                continue;
            }
            let name = Name::secondary(number, slot.incarnation);
            if !self.processes.iter().any(|process| process.name == name) {
                all_seen &= self.meet_secondary(sys, name, slot);
            }
        }
        all_seen
    }

    fn meet_secondary(&mut self, sys: &mut Machine, name: Name, slot: Slot) -> bool {
        let ended: Vec<Name> = self
            .processes
            .iter()
            .filter(|process| process.name.role == TreeRole::Secondary && process.name.slot == name.slot)
            .filter(|process| sys.has_ended(process.pidfd))
            .map(|process| process.name)
            .collect();
        for ended in ended {
            self.on_ended(sys, ended);
        }
        for index in 0..self.processes.len() {
            if self.processes[index].name.slot == name.slot {
                self.look_at(sys, index);
            }
        }
        let pidfd = match sys.pidfd(slot.pid, slot.start_time) {
            Some(pidfd) if !sys.has_ended(pidfd) => pidfd,
            Some(_) | None => return true,
        };
        sys.system_call();
        let page = SecondaryPage::attach(&sys.rundir.secondary_page(name.slot), Access::ReadOnly);
        let orders = sys.open_fifo(FifoName::Orders(name.slot, None));
        let now = self.principal_page.slot(name.slot);
        if now.pid != slot.pid || !matches!(now.occupied, Occupied::Starting | Occupied::Ready) {
            sys.audit.coverage.count("met too late");
            return false;
        }
        match (page, orders) {
            (Ok(page), Some(orders)) => {
                self.supervise(sys, name, pidfd, Some(page), orders);
                true
            }
            (_, _) => {
                sys.complain(Rule::NobodyForgotten, format!("the files of {name} are gone"));
                false
            }
        }
    }

    pub fn supervise(
        &mut self,
        sys: &mut Machine,
        name: Name,
        pidfd: Proc,
        page: Option<SecondaryPage>,
        orders: FifoId,
    ) {
        let (pid, start_time) = (sys.processes[pidfd].pid, sys.processes[pidfd].start_time);
        let record = self.page.watch(name, pid, start_time);
        if record.is_none() {
            self.tree.handle_crowded(self.now, name);
        }
        sys.watch_end(pidfd, WATCHDOG, Key::Ended(name));
        let cpu_at_probe = None;
        self.processes.push(Watched {
            name,
            pidfd,
            pid,
            start_time,
            record,
            page,
            orders,
            cpu_at_probe,
            answered: 0,
        });
        sys.audit_meeting(pidfd, name);
        let is_candidate = sys.processes[pidfd].is_candidate;
        sys.audit.started(self.now, name, pidfd, is_candidate);
        if is_candidate {
            self.tree.handle_candidate_started(self.now, name);
        } else {
            self.tree.handle_started(self.now, name);
        }
        if sys.sabotage == Sabotage::TrustTooEarly {
            sys.audit.ready(self.now, name);
            self.tree.handle_ready(self.now, name);
        }
    }

    fn carry_out(&mut self, sys: &mut Machine, action: Action) {
        sys.trace.note(sys.now, || format!("    watchdog: {action:?}"));
        sys.audit_action(self.now, action);
        match action {
            Action::StartPrincipal(incarnation) => self.start_principal(sys, Name::principal(incarnation)),
            Action::To(name, act) => {
                if let Some(index) = self.position(name) {
                    self.act(sys, index, name, act);
                }
            }
            Action::Drain(name) => {
                if let Some(index) = self.position(name) {
                    self.set_verdict(index, Verdict::Draining);
                    self.order(sys, index, Order::Drain);
                }
            }
            Action::Stop(name) => self.order_by_name(sys, name, Order::Stop),
            Action::StopNow(name) => self.order_by_name(sys, name, Order::StopNow),
            Action::Forgiven(_) => {}
            Action::GiveUp => {
                sys.audit.gives_up(self.now);
                self.tree.handle_stop(self.now);
            }
            Action::StartObserver(_) | Action::GiveUpObserver => {
                unreachable!("none is wanted in these worlds")
            }
            Action::Finished => self.over = true,
        }
    }

    fn act(&mut self, sys: &mut Machine, index: usize, name: Name, act: Act) {
        match act {
            Act::Probe(number) => self.probe(sys, index, number),
            Act::Suspect | Act::Trust => {
                let verdict = if act == Act::Trust { Verdict::Healthy } else { Verdict::Suspect };
                if !self.tree.is_draining(name) {
                    self.set_verdict(index, verdict);
                    self.tell_principal_to_look(sys);
                }
            }
            Act::Examine => {
                let evidence = self.examine(sys, index);
                // Perhaps it has answered since the last look: then the evidence is of no weight.
                self.look_at(sys, index);
                sys.audit_evidence(name, evidence);
                self.tree.handle_evidence(self.now, name, evidence);
            }
            Act::TellStubborn => sys.audit.coverage.count("killed, but does not end"),
            Act::Kill(reason) => {
                let pidfd = self.processes[index].pidfd;
                if !sys.has_ended(pidfd) || sys.sabotage == Sabotage::SignalByPid {
                    sys.kill(pidfd, reason.as_str());
                    self.page.count_kill(name.role, name.slot);
                }
            }
        }
    }

    fn start_principal(&mut self, sys: &mut Machine, name: Name) {
        let orders = FifoName::Orders(0, None);
        sys.unlink_fifo(orders);
        assert!(sys.mkfifo(orders), "it was removed");
        let orders = sys.open_fifo(orders).expect("it was created");
        match sys.spawn(WATCHDOG, Sheet::of(name, orders, None)) {
            Some(pidfd) => self.supervise(sys, name, pidfd, None, orders),
            None => self.tree.handle_start_failed(self.now),
        }
    }

    fn probe(&mut self, sys: &mut Machine, index: usize, number: u64) {
        let process = &mut self.processes[index];
        process.cpu_at_probe = sys.cpu(process.pidfd);
        let Some(record) = process.record else {
            return;
        };
        self.page.set_probe(record, number, self.now);
        sys.probe(process.pidfd);
    }

    fn examine(&self, sys: &mut Machine, index: usize) -> Evidence {
        let process = &self.processes[index];
        sys.system_call();
        let run_state = sys.run_state(process.pid);
        let cpu_since_probe = match (sys.cpu(process.pidfd), process.cpu_at_probe) {
            (Some(now), Some(then)) => Some(now.saturating_sub(then)),
            (Some(_) | None, None) | (None, Some(_)) => None,
        };
        Evidence { run_state, cpu_since_probe }
    }

    fn on_ended(&mut self, sys: &mut Machine, name: Name) {
        if let Some(index) = self.position(name)
            && let Some(exit) = sys.reap(WATCHDOG, self.processes[index].pidfd)
        {
            self.bury(sys, name, exit);
        }
    }

    fn bury(&mut self, sys: &mut Machine, name: Name, exit: Exit) {
        let Some(index) = self.position(name) else {
            return;
        };
        self.look_at(sys, index);
        if name.role == TreeRole::Principal {
            self.look_at_slots(sys);
        }
        let Some(index) = self.position(name) else {
            return;
        };
        let process = self.processes.swap_remove(index);
        if let Some(record) = process.record {
            self.page.forget(record);
        }
        if self.tree.is_draining(name) {
            sys.remove_fifos(name.slot, Some(name.incarnation));
            sys.rundir.remove_secondary(name.slot, Some(name.incarnation)).expect("our own directory");
        }
        if name.role == TreeRole::Principal {
            if name == self.tree.principal() {
                self.kill_unknown_children(sys);
            }
            if self.is_succeeded(sys, name, process.pidfd) {
                return;
            }
        }
        sys.audit_exited(self.now, name, name == self.tree.principal());
        if sys.sabotage != Sabotage::ForgetExits {
            self.tree.handle_exited(self.now, name, exit == CANNOT_START);
        }
    }

    fn reap_children(&mut self, sys: &mut Machine) {
        while let Some((pid, exit)) = sys.reap_any_child(WATCHDOG) {
            let name = self.processes.iter().find(|process| process.pid == pid).map(|process| process.name);
            if let Some(name) = name {
                self.bury(sys, name, exit);
            }
        }
    }

    fn kill_unknown_children(&self, sys: &mut Machine) -> Vec<Proc> {
        sys.system_call();
        let known = |pid: u32| self.processes.iter().any(|process| process.pid == pid);
        let children = sys.children(WATCHDOG);
        let orphans: Vec<Proc> =
            children.into_iter().filter(|child| !known(sys.processes[*child].pid)).collect();
        for orphan in &orphans {
            if !sys.has_ended(*orphan) {
                sys.audit_unknown_orphan(*orphan);
            }
            sys.kill(*orphan, "an orphan of which nobody knows");
        }
        orphans
    }

    fn ask_to_stop(&mut self, sys: &mut Machine) {
        self.page.set_stopping(true);
        sys.audit.succession.disturbed = true;
        sys.audit.stop(self.now);
        self.give_up_reload(sys, "the system stops");
        if sys.sabotage != Sabotage::IgnoreStops {
            self.tree.handle_stop(self.now);
        }
    }

    /// What the real one does when its loop has ended.
    fn finish(&mut self, sys: &mut Machine) {
        let limit = sys.now + secs(1);
        for orphan in self.kill_unknown_children(sys) {
            while !sys.has_ended(orphan) && !sys.is_over() && sys.run_next(limit) {}
        }
        while sys.reap_any_child(WATCHDOG).is_some() {}
        sys.audit_finish();
    }

    fn set_verdict(&self, index: usize, verdict: Verdict) {
        if let Some(record) = self.processes[index].record {
            self.page.set_verdict(record, verdict);
        }
    }

    fn tell_principal_to_look(&mut self, sys: &mut Machine) {
        self.order_by_name(sys, self.tree.principal(), Order::Look);
    }

    fn order_by_name(&mut self, sys: &mut Machine, name: Name, order: Order) {
        if let Some(index) = self.position(name) {
            self.order(sys, index, order);
        }
    }

    pub fn order(&self, sys: &mut Machine, index: usize, order: Order) {
        sys.put(self.processes[index].orders, &[Line::Order(order)]);
    }

    pub fn position(&self, name: Name) -> Option<usize> {
        self.processes.iter().position(|process| process.name == name)
    }
}

impl Role for Watchdog {
    fn begin(&mut self, sys: &mut Machine, now: Moment) {
        self.now = now;
        self.busy = false;
        sys.audit.turn_begins(now, self.tree.poll_timeout());
    }

    fn on_signal(&mut self, sys: &mut Machine, signal: Signal) {
        self.busy = true;
        match signal {
            Signal::Usr2 => self.look(sys),
            Signal::Chld => self.reap_children(sys),
            Signal::Term => self.ask_to_stop(sys),
            Signal::Usr1 => {}
        }
    }

    fn on_ready(&mut self, sys: &mut Machine, key: Key) -> Progress {
        self.busy = true;
        match key {
            Key::Ended(name) => self.on_ended(sys, name),
            Key::Channel(who) => return self.on_channel(sys, who),
            Key::Reload => self.begin_reload(sys),
            _ => {}
        }
        Progress::Drained
    }

    fn deadline(&self) -> Option<Moment> {
        self.tree.poll_timeout()
    }

    fn on_deadline(&mut self, sys: &mut Machine) {
        self.look(sys);
        if sys.sabotage != Sabotage::ForgetTimeouts {
            self.tree.handle_timeout(self.now);
        }
    }

    fn settle(&mut self, sys: &mut Machine) {
        while let Some(action) = self.tree.poll_action() {
            self.carry_out(sys, action);
            let again = match action {
                Action::StartPrincipal(_) => sys.sabotage == Sabotage::StartTwice,
                Action::To(_, Act::Kill(_)) => sys.sabotage == Sabotage::KillTwice,
                _ => false,
            };
            if again {
                self.carry_out(sys, action);
            }
            if sys.is_over() {
                return;
            }
        }
        if self.over {
            self.finish(sys);
        }
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
