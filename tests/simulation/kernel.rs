//! Processes, as the kernel sees them: pids that are used again, signals that merge, ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::rc::Rc;
use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::supervision::RunState;

use crate::audit::Rule;
use crate::fifo::FifoId;
use crate::machine::{Event, Key, Machine, Proc, Signal, WATCHDOG};
use crate::plan::{micros, millis};
use crate::sabotage::Sabotage;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    Unknown,
}

/// The exit code that says: starting me again is of no use.
pub const CANNOT_START: Exit = Exit::Code(78);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No handlers yet.
    Booting,
    Running,
    Zombie(Exit),
    Reaped,
}

/// How a process is kept from turning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    Stopped,
    Waiting,
    Spinning,
    /// Wants to run, but gets no CPU.
    Starved,
}

/// How a process behaves for the time being.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Prompt,
    /// Each turn takes this long, computing or waiting.
    Late(Duration, Stuck),
    /// No turns at all.
    Stuck(Stuck),
}

/// One bit each: what comes twice came once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    usr1: bool,
    usr2: bool,
    term: bool,
    chld: bool,
}

impl Signals {
    fn bit(&mut self, signal: Signal) -> &mut bool {
        match signal {
            Signal::Usr1 => &mut self.usr1,
            Signal::Usr2 => &mut self.usr2,
            Signal::Term => &mut self.term,
            Signal::Chld => &mut self.chld,
        }
    }

    pub fn any(self) -> bool {
        self.usr1 || self.usr2 || self.term || self.chld
    }

    /// In the order of their numbers.
    pub fn pending(mut self) -> impl Iterator<Item = Signal> {
        let order = [Signal::Usr1, Signal::Usr2, Signal::Term, Signal::Chld];
        order.into_iter().filter(move |signal| *self.bit(*signal))
    }
}

/// What a child is told at its start, and what it inherits.
#[derive(Clone, Debug)]
pub struct Sheet {
    pub name: Name,
    /// The pid of who started it.
    pub parent: u32,
    pub orders: FifoId,
    /// A principal's that is to take over from another, and the slots that are to rest.
    pub succeeds: bool,
    pub resting: BTreeSet<u16>,
    /// It is to replace the secondaries, too.
    pub renews: bool,
    /// A secondary's.
    pub own: Option<Own>,
}

impl Sheet {
    /// That of a process that takes over from nobody who lives.
    pub fn of(name: Name, orders: FifoId, own: Option<Own>) -> Self {
        Self { name, parent: 0, orders, succeeds: false, resting: BTreeSet::new(), renews: true, own }
    }
}

/// What is open for one secondary, whatever its names are by now.
#[derive(Clone, Debug)]
pub struct Own {
    pub page: Rc<File>,
    pub tube: FifoId,
    pub to_principal: FifoId,
}

#[derive(Debug)]
pub struct Process {
    pub sheet: Option<Sheet>,
    pub pid: u32,
    pub start_time: u64,
    pub parent: Proc,
    /// Who started it, or took it over, whoever is its parent now.
    pub belongs_to: Proc,
    /// It is to take over from another principal, and has not been told to proceed.
    pub is_candidate: bool,
    /// It has said that its successor has everything: its last word.
    pub handed_over: bool,
    pub life: Life,
    pub signals: Signals,
    pub ready: Vec<Key>,
    /// Its deadline has come.
    pub due: bool,
    pub alarm: Option<Moment>,
    pub turn_planned: bool,
    pub busy_until: Moment,
    /// Ends in the middle of one of its next turns.
    pub fuse: bool,
    /// PR_SET_PDEATHSIG is SIGTERM, no longer SIGKILL.
    pub gentle: bool,
    /// SIGKILL is on its way.
    pub doomed: bool,
    pub mood: Mood,
    pub mood_since: Moment,
    pub mood_count: u32,
    cpu: Duration,
    /// Signals are held back, but would find a handler.
    pub handlers: bool,
    /// The principal's table of slots tells of it.
    pub told: bool,
    /// It has a reason to end or to drain: a signal, an order, the death of its parent.
    pub excused: bool,
    /// Killed, or no longer serving.
    pub dismissed: bool,
    /// Who is to be told of its end.
    watchers: Vec<(Proc, Key)>,
}

