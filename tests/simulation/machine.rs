//! The modelled machine: time, and whose turn it is.
//!
//! A process works like the real ones: whatever reaches it waits until its loop turns; then
//! signals come first, descriptors next, timers last, and the turn is settled. While a process
//! is in a system call, others may have their turns, and it may be killed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use osps::core::job::Incarnation;
use osps::core::moment::Moment;
use osps::core::name::Name;
use osps::os::rundir::Rundir;
use osps::page::Access;
use osps::page::jobs::JobTable;
use osps::page::watchdog::{Directory, WatchdogPage};

use crate::audit::{Audit, Rule};
use crate::books::Fact;
use crate::clients::{Client, ClientId, Step};
use crate::crash;
use crate::dice::Dice;
use crate::fifo::Fifos;
use crate::kernel::{Exit, Life, Mood, Process, Signals};
use crate::net::{ConnId, Net};
use crate::observer::Observer;
use crate::plan::{Plan, TYPES, micros, millis};
use crate::principal::Principal;
use crate::reload::Wires;
use crate::sabotage::Sabotage;
use crate::secondary::Secondary;
use crate::talks::Talk;
use crate::trace::Trace;
use crate::watchdog::Watchdog;

/// A process for ever, as a pidfd names it; never used again.
pub type Proc = usize;
pub const WATCHDOG: Proc = 0;

/// What a process is woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The control listener of the principal, or a data listener, by request type.
    Listener(usize),
    Conn(ConnId),
    Tube(usize, Incarnation),
    TubeRoom,
    Orders,
    /// The watchdog has ended.
    Watchdog,
    /// What the watchdog says to a principal; to the watchdog: what that principal says.
    Channel(Proc),
    /// Who takes over from this principal says something, or has ended.
    Successor,
    /// People ask for a reload.
    Reload,
    Ended(Name),
}

/// Whether a handler stopped before it had taken everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Drained,
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Usr1,
    Usr2,
    Term,
    Chld,
}

/// What happens at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The program of the process begins.
    Boot(Proc),
    Turn(Proc),
    Alarm(Proc, Moment),
    /// SIGKILL reaches the process.
    Kill(Proc),
    /// The process ends by a mistake of its own, before it is ready.
    Fail(Proc, Exit),
    Fault(Proc),
    /// The end of a mood, where it is still that one.
    Recover(Proc, u32),
    Client(ClientId, Step),
    /// Bytes have come to the client's end of a control connection.
    Hear(ConnId),
    /// The server has closed a control connection, or has died.
    HungUp {
        conn: ConnId,
        died: bool,
    },
    NewClient,
    Stranger,
    Stop,
    Reload,
    /// Something has come to a principal that is to take over.
    Heir(Proc),
    WatchdogDies,
    Quiet,
    /// Is all well again?
    Inspect,
}

/// What a role does when its loop turns.
pub trait Role {
    fn on_signal(&mut self, sys: &mut Machine, signal: Signal);
    fn on_ready(&mut self, sys: &mut Machine, key: Key) -> Progress;
    fn deadline(&self) -> Option<Moment>;
    fn on_deadline(&mut self, sys: &mut Machine);
    fn settle(&mut self, sys: &mut Machine);
    /// The time of the turn is told once.
    fn begin(&mut self, sys: &mut Machine, now: Moment);
    /// Whether the loop ends with this turn.
    fn is_over(&self) -> bool;
}

/// What a process has in its own memory; lost when it dies.
pub enum Memory {
    Watchdog(Box<Watchdog>),
    Principal(Box<Principal>),
    Secondary(Box<Secondary>),
    Observer(Box<Observer>),
}

impl Memory {
    pub fn role(&mut self) -> &mut dyn Role {
        match self {
            Self::Watchdog(watchdog) => &mut **watchdog,
            Self::Principal(principal) => &mut **principal,
            Self::Secondary(secondary) => &mut **secondary,
            Self::Observer(observer) => &mut **observer,
        }
    }

