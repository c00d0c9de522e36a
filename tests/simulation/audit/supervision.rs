//! Rules for the watchdog, and for who starts and ends whom.

use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::supervision::{Act, Evidence, Reason, RunState};
use osps::core::tree::Action;
use osps::page::watchdog::Verdict;

use crate::audit::Rule;
use crate::audit::observing::LEAVES_WITHIN;
use crate::kernel::{Life, Mood, Stuck};
use crate::machine::{Machine, Memory, Proc, WATCHDOG};
use crate::plan::millis;
use crate::watchdog::Watchdog;

/// The longest that a stop "at once" may leave anybody alone.
const AT_ONCE: Duration = Duration::from_millis(500);
/// What the watchdog waits longer than a stop or a grace may last.
const MARGIN: Duration = Duration::from_secs(1);

impl Machine {
    /// A process is about to be started.
    pub fn audit_spawn(&mut self, parent: Proc, name: Name, succeeds: bool) {
        let unique = self.audit.names.insert(name);
        self.ensure(unique, Rule::NamesAreUnique, || format!("{name} is started twice"));
        let beside = |process: &&crate::kernel::Process| {
            process.is_alive()
                && process.name().is_some_and(|other| (other.role, other.slot) == (name.role, name.slot))
                && match name.role {
                    // One that is not to take over writes nothing while it dies.
                    Role::Principal => !(succeeds || process.is_candidate && process.dismissed),
                    Role::Observer => true,
                    Role::Secondary => !process.dismissed && process.belongs_to == parent,
                }
        };
        let other = self.processes.iter().find(beside).and_then(crate::kernel::Process::name);
        if let Some(other) = other {
            self.complain(Rule::OnePerSlot, format!("{name} is started beside {other}"));
        }
        if !self.audit.stops.is_empty() && name.role == Role::Secondary {
            self.audit.coverage.count("replaced during a stop");
        }
    }

    /// Somebody took a process for that one.
    pub fn audit_meeting(&mut self, proc: Proc, name: Name) {
        let is = self.processes[proc].name();
        self.ensure(is == Some(name), Rule::SignalOnlyWhoIsMeant, || format!("{is:?} is taken for {name}"));
    }

    /// A secondary accepts nothing from now on.
    pub fn audit_drains(&mut self, proc: Proc) {
        self.audit.coverage.count("drained");
        self.processes[proc].dismissed = true;
        self.audit_ends_itself(proc);
    }

    /// A secondary has taken a connection.
    pub fn audit_accept(&mut self, proc: Proc, listener: usize, serves: bool) {
        let parent = self.processes[proc].belongs_to;
        let is_sibling = |other: &Proc| *other != proc && self.processes[*other].belongs_to == parent;
        let another = self.net.accepting(listener).find(is_sibling);
        self.ensure(serves, Rule::OneServes, || format!("{proc} accepts while it drains"));
        self.ensure(another.is_none(), Rule::OneServes, || format!("{proc} accepts beside {another:?}"));
    }

    /// A secondary, or an observer, ends by its own decision.
    pub fn audit_ends_itself(&mut self, proc: Proc) {
        let excused = self.processes[proc].excused || self.has_ended(WATCHDOG) || self.is_worn(proc);
        let name = self.processes[proc].name();
        self.ensure(excused, Rule::HealthyLiveOn, || format!("{name:?} ({proc}) drains or ends, unasked"));
    }

    /// Whether a secondary has served as many jobs as it may, or nearly.
    fn is_worn(&mut self, proc: Proc) -> bool {
        self.audit_facts();
        let most = self.plan.max_jobs_served;
        if self.role_of(proc) != Some(Role::Secondary) {
            return false;
        }
        let served = self.audit.stories.values().filter(|story| story.claimed_by == Some(proc)).count();
        most > 0 && served as u64 >= most * 4 / 5
    }

