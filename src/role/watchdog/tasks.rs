//! What tools have asked for: one thing after another, each until its effect is there.
//!
//! Who goes away is not waited for any more; what it has asked for goes on.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::{Name, Role};
use crate::core::slots::Occupied;
use crate::os::reactor::SourceId;
use crate::role::watchdog::Watchdog;
use crate::wire::control::{Answer, Level, Request};
use crate::wire::order::Order;

/// How much longer than `start_within` a new secondary is waited for.
const START_MARGIN: Duration = Duration::from_secs(1);

/// Something that a tool waits for.
pub struct Task {
    /// The tool.
    client: SourceId,
    request: Request,
    /// `None` until it is its turn.
    goal: Option<Goal>,
}

/// When it is done.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// Another than this one serves the slot.
    Replaced { slot: u16, before: Option<Incarnation>, give_up_at: Moment },
    /// Nobody is in the slot. `open`: exchanges under way, as the tool was told last.
    Empty { slot: u16, open: Option<u64> },
    /// Every server has answered a probe since.
    Heard { since: Moment },
}

/// The tasks of all tools, in their order.
#[derive(Default)]
pub struct Tasks(VecDeque<Task>);

impl Tasks {
    /// It will have its turn.
    pub fn push(&mut self, client: SourceId, request: Request) {
        self.0.push_back(Task { client, request, goal: None });
    }

    /// A tool has gone.
    pub fn forget(&mut self, client: SourceId) {
        self.0.retain(|task| task.client != client);
    }
}

impl Watchdog {
    /// Begins what has its turn, and tells of what is done.
    pub(super) fn tend_tasks(&mut self, now: Moment) {
        while let Some(Task { client, request, goal }) = self.tasks.0.pop_front() {
            let goal = match goal {
                _ if self.tree.is_stopping() => Err("the system stops".to_owned()),
                Some(goal) => Ok(goal),
                None => self.begin(now, client, request),
            };
            let answer = match goal {
                Err(why) => Answer::Error(why),
                Ok(mut goal) => match self.look_at_goal(now, client, &mut goal) {
                    Some(answer) => answer,
                    None => {
                        self.tasks.0.push_front(Task { client, request, goal: Some(goal) });
                        return;
                    }
                },
            };
            self.answer_tool(client, &answer);
        }
    }

    fn begin(&mut self, now: Moment, client: SourceId, request: Request) -> Result<Goal, String> {
        log::info!("a tool asks: {request}");
        match request {
            Request::Stop => Err("stop has no turn".to_owned()),
            Request::Restart(slot) => {
                self.is_slot(slot)?;
                self.resting.remove(&slot);
                let before = self.serving(slot).map(|name| name.incarnation);
                self.order_principal(Order::Restart(slot));
                let give_up_at = now + self.config.watchdog.start_within + START_MARGIN;
                Ok(Goal::Replaced { slot, before, give_up_at })
            }
            Request::Drain(slot) => {
                self.is_slot(slot)?;
                let others = (1..=self.config.secondaries).filter(|&other| other != slot);
                if others.into_iter().all(|other| self.resting.contains(&other)) {
                    return Err(format!("slot {slot} is the last that serves: \"osps stop\" ends all"));
                }
                self.resting.insert(slot);
                self.order_principal(Order::Rest(slot));
                let progress = format!("slot {slot} is given no more jobs");
                self.answer_tool(client, &Answer::Progress(progress));
                Ok(Goal::Empty { slot, open: None })
            }
            Request::Log(level) => {
                self.set_log_level(level);
                Ok(Goal::Heard { since: now })
            }
        }
    }

    fn set_log_level(&self, level: Option<Level>) {
        crate::os::log::set_level(level);
        self.page.set_log_level(level);
    }

    fn is_slot(&self, slot: u16) -> Result<(), String> {
        let slots = self.config.secondaries;
        if (1..=slots).contains(&slot) {
            return Ok(());
        }
        Err(format!("there is no slot {slot}: the secondaries are 1 to {slots}"))
    }

    /// The answer, where the goal is reached or out of reach.
    fn look_at_goal(&mut self, now: Moment, client: SourceId, goal: &mut Goal) -> Option<Answer> {
        match goal {
            Goal::Replaced { slot, before, give_up_at } => {
                let serving = self.serving(*slot).filter(|name| Some(name.incarnation) != *before);
                if let Some(pid) = serving.and_then(|name| self.pid_of(name)) {
                    return Some(Answer::Done(format!("secondary {slot} serves, pid {pid}")));
                }
                if self.principal_page.slot(*slot).occupied == Occupied::GivenUp {
                    return Some(Answer::Error(format!(
                        "secondary {slot} says that it cannot start: see the log"
                    )));
                }
                let within = self.config.watchdog.start_within;
                (*give_up_at <= now).then(|| {
                    Answer::Error(format!(
                        "secondary {slot} is not ready within {within:?}: it is tried on, see the log"
                    ))
                })
            }
            Goal::Empty { slot, open } => {
                let here = self.living_in(*slot);
                if here == 0 && self.principal_page.slot(*slot).occupied == Occupied::Resting {
                    return Some(Answer::Done(format!("slot {slot} is empty")));
                }
                let under_way = self.principal_page.slot(*slot).open;
                if open.replace(under_way) != Some(under_way) {
                    let mut text = format!("{under_way} jobs under way");
                    let _ = write!(text, " in {here} processes");
                    self.answer_tool(client, &Answer::Progress(text));
                }
                None
            }
            Goal::Heard { since } => {
                let late = self
                    .tree
                    .living()
                    .filter(|&name| self.tree.is_ready(name) && !self.has_answered(name, *since));
                (late.count() == 0).then(|| Answer::Done("every process knows".to_owned()))
            }
        }
    }

    /// The secondary that is ready in a slot, and does not leave it.
    fn serving(&self, slot: u16) -> Option<Name> {
        let of_slot = |name: &Name| name.role == Role::Secondary && name.slot == slot;
        let mut names = self.tree.living().filter(of_slot);
        names.find(|&name| self.tree.is_ready(name) && !self.tree.is_draining(name))
    }
}
