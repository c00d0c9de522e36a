//! What commands and workers leave behind: processes that come to this one because their parents
//! have ended.

use std::collections::{HashMap, HashSet};

use rustix::process::Signal;

use crate::core::command::LOOK_EVERY;
use crate::core::mark::Whose;
use crate::core::strays::{Fate, Household, Stray};
use crate::os::reactor::Handle;
use crate::os::{descendants, proc};
use crate::role::secondary::commands::Owner;
use crate::role::secondary::{Key, Secondary, Timer};

/// When a worker has ended, so often is looked for what it has left behind.
const LOOKS: u8 = 20;

/// Those who have come so far.
pub struct Strays {
    /// Whose commands and workers these are.
    pub owner: Owner,
    /// Commands and workers started so far.
    started: u64,
    /// What was seen of each of them when it was first seen. A child keeps its pid until it is reaped.
    met: HashMap<u32, Met>,
    /// How often is still looked for more of them.
    looks_left: u8,
}

#[derive(Clone, Copy)]
struct Met {
    mark: Option<Whose>,
    started: u64,
}

impl Strays {
    /// Nobody has come yet.
    pub fn new(owner: Owner) -> Self {
        Self { owner, started: 0, met: HashMap::new(), looks_left: 0 }
    }

    /// The number of the next start of a command or a worker.
    pub fn number(&mut self) -> u64 {
        self.started += 1;
        self.started
    }

    /// A child was reaped.
    pub fn reaped(&mut self, pid: u32) {
        self.met.remove(&pid);
    }

    fn meet(&mut self, pid: u32) -> Met {
        let met = self.met.entry(pid).or_insert(Met { mark: None, started: self.started });
        if met.mark.is_none() {
            met.mark = descendants::mark_of(pid, self.owner.tree).map(|mark| mark.whose);
        }
        *met
    }
}

/// Who lives, but for the one who is being ended.
struct Living {
    all: HashSet<Whose>,
    oldest: Option<u64>,
}

impl Household for Living {
    fn lives(&self, whose: Whose) -> bool {
        self.all.contains(&whose)
    }

    fn oldest(&self) -> Option<u64> {
        self.oldest
    }
}

impl Secondary {
    /// Sends a signal to all who have come to this process and belong to the job or worker that is being
    /// ended, by the number of its process group as well. Returns whether any of them was there.
    /// Kills all whose jobs and workers are long gone.
    pub(super) fn sweep_strays(&mut self, ended: Option<(Whose, u32)>, signal: Signal) -> bool {
        let mut found = false;
        let mut household = None;
        let (whose, group) = ended.unzip();
        for pid in descendants::own_children() {
            if self.led_by(pid).is_some() {
                continue;
            }
            let Met { mark, started } = self.strays.meet(pid);
            let household = household.get_or_insert_with(|| self.living_without(whose));
            // Whoever is marked as somebody's who lives needs no second look.
            if mark.is_some_and(|mark| whose != Some(mark) && household.lives(mark)) {
                continue;
            }
            let Ok(stat) = proc::stat(pid) else {
                continue;
            };
            let leader = u32::try_from(stat.group).ok();
            let of_group = if leader == group { whose } else { None };
            let of_group = of_group.or_else(|| leader.and_then(|leader| self.led_by(leader)));
            let fate = Stray { mark, group: of_group, met: started }.fate(whose, household);
            // The children of a zombie may be on their way to us: they are seen once it is reaped.
            let is_zombie = matches!(stat.letter, 'Z' | 'X');
            match fate {
                Fate::Ends => found |= is_zombie || descendants::signal_family(pid, signal),
                Fate::IsOverdue if !is_zombie => {
                    descendants::signal_family(pid, Signal::KILL);
                }
                Fate::IsOverdue | Fate::Stays => {}
            }
        }
        found
    }

    /// The command or worker that a process leads.
    fn led_by(&self, pid: u32) -> Option<Whose> {
        self.runs.led_by(pid).or_else(|| self.crews.led_by(pid))
    }

    fn living_without(&self, ended: Option<Whose>) -> Living {
        let workers = self.crews.workers.iter();
        let workers = workers.map(|(_, worker)| (Whose::worker(worker.number), Some(worker.number)));
        let (mut all, mut oldest) = (HashSet::new(), None::<u64>);
        for (whose, number) in self.runs.jobs().chain(workers) {
            if Some(whose) != ended {
                all.insert(whose);
                oldest = oldest.into_iter().chain(number).min();
            }
        }
        Living { all, oldest }
    }

    /// A worker has ended: who has left its family before comes to us one by one.
    pub(super) fn look_for_strays(&mut self, reactor: &mut Handle<Key>) {
        if std::mem::replace(&mut self.strays.looks_left, LOOKS) == 0 {
            self.timers.arm(reactor.now(), Timer::Strays);
        }
    }

    /// Looks for a while: whoever is still somebody's child now will come here when that one is gone.
    pub(super) fn look_for_strays_again(&mut self, reactor: &mut Handle<Key>) {
        self.sweep_strays(None, Signal::KILL);
        self.strays.looks_left -= 1;
        if self.strays.looks_left > 0 {
            self.timers.arm(reactor.now() + LOOK_EVERY, Timer::Strays);
        }
    }
}
