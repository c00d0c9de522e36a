//! What may never happen, and what must, checked against the world itself.

mod jobs;
mod observing;
mod records;
mod reports;
mod rest;
mod succession;
mod supervision;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::Duration;

use osps::core::job::JobNumber;
use osps::core::moment::Moment;
use osps::core::name::{Name, Role};
use osps::core::supervision::RunState;
use osps::os::rundir::Rundir;
use osps::page::jobs::JobTable;
use osps::page::principal::PrincipalPage;

use crate::machine::Proc;
use crate::net::ConnId;
use crate::plan::{Plan, TYPES};
use jobs::Story;
use observing::Observing;
use records::Records;
use reports::Reports;
use rest::Stage;
use succession::Succession;

/// The rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// One living undrained process in a slot, and none is started beside it.
    OnePerSlot,
    /// Who answers in time is not killed for silence.
    AnswersProtect,
    /// Each reason to kill has its condition in the world.
    KillsHaveCause,
    /// No process is taken for another: a pid may be somebody else's by now.
    SignalOnlyWhoIsMeant,
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
    /// Nobody has the name of another, ever.
    NamesAreUnique,
    /// Only an order, a signal or a parent's death ends a healthy server.
    HealthyLiveOn,
    /// Who drains accepts nothing.
    OneServes,
    /// A job is claimed once, while it waits.
    ServedOnce,
    /// A job ends as what happened to it.
    EndsAsItHappened,
    /// accepted = done + failed + expired + open, and each of them is the truth.
    BooksExact,
    /// A connection gets a job that is meant for it: by its jeton, else by its address.
    ItsOwnJob,
    /// Each tracked job whose client and principal live comes to a reported end.
    Reported,
    /// One start at most and one end are reported, to the client of the job, as they happened.
    ReportsAreTrue,
    /// A job counts as unclaimed until it is reported, and no longer.
    UnclaimedExact,
    /// A job that has ended has one record, of the end that it had.
    RecordedOnce,
    /// Nobody is turned away while a job waits for it, or without a reason.
    NobodyRejected,
    /// One principal at a time writes in books, tables and its record.
    OneKeeper,
    /// A reload that nobody disturbs succeeds, and closes no control connection.
    ReloadsAreSmooth,
    /// There is no observer where none is wanted, and one that is frozen or told to go does not stay.
    ObserverAsWanted,
    /// In a graceful stop the observer is told to go when all others have ended: not before, and not later.
    ObserverIsLast,
    /// What is said of who leaves stays, whatever else is found out about it: an order may have been lost.
    LeaversAreKnown,
    /// Without faults all is well before long.
    Recovers,
    /// The core's own assertion.
    Assertion,
}

/// A broken rule, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    pub words: String,
}

/// What the watchdog was told of a process, and did to it.
#[derive(Clone, Debug)]
struct Dossier {
    proc: Proc,
    /// A principal that is to take over from another, which has not ended.
    is_candidate: bool,
    started: Moment,
    ready: Option<Moment>,
    drains_since: Option<Moment>,
    /// It leaves for its age, in its own time.
    recycles: bool,
    suspect: bool,
    killed: bool,
    probe: u64,
    probed_at: Moment,
    /// Turns since the probe in which the watchdog itself was late.
    void_rounds: u32,
    /// What it did when it was examined last, and whether it had burnt enough.
    examined: Option<(RunState, bool)>,
    /// Its answer was there before it was examined.
    answered: bool,
}

/// How often the interesting things happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(pub BTreeMap<Cow<'static, str>, u64>);

