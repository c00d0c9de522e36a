//! What tools have asked for, until its effect is there: of each slot one thing after another.
//!
//! Who goes away is not waited for any more. What was begun for it goes on; what has not had its turn is forgotten.

use std::collections::HashSet;
use std::time::Duration;

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::core::slots::Occupied;
use crate::os::clock;
use crate::os::reactor::{Handle, SourceId};
use crate::role::watchdog::renewal::Renewal;
use crate::role::watchdog::{Key, Watchdog};
use crate::wire::control::{Answer, Level, Request};
use crate::wire::order::Order;

/// How often a tool is told how far it is.
pub const TELL_EVERY: Duration = Duration::from_secs(1);
/// How much longer than a frozen secondary and a slow start may take a new one is waited for.
pub const START_MARGIN: Duration = Duration::from_secs(1);

/// Something that a tool waits for.
pub struct Task {
    /// The tool; `None`: whoever sent a signal, and reads the log.
    client: Option<SourceId>,
    request: Request,
    /// `None` until it is its turn.
    goal: Option<Goal>,
}

/// When it is done.
#[derive(Debug)]
enum Goal {
    /// Another than this one serves the slot.
    Replaced { slot: u16, before: Incarnation, give_up_at: Moment },
    /// Nobody is in the slot. `open`: exchanges under way, as the tool was told last.
    Empty { slot: u16, open: Option<u64>, told_at: Moment },
    /// A reload has ended, and those whom it replaces have left. `by`: none is told before the new principal serves.
    Reloaded { by: Option<Renewal> },
    /// Every server has answered a probe since.
    Heard { since: Moment },
}

/// The tasks of all tools, in their order.
#[derive(Default)]
pub struct Tasks(Vec<Task>);

impl Tasks {
    /// It will have its turn. Returns for what it has to wait first.
    pub fn push(&mut self, client: Option<SourceId>, request: Request) -> Option<Request> {
        let before = self.0.iter().rev().map(|task| task.request).find(|&before| collide(before, request));
        self.0.push(Task { client, request, goal: None });
        before
    }

    /// What a tool waits for.
    pub fn of(&self, client: SourceId) -> usize {
        self.0.iter().filter(|task| task.client == Some(client)).count()
    }

    /// How many tools wait for something.
    pub fn tools(&self) -> usize {
        self.0.iter().filter_map(|task| task.client).collect::<HashSet<_>>().len()
    }

    /// A tool has gone.
    pub fn forget(&mut self, client: SourceId) {
        self.0.retain(|task| task.client != Some(client));
    }
}

/// Whether both are about the same.
fn collide(one: Request, other: Request) -> bool {
    match (one, other) {
        (Request::Restart(one) | Request::Drain(one), Request::Restart(other) | Request::Drain(other)) => {
            one == other
        }
        (Request::Log(_), Request::Log(_)) => true,
        (Request::Reload | Request::Scale(_), Request::Restart(_) | Request::Drain(_))
        | (Request::Restart(_) | Request::Drain(_), Request::Reload | Request::Scale(_))
        | (Request::Reload | Request::Scale(_), Request::Reload | Request::Scale(_)) => true,
        (Request::Stop, _) | (_, Request::Stop) | (Request::Log(_), _) | (_, Request::Log(_)) => false,
    }
}