    fn turn(&mut self, sys: &mut Machine, me: Proc, signals: Signals, ready: Vec<Key>) {
        let role = self.role();
        let now = sys.now;
        role.begin(sys, now);
        for signal in signals.pending() {
            role.on_signal(sys, signal);
        }
        for key in ready {
            if role.on_ready(sys, key) == Progress::Again {
                sys.post(me, key);
            }
        }
        let now = sys.turn_began_at();
        if role.deadline().is_some_and(|deadline| deadline <= now) {
            role.on_deadline(sys);
        }
        role.settle(sys);
    }
}

pub struct Machine {
    pub now: Moment,
    pub plan: Plan,
    pub dice: Dice,
    pub trace: Trace,
    pub audit: Audit,
    pub sabotage: Sabotage,
    pub processes: Vec<Process>,
    pub memories: Vec<Option<Memory>>,
    pub fifos: Fifos,
    pub net: Net,
    pub clients: Vec<Client>,
    /// Control connections, as their clients see them.
    pub talks: BTreeMap<ConnId, Talk>,
    /// Clients whose story is not over.
    pub here: usize,
    pub rundir: Rundir,
    /// Mapped once for all its readers: a mapping more is the same memory.
    pub watchdog_page: Rc<WatchdogPage>,
    /// The job tables, mapped once for all secondaries.
    pub tables: Vec<Rc<JobTable>>,
    /// What was done to the books and tables, until the audit has heard of it.
    pub facts: Rc<RefCell<Vec<Fact>>>,
    /// Slots in which people want no secondary.
    pub rested: BTreeSet<u16>,
    pub wires: Wires,
    /// The whole machine stands still until then: no loop turns.
    pub paused_until: Moment,
    pub over: bool,
    agenda: BTreeMap<(Moment, u64), Event>,
    events: u64,
    /// Whose turns are under way and since when, the innermost last.
    turns: Vec<(Proc, Moment)>,
}

impl Machine {
    pub fn new(plan: Plan, mut dice: Dice, sabotage: Sabotage, traced: bool, rundir: Rundir) -> Self {
        let listeners = 1 + usize::from(plan.secondaries) * TYPES;
        let tree_seed = dice.roll();
        let directory = Directory::default();
        let page = WatchdogPage::create(&rundir.watchdog_page(), plan.secondaries.into(), &directory)
            .expect("a directory of our own");
        let audit = Audit::new(&plan, &rundir);
        let watchdog_page = WatchdogPage::attach(&rundir.watchdog_page(), Access::ReadOnly);
        let table = |slot| JobTable::attach(&rundir.jobs(slot), Access::ReadWrite);
        let tables = (1..=plan.secondaries).map(|slot| Rc::new(table(slot).expect("it was created")));
        let mut machine = Self {
            now: Moment::from_nanos(1),
            audit,
            watchdog_page: Rc::new(watchdog_page.expect("it was created")),
            tables: tables.collect(),
            dice,
            trace: Trace::new(traced),
            sabotage,
            processes: Vec::new(),
            memories: Vec::new(),
            fifos: Fifos::default(),
            net: Net::new(listeners),
            clients: Vec::new(),
            talks: BTreeMap::new(),
            here: 0,
            facts: Rc::default(),
            rested: BTreeSet::new(),
            wires: Wires::default(),
            paused_until: Moment::default(),
            over: false,
            agenda: BTreeMap::new(),
            events: 0,
            turns: Vec::new(),
            rundir,
            plan,
        };
        machine.begin(page, tree_seed);
        machine
    }

    fn begin(&mut self, page: WatchdogPage, tree_seed: u64) {
        self.processes.push(Process::watchdog());
        let watchdog = Watchdog::start(self, page, tree_seed);
        self.memories.push(Some(Memory::Watchdog(Box::new(watchdog))));
        self.at(self.now, Event::Turn(WATCHDOG));
        self.at(self.plan.quiet_from, Event::Quiet);
        for stop in self.plan.stops.clone() {
            self.at(stop, Event::Stop);
        }
        if let Some(at) = self.plan.watchdog_dies {
            self.at(at, Event::WatchdogDies);
        }
        self.soon(self.plan.client_every * 4, Event::NewClient);
        self.soon(self.plan.stranger_every * 2, Event::Stranger);
        self.soon(self.plan.reload_every * 2, Event::Reload);
    }

