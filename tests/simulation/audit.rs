//! What a supervisor may never do, checked against the world at each of its actions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::supervision::{Act, Reason, RunState, State};
use osps::core::tree::{Action, Tree};

use crate::plan::Plan;
use crate::world::{Life, Pid, World};

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Two processes serve in one slot.
    OnePerSlot,
    /// Who answers in time is not killed for silence.
    AnswersProtect,
    /// Each reason to kill has its condition in the world.
    KillsHaveCause,
    /// Nothing is done to who has ended.
    NothingToTheDead,
    /// SIGUSR1 only to who is ready.
    ProbeOnlyTheReady,
    KillOnce,
    /// At most one unproven kill a period.
    OneKillAPeriod,
    /// Suspicion and trust take turns, and have their condition.
    Suspicion,
    NoBusyLoop,
    /// A stop ends everything, in time, and starts nothing.
    StopEnds,
    /// The core knows of exactly the processes that live.
    NobodyForgotten,
    /// Without faults, all serve before long.
    Recovers,
}

/// A broken rule, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub words: String,
}

/// What the watchdog was told of a process, and did to it.
#[derive(Clone, Debug)]
pub struct Dossier {
    pub pid: Pid,
    pub parent: Option<Pid>,
    pub started: Moment,
    pub ready: Option<Moment>,
    pub drains_since: Option<Moment>,
    suspect: bool,
    killed: bool,
    probe: u64,
    probed_at: Moment,
    /// Turns since the probe in which the watchdog itself was late.
    void_rounds: u32,
}

impl Dossier {
    fn new(pid: Pid, parent: Option<Pid>, started: Moment) -> Self {
        Self {
            pid,
            parent,
            started,
            ready: None,
            drains_since: None,
            suspect: false,
            killed: false,
            probe: 0,
            probed_at: started,
            void_rounds: 0,
        }
    }
}

/// How often the interesting things happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(pub BTreeMap<String, u64>);

impl Coverage {
    pub fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }
}

impl AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        for (what, times) in other.0 {
            *self.0.entry(what).or_default() += times;
        }
    }
}

/// The checker of one world.
pub struct Audit {
    plan: Plan,
    /// Those whose end the watchdog was not told.
    dossiers: BTreeMap<Name, Dossier>,
    buried: BTreeSet<Name>,
    last_unproven_kill: Option<Moment>,
    /// When the watchdog was so late that no silence before counts.
    late_at: Moment,
    stops: Vec<Moment>,
    pub given_up: bool,
    pub finished: bool,
    restless_turns: u32,
    pub coverage: Coverage,
}

type Checked = Result<(), Violation>;

/// The longest that a stop "at once" may leave anybody alone.
const AT_ONCE: Duration = Duration::from_millis(500);
const STOP_MARGIN: Duration = Duration::from_secs(1);

impl Audit {
    pub fn new(plan: Plan) -> Self {
        Self {
            plan,
            dossiers: BTreeMap::new(),
            buried: BTreeSet::new(),
            last_unproven_kill: None,
            late_at: Moment::default(),
            stops: Vec::new(),
            given_up: false,
            finished: false,
            restless_turns: 0,
            coverage: Coverage::default(),
        }
    }

    pub fn dossier(&self, name: Name) -> Option<&Dossier> {
        self.dossiers.get(&name)
    }

    /// Whether the watchdog was ever told of the process.
    pub fn was_told_of(&self, name: Name) -> bool {
        self.dossiers.contains_key(&name) || self.buried.contains(&name)
    }

    /// Those whose end it was not told.
    pub fn known(&self) -> impl Iterator<Item = (Name, &Dossier)> {
        self.dossiers.iter().map(|(name, dossier)| (*name, dossier))
    }

    pub fn started(&mut self, now: Moment, name: Name, pid: Pid, parent: Option<Pid>) {
        if name.incarnation > 1 {
            self.coverage.count(format!("{:?} restarted", name.role));
        }
        assert!(!self.was_told_of(name), "{name} was started twice");
        self.dossiers.insert(name, Dossier::new(pid, parent, now));
        for (other, dossier) in &mut self.dossiers {
            if other.slot == name.slot && *other != name {
                dossier.drains_since.get_or_insert(now);
            }
        }
    }

    pub fn ready(&mut self, now: Moment, name: Name) {
        self.dossiers.entry(name).and_modify(|dossier| dossier.ready = Some(now));
    }

    pub fn drains(&mut self, now: Moment, name: Name) {
        self.coverage.count("drained by itself");
        self.dossiers.entry(name).and_modify(|dossier| {
            dossier.drains_since.get_or_insert(now);
        });
    }

    pub fn exited(&mut self, now: Moment, name: Name) {
        self.dossiers.remove(&name);
        self.buried.insert(name);
        if name.role == Role::Principal {
            for dossier in self.dossiers.values_mut().filter(|dossier| dossier.parent.is_some()) {
                dossier.drains_since.get_or_insert(now);
            }
        }
    }

    pub fn stop(&mut self, now: Moment) {
        self.coverage.count(if self.stops.is_empty() { "stop" } else { "stop at once" });
        self.stops.push(now);
    }

