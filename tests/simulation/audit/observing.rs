//! Rules for the observer: there as it is wanted, and of no consequence for anybody else.

use std::collections::BTreeSet;
use std::time::Duration;

use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::restart::YOUNG;
use osps::core::supervision::State;

use crate::audit::{Audit, Dossier, Rule};
use crate::kernel::{CANNOT_START, Exit, Mood, Stuck};
use crate::machine::{Machine, Proc, WATCHDOG};
use crate::plan::millis;
use crate::watchdog::Watchdog;

/// How long one that leaves may take.
pub const LEAVES_WITHIN: Duration = Duration::from_secs(1);
/// However many turns others have meanwhile, a process that is well turns within this time.
const TURNS_WITHIN: Duration = Duration::from_millis(200);
/// The longest that another may be put off after early deaths.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is known of observers.
#[derive(Default)]
pub struct Observing {
    /// Whether there is to be one; `None` before the system begins.
    wanted: Option<bool>,
    /// It is left down because it said that it cannot start.
    given_up: bool,
    /// Roles of those who said so.
    cannot_start: BTreeSet<Role>,
    /// The one that lives was told to go.
    dismissed: bool,
    /// When another must have been started at the latest.
    due: Option<Moment>,
    /// Of whomever: each puts the next off by a period.
    pub unproven_kills: Vec<Moment>,
}

impl Machine {
    /// The watchdog tells the core whether there is to be one. Whoever is there is to go.
    pub fn audit_observed(&mut self, now: Moment, wanted: bool) {
        if !self.audit.stops.is_empty() {
            return;
        }
        let before = self.audit.observing.wanted.replace(wanted);
        self.audit.observing.given_up = false;
        self.audit.coverage.count(match (before, wanted) {
            (None, true) => "observer: wanted from the start",
            (Some(false), true) => "observer: brought by a reload",
            (Some(true), true) => "observer: renewed by a reload",
            (Some(true), false) => "observer: taken away by a reload",
            (None | Some(false), false) => "observer: not wanted",
        });
        let Audit { dossiers, observing, .. } = &mut self.audit;
        let observer = dossiers.iter_mut().find(|(name, _)| name.role == Role::Observer);
        observing.dismissed = observer.is_some();
        observing.due = (wanted && observer.is_none()).then_some(now);
        if let Some((_, dossier)) = observer {
            dossier.drains_since.get_or_insert(now);
        }
    }

    /// An observer has ended.
    pub fn audit_observer_ended(&mut self, now: Moment, ready: Option<Moment>) {
        let is_owed = self.is_observer_owed();
        let observing = &mut self.audit.observing;
        let proven = ready.is_some_and(|ready| now.since(ready) >= YOUNG);
        let at_once = std::mem::take(&mut observing.dismissed) || proven;
        observing.due = is_owed.then_some(if at_once { now } else { now + LONGEST_WAIT });
    }

    pub fn audit_observer_not_started(&mut self, now: Moment) {
        self.audit.coverage.count("observer: spawn failed");
        self.audit.observing.due = self.is_observer_owed().then_some(now + LONGEST_WAIT);
    }

    pub fn audit_observer_starts(&mut self) {
        let observing = &self.audit.observing;
        let wanted = observing.wanted == Some(true) && !observing.given_up;
        self.audit.observing.due = None;
        self.ensure(wanted, Rule::ObserverAsWanted, || "an observer is started that nobody wants".into());
        let stopping = !self.audit.stops.is_empty();
        self.ensure(!stopping, Rule::StopEnds, || "an observer is started after a stop".into());
    }

    pub fn audit_observer_given_up(&mut self) {
        self.audit.coverage.count("observer: given up");
        (self.audit.observing.given_up, self.audit.observing.due) = (true, None);
        self.audit_cannot_start(Role::Observer);
    }

    /// Something is done because a process of that role cannot start.
    pub fn audit_cannot_start(&mut self, role: Role) {
        let said = self.audit.observing.cannot_start.contains(&role);
        self.ensure(said, Rule::HealthyLiveOn, || format!("no {role:?} said that it cannot start"));
    }

    /// A process has ended, and what follows from that.
    pub fn audit_end_of(&mut self, proc: Proc, exit: Exit) {
        let role = self.role_of(proc);
        if exit != Exit::Code(0) {
            self.audit.succession.disturbed_by(role);
        }
        if exit == CANNOT_START {
            self.audit.observing.cannot_start.extend(role);
        }
        let stopping = !self.audit.stops.is_empty();
        if role == Some(Role::Observer) && stopping && exit != Exit::Code(0) {
            self.audit.coverage.count("observer: died during a stop");
        }
    }

    /// A process is told to go: an observer in a stop when nobody else is left.
    pub fn audit_last_to_go(&mut self, now: Moment, name: Name) {
        let stopping = !self.audit.stops.is_empty();
        let told_before = self.audit.dossiers[&name].drains_since.is_some();
        if name.role != Role::Observer || !stopping || told_before {
            return;
        }
        let other = self.audit.dossiers.keys().copied().find(|other| *other != name);
        self.audit.coverage.count("observer: told to go last");
        self.audit.dossiers.entry(name).and_modify(|dossier| dossier.drains_since = Some(now));
        self.ensure(other.is_none(), Rule::ObserverIsLast, || {
            format!("{name} is told to go before {other:?}")
        });
    }