    /// Lets the world come to its end, or to a broken rule.
    pub fn live(&mut self) {
        while !self.is_over() && self.run_next(self.plan.end) {}
        if !self.is_over() {
            self.now = self.plan.end;
            self.never_came_to_rest();
        }
    }

    pub fn is_over(&self) -> bool {
        self.over || self.audit.violation.is_some()
    }

    /// Lets others run for a while.
    pub fn run_until(&mut self, limit: Moment) {
        while !self.is_over() && self.run_next(limit) {}
        self.now = self.now.max(limit);
    }

    pub fn run_next(&mut self, limit: Moment) -> bool {
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= limit) else {
            return false;
        };
        let ((at, _), event) = entry.remove_entry();
        self.now = self.now.max(at);
        self.happen(event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Boot(proc) => self.boot(proc),
            Event::Turn(proc) => self.turn(proc),
            Event::Alarm(proc, at) => {
                if self.processes[proc].alarm == Some(at) {
                    self.processes[proc].alarm = None;
                    self.processes[proc].due = true;
                    self.wake(proc);
                }
            }
            Event::Kill(proc) => self.end(proc, Exit::Signal(9)),
            Event::Fail(proc, exit) => self.end(proc, exit),
            Event::Fault(proc) => self.fault(proc),
            Event::Recover(proc, mood) => {
                if self.processes[proc].mood_count == mood && !self.processes[proc].doomed {
                    self.set_mood(proc, Mood::Prompt);
                }
            }
            Event::Client(client, step) => self.client_step(client, step),
            Event::Hear(conn) => self.hear(conn),
            Event::HungUp { conn, died } => self.hung_up(conn, died),
            Event::NewClient => self.new_client(),
            Event::Stranger => self.stranger(),
            Event::Stop => self.send(WATCHDOG, Signal::Term),
            Event::Reload => self.ask_for_reload(),
            Event::Heir(proc) => self.heir_steps(proc),
            Event::WatchdogDies => self.watchdog_dies(),
            Event::Quiet => self.calm(),
            Event::Inspect => self.inspect(),
        }
    }

    /// The loop of the process turns once, if there is a reason and nothing prevents it.
    pub fn wake(&mut self, proc: Proc) {
        let process = &self.processes[proc];
        let idle = !process.signals.any() && process.ready.is_empty() && !process.due;
        if idle || process.turn_planned || process.life != Life::Running {
            return;
        }
        let wait = match process.mood {
            Mood::Stuck(_) => return,
            Mood::Late(wait, _) => wait,
            Mood::Prompt if proc == WATCHDOG => self.lateness(),
            Mood::Prompt => self.dice.between(micros(20), millis(2)),
        };
        let begin = (self.now + wait).max(self.processes[proc].busy_until);
        self.processes[proc].turn_planned = true;
        self.at(begin, Event::Turn(proc));
    }

    /// How long the watchdog takes to wake up; sometimes the whole machine stands still.
    fn lateness(&mut self) -> Duration {
        if self.is_quiet() || !self.dice.chance(self.plan.stalls) {
            return self.dice.up_to(millis(1));
        }
        self.audit.coverage.count("stalled");
        self.audit.succession.disturbed = true;
        let late = self.dice.up_to(3 * self.plan.settings.kill_after);
        if self.dice.chance(500) {
            self.audit.coverage.count("the machine stood still");
            self.paused_until = self.now + late;
        }
        late
    }

    fn turn(&mut self, proc: Proc) {
        if self.now < self.paused_until && proc != WATCHDOG {
            let wait = self.dice.up_to(millis(5));
            self.at(self.paused_until + wait, Event::Turn(proc));
            return;
        }
        let process = &mut self.processes[proc];
        process.turn_planned = false;
        if process.life != Life::Running || matches!(process.mood, Mood::Stuck(_)) {
            return;
        }
        // In the middle of a turn it looks again when that is over.
        let Some(mut memory) = self.memories[proc].take() else {
            return;
        };
        process.due = false;
        let signals = std::mem::take(&mut process.signals);
        let ready = std::mem::take(&mut process.ready);
        self.trace.note(self.now, || format!("{proc}: turn {signals:?} {ready:?}"));
        let lived = self.in_turn(proc, |sys| memory.turn(sys, proc, signals, ready));
        self.turn_is_over(proc, lived.then_some(memory));
    }

    /// Puts the memory back where the process lived to the end of its turn.
    pub fn turn_is_over(&mut self, proc: Proc, memory: Option<Memory>) {
        let Some(mut memory) = memory else {
            self.count_fault(proc, "died in the middle of a turn");
            self.audit.records.cut_short(proc);
            self.end(proc, Exit::Signal(9));
            self.audit_facts();
            self.audit_after_crash();
            return;
        };
        self.audit_facts();
        self.audit_turn(&memory);
        if memory.role().is_over() {
            self.audit_last_turn(&memory);
            drop(memory);
            self.end(proc, Exit::Code(0));
            return;
        }
        let deadline = memory.role().deadline();
        self.memories[proc] = Some(memory);
        let cost = self.dice.between(micros(5), micros(100));
        self.processes[proc].busy_until = self.now + cost;
        if let Some(at) = deadline {
            let at = at.max(self.now);
            if self.processes[proc].alarm != Some(at) {
                self.processes[proc].alarm = Some(at);
                self.at(at, Event::Alarm(proc, at));
            }
        } else {
            self.processes[proc].alarm = None;
        }
        self.wake(proc);
    }

    /// Runs a turn of a process, which may die in it. Returns whether it lived.
    pub fn in_turn(&mut self, proc: Proc, turn: impl FnOnce(&mut Self)) -> bool {
        let fuse = self.processes[proc].fuse.then(|| {
            let longest = 2 << self.dice.below(8);
            self.dice.below(longest)
        });
        self.turns.push((proc, self.now));
        let depth = self.turns.len();
        let survived = crash::survives(fuse, || turn(self));
        self.turns.truncate(depth - 1);
        survived && self.processes[proc].is_alive()
    }

    /// When the turn began that is under way.
    pub fn turn_began_at(&self) -> Moment {
        self.turns.last().map_or(self.now, |(_, since)| *since)
    }

    /// A system call of the process whose turn it is.
    pub fn system_call(&mut self) {
        crash::burn();
        let Some(&(me, _)) = self.turns.last() else {
            return;
        };
        if self.turns.len() > 3 || !self.dice.chance(self.plan.interleaved) {
            return;
        }
        let longest =
            if self.is_quiet() { millis(1) } else { self.dice.pick(&[millis(1), millis(2), millis(30)]) };
        let until = self.now + self.dice.up_to(longest);
        crash::spare(|| self.run_until(until));
        if !self.processes[me].is_alive() {
            crash::die_here();
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.now >= self.plan.quiet_from
    }

    pub fn soon(&mut self, longest: Duration, event: Event) {
        self.after(Duration::ZERO, longest, event);
    }

    pub fn after(&mut self, low: Duration, high: Duration, event: Event) {
        let wait = self.dice.between(low, high);
        self.at(self.now + wait, event);
    }

    pub fn at(&mut self, at: Moment, event: Event) {
        self.events += 1;
        self.agenda.insert((at, self.events), event);
    }

    pub fn complain(&mut self, rule: Rule, words: impl Into<String>) {
        let words = words.into();
        self.trace.note(self.now, || format!("BROKEN {rule:?}: {words}"));
        self.audit.complain(rule, words);
    }

    pub fn ensure(&mut self, holds: bool, rule: Rule, words: impl FnOnce() -> String) {
        if !holds {
            self.complain(rule, words());
        }
    }
}
