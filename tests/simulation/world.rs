//! The modelled machine: processes, signals, records, and time.
//!
//! A process works like the real ones: whatever reaches it waits in its inbox until its
//! loop turns. A stuck process has no turns, and SIGUSR1 is a pending bit.

use std::collections::BTreeMap;
use std::time::Duration;

use osps::core::job::Incarnation;
use osps::core::moment::Moment;
use osps::core::name::Name;
use osps::core::restart::Restart;
use osps::core::supervision::{Evidence, RunState};

use crate::dice::Dice;
use crate::plan::{Plan, micros, millis, secs};
use crate::trace::{Note, Trace};

/// A process for ever: never used again.
pub type Pid = usize;

/// What happens in the world at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The process is ready.
    Boot(Pid),
    /// The loop of the process turns.
    Turn(Pid),
    Arrive(Pid, Task),
    Die(Pid),
    Fault(Pid),
    /// The end of a mood, where it is still that one.
    Recover(Pid, u32),
    See(Sight),
    /// From here on everybody behaves.
    Quiet,
}

/// What the loop of a process has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Drain,
    /// The last exchange has ended.
    Finish,
    /// SIGTERM from somewhere.
    DrainBySelf,
    ParentGone,
    Stop,
    StopNow,
    Fork(u16),
    ChildGone(Pid),
    ChildDrains(Pid),
}

/// What the watchdog can notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Started(Pid),
    Ready(Pid),
    Draining(Pid),
    Exited(Pid),
    /// SIGUSR2.
    Doorbell,
    /// The user asks for a stop.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No handler for SIGUSR1 yet.
    Booting,
    Serving,
    Ended,
}

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

/// The probe record in shared memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    pub probe: u64,
    pub probed_at: Moment,
    pub answer: u64,
}

/// What only a principal has.
#[derive(Debug)]
pub struct Seat {
    pub child: Option<Pid>,
    pub restart: Restart,
}

#[derive(Debug)]
pub struct Process {
    pub name: Name,
    pub parent: Option<Pid>,
    pub life: Life,
    pub ready_since: Option<Moment>,
    /// Serves no new clients, by order or by itself.
    pub draining: bool,
    /// Told to drain or killed, though it may not have noticed yet.
    pub dismissed: bool,
    /// Its exit code says that starting it again is of no use.
    pub cannot_start: bool,
    pub mood: Mood,
    pub mood_since: Moment,
    pub mood_count: u32,
    pub record: Record,
    pub usr1_pending: bool,
    pub inbox: Vec<Task>,
    pub turn_planned: bool,
    pub stopping: bool,
    pub seats: Vec<Seat>,
}

pub struct World {
    pub now: Moment,
    pub plan: Plan,
    pub dice: Dice,
    pub processes: Vec<Process>,
    pub trace: Trace,
    pub incarnations: Vec<Incarnation>,
    /// What the watchdog will notice at its next turn.
    pub seen: Vec<Sight>,
    /// The whole machine stands still until then: no loop turns.
    pub paused_until: Moment,
    /// SIGUSR2 is pending at the watchdog.
    pub doorbell: bool,
    /// Two unfit processes in one slot, or the like: the world's own complaint.
    pub complaint: Option<String>,
    agenda: BTreeMap<(Moment, u64), Event>,
    events: u64,
}

impl World {
    pub fn new(plan: Plan, dice: Dice) -> Self {
        let mut world = Self {
            now: Moment::default(),
            incarnations: vec![0; usize::from(plan.secondaries) + 1],
            plan,
            dice,
            processes: Vec::new(),
            trace: Trace::default(),
            seen: Vec::new(),
            paused_until: Moment::default(),
            doorbell: false,
            complaint: None,
            agenda: BTreeMap::new(),
            events: 0,
        };
        world.at(world.plan.quiet_from, Event::Quiet);
        for stop in world.plan.stops.clone() {
            world.at(stop, Event::See(Sight::Stop));
        }
        world
    }

    /// Lets time pass until the watchdog has something to notice, at the latest until `limit`.
    pub fn run_until_seen(&mut self, limit: Moment) {
        while self.seen.is_empty() && self.run_next(limit) {}
        if self.seen.is_empty() {
            self.now = self.now.max(limit);
        }
    }

    /// Lets time pass.
    pub fn run_until(&mut self, limit: Moment) {
        while self.run_next(limit) {}
        self.now = self.now.max(limit);
    }