impl Process {
    fn new(sheet: Option<Sheet>, pid: u32, start_time: u64, parent: Proc, now: Moment) -> Self {
        let is_candidate = sheet.as_ref().is_some_and(|sheet| sheet.succeeds);
        Self {
            sheet,
            pid,
            start_time,
            parent,
            belongs_to: parent,
            is_candidate,
            handed_over: false,
            life: Life::Booting,
            signals: Signals::default(),
            ready: Vec::new(),
            due: false,
            alarm: None,
            turn_planned: false,
            busy_until: now,
            fuse: false,
            gentle: false,
            doomed: false,
            mood: Mood::Prompt,
            mood_since: now,
            mood_count: 0,
            cpu: Duration::ZERO,
            handlers: false,
            told: false,
            excused: false,
            dismissed: false,
            watchers: Vec::new(),
        }
    }

    pub fn watchdog() -> Self {
        let mut watchdog = Self::new(None, 1, 1, WATCHDOG, Moment::default());
        watchdog.life = Life::Running;
        watchdog.due = true;
        watchdog
    }

    pub fn is_alive(&self) -> bool {
        matches!(self.life, Life::Booting | Life::Running)
    }

    pub fn name(&self) -> Option<Name> {
        self.sheet.as_ref().map(|sheet| sheet.name)
    }

    /// CPU time used so far.
    fn cpu_at(&self, now: Moment) -> Duration {
        let since = now.since(self.mood_since);
        let used = match self.mood {
            Mood::Late(_, Stuck::Spinning) | Mood::Stuck(Stuck::Spinning) => since,
            Mood::Stuck(Stuck::Starved) => since / 100,
            Mood::Prompt | Mood::Late(..) | Mood::Stuck(Stuck::Stopped | Stuck::Waiting) => Duration::ZERO,
        };
        self.cpu + used
    }
}

impl Machine {
    /// `fork(2)` and `execve(2)`; `None` where the machine refuses.
    pub fn spawn(&mut self, parent: Proc, sheet: Sheet) -> Option<Proc> {
        self.system_call();
        let name = sheet.name;
        let rough = !self.is_quiet();
        if rough && self.dice.chance(self.plan.bad_starts / 4) {
            self.audit.coverage.count("spawn failed");
            self.audit.succession.disturbed_by(Some(name.role));
            return None;
        }
        self.audit_spawn(parent, name, sheet.succeeds);
        let proc = self.processes.len();
        let sheet = Sheet { parent: self.processes[parent].pid, ..sheet };
        let pid = self.free_pid();
        self.processes.push(Process::new(Some(sheet), pid, 1000 + proc as u64, parent, self.now));
        self.memories.push(None);
        self.trace.note(self.now, || format!("{proc}: {name} is started as pid {pid} by {parent}"));
        let settings = self.plan.settings;
        self.processes[proc].fuse = rough && self.dice.chance(self.plan.bad_starts / 8);
        let bad = rough && self.dice.chance(self.plan.bad_starts);
        match self.dice.below(24) {
            // Where a principal says so all ends, so it must be rare.
            9..=13 if bad && name.role == Role::Observer => self.says_that_it_cannot_start(proc),
            0..=13 if bad => {
                self.count_fault(proc, "died before it was ready");
                self.soon(millis(30), Event::Fail(proc, Exit::Signal(11)));
            }
            14..=19 if bad => {
                self.count_fault(proc, "slow to start");
                let slow = settings.start_within;
                self.after(slow * 5 / 6, slow * 4 / 3, Event::Boot(proc));
            }
            20..=21 if bad => {
                self.count_fault(proc, "hung before it was ready");
                let stuck = self.dice.pick(&[Stuck::Waiting, Stuck::Stopped, Stuck::Stopped]);
                self.set_mood(proc, Mood::Stuck(stuck));
            }
            22 if bad => self.says_that_it_cannot_start(proc),
            _ => self.after(millis(1), millis(30), Event::Boot(proc)),
        }
        Some(proc)
    }

    fn says_that_it_cannot_start(&mut self, proc: Proc) {
        if let Some(role) = self.role_of(proc) {
            self.audit.coverage.count(format!("{role:?} said that it cannot start"));
        }
        self.soon(millis(30), Event::Fail(proc, CANNOT_START));
    }