    /// A principal kills a predecessor of its secondaries.
    pub fn audit_overdue(&mut self, proc: Proc) {
        let process = &self.processes[proc];
        let told = process.excused || process.doomed || self.has_ended(proc);
        let name = process.name();
        let asked = told || self.has_ended(WATCHDOG) || !self.audit.stops.is_empty();
        self.ensure(asked, Rule::KillsHaveCause, || {
            format!("{name:?} ({proc}) has all the time in the world")
        });
    }

    /// A secondary is told by its principal to end.
    pub fn audit_told_to_end(&mut self, proc: Proc, open: u32) {
        self.processes[proc].excused = true;
        self.processes[proc].dismissed = true;
        let stops = &self.audit.stops;
        // Who reads the clock once a turn may have begun it before the stop of which it hears in it.
        let grace = self.plan.settings.grace - millis(250);
        let over = stops.first().is_some_and(|stop| *stop + grace <= self.now);
        let orphaned = self.has_ended(WATCHDOG);
        let asked = !stops.is_empty() || orphaned;
        let at_once = stops.len() > 1 || over || orphaned;
        self.ensure(asked, Rule::HealthyLiveOn, || format!("{proc} is told to end, unasked"));
        self.ensure(open == 0 || at_once, Rule::StopEnds, || {
            format!("{proc} is told to end with {open} exchanges, before its grace is over")
        });
    }

    pub fn audit_kill_all(&mut self) {
        let asked = !self.audit.stops.is_empty() || self.has_ended(WATCHDOG);
        self.ensure(asked, Rule::KillsHaveCause, || "all are killed, unasked".into());
        self.audit.coverage.count("killed by the principal in a stop");
    }

    pub fn audit_principal_ends(&mut self, proc: Proc, in_order: bool) {
        let asked = !self.audit.stops.is_empty() || self.processes[proc].excused || self.has_ended(WATCHDOG);
        self.ensure(asked, Rule::HealthyLiveOn, || format!("principal {proc} ends, unasked"));
        if in_order {
            self.audit.closed = true;
            let mut left = self.children(proc);
            left.extend(self.household(proc));
            self.ensure(left.is_empty(), Rule::StopEnds, || format!("the principal ends before {left:?}"));
        }
    }

    /// The watchdog kills a child that stands in no table.
    pub fn audit_unknown_orphan(&mut self, proc: Proc) {
        self.audit.coverage.count("an unknown orphan was killed");
        let process = &self.processes[proc];
        // Who drains already may have been replaced before a late watchdog ever saw it.
        let harmless = !process.told || process.dismissed || !self.audit.stops.is_empty();
        let name = process.name();
        self.ensure(harmless, Rule::KillsHaveCause, || {
            format!("{name:?} ({proc}) stands in the table, yet is unknown")
        });
    }

    /// Checks an action before it is carried out.
    pub fn audit_action(&mut self, now: Moment, action: Action) {
        let stopping = !self.audit.stops.is_empty();
        self.ensure(!self.audit.finished, Rule::StopEnds, || format!("{action:?} after the end"));
        match action {
            Action::StartPrincipal(_) => {
                self.ensure(!stopping, Rule::StopEnds, || "a principal is started after a stop".into());
            }
            Action::To(name, act) => self.audit_act(now, name, act),
            Action::Drain(name) => {
                self.audit.coverage.count("ordered to drain");
                if let Some(proc) = self.alive(name) {
                    self.audit_last_to_go(now, name);
                    let caused = self.audit.dossiers[&name].drains_since.is_some();
                    self.ensure(caused, Rule::HealthyLiveOn, || format!("{name} is told to drain"));
                    self.processes[proc].excused = true;
                }
            }
            Action::Stop(name) | Action::StopNow(name) => {
                self.alive(name);
            }
            Action::Forgiven(name) => {
                self.audit.coverage.count("forgiven");
                let wants = self.examined(name).is_some_and(|(state, _)| state == RunState::Running);
                self.ensure(wants, Rule::Suspicion, || format!("{name} is forgiven"));
            }
            Action::StartObserver(_) => self.audit_observer_starts(),
            Action::GiveUpObserver => self.audit_observer_given_up(),
            Action::GiveUp => {
                self.audit.coverage.count("gave up");
                self.audit_cannot_start(Role::Principal);
            }
            Action::Finished => {
                self.ensure(stopping, Rule::StopEnds, || "finished, unasked".into());
            }
        }
    }