impl Watchdog {
    /// Begins what has its turn, and tells of what is done.
    pub(super) fn tend_tasks(&mut self, reactor: &mut Handle<Key>) {
        let now = reactor.now();
        if self.tasks.0.is_empty() {
            return;
        }
        let mut left: Vec<Task> = Vec::new();
        for Task { client, request, goal } in std::mem::take(&mut self.tasks.0) {
            // Whoever asked for a reload may have gone before its end.
            let is_free = !self.is_reloading() || matches!(request, Request::Log(_));
            let is_before = |before: &Task| match &before.goal {
                // Those who leave take as long as they take.
                Some(Goal::Reloaded { by: Some(renewal) }) if Self::only_leavers_are_left(renewal) => false,
                _ => collide(before.request, request),
            };
            let has_turn = is_free && !left.iter().any(is_before);
            let goal = match goal {
                _ if self.tree.is_stopping() => Err("the system stops".to_owned()),
                None if has_turn => self.begin(reactor, client, request).map(Some),
                goal => Ok(goal),
            };
            let answer = match goal {
                Err(why) => Answer::Error(why),
                Ok(mut goal) => match goal.as_mut().and_then(|goal| self.look_at_goal(now, client, goal)) {
                    Some(answer) => answer,
                    None => {
                        left.push(Task { client, request, goal });
                        continue;
                    }
                },
            };
            if let (Request::Reload | Request::Scale(_), Answer::Error(why)) = (request, &answer) {
                self.note_failed_reload(why);
            }
            self.answer_tool(client, &answer);
        }
        self.tasks.0 = left;
    }

    /// Whether a reload, or a change of scale, is waited for, and not only for those who leave.
    pub(super) fn has_reload_under_way(&self) -> bool {
        self.tasks.0.iter().any(|task| match &task.goal {
            Some(Goal::Reloaded { by }) => !by.as_ref().is_some_and(Self::only_leavers_are_left),
            Some(_) | None => false,
        })
    }

    /// However many signals come, one reload after the one under way is enough.
    pub(super) fn reload_by_signal(&mut self) {
        let waits =
            |task: &Task| (task.client, task.request) == (None, Request::Reload) && task.goal.is_none();
        if !self.tasks.0.iter().any(waits) {
            self.push_task(None, Request::Reload);
        }
    }

    /// A tool, or a signal, asks for something.
    pub(super) fn push_task(&mut self, client: Option<SourceId>, request: Request) {
        if let Some(before) = self.tasks.push(client, request) {
            let progress = format!("waits for its turn after \"{before}\"");
            self.answer_tool(client, &Answer::Progress(progress));
        }
    }

    fn begin(
        &mut self,
        reactor: &mut Handle<Key>,
        client: Option<SourceId>,
        request: Request,
    ) -> Result<Goal, String> {
        let now = reactor.now();
        log::info!("{}: {request}", if client.is_some() { "a tool asks" } else { "a signal asks" });
        match request {
            Request::Reload => {
                self.note_reload();
                self.begin_reload(reactor, None)?;
                self.answer_tool(client, &Answer::Progress("a new principal is started".to_owned()));
                Ok(Goal::Reloaded { by: None })
            }
            Request::Stop => Err("stop has no turn".to_owned()),
            Request::Scale(secondaries) => {
                self.note_reload();
                self.begin_reload(reactor, Some(secondaries))?;
                self.answer_tool(client, &Answer::Progress("a new principal is started".to_owned()));
                Ok(Goal::Reloaded { by: None })
            }
            Request::Restart(slot) => {
                self.is_slot(slot)?;
                self.resting.remove(&slot);
                // The last one that was started, ready or not: the watchdog may not have heard of it yet.
                let before = self.principal_page.slot(slot).incarnation;
                self.order_principal(Order::Restart(slot));
                let progress = match self.serving(slot) {
                    Some(_) => format!("secondary {slot} is asked to leave"),
                    None => format!("secondary {slot} is started"),
                };
                self.answer_tool(client, &Answer::Progress(progress));
                let times = &self.force.config.watchdog;
                let give_up_at =
                    now + times.kill_after + times.period * 2 + times.start_within + START_MARGIN;
                Ok(Goal::Replaced { slot, before, give_up_at })
            }
            Request::Drain(slot) => {
                self.is_slot(slot)?;
                let serves = |other: u16| {
                    let name = self.serving(other).filter(|_| !self.resting.contains(&other));
                    name.and_then(|name| self.tree.state(name)).is_some_and(|state| state.is_healthy())
                };
                if !(1..=self.force.config.secondaries).any(|other| other != slot && serves(other)) {
                    return Err(format!("no other slot than {slot} serves now: \"osps stop\" ends all"));
                }
                self.resting.insert(slot);
                self.order_principal(Order::Rest(slot));
                let progress = format!("slot {slot} is given no more jobs");
                self.answer_tool(client, &Answer::Progress(progress));
                Ok(Goal::Empty { slot, open: None, told_at: now })
            }
            Request::Log(level) => {
                self.set_log_level(level);
                self.answer_tool(client, &Answer::Progress("every process is told".to_owned()));
                // Not the time of the turn: who answers after this line has found it.
                Ok(Goal::Heard { since: clock::now() })
            }
        }
    }

