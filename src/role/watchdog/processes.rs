//! The supervised processes: what the tree decides about them is done here.

use std::time::Duration;

use rustix::process::Signal;

use crate::core::moment::{Moment, nanos};
use crate::core::name::{Name, Role};
use crate::core::supervision::{Act, Evidence, Reason, RunState};
use crate::core::tree::Action;
use crate::exit::Code;
use crate::os::clock;
use crate::os::log::KILL;
use crate::os::pidfd::{Exit, Pidfd};
use crate::os::proc::{self, CpuClock};
use crate::os::process;
use crate::os::reactor::Handle;
use crate::page::obituary::{Condition as KillCondition, Obituary};
use crate::page::record::{Condition, Record};
use crate::page::secondary::SecondaryPage;
use crate::page::watchdog::{RecordIndex, Verdict};
use crate::role::watchdog::{Key, Watchdog};
use crate::wire::order::Order;

/// A process under supervision.
pub struct Process {
    name: Name,
    pidfd: Pidfd,
    start_time: u64,
    /// Its record in our page; `None` while all are taken.
    record: Option<RecordIndex>,
    /// Its own page; `None` for the principal, whose page we map for ever.
    page: Option<SecondaryPage>,
    orders: Option<std::fs::File>,
    cpu: CpuClock,
    cpu_at_probe: Option<Duration>,
    answered: u64,
    answered_at: Option<Moment>,
    /// What a glance at its record showed last, once the tree knows all of that.
    seen: Option<[u64; 3]>,
    killed: Option<KillCondition>,
}

impl Process {
    /// Its name.
    pub fn name(&self) -> Name {
        self.name
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pidfd.pid()
    }

    /// Whether it has ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        self.pidfd.has_ended()
    }

    /// Whether it has ended and the reactor, which could not watch it, will never tell.
    fn has_ended_unheard(&self) -> bool {
        !self.pidfd.is_watched() && self.pidfd.has_ended()
    }

    /// Whether it has told that it leaves in its own time.
    pub fn has_recycled(&self) -> bool {
        self.page.as_ref().is_some_and(|page| {
            let record = page.record();
            record.incarnation == self.name.incarnation && record.condition == Condition::Recycling
        })
    }

    /// What is to be remembered of it, should it end now.
    pub fn obituary(&self, exit: Option<Exit>, now: Moment) -> Obituary {
        Obituary {
            name: self.name,
            pid: self.pid(),
            at: now,
            exit,
            killed: self.killed.clone(),
            answered_at: self.answered_at,
            recycled: false,
            jobs: self.page.as_ref().map_or(0, SecondaryPage::open),
        }
    }
}

impl Watchdog {
    /// Looks at the shared memory: who is new, who is ready, who has answered.
    pub(super) fn look(&mut self, reactor: &mut Handle<Key>) {
        let changes = self.principal_page.changes();
        if self.seen_changes != Some(changes) {
            let all_seen = self.look_at_slots(reactor);
            self.seen_changes = all_seen.then_some(changes);
        }
        let now = reactor.now();
        for index in 0..self.processes.len() {
            self.look_at(index, now);
        }
        let unheard = self.processes.iter().filter(|process| process.has_ended_unheard());
        let unheard: Vec<Name> = unheard.map(Process::name).collect();
        for name in unheard {
            self.on_ended(reactor, name);
        }
    }

