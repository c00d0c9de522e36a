//! What commands and workers leave behind: processes that come to this one because their parents
//! have ended.

use std::collections::{HashMap, HashSet};

use rustix::process::Signal;

use crate::core::command::LOOK_EVERY;
use crate::core::mark::{Mark, Start};
use crate::core::strays::{Fate, Household, Stray};
use crate::os::reactor::Handle;
use crate::os::reserve::Reserve;
use crate::os::{descendants, proc};
use crate::role::secondary::commands::Owner;
use crate::role::secondary::{Key, Secondary, Timer};

/// When somebody has ended, so often is looked for what he has left behind.
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
    /// Descriptors for a look, when clients have taken all others.
    reserve: Reserve,
    is_looking: bool,
}

#[derive(Clone, Copy)]
struct Met {
    mark: Option<Start>,
    /// The last start before.
    after: Start,
}

impl Strays {
    /// Nobody has come yet.
    pub fn new(owner: Owner) -> Self {
        Self {
            owner,
            started: 0,
            met: HashMap::new(),
            looks_left: 0,
            reserve: Reserve::new(),
            is_looking: false,
        }
    }

    /// The next start of a command or a worker.
    pub fn next(&mut self) -> Start {
        self.started += 1;
        Start::new(self.started)
    }

    /// A child was reaped.
    pub fn reaped(&mut self, pid: u32) {
        self.met.remove(&pid);
    }

    fn meet(&mut self, pid: u32) -> Met {
        let Self { owner, started, met, .. } = self;
        *met.entry(pid).or_insert_with(|| {
            // Who bears the mark of another secondary has made it up.
            let is_ours = |mark: &Mark| (mark.slot, mark.incarnation) == (owner.slot, owner.incarnation);
            let mark = descendants::mark_of(pid).filter(is_ours).map(|mark| mark.start);
            Met { mark, after: Start::new(*started) }
        })
    }
}

/// Who lives, but for the one who is being ended.
struct Living {
    all: HashSet<Start>,
    oldest: Option<Start>,
}

impl Household for Living {
    fn lives(&self, start: Start) -> bool {
        self.all.contains(&start)
    }

    fn oldest(&self) -> Option<Start> {
        self.oldest
    }
}

impl Secondary {
    /// Does something that looks for processes, and must not miss any because clients have taken every
    /// descriptor: those kept for it are free meanwhile.
    pub(super) fn with_room<T>(&mut self, what: impl FnOnce(&mut Self) -> T) -> T {
        let is_outermost = !std::mem::replace(&mut self.strays.is_looking, true);
        if is_outermost {
            self.strays.reserve = Reserve::default();
        }
        let done = what(self);
        if is_outermost {
            self.strays.is_looking = false;
            self.strays.reserve = Reserve::new();
        }
        done
    }

    /// Sends a signal to all who have come to this process and descend from the start that is being ended,
    /// whose leader is or was that process. Returns whether any of them was there. Kills all that descend
    /// from starts that are long gone.
    pub(super) fn sweep_strays(&mut self, ended: Option<(Start, u32)>, signal: Signal) -> bool {
        self.with_room(|secondary| secondary.look_through_strays(ended, signal))
    }

    fn look_through_strays(&mut self, ended: Option<(Start, u32)>, signal: Signal) -> bool {
        let mut found = false;
        let mut household = None;
        let (start, leader_of_ended) = ended.unzip();
        for pid in descendants::own_children() {
            if self.led_by(pid).is_some() {
                continue;
            }
            let Met { mark, after } = self.strays.meet(pid);
            let household = household.get_or_insert_with(|| self.living_without(start));
            // Whoever is marked as somebody's who lives needs no second look.
            if mark.is_some_and(|mark| start != Some(mark) && household.lives(mark)) {
                continue;
            }
            let Ok(stat) = proc::stat(pid) else {
                continue;
            };
            let leader = u32::try_from(stat.group).ok();
            // The number of a group that is empty may be another leader's by now.
            let group = leader.and_then(|leader| self.led_by(leader));
            let group = group.or_else(|| start.filter(|_| leader == leader_of_ended));
            match (Stray { mark, group, met: after }).fate(start, household) {
                Fate::Ends => {
                    // The children of a zombie may be on their way to us: they are seen once it is reaped. It
                    // may also be one whose first thread has ended, and others go on: a signal ends those.
                    let told = descendants::signal_family(pid, signal);
                    found |= told || matches!(stat.letter, 'Z' | 'X');
                }
                Fate::IsOverdue => {
                    descendants::signal_family(pid, Signal::KILL);
                }
                Fate::Stays => {}
            }
        }
        found
    }

    /// The start whose leader a process is.
    fn led_by(&self, pid: u32) -> Option<Start> {
        self.runs.led_by(pid).or_else(|| self.crews.led_by(pid))
    }

    fn living_without(&self, ended: Option<Start>) -> Living {
        let others = |start: &Start| Some(*start) != ended;
        let oldest = self.runs.starts().filter(others).min();
        let all = self.runs.starts().chain(self.crews.starts()).filter(others);
        Living { all: all.collect(), oldest }
    }

    /// Somebody has ended: whom he has left behind comes to us one by one.
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