    /// Notes whether the watchdog comes much later than the core wanted.
    pub fn turn_begins(&mut self, now: Moment, deadline: Option<Moment>) {
        let late = self.plan.settings.kill_after / 4;
        if deadline.is_some_and(|deadline| now.since(deadline) > late) {
            self.late_at = now;
            for dossier in self.dossiers.values_mut() {
                dossier.void_rounds += 1;
            }
        }
    }

    /// Checks an action before it is carried out.
    pub fn action(&mut self, world: &World, action: Action) -> Checked {
        if self.finished {
            return broken(Rule::StopEnds, format!("{action:?} after the end"));
        }
        match action {
            Action::StartPrincipal(_) if !self.stops.is_empty() => {
                broken(Rule::StopEnds, "a principal is started after a stop")
            }
            Action::StartPrincipal(_) if self.given_up => {
                broken(Rule::StopEnds, "a principal is started after giving up")
            }
            Action::StartPrincipal(_) => match world.living().find(|p| p.parent.is_none()) {
                Some(other) => broken(Rule::OnePerSlot, format!("{} still lives", other.name)),
                None => Ok(()),
            },
            Action::To(name, act) => self.act(world, name, act),
            Action::Drain(name) => {
                self.coverage.count("ordered to drain");
                self.alive(name).map(|_| ())
            }
            Action::Stop(name) | Action::StopNow(name) => self.alive(name).map(|_| ()),
            Action::Forgiven(name) => {
                self.coverage.count("forgiven");
                let dossier = self.alive(name)?;
                let evidence = world.evidence(dossier.pid);
                ensure(evidence.run_state == RunState::Running, Rule::Suspicion, || {
                    format!("{name} is forgiven, but {evidence:?}")
                })
            }
            Action::GiveUp => {
                self.given_up = true;
                self.coverage.count("gave up");
                let said = world.processes.iter().any(|process| process.cannot_start);
                ensure(said, Rule::Recovers, || "gave up a principal that could start".into())
            }
            Action::Finished => {
                self.finished = true;
                self.coverage.count("finished");
                match world.living().next() {
                    Some(process) => broken(Rule::StopEnds, format!("{} lives after the end", process.name)),
                    None => ensure(!self.stops.is_empty(), Rule::StopEnds, || "unasked".into()),
                }
            }
        }
    }

    fn act(&mut self, world: &World, name: Name, act: Act) -> Checked {
        let (now, settings) = (world.now, self.plan.settings);
        let dossier = self.alive(name)?;
        let silent_for = now.since(dossier.probed_at);
        match act {
            Act::Probe(number) => {
                (dossier.probe, dossier.probed_at, dossier.void_rounds) = (number, now, 0);
                let ready = world.processes[dossier.pid].life != Life::Booting;
                ensure(ready, Rule::ProbeOnlyTheReady, || format!("{name} has no handler yet"))
            }
            Act::Suspect | Act::Trust => {
                let suspect = act == Act::Suspect;
                let turned = std::mem::replace(&mut dossier.suspect, suspect) != suspect;
                self.coverage.count(format!("{act:?}"));
                let due = !suspect || silent_for >= settings.suspect_after;
                ensure(turned && due, Rule::Suspicion, || {
                    format!("{act:?} of {name}, silent for {silent_for:?}")
                })
            }
            // Who is not ready is looked at, and so is everybody silent in a void round.
            Act::Examine if dossier.ready.is_none() || dossier.void_rounds > 0 => Ok(()),
            Act::Examine => ensure(silent_for >= settings.kill_after, Rule::Suspicion, || {
                format!("{name} is examined after {silent_for:?}")
            }),
            Act::TellStubborn => ensure(dossier.killed, Rule::Suspicion, || format!("{name} was not killed")),
            Act::Kill(reason) => {
                let twice = std::mem::replace(&mut dossier.killed, true);
                self.coverage.count(format!("killed: {reason:?}"));
                ensure(!twice, Rule::KillOnce, || format!("{name} is killed again"))?;
                self.kill(world, name, reason)
            }
        }
    }

    fn kill(&mut self, world: &World, name: Name, reason: Reason) -> Checked {
        let (now, settings) = (world.now, self.plan.settings);
        let dossier = &self.dossiers[&name];
        let evidence = world.evidence(dossier.pid);
        let over = |since: Option<Moment>, limit| since.is_some_and(|since| now.since(since) >= limit);
        let caused = match reason {
            Reason::SlowStart => {
                dossier.ready.is_none() && over(Some(dossier.started), settings.start_within)
            }
            Reason::Stopped => evidence.run_state == RunState::Stopped,
            Reason::Spinning => {
                let burnt = evidence.cpu_since_probe.unwrap_or_default();
                evidence.run_state == RunState::Running && burnt >= settings.kill_after / 4
            }
            Reason::NoAnswer => evidence.run_state != RunState::Gone,
            Reason::GraceOver => over(dossier.drains_since, settings.grace),
            Reason::Crowded => dossier.drains_since.is_some(),
            Reason::Orphaned => {
                // In one turn, it may have become ready after the kill was decided.
                let unready = dossier.ready.is_none_or(|ready| ready == now);
                let unhealthy = unready || dossier.suspect;
                let parent_gone =
                    dossier.parent.is_some_and(|parent| world.processes[parent].life == Life::Ended);
                unhealthy && parent_gone
            }
            Reason::Stopping => {
                self.stops.len() > 1 || over(self.stops.first().copied(), self.plan.stop_within + STOP_MARGIN)
            }
        };
        ensure(caused, Rule::KillsHaveCause, || format!("{name} is killed: {reason:?}, {dossier:?}"))?;
        match reason {
            Reason::NoAnswer | Reason::Stopped | Reason::Spinning => self.silence(world, name, reason),
            Reason::SlowStart | Reason::GraceOver | Reason::Orphaned | Reason::Crowded | Reason::Stopping => {
                Ok(())
            }
        }
    }

