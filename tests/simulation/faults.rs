//! What goes wrong in a world: faults of processes, doings of strangers.

use std::time::Duration;

use crate::audit::Rule;
use crate::kernel::{Exit, Life, Mood, Stuck};
use crate::machine::{Event, Machine, Proc, Signal, WATCHDOG};
use crate::plan::{millis, secs};
use osps::core::name::Role;

impl Machine {
    pub fn plan_fault(&mut self, proc: Proc) {
        let hard = self.plan.hard_on_principals && self.role_of(proc) == Some(Role::Principal);
        let longest = if hard { self.plan.fault_every / 3 } else { 2 * self.plan.fault_every };
        let shortest = if self.dice.chance(100) { Duration::ZERO } else { millis(30) };
        self.after(shortest, longest.max(shortest), Event::Fault(proc));
    }

    pub fn fault(&mut self, proc: Proc) {
        if self.is_quiet() || self.processes[proc].life != Life::Running {
            return;
        }
        self.audit.succession.disturbed_by(self.role_of(proc));
        let how = self.dice.pick(&[Stuck::Stopped, Stuck::Waiting, Stuck::Spinning]);
        let kill_after = self.plan.settings.kill_after;
        let hard = self.plan.hard_on_principals && self.role_of(proc) == Some(Role::Principal);
        match self.dice.below(20) {
            _ if hard && self.dice.chance(700) => self.processes[proc].fuse = true,
            0..=1 => {
                self.count_fault(proc, "died between two turns");
                self.end(proc, Exit::Signal(9));
            }
            2..=6 => self.processes[proc].fuse = true,
            7..=8 => self.be_stuck(proc, Mood::Stuck(how)),
            9..=11 => self.pass_through(proc, Mood::Stuck(how)),
            12..=13 => self.pass_through(proc, Mood::Stuck(Stuck::Starved)),
            14..=15 => {
                let late = self.dice.up_to(kill_after * 6 / 5);
                self.pass_through(proc, Mood::Late(late, how));
            }
            16..=17 => self.terminate(proc),
            _ => self.forge_signal(proc),
        }
        self.plan_fault(proc);
    }

    /// SIGTERM to one process alone.
    fn terminate(&mut self, proc: Proc) {
        if proc != WATCHDOG {
            self.audit.coverage.count(match self.role_of(proc) {
                Some(Role::Principal) => "SIGTERM to a principal",
                Some(Role::Observer) => "SIGTERM to an observer",
                Some(Role::Secondary) | None => "SIGTERM to a secondary",
            });
            self.processes[proc].excused = true;
            self.send(proc, Signal::Term);
        }
    }

    fn forge_signal(&mut self, proc: Proc) {
        self.audit.coverage.count("a forged signal");
        match self.dice.below(3) {
            0 => self.send(proc, Signal::Usr1),
            1 => self.send(WATCHDOG, Signal::Usr2),
            _ => self.send(WATCHDOG, Signal::Chld),
        }
    }

    fn be_stuck(&mut self, proc: Proc, mood: Mood) {
        let what = match mood {
            Mood::Stuck(stuck) => format!("stuck: {stuck:?}"),
            Mood::Prompt | Mood::Late(..) => "late".to_owned(),
        };
        self.count_fault(proc, &what);
        self.set_mood(proc, mood);
    }

    /// What goes wrong with observers is counted once more, for itself.
    pub fn count_fault(&mut self, proc: Proc, what: &str) {
        self.audit.coverage.count(what.to_owned());
        if self.role_of(proc) == Some(Role::Observer) {
            self.audit.coverage.count(format!("observer: {what}"));
        }
    }

    /// A mood that ends; some outlast everything.
    fn pass_through(&mut self, proc: Proc, mood: Mood) {
        self.be_stuck(proc, mood);
        let kill_after = self.plan.settings.kill_after;
        let time = if self.dice.chance(30) { secs(70) } else { self.dice.up_to(3 * kill_after) };
        self.at(self.now + time, Event::Recover(proc, self.processes[proc].mood_count));
    }

    /// Its handler blocks it for a while.
    pub fn block(&mut self, proc: Proc) {
        self.audit.coverage.count("blocked in a handler");
        self.set_mood(proc, Mood::Stuck(Stuck::Waiting));
        let time = self.dice.up_to(3 * self.plan.settings.kill_after);
        self.at(self.now + time, Event::Recover(proc, self.processes[proc].mood_count));
    }

    /// Garbage in FIFOs, stolen lines, and a SIGTERM to the whole process group.
    pub fn stranger(&mut self) {
        if self.is_quiet() {
            return;
        }
        match self.dice.below(40) {
            0..=17 => self.disturb_fifos(true),
            18..=36 => self.disturb_fifos(false),
            37..=38 => self.ask_for_slot(),
            _ if self.dice.chance(250) => self.terminate_group(),
            _ => self.ask_for_slot(),
        }
        self.soon(self.plan.stranger_every * 2, Event::Stranger);
    }

    /// `timeout(1)`, a service manager: a graceful stop, whoever gets it first.
    fn terminate_group(&mut self) {
        self.audit.coverage.count("SIGTERM to the group");
        self.audit.succession.disturbed = true;
        for proc in 0..self.processes.len() {
            if self.processes[proc].is_alive() {
                self.processes[proc].excused = true;
                self.send(proc, Signal::Term);
            }
        }
    }

    /// The machine has time again and nobody disturbs; what is stuck for good remains so.
    pub fn calm(&mut self) {
        self.ask_for_all_slots();
        for proc in 0..self.processes.len() {
            self.processes[proc].fuse = false;
            match self.processes[proc].mood {
                Mood::Prompt | Mood::Stuck(Stuck::Stopped | Stuck::Waiting | Stuck::Spinning) => {}
                Mood::Late(..) | Mood::Stuck(Stuck::Starved) => self.set_mood(proc, Mood::Prompt),
            }
        }
        // A turn of the watchdog that is late already comes before that.
        self.at(self.now + 4 * self.plan.settings.kill_after, Event::Inspect);
    }

    /// kill -9 of the watchdog: all others have to end by themselves.
    pub fn watchdog_dies(&mut self) {
        if !self.audit.stops.is_empty() || self.over || self.has_ended(WATCHDOG) {
            return;
        }
        self.audit.coverage.count("the watchdog died");
        self.end(WATCHDOG, Exit::Signal(9));
        let settings = self.plan.settings;
        let all_gone =
            self.now.max(self.paused_until) + 2 * settings.grace + settings.start_within * 3 / 2 + secs(2);
        self.plan.quiet_from = self.now;
        self.plan.end = all_gone;
        self.calm();
    }

    /// Whether all that could end has ended, the watchdog being dead.
    pub fn all_end_without_watchdog(&mut self) {
        let left = (0..self.processes.len()).find(|proc| {
            let process = &self.processes[*proc];
            process.life == Life::Running && !matches!(process.mood, Mood::Stuck(_))
        });
        if let Some(proc) = left {
            let name = self.processes[proc].name();
            self.complain(Rule::StopEnds, format!("{name:?} ({proc}) outlives the watchdog"));
        }
        self.audit.coverage.count("all ended without a watchdog");
        self.over = true;
    }
}