    /// A pid that nobody has, of a small range: those of the dead are used again before long.
    fn free_pid(&mut self) -> u32 {
        let living = self.processes.iter().filter(|process| process.life != Life::Reaped);
        let taken: BTreeSet<u32> = living.map(|process| process.pid).collect();
        let free: Vec<u32> = (100..).filter(|pid| !taken.contains(pid)).take(3).collect();
        self.dice.pick(&free)
    }

    /// `pidfd_open(2)`, then a look at the start time.
    pub fn pidfd(&mut self, pid: u32, start_time: u64) -> Option<Proc> {
        self.system_call();
        let proc = self.who_has(pid)?;
        let is_meant = self.processes[proc].start_time == start_time;
        (is_meant || self.sabotage == Sabotage::MeetByPid).then_some(proc)
    }

    /// Who has that pid now, a zombie included.
    pub fn who_has(&self, pid: u32) -> Option<Proc> {
        let has = |process: &Process| process.pid == pid && process.life != Life::Reaped;
        self.processes.iter().rposition(has)
    }

    /// A signal from anybody.
    pub fn send(&mut self, target: Proc, signal: Signal) {
        let life = self.processes[target].life;
        match (life, signal) {
            // The real parent holds signals back until a loop reads them; here nobody may rely on it.
            (Life::Booting, Signal::Usr1) if !self.processes[target].handlers => {
                self.complain(Rule::ProbeOnlyTheReady, format!("SIGUSR1 to {target}, which boots"));
                self.end(target, Exit::Signal(10));
            }
            (Life::Booting | Life::Running, _) => {
                *self.processes[target].signals.bit(signal) = true;
                self.wake(target);
            }
            (Life::Zombie(_) | Life::Reaped, _) => {}
        }
    }

    /// SIGUSR1 through a pidfd.
    pub fn probe(&mut self, pidfd: Proc) {
        if let Some(hit) = self.through_pidfd(pidfd) {
            self.send(hit, Signal::Usr1);
        }
    }

    /// SIGKILL through a pidfd.
    pub fn kill(&mut self, pidfd: Proc, why: &str) {
        let Some(hit) = self.through_pidfd(pidfd) else {
            return;
        };
        self.trace.note(self.now, || format!("{hit}: SIGKILL, {why}"));
        self.processes[hit].doomed = true;
        self.processes[hit].dismissed = true;
        self.audit.succession.disturbed_by(self.role_of(hit));
        // What waits in state D ends when the kernel lets it go.
        let waits = self.processes[hit].mood == Mood::Stuck(Stuck::Waiting) && self.audit.stops.is_empty();
        let latest = if waits && self.dice.chance(100) { millis(3000) } else { millis(3) };
        self.after(micros(50), latest, Event::Kill(hit));
    }

    /// Who gets a signal that is sent through a pidfd: nobody but the one that was meant.
    fn through_pidfd(&mut self, pidfd: Proc) -> Option<Proc> {
        self.system_call();
        let hit = match self.sabotage {
            Sabotage::SignalByPid => self.who_has(self.processes[pidfd].pid),
            _ => Some(pidfd),
        };
        let hit = hit.filter(|hit| self.processes[*hit].is_alive())?;
        self.ensure(hit == pidfd, Rule::SignalOnlyWhoIsMeant, || format!("{hit} is hit instead of {pidfd}"));
        Some(hit)
    }

    pub fn has_ended(&self, pidfd: Proc) -> bool {
        !self.processes[pidfd].is_alive()
    }

    /// `waitid(2)` by a pidfd.
    pub fn reap(&mut self, by: Proc, pidfd: Proc) -> Option<Exit> {
        self.system_call();
        let process = &mut self.processes[pidfd];
        match process.life {
            Life::Zombie(exit) if process.parent == by => {
                process.life = Life::Reaped;
                Some(exit)
            }
            Life::Zombie(_) | Life::Reaped => Some(Exit::Unknown),
            Life::Booting | Life::Running => None,
        }
    }

    /// `wait(2)`, non-blocking.
    pub fn reap_any_child(&mut self, by: Proc) -> Option<(u32, Exit)> {
        self.system_call();
        for process in &mut self.processes {
            if let Life::Zombie(exit) = process.life
                && process.parent == by
            {
                process.life = Life::Reaped;
                return Some((process.pid, exit));
            }
        }
        None
    }

