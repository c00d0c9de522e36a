//! What whoever asked for a reload or another scale waits for once the new principal serves: that every secondary
//! is as it should be, and that those who are not wanted any more have left.

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::slots::Occupied;
use crate::os::reactor::SourceId;
use crate::role::watchdog::Watchdog;
use crate::role::watchdog::reload::Reloaded;
use crate::role::watchdog::tasks::{START_MARGIN, TELL_EVERY};
use crate::wire::control::Answer;

/// Secondaries are replaced one after another.
#[derive(Debug)]
pub struct Renewal {
    /// The pid of the new principal.
    principal: u32,
    /// It was no change of scale.
    is_reload: bool,
    /// So many were wanted then.
    secondaries: u16,
    /// How many are to be new.
    all: usize,
    left: Vec<(u16, Incarnation)>,
    /// Jobs under way in slots that are left, as was told last.
    under_way: Option<u64>,
    told_at: Moment,
    give_up_at: Moment,
}

impl Watchdog {
    /// The answer, where it is done or out of reach. `renewal` is `None` until the new principal serves.
    pub(super) fn look_at_reload(
        &mut self,
        now: Moment,
        client: Option<SourceId>,
        renewal: &mut Option<Renewal>,
    ) -> Option<Answer> {
        if renewal.is_none() {
            match self.reload_outcome.take()? {
                Ok(reloaded) => *renewal = Some(self.begin_renewal(now, client, reloaded)),
                Err(why) => return Some(Answer::Error(why)),
            }
        }
        let renewal = renewal.as_mut()?;
        let before = renewal.left.len();
        self.not_replaced(&mut renewal.left);
        // Those that were to leave may be wanted again by now.
        let wanted_now = self.force.config.secondaries;
        renewal.left.retain(|&(slot, _)| slot <= renewal.secondaries || slot > wanted_now);
        if renewal.left.len() < before {
            renewal.give_up_at = self.replaced_until(now);
        }
        let secondaries = renewal.secondaries;
        let mut wanted = renewal.left.iter().copied().filter(|(slot, _)| *slot <= secondaries);
        let Some((next, incarnation)) = wanted.next() else {
            return self.look_at_leavers(now, client, renewal);
        };
        if self.principal_page.slot(next).occupied == Occupied::GivenUp {
            let why = format!(
                "secondary {next} says that it cannot start, see the log: the others stay as they are"
            );
            return Some(Answer::Error(why));
        }
        let new = renewal.all.saturating_sub(1 + wanted.count());
        if renewal.left.len() < before && now.since(renewal.told_at) >= TELL_EVERY {
            renewal.told_at = now;
            let text = format!("{new} of {} secondaries are new", renewal.all);
            self.answer_tool(client, &Answer::Progress(text));
        }
        (renewal.give_up_at <= now).then(|| Answer::Error(self.why_not_replaced(next, incarnation)))
    }

    fn begin_renewal(&mut self, now: Moment, client: Option<SourceId>, reloaded: Reloaded) -> Renewal {
        let Reloaded { pid: principal, inherited: left } = reloaded;
        let progress = format!("the new principal serves, pid {principal}");
        self.answer_tool(client, &Answer::Progress(progress));
        let secondaries = self.force.config.secondaries;
        let all = left.iter().filter(|(slot, _)| *slot <= secondaries).count();
        let is_reload = self.force.renews;
        Renewal {
            principal,
            is_reload,
            secondaries,
            all,
            left,
            under_way: None,
            told_at: now,
            give_up_at: self.replaced_until(now),
        }
    }

    /// Those that are wanted serve. Who is to leave takes as long as it takes, and is waited for only by a tool that
    /// asked for another scale.
    fn look_at_leavers(
        &mut self,
        now: Moment,
        client: Option<SourceId>,
        renewal: &mut Renewal,
    ) -> Option<Answer> {
        let leave = renewal.left.len();
        let rest = if leave == 0 { String::new() } else { format!("; {leave} finish what they have") };
        if leave == 0 || renewal.is_reload || client.is_none() {
            return Some(Answer::Done(self.in_words(renewal) + &rest));
        }
        let open = renewal.left.iter().map(|&(slot, _)| self.principal_page.slot(slot).open);
        let under_way = open.fold(0, u64::wrapping_add);
        let is_first = renewal.under_way.is_none();
        if renewal.under_way != Some(under_way) && (is_first || now.since(renewal.told_at) >= TELL_EVERY) {
            (renewal.under_way, renewal.told_at) = (Some(under_way), now);
            let text = format!("{}{rest}, jobs under way: {}", self.in_words(renewal), under_way);
            self.answer_tool(client, &Answer::Progress(text));
        }
        None
    }

    fn in_words(&self, renewal: &Renewal) -> String {
        let wanted = 1..=self.force.config.secondaries;
        let serving = wanted.filter(|slot| !self.resting.contains(slot)).count();
        let serve = if serving == 1 {
            "1 secondary serves".to_owned()
        } else {
            format!("{serving} secondaries serve")
        };
        if !renewal.is_reload {
            return serve;
        }
        let Renewal { principal, all, .. } = renewal;
        let new = if *all == serving { "all new".to_owned() } else { format!("{all} of them new") };
        format!("a new principal serves, pid {principal}; {serve}, {new}")
    }

    /// Whether only those are waited for who leave.
    pub(super) fn only_leavers_are_left(renewal: &Renewal) -> bool {
        renewal.left.iter().all(|(slot, _)| *slot > renewal.secondaries)
    }

    /// How long one secondary after another may take to be replaced.
    fn replaced_until(&self, now: Moment) -> Moment {
        let times = &self.force.config.watchdog;
        now + times.kill_after + times.period * 2 + times.start_within + START_MARGIN
    }

    /// Forgets those that are as they should be: new ones serve, and those that are not wanted have left.
    fn not_replaced(&self, inherited: &mut Vec<(u16, Incarnation)>) {
        inherited.retain(|&(number, before)| {
            let slot = self.principal_page.slot(number);
            let is_done = match slot.occupied {
                Occupied::Ready => slot.incarnation != before,
                Occupied::Resting => number <= self.force.config.secondaries || self.living_in(number) == 0,
                Occupied::Down | Occupied::Starting | Occupied::GivenUp => false,
            };
            !is_done
        });
    }
}
