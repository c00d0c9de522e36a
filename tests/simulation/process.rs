//! The lives of the modelled processes.

use std::time::Duration;

use osps::core::job::next_incarnation;
use osps::core::name::{Name, Role};
use osps::core::restart::{Death, Verdict};

use crate::plan::{micros, millis};
use crate::world::{Event, Life, Mood, Pid, Sight, Stuck, Task, World};

impl World {
    /// The handlers are installed and the loop runs.
    pub fn boot(&mut self, pid: Pid) {
        let process = &mut self.processes[pid];
        if process.life != Life::Booting {
            return;
        }
        process.life = Life::Serving;
        process.ready_since = Some(self.now);
        self.show(Sight::Ready(pid));
        if self.processes[pid].name.role == Role::Principal {
            for slot in 1..=self.plan.secondaries {
                self.send(pid, Task::Fork(slot));
            }
        }
        self.plan_fault(pid);
        self.plan_turn(pid);
    }

    /// The loop turns once, if there is a reason and nothing prevents it.
    pub fn plan_turn(&mut self, pid: Pid) {
        let process = &self.processes[pid];
        let idle = !process.usr1_pending && process.inbox.is_empty();
        if idle || process.turn_planned || process.life != Life::Serving {
            return;
        }
        let wait = match process.mood {
            Mood::Stuck(_) => return,
            Mood::Late(wait, _) => wait,
            Mood::Prompt => self.dice.between(micros(20), millis(4)),
        };
        self.processes[pid].turn_planned = true;
        self.at(self.now + wait, Event::Turn(pid));
    }

    pub fn turn(&mut self, pid: Pid) {
        if self.now < self.paused_until {
            let wait = self.dice.up_to(millis(5));
            self.at(self.paused_until + wait, Event::Turn(pid));
            return;
        }
        let process = &mut self.processes[pid];
        process.turn_planned = false;
        if process.life != Life::Serving || matches!(process.mood, Mood::Stuck(_)) {
            return;
        }
        if std::mem::take(&mut process.usr1_pending) {
            process.record.answer = process.record.probe;
            self.ring();
        }
        for task in std::mem::take(&mut self.processes[pid].inbox) {
            if self.processes[pid].life == Life::Serving {
                self.perform(pid, task);
            }
        }
    }

    /// SIGUSR2 to the watchdog: those that are pending together are one.
    pub fn ring(&mut self) {
        if !std::mem::replace(&mut self.doorbell, true) {
            self.show(Sight::Doorbell);
        }
    }

    fn perform(&mut self, pid: Pid, task: Task) {
        match task {
            Task::Drain => self.drain(pid),
            Task::Finish => self.die(pid),
            Task::DrainBySelf => {
                self.show(Sight::Draining(pid));
                self.tell_parent(pid, Task::ChildDrains(pid));
                self.drain(pid);
            }
            Task::ParentGone => {
                if self.dice.chance(500) {
                    self.show(Sight::Draining(pid));
                }
                self.drain(pid);
            }
            Task::Stop => self.stop_children(pid, Task::Drain),
            Task::StopNow => self.stop_children(pid, Task::Finish),
            Task::Fork(slot) => self.fork(pid, slot),
            Task::ChildGone(child) => self.succeed(pid, child),
            Task::ChildDrains(child) => {
                let slot = self.processes[child].name.slot;
                let seat = &mut self.processes[pid].seats[usize::from(slot) - 1];
                if seat.child == Some(child) {
                    seat.child = None;
                    self.send(pid, Task::Fork(slot));
                }
            }
        }
    }

    /// Finishes what it does, which may take longer than it may.
    fn drain(&mut self, pid: Pid) {
        if !self.processes[pid].draining {
            self.processes[pid].draining = true;
            let longest = if self.dice.chance(200) { 3 } else { 1 };
            let grace = self.plan.settings.grace;
            self.soon(grace / 2 * longest, Event::Arrive(pid, Task::Finish));
        }
    }

    fn stop_children(&mut self, pid: Pid, task: Task) {
        self.processes[pid].stopping = true;
        if self.dice.chance(100) {
            self.set_mood(pid, Mood::Stuck(Stuck::Waiting));
            return;
        }
        for child in self.children(pid) {
            self.send(child, task);
        }
        self.end_after_children(pid);
    }

    fn end_after_children(&mut self, pid: Pid) {
        if self.processes[pid].stopping && self.children(pid).is_empty() {
            self.die(pid);
        }
    }