    pub fn children(&self, of: Proc) -> Vec<Proc> {
        let is_child = |proc: &Proc| {
            let process = &self.processes[*proc];
            *proc != of && process.parent == of && process.life != Life::Reaped
        };
        (0..self.processes.len()).filter(is_child).collect()
    }

    pub fn parent_pid(&self, of: Proc) -> u32 {
        let parent = &self.processes[self.processes[of].parent];
        // Init, where the watchdog is no more.
        if parent.is_alive() { parent.pid } else { 0 }
    }

    /// Has a process called when another has ended.
    pub fn watch_end(&mut self, target: Proc, proc: Proc, key: Key) {
        self.system_call();
        if self.processes[target].is_alive() {
            self.processes[target].watchers.push((proc, key));
        } else {
            self.post(proc, key);
        }
    }

    /// A descriptor of the process is ready.
    pub fn post(&mut self, proc: Proc, key: Key) {
        let process = &mut self.processes[proc];
        if process.is_alive() && !process.ready.contains(&key) {
            process.ready.push(key);
            self.wake(proc);
        }
    }

    /// The letter in `/proc/<pid>/stat` of whoever has that pid.
    pub fn run_state(&self, pid: u32) -> RunState {
        let Some(process) = self.who_has(pid).map(|proc| &self.processes[proc]) else {
            return RunState::Gone;
        };
        match (process.life, process.mood) {
            (Life::Zombie(_) | Life::Reaped, _) => RunState::Gone,
            (_, Mood::Late(_, Stuck::Spinning) | Mood::Stuck(Stuck::Spinning | Stuck::Starved)) => {
                RunState::Running
            }
            (_, Mood::Late(_, Stuck::Starved)) => RunState::Running,
            (_, Mood::Stuck(Stuck::Stopped)) => RunState::Stopped,
            (_, Mood::Prompt | Mood::Late(..) | Mood::Stuck(Stuck::Waiting)) => RunState::Waiting,
        }
    }

    /// The CPU clock of a process, where the kernel has one.
    pub fn cpu(&self, pidfd: Proc) -> Option<Duration> {
        let alive = self.processes[pidfd].is_alive();
        (self.plan.cpu_is_known && alive).then(|| self.processes[pidfd].cpu_at(self.now))
    }

    /// A loop reads signals from now on, and SIGTERM will do when the parent dies.
    pub fn handlers_stand(&mut self, proc: Proc) {
        self.system_call();
        self.processes[proc].gentle = true;
        self.system_call();
        self.processes[proc].life = Life::Running;
        self.wake(proc);
    }

    /// The process is no more, whatever it was doing.
    pub fn end(&mut self, proc: Proc, exit: Exit) {
        if !self.processes[proc].is_alive() {
            return;
        }
        self.trace.note(self.now, || format!("{proc}: ended, {exit:?}"));
        self.processes[proc].life = Life::Zombie(exit);
        self.memories[proc] = None;
        self.audit_end_of(proc, exit);
        self.net_of_the_dead(proc);
        self.wires_of_the_dead(proc);
        self.excuse_household(proc);
        for (watcher, key) in std::mem::take(&mut self.processes[proc].watchers) {
            self.post(watcher, key);
        }
        for child in self.children(proc) {
            self.processes[child].parent = WATCHDOG;
            if !self.processes[child].is_alive() {
                self.send(WATCHDOG, Signal::Chld);
            } else if self.processes[child].gentle {
                self.send(child, Signal::Term);
            } else {
                self.processes[child].doomed = true;
                self.soon(millis(1), Event::Kill(child));
            }
        }
        let parent = self.processes[proc].parent;
        if parent == WATCHDOG && self.processes[WATCHDOG].is_alive() {
            self.send(WATCHDOG, Signal::Chld);
        } else if !self.processes[parent].is_alive() {
            // Init asks in its stead.
            self.processes[proc].life = Life::Reaped;
        }
    }

    pub fn role_of(&self, proc: Proc) -> Option<Role> {
        self.processes[proc].name().map(|name| name.role)
    }

    pub fn set_mood(&mut self, proc: Proc, mood: Mood) {
        let now = self.now;
        let process = &mut self.processes[proc];
        process.cpu = process.cpu_at(now);
        process.mood = mood;
        process.mood_since = now;
        process.mood_count += 1;
        self.wake(proc);
    }
}
