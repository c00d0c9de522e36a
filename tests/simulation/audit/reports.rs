//! Rules for what a client is told of its jobs.

use std::collections::{BTreeMap, BTreeSet};

use osps::core::following::News;
use osps::core::job::{End, JobNumber};
use osps::wire::jeton::Jeton;

use crate::audit::Rule;
use crate::machine::{Machine, Memory, Proc};
use crate::net::{ConnId, Place};
use crate::principal::Principal;

/// A tracked job, as its client knows it.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    number: JobNumber,
    /// Where its jeton was told.
    told: Option<ConnId>,
    started: bool,
    ended: bool,
}

/// What principals report, and what clients hear.
#[derive(Default)]
pub struct Reports {
    tracked: BTreeMap<[u64; 2], Tracked>,
    /// Whom a job was given to.
    given_to: BTreeMap<JobNumber, ConnId>,
    /// What was said of a job: that it was claimed, that it ended.
    said: BTreeMap<JobNumber, (bool, bool)>,
    /// Jobs of which nothing was said yet, of each connection.
    unclaimed: BTreeMap<ConnId, BTreeSet<JobNumber>>,
}

impl Reports {
    pub fn given(&mut self, number: JobNumber, jeton: Option<Jeton>) {
        if let Some(jeton) = jeton {
            let tracked = Tracked { number, told: None, started: false, ended: false };
            self.tracked.insert(jeton.words(), tracked);
        }
    }
}

impl Machine {
    /// A principal gives a job to the client of that connection.
    pub fn audit_given_to(&mut self, number: JobNumber, conn: ConnId) {
        let reports = &mut self.audit.reports;
        reports.given_to.insert(number, conn);
        reports.unclaimed.entry(conn).or_default().insert(number);
    }

    /// A control connection is closed by its principal.
    pub fn audit_closed(&mut self, conn: ConnId) {
        self.audit.reports.unclaimed.remove(&conn);
    }

    /// A principal has something to say of a job, and says it there, if anywhere.
    pub fn audit_report(&mut self, conn: Option<ConnId>, number: JobNumber, news: News) {
        self.audit_facts();
        let given_to = self.audit.reports.given_to.get(&number).copied();
        let right = conn.is_none() || conn == given_to;
        self.ensure(right, Rule::ReportsAreTrue, || {
            format!("job {number} of {given_to:?} is reported to {conn:?}")
        });
        if conn.is_none() {
            self.audit.coverage.count("a report came for who has gone");
        }
        if let Some(jobs) = given_to.and_then(|conn| self.audit.reports.unclaimed.get_mut(&conn)) {
            jobs.remove(&number);
        }
        let story = self.audit.stories.get(&number).copied();
        let (claimed, ended) = self.audit.reports.said.entry(number).or_default();
        let is_true = story.is_some_and(|story| match news {
            News::Claimed => !*claimed && !*ended && story.claimed_by.is_some(),
            News::Ended { end, was_claimed } => {
                let started = story.claimed_by.is_some();
                !*ended && story.end == Some(end) && was_claimed == started && *claimed == started
            }
        });
        match news {
            News::Claimed => *claimed = true,
            News::Ended { .. } => *ended = true,
        }
        self.ensure(is_true, Rule::ReportsAreTrue, || format!("job {number}: {news:?}, of which {story:?}"));
    }

    /// A client is told the jeton of its job.
    pub fn audit_told(&mut self, conn: ConnId, jeton: Jeton) {
        self.audit_facts();
        let known = self.audit.reports.tracked.get_mut(&jeton.words());
        let first = known.is_some_and(|tracked| tracked.told.replace(conn).is_none());
        self.ensure(first, Rule::ItsOwnJob, || format!("connection {conn} is told a jeton of no job"));
    }

    /// A client hears something of a job; the jeton, and whether it is the end.
    pub fn audit_news(&mut self, conn: ConnId, line: &str) -> Option<(Jeton, bool)> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (jeton, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let jeton = Jeton::parse(jeton.as_bytes());
        let known = jeton.and_then(|jeton| self.audit.reports.tracked.get_mut(&jeton.words()));
        let Some((jeton, tracked)) = jeton.zip(known) else {
            self.complain(Rule::ReportsAreTrue, format!("nobody understands {line:?}"));
            return None;
        };
        let before = *tracked;
        tracked.started = true;
        let is_end = word != "debuttraitement";
        tracked.ended |= is_end;
        let story = self.audit.stories[&before.number];
        let claimed = story.claimed_by.is_some();
        let is_true = match (word, story.end) {
            ("debuttraitement", _) => !before.started && claimed && reason.is_empty(),
            ("fintraitement", Some(End::Done)) => before.started && reason.is_empty(),
            ("errtraitement", Some(End::Failed(why))) => before.started && reason == why.to_string(),
            ("errtraitement", Some(End::Expired)) => !before.started && reason == "expired",
            _ => false,
        };
        let right = is_true && !before.ended && before.told == Some(conn);
        self.ensure(right, Rule::ReportsAreTrue, || {
            format!("{line:?} is told on {conn}, of {before:?}, of which {story:?}")
        });
        self.audit.coverage.count(format!("reported: {word} {reason}").trim_end().to_owned());
        Some((jeton, is_end))
    }

    /// What a principal knows of its clients' jobs after a turn.
    pub fn audit_followings(&mut self, principal: &Principal) {
        for (conn, unclaimed, _) in principal.clients.followings() {
            let jobs = self.audit.reports.unclaimed.get(&conn).map_or(0, BTreeSet::len);
            let exact = usize::try_from(unclaimed) == Ok(jobs);
            self.ensure(exact, Rule::UnclaimedExact, || {
                format!("connection {conn} has {jobs} unclaimed jobs, {unclaimed} are counted")
            });
        }
    }

    /// A principal has come to the end of its loop, with all secondaries gone.
    pub fn audit_last_turn(&mut self, memory: &Memory) {
        if let Memory::Principal(principal) = memory
            && !principal.hands_over
        {
            self.audit.coverage.count("all was reported before the end");
            self.audit_nothing_is_owed(principal);
        }
    }

    /// When nothing is open, nobody waits to hear of anything.
    pub fn audit_all_was_reported(&mut self) {
        let principal = |memory: &Option<Memory>| matches!(memory, Some(Memory::Principal(_)));
        let Some(at) = self.memories.iter().position(principal) else {
            return;
        };
        let memory = self.memories[at].take();
        if let Some(Memory::Principal(principal)) = &memory {
            self.audit_nothing_is_owed(principal);
            self.audit_each_end_was_heard(at);
        }
        self.memories[at] = memory;
    }

    fn audit_nothing_is_owed(&mut self, principal: &Principal) {
        for (conn, unclaimed, is_tracking) in principal.clients.followings() {
            self.ensure(unclaimed == 0, Rule::UnclaimedExact, || {
                format!("{unclaimed} jobs of connection {conn} count as unclaimed, and none is open")
            });
            self.ensure(!is_tracking, Rule::Reported, || {
                format!("connection {conn} never hears of the end of a job")
            });
        }
    }

    fn audit_each_end_was_heard(&mut self, principal: Proc) {
        let open = |conn: ConnId| {
            self.talks.contains_key(&conn) && self.net.conns[conn].place == Place::With(principal)
        };
        let tracked = self.audit.reports.tracked.values();
        let unheard = tracked.copied().find(|tracked| !tracked.ended && tracked.told.is_some_and(open));
        self.ensure(unheard.is_none(), Rule::Reported, || format!("the end of {unheard:?} was not heard"));
    }
}