    /// The watchdog has done all that it does at its end.
    pub fn audit_finish(&mut self) {
        self.audit.coverage.count("finished");
        self.audit.finished = true;
        for proc in 1..self.processes.len() {
            let process = &self.processes[proc];
            let gone = matches!(process.life, Life::Reaped);
            let words = format!("{:?} ({proc}) is {:?} after the end", process.name(), process.life);
            self.ensure(gone, Rule::StopEnds, || words);
        }
    }

    fn audit_act(&mut self, now: Moment, name: Name, act: Act) {
        let settings = self.plan.settings;
        let Some(proc) = self.alive(name) else {
            return;
        };
        let dossier = self.audit.dossiers.get_mut(&name).expect("it is alive");
        let silent_for = now.since(dossier.probed_at);
        match act {
            Act::Probe(number) => {
                (dossier.probe, dossier.probed_at, dossier.void_rounds) = (number, now, 0);
                dossier.examined = None;
                let ready = self.processes[proc].handlers;
                self.ensure(ready, Rule::ProbeOnlyTheReady, || format!("{name} has no handler yet"));
            }
            Act::Suspect | Act::Trust => {
                let suspect = act == Act::Suspect;
                let turned = std::mem::replace(&mut dossier.suspect, suspect) != suspect;
                let due = !suspect || silent_for >= settings.suspect_after;
                self.audit.coverage.count(format!("{act:?}"));
                self.ensure(turned && due, Rule::Suspicion, || {
                    format!("{act:?} of {name}, silent for {silent_for:?}")
                });
            }
            Act::Examine => {
                // Who is not ready is looked at, and so is everybody silent in a void round.
                let others = dossier.ready.is_none() || dossier.void_rounds > 0;
                let long = silent_for >= settings.kill_after;
                self.ensure(long || others, Rule::Suspicion, || {
                    format!("{name} is examined after {silent_for:?}")
                });
            }
            Act::TellStubborn => {
                let killed = dossier.killed;
                self.ensure(killed, Rule::Suspicion, || format!("{name} was not killed"));
            }
            Act::Kill(reason) => {
                let twice = std::mem::replace(&mut dossier.killed, true);
                self.count_fault(proc, &format!("killed: {reason:?}"));
                self.ensure(!twice, Rule::KillOnce, || format!("{name} is killed again"));
                self.audit_kill(now, name, reason);
            }
        }
    }

    /// What the watchdog finds out about a silent process; compared with the truth.
    pub fn audit_evidence(&mut self, name: Name, evidence: Evidence) {
        let Some(dossier) = self.audit.dossiers.get(&name) else {
            return;
        };
        let process = &self.processes[dossier.proc];
        let truth = match (process.life, process.mood) {
            (Life::Zombie(_) | Life::Reaped, _) => RunState::Gone,
            (_, Mood::Stuck(Stuck::Stopped)) => RunState::Stopped,
            (_, Mood::Stuck(Stuck::Spinning | Stuck::Starved)) => RunState::Running,
            (_, Mood::Late(_, Stuck::Spinning | Stuck::Starved)) => RunState::Running,
            (_, Mood::Prompt | Mood::Late(..) | Mood::Stuck(Stuck::Waiting)) => RunState::Waiting,
        };
        let enough = evidence.cpu_since_probe.unwrap_or_default() >= self.plan.settings.kill_after / 4;
        let answered = self.answered(name, dossier.proc) == Some(dossier.probe);
        let dossier = self.audit.dossiers.get_mut(&name).expect("it was there");
        dossier.answered = answered;
        dossier.examined = Some((truth, enough));
    }