    /// A kill for silence: there was one, long enough, and not too many others are killed.
    fn silence(&mut self, world: &World, name: Name, reason: Reason) -> Checked {
        let dossier = &self.dossiers[&name];
        let answered = world.processes[dossier.pid].record.answer == dossier.probe;
        let silent_for = world.now.since(dossier.probed_at.max(self.late_at));
        let long = silent_for >= self.plan.settings.kill_after;
        let twice_stopped = reason == Reason::Stopped && dossier.void_rounds > 1;
        if twice_stopped && !long {
            self.coverage.count("stopped in two void rounds");
        }
        ensure((long || twice_stopped) && !answered && dossier.suspect, Rule::AnswersProtect, || {
            format!("{name} is killed after {silent_for:?}, answered: {answered}")
        })?;
        if reason != Reason::NoAnswer {
            return Ok(());
        }
        let last = self.last_unproven_kill.replace(world.now);
        let rare = last.is_none_or(|last| world.now.since(last) >= self.plan.settings.period);
        ensure(rare, Rule::OneKillAPeriod, || format!("{name} is killed soon after {last:?}"))
    }

    fn alive(&mut self, name: Name) -> Result<&mut Dossier, Violation> {
        match self.dossiers.get_mut(&name) {
            Some(dossier) => Ok(dossier),
            None => broken(Rule::NothingToTheDead, format!("{name} is not known to live")),
        }
    }

    /// Checks what the core believes after a turn; `idle`: nothing was noticed in it.
    pub fn turn_ends(&mut self, world: &World, tree: &Tree, idle: bool) -> Checked {
        if let Some(words) = &world.complaint {
            return broken(Rule::OnePerSlot, words.clone());
        }
        let restless = tree.poll_timeout().is_some_and(|at| at <= world.now);
        self.restless_turns = if restless && idle { self.restless_turns + 1 } else { 0 };
        ensure(self.restless_turns <= 3, Rule::NoBusyLoop, || "the core never sleeps".into())?;
        let serving: Vec<u16> = self
            .known()
            .filter(|(name, dossier)| !dossier.killed && !tree.is_draining(*name))
            .map(|(name, _)| name.slot)
            .collect();
        let one_each = serving.windows(2).all(|pair| pair[0] != pair[1]);
        ensure(one_each, Rule::OnePerSlot, || format!("the core believes in {serving:?}"))?;
        let mut living: Vec<Name> = tree.living().collect();
        living.sort();
        let known: Vec<Name> = self.known().map(|(name, _)| name).collect();
        ensure(living == known, Rule::NobodyForgotten, || {
            format!("the core knows {living:?}, there are {known:?}")
        })?;
        self.stop_is_in_time(world.now)
    }

    /// Once patience is over, nobody is left who was not killed.
    fn stop_is_in_time(&self, now: Moment) -> Checked {
        let graceful = self.stops.first().map(|stop| *stop + self.plan.stop_within + STOP_MARGIN);
        let at_once = self.stops.get(1).map(|stop| *stop + AT_ONCE);
        if graceful.into_iter().chain(at_once).all(|limit| now < limit) {
            return Ok(());
        }
        match self.known().find(|(_, dossier)| !dossier.killed) {
            Some((name, _)) => broken(Rule::StopEnds, format!("{name} outlives the stop")),
            None => Ok(()),
        }
    }

    /// Checks that the faults left no trace.
    pub fn world_ends(&self, tree: &Tree) -> Checked {
        if !self.stops.is_empty() {
            return ensure(self.finished, Rule::StopEnds, || "the stop never ended".into());
        }
        if self.given_up {
            return Ok(());
        }
        for slot in 0..=self.plan.secondaries {
            let trusted = |(name, dossier): &(Name, &Dossier)| {
                name.slot == slot
                    && dossier.ready.is_some()
                    && !dossier.suspect
                    && !tree.is_draining(*name)
                    && tree.state(*name).is_some_and(State::is_healthy)
            };
            ensure(self.known().any(|known| trusted(&known)), Rule::Recovers, || {
                format!("nobody serves in slot {slot}")
            })?;
        }
        Ok(())
    }
}

fn broken<T>(rule: Rule, words: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { rule, words: words.into() })
}

fn ensure(holds: bool, rule: Rule, words: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { broken(rule, words()) }
}
