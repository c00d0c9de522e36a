//! The shell of the watchdog, as far as its core can tell it from
//! `src/role/watchdog/processes.rs`.

use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::{Name, Role as TreeRole};
use osps::core::supervision::{Act, Evidence};
use osps::core::tree::{Action, Tree};
use osps::page::Access;
use osps::page::observer::ObserverPage;
use osps::page::principal::PrincipalPage;
use osps::page::record::{Condition, Record};
use osps::page::secondary::SecondaryPage;
use osps::page::watchdog::{RecordIndex, Verdict, WatchdogPage};
use osps::wire::order::Order;

use crate::fifo::{FifoId, FifoName, Line};
use crate::kernel::{CANNOT_START, Exit, Sheet};
use crate::machine::{Key, Machine, Proc, Progress, Role, Signal, WATCHDOG};
use crate::plan::secs;
use crate::promotion::Reload;
use crate::sabotage::Sabotage;

pub struct Watched {
    pub name: Name,
    pub pidfd: Proc,
    pub pid: u32,
    start_time: u64,
    record: Option<RecordIndex>,
    pub page: Option<SecondaryPage>,
    pub orders: FifoId,
    cpu_at_probe: Option<Duration>,
    answered: u64,
}

pub struct Watchdog {
    /// When its turn began.
    pub now: Moment,
    pub tree: Tree,
    pub page: WatchdogPage,
    pub principal_page: PrincipalPage,
    /// Of the observer that was started last.
    pub observer_page: Option<ObserverPage>,
    /// Whether there is to be an observer.
    pub observed: bool,
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
        let mut watchdog = Self {
            now: sys.now,
            tree,
            page,
            principal_page,
            observer_page: None,
            observed: false,
            processes: Vec::new(),
            reload: None,
            seen_changes: None,
            over: false,
            busy: false,
        };
        watchdog.bring_into_force(sys, sys.plan.observed);
        watchdog
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

    pub fn look_at(&mut self, sys: &mut Machine, index: usize) {
        let process = &mut self.processes[index];
        if process.record.is_none() {
            process.record = self.page.watch(process.name, process.pid, process.start_time);
            let name = process.name;
            if self.tree.is_leaving(name) {
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
            None if name.role == TreeRole::Observer => match &self.observer_page {
                Some(page) => page.record(),
                None => return,
            },
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
            self.tell_health(index, name, Verdict::Healthy);
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
                if name.role == TreeRole::Observer {
                    self.disturb_dismissal(sys, name);
                    self.over |= self.tree.is_stopping() && sys.sabotage == Sabotage::LeaveObserver;
                }
            }
            Action::Stop(name) => self.order_by_name(sys, name, Order::Stop),
            Action::StopNow(name) => self.order_by_name(sys, name, Order::StopNow),
            Action::Forgiven(_) => {}
            Action::GiveUp => {
                sys.audit.gives_up(self.now);
                self.tree.handle_stop(self.now);
            }
            Action::StartObserver(incarnation) => self.start_observer(sys, Name::observer(incarnation)),
            Action::GiveUpObserver if sys.sabotage == Sabotage::NeedObserver => {
                self.tree.handle_stop(self.now);
            }
            Action::GiveUpObserver => {}
            Action::Finished => self.over = true,
        }
    }

    fn act(&mut self, sys: &mut Machine, index: usize, name: Name, act: Act) {
        match act {
            Act::Probe(number) => self.probe(sys, index, number),
            Act::Suspect | Act::Trust => {
                let verdict = if act == Act::Trust { Verdict::Healthy } else { Verdict::Suspect };
                self.tell_health(index, name, verdict);
                if name.role != TreeRole::Observer && !self.tree.is_leaving(name) {
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
            let name = process.name;
            self.tree.handle_answer(self.now, name, number);
            return;
        };
        self.page.set_probe(record, number, self.now);
        sys.probe(process.pidfd);
        if process.name.role == TreeRole::Observer && sys.sabotage == Sabotage::TrustObserver {
            self.tree.handle_answer(self.now, process.name, number);
        }
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

    pub fn on_ended(&mut self, sys: &mut Machine, name: Name) {
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
        let is_observer = name.role == TreeRole::Observer;
        if is_observer {
            Self::disturb_after_observer(sys);
        }
        let is_mistaken = is_observer && sys.sabotage == Sabotage::MistakeObserver;
        let ended = if is_mistaken { self.tree.principal() } else { name };
        if sys.sabotage != Sabotage::ForgetExits {
            self.tree.handle_exited(self.now, ended, exit == CANNOT_START);
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
        if sys.sabotage == Sabotage::HurryObserver
            && let Some(observer) = self.tree.observer()
        {
            self.order_by_name(sys, observer, Order::Drain);
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

    fn tell_health(&self, index: usize, name: Name, verdict: Verdict) {
        if !self.tree.is_leaving(name) {
            self.set_verdict(index, verdict);
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
