//! Rules for the access record: each job that has ended has one.

use std::collections::BTreeSet;

use osps::core::job::{End, Ended, JobNumber, Reason};

use crate::audit::Rule;
use crate::machine::{Machine, Proc};

/// What was recorded, and who could not record any more.
#[derive(Default)]
pub struct Records {
    jobs: BTreeSet<JobNumber>,
    /// Processes that died in the middle of a turn, perhaps between an end and its record.
    cut_short: BTreeSet<Proc>,
}

impl Records {
    pub fn cut_short(&mut self, proc: Proc) {
        self.cut_short.insert(proc);
    }
}

impl Machine {
    /// Somebody writes the record of a job.
    pub fn audit_record(&mut self, job: &Ended) {
        self.audit_facts();
        let story = self.audit.stories.get(&job.number).copied();
        let is_true = story.is_some_and(|story| {
            let is_claimed = story.claimed_by.is_some();
            // A successor does not know for what its predecessor has failed it.
            let heir = job.end == End::Failed(Reason::SecondaryLost)
                && story.end == Some(End::Failed(Reason::TimeLimit))
                && story.ended_by.is_some_and(|by| self.audit.records.cut_short.contains(&by));
            let is_its_end = story.end == Some(job.end) || heir;
            is_its_end && story.client == job.client && (job.holder != 0) == is_claimed
        });
        self.ensure(is_true, Rule::RecordedOnce, || format!("{job:?} is recorded, of which {story:?}"));
        let first = self.audit.records.jobs.insert(job.number);
        self.ensure(first, Rule::RecordedOnce, || format!("{job:?} is recorded again"));
        self.audit.coverage.count(format!("recorded: {:?}", job.end.state()));
    }

    /// When nothing is open, each job has its record, unless who ended it died of it.
    pub fn audit_each_end_was_recorded(&mut self) {
        let Records { jobs, cut_short } = &self.audit.records;
        let is_excused = |by: Option<Proc>| by.is_none_or(|by| cut_short.contains(&by));
        let mut stories = self.audit.stories.iter();
        let missing = stories.find(|(number, story)| !jobs.contains(number) && !is_excused(story.ended_by));
        let missing = missing.map(|(number, story)| format!("job {number} has no record: {story:?}"));
        self.ensure(missing.is_none(), Rule::RecordedOnce, || missing.unwrap_or_default());
    }
}
