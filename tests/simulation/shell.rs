//! The watchdog's shell, as far as the core can tell it from the real one.

use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::Name;
use osps::core::supervision::Act;
use osps::core::tree::{Action, Tree};

use crate::audit::{Audit, Coverage, Violation};
use crate::dice::Dice;
use crate::plan::{Plan, millis};
use crate::trace::{Note, Trace};
use crate::world::{Life, Pid, Sight, Task, World};

/// A way in which a shell can be wrong, to see that the audit notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    DropAnswers,
    ForgetExits,
    /// Tells that a process is ready when it is started.
    TrustTooEarly,
    ForgetTimeouts,
    IgnoreStops,
    StartTwice,
    KillTwice,
    /// Configures half of `kill_after`.
    HalvePatience,
    /// Configures a much shorter `period`.
    RushKills,
}

/// What became of a world.
#[derive(Debug)]
pub struct Run {
    pub coverage: Coverage,
    pub trace: Trace,
    pub violation: Option<Violation>,
}

/// Lives through the world of a seed.
pub fn run(seed: u64, sabotage: Sabotage) -> Run {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(&mut dice);
    let mut shell = Shell::new(plan, dice, sabotage);
    let violation = shell.live().err();
    Run { coverage: shell.audit.coverage, trace: shell.world.trace, violation }
}

struct Shell {
    world: World,
    tree: Tree,
    audit: Audit,
    sabotage: Sabotage,
}

type Done = Result<(), Violation>;

impl Shell {
    fn new(plan: Plan, mut dice: Dice, sabotage: Sabotage) -> Self {
        let mut settings = plan.settings;
        match sabotage {
            Sabotage::HalvePatience => settings.kill_after /= 2,
            Sabotage::RushKills => settings.period /= 100,
            _ => {}
        }
        let seed = dice.roll();
        let tree = Tree::new(Moment::default(), plan.secondaries, settings, plan.stop_within, seed);
        Self { audit: Audit::new(plan.clone()), world: World::new(plan, dice), tree, sabotage }
    }

    fn live(&mut self) -> Done {
        let end = self.world.plan.end;
        while self.world.now < end && !self.audit.finished {
            let deadline = self.tree.poll_timeout().map_or(end, |at| at.min(end));
            self.world.run_until_seen(deadline);
            let late = self.lateness();
            self.world.run_until(self.world.now + late);
            self.audit.turn_begins(self.world.now, self.tree.poll_timeout());
            self.turn()?;
        }
        self.world.run_until(end);
        self.audit.world_ends(&self.tree)
    }

    /// How long the watchdog takes to wake up; sometimes the whole machine stands still.
    fn lateness(&mut self) -> Duration {
        let world = &mut self.world;
        if world.is_quiet() || !world.dice.chance(world.plan.stalls) {
            return world.dice.up_to(millis(1));
        }
        self.audit.coverage.count("stalled");
        let late = world.dice.up_to(3 * world.plan.settings.kill_after);
        if world.dice.chance(500) {
            world.paused_until = world.now + late;
        }
        late
    }

    /// What was noticed first, then the clock: an answer that is there counts.
    fn turn(&mut self) -> Done {
        let seen = std::mem::take(&mut self.world.seen);
        let idle = seen.is_empty();
        for sight in seen {
            self.notice(sight)?;
        }
        if self.sabotage != Sabotage::ForgetTimeouts {
            self.tree.handle_timeout(self.world.now);
        }
        self.carry_out()?;
        self.audit.turn_ends(&self.world, &self.tree, idle)
    }

    fn notice(&mut self, sight: Sight) -> Done {
        match sight {
            Sight::Started(pid) => self.tell_started(pid),
            Sight::Ready(pid) => self.tell_ready(pid),
            Sight::Draining(pid) => {
                self.tell_started(pid)?;
                self.tell_draining(pid)
            }
            Sight::Exited(pid) => self.tell_exited(pid),
            Sight::Doorbell => self.read_records(),
            Sight::Stop => {
                self.audit.stop(self.world.now);
                self.told(sight, |tree, now| {
                    tree.handle_stop(now);
                })
            }
        }
    }

    /// Reports one thing to the core.
    fn told(&mut self, sight: Sight, report: impl FnOnce(&mut Tree, Moment)) -> Done {
        let now = self.world.now;
        self.world.trace.note(now, Note::Told(sight));
        if self.sabotage != Sabotage::IgnoreStops || sight != Sight::Stop {
            report(&mut self.tree, now);
        }
        if self.world.plan.acts_once_a_turn { Ok(()) } else { self.carry_out() }
    }

    fn name(&self, pid: Pid) -> Name {
        self.world.processes[pid].name
    }