    fn set_log_level(&self, level: Option<Level>) {
        crate::os::log::set_level(level);
        self.page.set_log_level(level);
    }

    fn is_slot(&self, slot: u16) -> Result<(), String> {
        let slots = self.force.config.secondaries;
        if (1..=slots).contains(&slot) {
            return Ok(());
        }
        Err(format!("there is no slot {slot}: the secondaries are 1 to {slots}"))
    }

    /// The answer, where the goal is reached or out of reach.
    fn look_at_goal(&mut self, now: Moment, client: Option<SourceId>, goal: &mut Goal) -> Option<Answer> {
        match goal {
            Goal::Replaced { slot, before, give_up_at } => {
                // The principal must have heard of it, too: only then is it given jobs.
                let known = self.principal_page.slot(*slot);
                let serving = self.serving(*slot).filter(|name| {
                    name.incarnation != *before
                        && (known.incarnation, known.occupied) == (name.incarnation, Occupied::Ready)
                });
                if let Some(pid) = serving.and_then(|name| self.pid_of(name)) {
                    return Some(Answer::Done(format!("secondary {slot} serves, pid {pid}")));
                }
                // One that gave up before that is to be tried again.
                if known.occupied == Occupied::GivenUp && known.incarnation != *before {
                    return Some(Answer::Error(format!(
                        "secondary {slot} says that it cannot start: see the log"
                    )));
                }
                let slot = *slot;
                (*give_up_at <= now).then(|| Answer::Error(self.why_not_replaced(slot, *before)))
            }
            Goal::Empty { slot, open, told_at } => {
                let here = self.living_in(*slot);
                let occupied = self.principal_page.slot(*slot).occupied;
                if here == 0 && matches!(occupied, Occupied::Resting | Occupied::GivenUp) {
                    return Some(Answer::Done(format!("slot {slot} is empty")));
                }
                let under_way = self.principal_page.slot(*slot).open;
                if *open != Some(under_way) && (open.is_none() || now.since(*told_at) >= TELL_EVERY) {
                    (*open, *told_at) = (Some(under_way), now);
                    let text = format!("jobs under way: {under_way}, in processes: {here}");
                    self.answer_tool(client, &Answer::Progress(text));
                }
                None
            }
            Goal::Reloaded { by } => self.look_at_reload(now, client, by),
            Goal::Heard { since } => {
                let late = self
                    .tree
                    .living()
                    .filter(|&name| self.tree.is_ready(name) && !self.has_answered(name, *since));
                (late.count() == 0).then(|| Answer::Done("every process knows".to_owned()))
            }
        }
    }

    pub(super) fn why_not_replaced(&self, slot: u16, before: Incarnation) -> String {
        let stays = self.serving(slot).is_some_and(|name| name.incarnation == before);
        match self.living_in(slot) {
            here if stays && here > 1 => format!(
                "secondary {slot} was asked to leave and has not: {} before it still finish what they have, \
                 and so many can be supervised at once",
                here - 1
            ),
            _ if stays => format!(
                "secondary {slot} was asked to leave and has not; it will, unless it is killed before"
            ),
            _ => format!("secondary {slot} has left, and no other is ready: it is tried on, see the log"),
        }
    }

    /// The secondary that is ready in a slot, and does not leave it.
    fn serving(&self, slot: u16) -> Option<Name> {
        let of_slot = |name: &Name| name.role == Role::Secondary && name.slot == slot;
        let mut names = self.tree.living().filter(of_slot);
        names.find(|&name| self.tree.is_ready(name) && !self.tree.is_draining(name))
    }
}