    /// The number that a process answered last.
    fn answered(&self, name: Name, proc: Proc) -> Option<u64> {
        match self.memories[proc].as_ref()? {
            Memory::Principal(_) => Some(self.audit.page.record().answered),
            Memory::Secondary(secondary) => Some(secondary.answered()),
            Memory::Observer(observer) => Some(observer.answered()),
            Memory::Watchdog(_) => {
                debug_assert!(false, "{name} is no watchdog");
                None
            }
        }
    }

    fn examined(&self, name: Name) -> Option<(RunState, bool)> {
        self.audit.dossiers.get(&name)?.examined
    }

    fn audit_kill(&mut self, now: Moment, name: Name, reason: Reason) {
        let settings = self.plan.settings;
        let dossier = &self.audit.dossiers[&name];
        let over = |since: Option<Moment>, limit| since.is_some_and(|since| now.since(since) >= limit);
        let examined = dossier.examined;
        let caused = match reason {
            Reason::SlowStart => {
                dossier.ready.is_none() && over(Some(dossier.started), settings.start_within)
            }
            Reason::Stopped => {
                let silent = dossier.ready.is_some()
                    || dossier.void_rounds > 1
                    || over(Some(dossier.started), settings.kill_after);
                silent && examined.is_some_and(|(state, _)| state == RunState::Stopped)
            }
            Reason::Spinning => examined.is_some_and(|(state, burnt)| state == RunState::Running && burnt),
            Reason::NoAnswer => examined.is_some_and(|(state, _)| state != RunState::Gone),
            Reason::GraceOver if name.role == Role::Observer => over(dossier.drains_since, LEAVES_WITHIN),
            Reason::GraceOver => over(dossier.drains_since, settings.grace),
            Reason::Crowded => dossier.drains_since.is_some(),
            Reason::Orphaned => {
                // In one turn, it may have become ready after the kill was decided.
                let unready = dossier.ready.is_none_or(|ready| ready == now);
                let parent = self.processes[dossier.proc].belongs_to;
                unready && self.has_ended(parent)
            }
            // Only principals kill for that, and no type has a time limit here.
            Reason::TimeLimit => false,
            Reason::Dismissed => dossier.is_candidate && self.is_reload_lost(),
            Reason::Stopping => {
                let stops = &self.audit.stops;
                stops.len() > 1 || over(stops.first().copied(), self.plan.stop_within + MARGIN)
            }
        };
        let words = format!("{name} is killed: {reason:?}, {dossier:?}");
        self.ensure(caused, Rule::KillsHaveCause, || words);
        match reason {
            Reason::Stopped if self.audit.dossiers[&name].ready.is_none() => {
                self.audit.coverage.count("stopped before it was ready");
            }
            Reason::NoAnswer | Reason::Stopped | Reason::Spinning => self.audit_silence(now, name, reason),
            Reason::GraceOver if name.role == Role::Observer => self.audit_observer_overdue(now, name),
            Reason::SlowStart
            | Reason::GraceOver
            | Reason::Orphaned
            | Reason::Crowded
            | Reason::Stopping
            | Reason::Dismissed
            | Reason::TimeLimit => {}
        }
    }

    /// A kill for silence: there was one, long enough, and not too many others are killed.
    fn audit_silence(&mut self, now: Moment, name: Name, reason: Reason) {
        let dossier = &self.audit.dossiers[&name];
        let answered = dossier.answered || dossier.examined.is_none();
        let silent_for = now.since(dossier.probed_at.max(self.audit.late_at));
        let long = silent_for >= self.plan.settings.kill_after;
        let twice_stopped = reason == Reason::Stopped && dossier.void_rounds > 1;
        let suspect = dossier.suspect;
        if twice_stopped && !long {
            self.audit.coverage.count("stopped in two void rounds");
        }
        self.ensure((long || twice_stopped) && !answered && suspect, Rule::AnswersProtect, || {
            format!("{name} is killed after {silent_for:?}, answered: {answered}")
        });
        if reason == Reason::NoAnswer {
            self.audit.observing.unproven_kills.push(now);
            let last = self.audit.last_unproven_kill.replace(now);
            let rare = last.is_none_or(|last| now.since(last) >= self.plan.settings.period);
            self.ensure(rare, Rule::OneKillAPeriod, || format!("{name} is killed soon after {last:?}"));
        }
    }