    fn run_next(&mut self, limit: Moment) -> bool {
        let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= limit) else {
            return false;
        };
        let ((at, _), event) = entry.remove_entry();
        self.now = self.now.max(at);
        self.trace.note(self.now, Note::World(event));
        match event {
            Event::Boot(pid) => self.boot(pid),
            Event::Turn(pid) => self.turn(pid),
            Event::Arrive(pid, task) => {
                self.processes[pid].inbox.push(task);
                self.plan_turn(pid);
            }
            Event::Die(pid) => self.die(pid),
            Event::Fault(pid) => self.fault(pid),
            Event::Recover(pid, mood) if self.processes[pid].mood_count == mood => {
                self.set_mood(pid, Mood::Prompt);
            }
            Event::Recover(..) => {}
            Event::See(sight) => self.seen.push(sight),
            Event::Quiet => self.calm(),
        }
        true
    }

    /// The fork of the watchdog; `None` where the machine refuses.
    pub fn start_principal(&mut self, incarnation: Incarnation) -> Option<Pid> {
        if !self.is_quiet() && self.dice.chance(self.plan.bad_starts / 4) {
            return None;
        }
        let pid = self.spawn(Name::principal(incarnation), None);
        for _ in 0..self.plan.secondaries {
            let restart = Restart::new(self.dice.roll());
            self.processes[pid].seats.push(Seat { child: None, restart });
        }
        Some(pid)
    }

    /// Starts a process; what becomes of it is decided here.
    pub fn spawn(&mut self, name: Name, parent: Option<Pid>) -> Pid {
        self.check_slot(name);
        let pid = self.processes.len();
        self.processes.push(Process {
            name,
            parent,
            life: Life::Booting,
            ready_since: None,
            draining: false,
            dismissed: false,
            cannot_start: false,
            mood: Mood::Prompt,
            mood_since: self.now,
            mood_count: 0,
            record: Record::default(),
            usr1_pending: false,
            inbox: Vec::new(),
            turn_planned: false,
            stopping: false,
            seats: Vec::new(),
        });
        let bad = !self.is_quiet() && self.dice.chance(self.plan.bad_starts);
        let ways = if parent.is_none() { 21 } else { 20 };
        match self.dice.below(ways) {
            0..=13 if bad => self.soon(millis(30), Event::Die(pid)),
            14..=17 if bad => {
                let slow = self.plan.settings.start_within;
                self.after(slow * 5 / 6, slow * 4 / 3, Event::Boot(pid));
            }
            18..=19 if bad => {}
            20 if bad => {
                self.processes[pid].cannot_start = true;
                self.soon(millis(30), Event::Die(pid));
            }
            _ => self.after(millis(1), millis(30), Event::Boot(pid)),
        }
        pid
    }

    /// Who is in the slot already must be on its way out.
    fn check_slot(&mut self, name: Name) {
        let stays = |process: &&Process| {
            process.name.slot == name.slot
                && process.life != Life::Ended
                && !process.draining
                && !process.dismissed
        };
        if let Some(other) = self.processes.iter().find(stays) {
            self.complaint = Some(format!("{name} is started beside {}", other.name));
        }
    }

    /// Writes the number, then sends SIGUSR1, which ends a process that has no handler yet.
    pub fn probe(&mut self, pid: Pid, number: u64) {
        let process = &mut self.processes[pid];
        process.record.probe = number;
        process.record.probed_at = self.now;
        match process.life {
            Life::Booting => self.die(pid),
            Life::Serving => {
                process.usr1_pending = true;
                self.plan_turn(pid);
            }
            Life::Ended => {}
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, pid: Pid) {
        self.processes[pid].dismissed = true;
        self.after(micros(50), millis(3), Event::Die(pid));
    }

    /// An order from the watchdog.
    pub fn order(&mut self, pid: Pid, task: Task) {
        self.processes[pid].dismissed |= task == Task::Drain;
        self.send(pid, task);
    }

    /// `/proc` of a process.
    pub fn evidence(&self, pid: Pid) -> Evidence {
        let process = &self.processes[pid];
        let burning = self.now.since(process.mood_since.max(process.record.probed_at));
        let (run_state, cpu) = match (process.life, process.mood) {
            (Life::Ended, _) => (RunState::Gone, Duration::ZERO),
            (_, Mood::Late(_, Stuck::Spinning) | Mood::Stuck(Stuck::Spinning)) => {
                (RunState::Running, burning)
            }
            (_, Mood::Stuck(Stuck::Starved)) => (RunState::Running, burning / 100),
            (_, Mood::Stuck(Stuck::Stopped)) => (RunState::Stopped, Duration::ZERO),
            (_, Mood::Prompt | Mood::Late(..) | Mood::Stuck(Stuck::Waiting)) => {
                (RunState::Waiting, micros(30))
            }
        };
        Evidence { run_state, cpu_since_probe: self.plan.cpu_is_known.then_some(cpu) }
    }

    pub fn is_quiet(&self) -> bool {
        self.now >= self.plan.quiet_from
    }

    /// The processes that have not ended.
    pub fn living(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|process| process.life != Life::Ended)
    }

    /// Something reaches the inbox of a process before long.
    pub fn send(&mut self, pid: Pid, task: Task) {
        self.soon(millis(2), Event::Arrive(pid, task));
    }

    /// The watchdog notices something before long.
    pub fn show(&mut self, sight: Sight) {
        self.soon(millis(2), Event::See(sight));
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

    /// Long enough for every fault to be noticed.
    pub fn long_mood(&mut self) -> Duration {
        let kill_after = self.plan.settings.kill_after;
        if self.dice.chance(30) { secs(70) } else { self.dice.up_to(4 * kill_after) }
    }
}