impl Coverage {
    pub fn count(&mut self, what: impl Into<Cow<'static, str>>) {
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
    pub coverage: Coverage,
    pub violation: Option<Violation>,
    pub stops: Vec<Moment>,
    kill_after: Duration,
    /// Those whose end the watchdog was not told.
    dossiers: BTreeMap<Name, Dossier>,
    names: BTreeSet<Name>,
    last_unproven_kill: Option<Moment>,
    /// When the watchdog was so late that no silence before counts.
    late_at: Moment,
    given_up: bool,
    finished: bool,
    restless_turns: u32,
    page: PrincipalPage,
    tables: Vec<JobTable>,
    stories: BTreeMap<JobNumber, Story>,
    conns: BTreeMap<JobNumber, ConnId>,
    reports: Reports,
    pub records: Records,
    /// Ends that happened, by type and by slot: done, failed, expired.
    by_type: [[u64; 3]; TYPES],
    by_slot: Vec<[u64; 3]>,
    pub succession: Succession,
    observing: Observing,
    /// The last principal ended its books in order.
    closed: bool,
    stage: Stage,
}

impl Audit {
    /// Creates the books and tables of a world, to look at them whoever keeps them.
    pub fn new(plan: &Plan, rundir: &Rundir) -> Self {
        let slots = usize::from(plan.secondaries);
        let page = PrincipalPage::create(&rundir.principal_page(), slots, TYPES).expect("an empty directory");
        let table =
            |slot| JobTable::create(&rundir.jobs(slot), plan.max_jobs as usize).expect("an empty directory");
        Self {
            coverage: Coverage::default(),
            violation: None,
            stops: Vec::new(),
            kill_after: plan.settings.kill_after,
            dossiers: BTreeMap::new(),
            names: BTreeSet::new(),
            last_unproven_kill: None,
            late_at: Moment::default(),
            given_up: false,
            finished: false,
            restless_turns: 0,
            page,
            tables: (1..=plan.secondaries).map(table).collect(),
            stories: BTreeMap::new(),
            conns: BTreeMap::new(),
            reports: Reports::default(),
            records: Records::default(),
            by_type: [[0; 3]; TYPES],
            by_slot: vec![[0; 3]; slots],
            succession: Succession::default(),
            observing: Observing::default(),
            closed: false,
            stage: Stage::Recovering,
        }
    }

    /// The first complaint counts; what follows may follow from it.
    pub fn complain(&mut self, rule: Rule, words: String) {
        self.violation.get_or_insert(Violation { rule, words });
    }

    pub fn started(&mut self, now: Moment, name: Name, proc: Proc, is_candidate: bool) {
        if name.incarnation > 1 {
            self.coverage.count(format!("{:?} restarted", name.role));
        }
        let dossier = Dossier {
            proc,
            is_candidate,
            started: now,
            ready: None,
            drains_since: None,
            recycles: false,
            suspect: false,
            killed: false,
            probe: 0,
            probed_at: now,
            void_rounds: 0,
            examined: None,
            answered: false,
        };
        self.dossiers.insert(name, dossier);
        for (other, dossier) in &mut self.dossiers {
            let is_before = (other.role, other.slot) == (name.role, name.slot) && *other != name;
            if is_before && !dossier.recycles && !is_candidate {
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

    pub fn recycles(&mut self, now: Moment, name: Name) {
        let stopping = !self.stops.is_empty();
        self.dossiers.entry(name).and_modify(|dossier| {
            dossier.recycles = true;
            dossier.drains_since = dossier.drains_since.or(stopping.then_some(now));
        });
    }

    /// `orphans`: the end of a principal that nobody has succeeded.
    fn exited(&mut self, now: Moment, name: Name, orphans: bool) {
        self.dossiers.remove(&name);
        if orphans {
            for (_, dossier) in self.dossiers.iter_mut().filter(|(name, _)| name.role == Role::Secondary) {
                dossier.drains_since.get_or_insert(now);
            }
        }
    }

    pub fn stop(&mut self, now: Moment) {
        self.coverage.count(if self.stops.is_empty() { "stop" } else { "stop at once" });
        self.stops.push(now);
        for dossier in self.dossiers.values_mut().filter(|dossier| dossier.recycles) {
            dossier.drains_since.get_or_insert(now);
        }
    }

    /// The watchdog stops because its principal cannot start.
    pub fn gives_up(&mut self, now: Moment) {
        self.given_up = true;
        self.stop(now);
    }

    /// Notes whether the watchdog comes much later than the core wanted.
    pub fn turn_begins(&mut self, now: Moment, deadline: Option<Moment>) {
        if deadline.is_some_and(|deadline| now.since(deadline) > self.kill_after / 4) {
            self.late_at = now;
            for dossier in self.dossiers.values_mut() {
                dossier.void_rounds += 1;
            }
        }
    }
}