    fn alive(&mut self, name: Name) -> Option<Proc> {
        let proc = self.audit.dossiers.get(&name).map(|dossier| dossier.proc);
        self.ensure(proc.is_some(), Rule::NothingToTheDead, || format!("{name} is not known to live"));
        proc
    }

    /// The watchdog was told of an end.
    pub fn audit_exited(&mut self, now: Moment, name: Name, orphans: bool) {
        let proc = self.audit.dossiers.get(&name).map(|dossier| dossier.proc);
        let ended = proc.is_some_and(|proc| self.has_ended(proc));
        self.ensure(ended, Rule::NobodyForgotten, || format!("{name} ({proc:?}) is buried alive"));
        if name.role == Role::Observer {
            let ready = self.audit.dossiers.get(&name).and_then(|dossier| dossier.ready);
            self.audit_observer_ended(now, ready);
        }
        self.audit.exited(now, name, orphans);
    }

    /// Checks what the core believes after a turn of the watchdog.
    pub fn audit_watchdog(&mut self, watchdog: &Watchdog) {
        let tree = &watchdog.tree;
        let restless = tree.poll_timeout().is_some_and(|at| at <= watchdog.now);
        let restless = restless && !watchdog.busy;
        self.audit.restless_turns = if restless { self.audit.restless_turns + 1 } else { 0 };
        let rests = self.audit.restless_turns <= 3;
        self.ensure(rests, Rule::NoBusyLoop, || "the core never sleeps".into());
        let dossiers = &self.audit.dossiers;
        let serving: Vec<(Role, u16)> = dossiers
            .iter()
            .filter(|(name, dossier)| !dossier.killed && !dossier.is_candidate && !tree.is_draining(**name))
            .map(|(name, _)| (name.role, name.slot))
            .collect();
        let mut living: Vec<Name> = tree.living().collect();
        living.sort();
        let known: Vec<Name> = dossiers.keys().copied().collect();
        let one_each = serving.windows(2).all(|pair| pair[0] != pair[1]);
        self.ensure(one_each, Rule::OnePerSlot, || format!("the core believes in {serving:?}"));
        self.ensure(living == known, Rule::NobodyForgotten, || {
            format!("the core knows {living:?}, there are {known:?}")
        });
        self.audit_stop_is_in_time(watchdog.now);
        self.audit_observer(watchdog);
        self.audit_leavers(watchdog);
    }

    /// What is said of those who leave stays, whatever else is found out about them.
    pub fn audit_leavers(&mut self, watchdog: &Watchdog) {
        let page = &self.watchdog_page;
        let forgotten = page.watched().find(|watched| {
            let killed = self.audit.dossiers.get(&watched.name).is_none_or(|dossier| dossier.killed);
            !killed && watchdog.tree.has_limit(watched.name) && watched.verdict != Verdict::Draining
        });
        self.ensure(forgotten.is_none(), Rule::LeaversAreKnown, || format!("it leaves: {forgotten:?}"));
    }

    /// Once patience is over, nobody is left who was not killed.
    fn audit_stop_is_in_time(&mut self, now: Moment) {
        let stops = &self.audit.stops;
        let graceful = stops.first().map(|stop| *stop + self.plan.stop_within + MARGIN);
        let at_once = stops.get(1).map(|stop| *stop + AT_ONCE);
        if graceful.into_iter().chain(at_once).all(|limit| now < limit) {
            return;
        }
        let left = self.audit.dossiers.iter().find(|(_, dossier)| !dossier.killed).map(|(name, _)| *name);
        if let Some(name) = left {
            self.complain(Rule::StopEnds, format!("{name} outlives the stop"));
        }
    }
}