    fn children(&self, pid: Pid) -> Vec<Pid> {
        let processes = self.processes.iter().enumerate();
        processes
            .filter(|(_, process)| process.parent == Some(pid) && process.life != Life::Ended)
            .map(|(child, _)| child)
            .collect()
    }

    fn fork(&mut self, pid: Pid, slot: u16) {
        let index = usize::from(slot);
        let process = &self.processes[pid];
        if process.stopping || process.seats[index - 1].child.is_some() {
            return;
        }
        let incarnation = next_incarnation(self.incarnations[index]);
        self.incarnations[index] = incarnation;
        let child = self.spawn(Name::secondary(slot, incarnation), Some(pid));
        self.processes[pid].seats[index - 1].child = Some(child);
        self.soon(millis(5), Event::See(Sight::Started(child)));
    }

    /// A child has ended: its slot gets a successor, unless it has one.
    fn succeed(&mut self, pid: Pid, child: Pid) {
        self.end_after_children(pid);
        let (slot, ready_since) = (self.processes[child].name.slot, self.processes[child].ready_since);
        let now = self.now;
        let seat = &mut self.processes[pid].seats[usize::from(slot) - 1];
        if seat.child != Some(child) {
            return;
        }
        seat.child = None;
        match seat.restart.after_death(now, Death { ready_since, cannot_start: false }) {
            Verdict::StartAt(at) => self.at(at, Event::Arrive(pid, Task::Fork(slot))),
            Verdict::GiveUp => {}
        }
    }

    pub fn die(&mut self, pid: Pid) {
        let process = &mut self.processes[pid];
        if process.life == Life::Ended {
            return;
        }
        process.life = Life::Ended;
        self.show(Sight::Exited(pid));
        self.tell_parent(pid, Task::ChildGone(pid));
        for child in self.children(pid) {
            if self.processes[child].life == Life::Booting {
                // The parent-death signal meets no handler yet.
                self.soon(millis(1), Event::Die(child));
            } else {
                self.send(child, Task::ParentGone);
            }
        }
    }

    fn tell_parent(&mut self, pid: Pid, task: Task) {
        if let Some(parent) = self.processes[pid].parent {
            self.send(parent, task);
        }
    }

    fn plan_fault(&mut self, pid: Pid) {
        let longest = 2 * self.plan.fault_every;
        let shortest = if self.dice.chance(100) { Duration::ZERO } else { millis(300) };
        self.after(shortest, longest, Event::Fault(pid));
    }

    pub fn fault(&mut self, pid: Pid) {
        let name = self.processes[pid].name;
        if self.is_quiet() || self.processes[pid].life != Life::Serving {
            return;
        }
        let how = self.dice.pick(&[Stuck::Stopped, Stuck::Waiting, Stuck::Spinning]);
        let kill_after = self.plan.settings.kill_after;
        match self.dice.below(20) {
            0..=2 => self.die(pid),
            3..=5 => self.set_mood(pid, Mood::Stuck(how)),
            6..=8 => self.pass_through(pid, Mood::Stuck(how)),
            9..=10 => self.pass_through(pid, Mood::Stuck(Stuck::Starved)),
            11..=15 => {
                let late = self.dice.up_to(kill_after * 6 / 5);
                self.pass_through(pid, Mood::Late(late, how));
            }
            16..=18 if name.role == Role::Secondary => self.send(pid, Task::DrainBySelf),
            _ => self.ring(),
        }
        self.plan_fault(pid);
    }

    /// A mood that ends.
    fn pass_through(&mut self, pid: Pid, mood: Mood) {
        self.set_mood(pid, mood);
        let until = self.now + self.long_mood();
        self.at(until, Event::Recover(pid, self.processes[pid].mood_count));
    }

    pub fn set_mood(&mut self, pid: Pid, mood: Mood) {
        let process = &mut self.processes[pid];
        process.mood = mood;
        process.mood_since = self.now;
        process.mood_count += 1;
        self.plan_turn(pid);
    }

    /// The machine has time again; what is stuck for good remains so.
    pub fn calm(&mut self) {
        for pid in 0..self.processes.len() {
            match self.processes[pid].mood {
                Mood::Prompt | Mood::Stuck(Stuck::Stopped | Stuck::Waiting | Stuck::Spinning) => {}
                Mood::Late(..) | Mood::Stuck(Stuck::Starved) => self.set_mood(pid, Mood::Prompt),
            }
        }
    }
}