    pub(super) fn look_at(&mut self, index: usize, now: Moment) {
        let process = &mut self.processes[index];
        if process.record.is_none() {
            process.record = self.page.watch(process.name, process.pidfd.pid(), process.start_time);
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
        // Mostly nothing has changed; with a thousand processes a look must not ask the tree about each.
        let (seen, record) = match (&process.page, name.role) {
            (Some(page), _) if process.seen == Some(page.glance()) => return,
            (Some(page), _) => (Some(page.glance()), page.record()),
            (None, Role::Principal) => (Some(self.principal_page.glance()), self.principal_page.record()),
            // Its files were gone before we met it: not ready, until it is killed for that.
            (None, Role::Observer) => match &self.observer_page {
                Some(page) => (Some(page.glance()), page.record()),
                None => return,
            },
            (None, Role::Secondary) => return,
        };
        // Until a process has introduced itself, its page may still speak of another.
        if record.incarnation == name.incarnation && record.pid == process.pid() && process.seen != seen {
            self.look_at_record(index, name, record, now);
            let is_known = match record.condition {
                Condition::None | Condition::Starting => true,
                Condition::Ready => self.tree.is_ready(name),
                Condition::Draining => self.tree.has_limit(name),
                Condition::Recycling => self.tree.is_draining(name),
            };
            self.processes[index].seen = seen.filter(|_| is_known);
        }
    }

    fn look_at_record(&mut self, index: usize, name: Name, record: Record, now: Moment) {
        let was_ready = self.tree.is_ready(name);
        let is_ready = !matches!(record.condition, Condition::None | Condition::Starting);
        if !was_ready && is_ready {
            process::tidy_up();
            self.tree.handle_ready(now, name);
            self.tell_health(index, name, Verdict::Healthy);
            self.announce_ready(index);
        }
        if record.condition == Condition::Recycling && !self.tree.is_draining(name) {
            self.tree.handle_recycling(now, name);
            self.set_verdict(index, Verdict::Recycling);
        }
        if record.condition == Condition::Draining && !self.tree.has_limit(name) {
            self.tree.handle_draining(now, name);
            self.set_verdict(index, Verdict::Draining);
        }
        let process = &mut self.processes[index];
        if record.answered != process.answered {
            process.answered = record.answered;
            process.answered_at = record.answered_at;
            if let Some(known) = process.record {
                let sent_at = self.page.probe_sent_at(known);
                self.page.set_round_trip(known, nanos(now.since(sent_at)));
            }
            self.tree.handle_answer(now, name, record.answered);
        }
    }

    pub(super) fn supervise(
        &mut self,
        reactor: &mut Handle<Key>,
        name: Name,
        mut pidfd: Pidfd,
        start_time: u64,
        page: Option<SecondaryPage>,
        orders: Option<std::fs::File>,
    ) {
        let record = self.page.watch(name, pidfd.pid(), start_time);
        if record.is_none() {
            log::error!("no record is free for {name}: it cannot be probed before a predecessor ends");
            self.tree.handle_crowded(reactor.now(), name);
        }
        if let Err(error) = pidfd.watch(reactor, Key::Ended(name)) {
            log::error!("cannot watch {name}: {error}");
        }
        self.processes.push(Process {
            name,
            start_time,
            record,
            page,
            orders,
            cpu: CpuClock::of(pidfd.pid()),
            cpu_at_probe: None,
            answered: 0,
            answered_at: None,
            seen: None,
            killed: None,
            pidfd,
        });
    }

    /// Does what the tree says.
    pub(super) fn carry_out(&mut self, reactor: &mut Handle<Key>, action: Action) {
        match action {
            Action::StartPrincipal(incarnation) => {
                self.start_principal(reactor, Name::principal(incarnation))
            }
            Action::To(name, act) => {
                if let Some(index) = self.position(name) {
                    self.act(reactor, index, name, act);
                }
            }
            Action::Drain(name) => {
                if let Some(index) = self.position(name) {
                    self.set_verdict(index, Verdict::Draining);
                    self.order(index, Order::Drain);
                }
            }
            Action::Stop(name) => self.order_by_name(name, Order::Stop),
            Action::StopNow(name) => self.order_by_name(name, Order::StopNow),
            Action::Forgiven(name) => log::warn!("{name} is silent but starved of CPU: forgiven"),
            Action::GiveUp => {
                log::error!("the principal says that it cannot start: stopping");
                self.exit = Code::Config;
                self.tree.handle_stop(reactor.now());
            }
            Action::StartObserver(incarnation) => self.start_observer(reactor, Name::observer(incarnation)),
            Action::GiveUpObserver => {
                log::error!("the observer says that it cannot start: it stays down until a reload");
            }
            Action::Finished => reactor.stop(),
        }
    }

    fn act(&mut self, reactor: &mut Handle<Key>, index: usize, name: Name, act: Act) {
        match act {
            Act::Probe(number) => self.probe(index, number, reactor.now()),
            Act::Suspect => {
                log::warn!("{name} does not answer: suspect");
                self.tell_health(index, name, Verdict::Suspect);
                self.have_principal_look(name);
            }
            Act::Trust => {
                log::info!("{name} answers again");
                self.tell_health(index, name, Verdict::Healthy);
                self.have_principal_look(name);
            }
            Act::Examine => {
                let evidence = self.examine(index);
                // Perhaps it has answered since the last look: then the evidence is of no weight.
                self.look_at(index, reactor.now());
                self.tree.handle_evidence(reactor.now(), name, evidence);
            }
            Act::TellStubborn => {
                let pid = self.processes[index].pid();
                let letter = proc::stat(pid).map_or('?', |stat| stat.letter);
                log::warn!(
                    "{name} (pid {pid}) was killed and does not end: state {letter} in {}",
                    proc::wchan(pid)
                );
            }
            Act::Kill(reason) => self.kill(index, reason, reactor.now()),
        }
    }

    /// Writes the number, then rings: who is woken finds it.
    fn probe(&mut self, index: usize, number: u64, now: Moment) {
        let process = &mut self.processes[index];
        process.cpu_at_probe = process.cpu.read();
        let Some(record) = process.record else {
            // Who cannot be asked is not to blame for saying nothing.
            let name = process.name;
            self.tree.handle_answer(now, name, number);
            return;
        };
        // Not the time of the turn: a round trip is told from here on.
        self.page.set_probe(record, number, clock::now());
        if let Err(error) = process.pidfd.signal(Signal::USR1) {
            log::warn!("cannot probe {}: {error}", process.name);
        }
    }

    fn examine(&self, index: usize) -> Evidence {
        let process = &self.processes[index];
        let run_state = match proc::stat(process.pid()) {
            Ok(stat) => stat.run_state(),
            Err(_) if process.pidfd.has_ended() => RunState::Gone,
            // We are short of descriptors: that is no excuse for its silence.
            Err(_) => RunState::Waiting,
        };
        let cpu_since_probe = match (process.cpu.read(), process.cpu_at_probe) {
            (Some(now), Some(then)) => Some(now.saturating_sub(then)),
            (Some(_) | None, None) | (None, Some(_)) => None,
        };
        Evidence { run_state, cpu_since_probe }
    }

    fn kill(&mut self, index: usize, reason: Reason, now: Moment) {
        let process = &mut self.processes[index];
        if process.pidfd.has_ended() {
            // Its end is on its way to us.
            return;
        }
        let letter = proc::stat(process.pid()).ok().map(|stat| stat.letter);
        let killed = KillCondition { reason, letter, wchan: proc::wchan(process.pid()) };
        log::warn!(
            target: KILL,
            "killing {} (pid {}, state {}): {}",
            process.name,
            process.pid(),
            letter.unwrap_or('?'),
            reason.as_str()
        );
        process.killed = Some(killed);
        // Before the signal: who reaps it finds the reason.
        self.page.killed().push(&self.processes[index].obituary(None, now));
        let process = &self.processes[index];
        if let Err(error) = process.pidfd.signal(Signal::KILL) {
            log::error!("cannot kill {}: {error}", process.name);
        }
        if reason != Reason::Dismissed {
            self.page.count_kill(process.name.role, process.name.slot);
        }
    }

    /// The kernel says that a process has ended.
    pub(super) fn on_ended(&mut self, reactor: &mut Handle<Key>, name: Name) {
        let Some(index) = self.position(name) else {
            return;
        };
        match self.processes[index].pidfd.reap() {
            Ok(Some(exit)) => self.bury(reactor, name, exit),
            // Whoever traces it is told first (ptrace(2)), and may never ask: it is dead all the same.
            Ok(None) if self.processes[index].pidfd.has_ended() => self.bury(reactor, name, Exit::Unknown),
            Ok(None) => {}
            Err(error) => {
                log::warn!("cannot reap {name}: {error}");
                self.bury(reactor, name, Exit::Unknown);
            }
        }
    }

    /// Forgets a process that has ended, and tells the tree.
    pub(super) fn bury(&mut self, reactor: &mut Handle<Key>, name: Name, exit: Exit) {
        let Some(index) = self.position(name) else {
            return;
        };
        // Its last words count: it may have become ready, or answered, before it died; and
        // a principal may have started secondaries that are orphans now.
        self.look_at(index, reactor.now());
        if name.role == Role::Principal {
            self.look_at_slots(reactor);
        }
        let Some(index) = self.position(name) else {
            return;
        };
        let mut process = self.processes.swap_remove(index);
        process.pidfd.unwatch(reactor);
        if let Some(record) = process.record {
            self.page.forget(record);
        }
        self.remember(&process, exit, reactor.now());
        if self.tree.is_draining(name)
            && let Err(error) = self.rundir.remove_secondary(name.slot, Some(name.incarnation))
        {
            log::warn!("cannot remove the files of {name}: {error}");
        }
        // One that was to succeed another has no children; the other's are not all known, should it have just died.
        if name == self.tree.principal() {
            self.kill_unknown_children();
        }
        // Its successor will look at it.
        self.page.restore_header(self.heirlooms.slots());
        self.page.set_stopping(self.tree.is_stopping() || self.stop_waits);
        if name.role == Role::Principal && self.is_succeeded(reactor, name, exit) {
            return;
        }
        let cannot_start = matches!(exit, Exit::Code(code) if Code::means_cannot_start(code));
        self.tree.handle_exited(reactor.now(), name, cannot_start);
    }

    fn announce_ready(&mut self, index: usize) {
        let process = &self.processes[index];
        let (name, pid) = (process.name, process.pid());
        let line = match name.role {
            Role::Principal => {
                let listen = self.force.bound.addresses();
                format!("principal pid {pid}: ready, listening on {}", listen.join(", "))
            }
            Role::Observer => {
                let observed = self.force.bound.observed().join(", ");
                format!("observer pid {pid}: ready, listening on {observed}")
            }
            Role::Secondary => {
                // One that a reload was to add, and that has been given up, has none.
                let ports = self.force.bound.ports().into_iter().nth(usize::from(name.slot) - 1);
                let ports = ports.unwrap_or_default();
                let requests = self.force.config.request.iter().zip(ports).filter(|&(_, port)| port != 0);
                let ports: Vec<String> =
                    requests.map(|(request, port)| format!("{} {port}", request.name)).collect();
                format!("secondary {} pid {pid}: ready, {}", name.slot, ports.join(", "))
            }
        };
        if name.incarnation > 1 {
            log::info!("{line}");
        }
        self.announce(&line);
        if name.role == Role::Principal {
            self.reload_has_come_true(name, pid);
        }
    }

    fn set_verdict(&self, index: usize, verdict: Verdict) {
        if let Some(record) = self.processes[index].record {
            self.page.set_verdict(record, verdict);
        }
    }

    /// Tells everybody how a process is, unless it leaves: what is said of that must stay, for an order may be lost.
    fn tell_health(&self, index: usize, name: Name, verdict: Verdict) {
        if !self.tree.is_leaving(name) {
            self.set_verdict(index, verdict);
        }
    }

    /// Who gives jobs is to know how those are who serve them.
    fn have_principal_look(&mut self, name: Name) {
        if name.role != Role::Observer && !self.tree.is_leaving(name) {
            self.order_principal(Order::Look);
        }
    }

    pub(super) fn order_principal(&mut self, order: Order) {
        self.order_by_name(self.tree.principal(), order);
    }

    fn order_by_name(&mut self, name: Name, order: Order) {
        if let Some(index) = self.position(name) {
            self.order(index, order);
        }
    }

    /// Writes an order. A FIFO that is full belongs to a server that does not read: it will
    /// be killed for that soon enough, and its successor learns all from the pages.
    fn order(&mut self, index: usize, order: Order) {
        let process = &mut self.processes[index];
        let Some(orders) = process.orders.as_mut() else {
            return;
        };
        if let Err(error) = std::io::Write::write_all(orders, order.as_line().as_bytes()) {
            log::warn!("cannot order {} to {order:?}: {error}", process.name);
        }
    }

    /// The pid of a process.
    pub(super) fn pid_of(&self, name: Name) -> Option<u32> {
        self.position(name).map(|index| self.processes[index].pid())
    }

    /// How many secondaries of a slot live, whether they serve or leave.
    pub(super) fn living_in(&self, slot: u16) -> usize {
        self.processes
            .iter()
            .filter(|process| process.name.role == Role::Secondary && process.name.slot == slot)
            .count()
    }

    /// Whether a process has answered a probe since.
    pub(super) fn has_answered(&self, name: Name, since: Moment) -> bool {
        let process = self.processes.iter().find(|process| process.name == name);
        process.is_some_and(|process| process.answered_at.is_some_and(|at| at > since))
    }

    fn position(&self, name: Name) -> Option<usize> {
        self.processes.iter().position(|process| process.name == name)
    }
}