    /// Whether the watchdog knows the process, and not of its end.
    fn knows(&self, pid: Pid) -> bool {
        self.audit.dossier(self.name(pid)).is_some()
    }

    /// Tells of a new process, after those that were in its slot before.
    fn tell_started(&mut self, pid: Pid) -> Done {
        let name = self.name(pid);
        if self.audit.was_told_of(name) {
            return Ok(());
        }
        for other in 0..pid {
            if self.name(other).slot == name.slot {
                self.tell_started(other)?;
                if self.world.processes[other].life == Life::Ended {
                    self.tell_exited(other)?;
                }
            }
        }
        self.audit.started(self.world.now, name, pid, self.world.processes[pid].parent);
        self.told(Sight::Started(pid), |tree, now| tree.handle_started(now, name))?;
        if self.sabotage == Sabotage::TrustTooEarly {
            return self.tell_ready(pid);
        }
        Ok(())
    }

    fn tell_ready(&mut self, pid: Pid) -> Done {
        let name = self.name(pid);
        self.tell_started(pid)?;
        if !self.knows(pid) || self.audit.dossier(name).is_some_and(|known| known.ready.is_some()) {
            return Ok(());
        }
        self.audit.ready(self.world.now, name);
        self.told(Sight::Ready(pid), |tree, now| tree.handle_ready(now, name))
    }

    fn tell_draining(&mut self, pid: Pid) -> Done {
        let name = self.name(pid);
        if !self.knows(pid) {
            return Ok(());
        }
        self.audit.drains(self.world.now, name);
        self.told(Sight::Draining(pid), |tree, now| tree.handle_draining(now, name))
    }

    /// Tells of an end; before that of a principal's, of the children it still started.
    fn tell_exited(&mut self, pid: Pid) -> Done {
        let name = self.name(pid);
        self.tell_started(pid)?;
        if !self.knows(pid) {
            return Ok(());
        }
        for child in pid + 1..self.world.processes.len() {
            if self.world.processes[child].parent == Some(pid) {
                self.tell_started(child)?;
            }
        }
        self.audit.exited(self.world.now, name);
        if self.sabotage == Sabotage::ForgetExits {
            return Ok(());
        }
        let cannot_start = self.world.processes[pid].cannot_start;
        self.told(Sight::Exited(pid), |tree, now| tree.handle_exited(now, name, cannot_start))
    }

    /// SIGUSR2, however many were sent: every record is read.
    fn read_records(&mut self) -> Done {
        self.world.doorbell = false;
        let known: Vec<(Name, Pid)> = self.audit.known().map(|(name, dossier)| (name, dossier.pid)).collect();
        for (name, pid) in known {
            self.read_record(name, pid);
        }
        self.told(Sight::Doorbell, |_, _| {})
    }

    fn read_record(&mut self, name: Name, pid: Pid) {
        if self.sabotage != Sabotage::DropAnswers {
            let answer = self.world.processes[pid].record.answer;
            self.tree.handle_answer(self.world.now, name, answer);
        }
    }

    fn carry_out(&mut self) -> Done {
        while let Some(action) = self.tree.poll_action() {
            self.world.trace.note(self.world.now, Note::Did(action));
            self.perform(action)?;
            let again = match action {
                Action::StartPrincipal(_) => self.sabotage == Sabotage::StartTwice,
                Action::To(_, Act::Kill(_)) => self.sabotage == Sabotage::KillTwice,
                _ => false,
            };
            if again {
                self.perform(action)?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Done {
        self.audit.action(&self.world, action)?;
        match action {
            Action::StartPrincipal(incarnation) => match self.world.start_principal(incarnation) {
                Some(pid) => self.tell_started(pid)?,
                None => {
                    self.audit.coverage.count("spawn failed");
                    self.tree.handle_start_failed(self.world.now);
                }
            },
            Action::To(name, act) => self.act(name, act),
            Action::Drain(name) => self.world.order(self.pid(name), Task::Drain),
            Action::Stop(name) => self.world.order(self.pid(name), Task::Stop),
            Action::StopNow(name) => self.world.order(self.pid(name), Task::StopNow),
            Action::Forgiven(_) | Action::GiveUp | Action::Finished => {}
        }
        Ok(())
    }

    fn act(&mut self, name: Name, act: Act) {
        let pid = self.pid(name);
        match act {
            Act::Probe(number) => self.world.probe(pid, number),
            Act::Suspect | Act::Trust | Act::TellStubborn => {}
            Act::Examine => {
                self.read_record(name, pid);
                let evidence = self.world.evidence(pid);
                self.tree.handle_evidence(self.world.now, name, evidence);
            }
            Act::Kill(_) => self.world.kill(pid),
        }
    }

    fn pid(&self, name: Name) -> Pid {
        self.audit.dossier(name).expect("the audit refuses actions to nobody").pid
    }
}