    /// One that was told to go is killed. Had its loop turned, it would have gone: by the order, or by the first probe
    /// after it.
    pub fn audit_observer_overdue(&mut self, now: Moment, name: Name) {
        let dossier = &self.audit.dossiers[&name];
        let process = &self.processes[dossier.proc];
        let told = dossier.drains_since.unwrap_or(now);
        let is_well = process.mood == Mood::Prompt && process.mood_since <= told && self.paused_until <= told;
        let is_ready = dossier.ready.is_some_and(|ready| ready <= told);
        let is_asked = dossier.probed_at > told && dossier.probed_at + TURNS_WITHIN <= now;
        let obeys = is_well && is_ready && is_asked;
        self.ensure(!obeys, Rule::HealthyLiveOn, || {
            format!("{name} is well, and does not go or is not heard")
        });
    }

    /// Checks what there is after a turn of the watchdog.
    pub fn audit_observer(&mut self, watchdog: &Watchdog) {
        let now = watchdog.now;
        let is_observer =
            |proc: &Proc| self.processes[*proc].is_alive() && self.role_of(*proc) == Some(Role::Observer);
        let observers: Vec<Proc> = (1..self.processes.len()).filter(is_observer).collect();
        self.ensure(observers.len() < 2, Rule::OnePerSlot, || format!("{observers:?} are observers"));
        let due = self.audit.observing.due.filter(|due| *due < now && self.audit.stops.is_empty());
        self.ensure(due.is_none(), Rule::ObserverAsWanted, || format!("none is started, though due {due:?}"));
        let known = self.audit.dossiers.iter().find(|(name, _)| name.role == Role::Observer);
        let Some((name, dossier)) = known.map(|(name, dossier)| (*name, dossier.clone())) else {
            return;
        };
        let alone = !self.audit.stops.is_empty() && self.audit.dossiers.len() == 1;
        if dossier.killed {
            return;
        }
        let told = dossier.drains_since.is_some();
        self.ensure(told || !alone, Rule::ObserverIsLast, || format!("{name} is not told to go"));
        let stays = dossier.drains_since.is_some_and(|since| since + LEAVES_WITHIN <= now);
        self.ensure(!stays, Rule::ObserverAsWanted, || format!("{name} was told to go: {dossier:?}"));
        let frozen_until = self.frozen_until(&dossier);
        let is_late = frozen_until.is_some_and(|until| until <= now);
        self.ensure(!is_late, Rule::ObserverAsWanted, || {
            format!("{name} is frozen, and not killed by {frozen_until:?}: {dossier:?}")
        });
    }

    /// When a process that does not turn any more must have been sent SIGKILL.
    fn frozen_until(&self, dossier: &Dossier) -> Option<Moment> {
        let settings = self.plan.settings;
        let process = &self.processes[dossier.proc];
        let is_frozen = match process.mood {
            Mood::Stuck(Stuck::Stopped | Stuck::Waiting | Stuck::Spinning) => process.is_alive(),
            Mood::Stuck(Stuck::Starved) | Mood::Late(..) | Mood::Prompt => false,
        };
        // A watchdog that comes late has everybody begin anew.
        let since = process.mood_since.max(self.audit.late_at).max(dossier.ready.unwrap_or(dossier.started));
        let kills =
            self.audit.observing.unproven_kills.iter().filter(|kill| **kill + settings.period >= since);
        let others = settings.period * u32::try_from(kills.count()).expect("a few");
        let patience = match dossier.ready {
            Some(_) => settings.period + settings.kill_after,
            None => settings.start_within.max(settings.kill_after),
        };
        // It is not so late that it counts, twice.
        let margin = settings.kill_after / 2 + millis(100);
        is_frozen.then_some(since + patience + others + margin)
    }

    /// Whether there must be one at the end.
    pub fn is_observer_owed(&self) -> bool {
        self.audit.observing.wanted == Some(true) && !self.audit.observing.given_up
    }

    pub fn is_observer_ready(&self, watchdog: &Watchdog) -> bool {
        self.audit.dossiers.iter().any(|(name, dossier)| {
            name.role == Role::Observer
                && dossier.ready.is_some()
                && dossier.drains_since.is_none()
                && watchdog.tree.state(*name).is_some_and(State::is_healthy)
        })
    }

    pub fn count_observer_at_rest(&mut self) {
        if self.has_ended(WATCHDOG) || !self.audit.stops.is_empty() {
            return;
        }
        self.audit.coverage.count(match (self.audit.observing.wanted, self.audit.observing.given_up) {
            (Some(true), false) => "observer: served at the end",
            (Some(true), true) => "observer: stayed down at the end",
            (Some(false) | None, _) => "observer: not there at the end",
        });
    }
}
