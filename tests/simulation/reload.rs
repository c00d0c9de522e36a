//! What watchdog and principals say to each other at a reload, and the one that is to take over, until it
//! does, as in `src/role/principal/succession.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use osps::core::conversation::Conversation;
use osps::core::moment::Moment;
use osps::core::slots::Followed;
use osps::wire::client::Request;
use serde::{Deserialize, Serialize};

use crate::kernel::{CANNOT_START, Exit, Life, Mood, Stuck};
use crate::machine::{Event, Key, Machine, Proc, WATCHDOG};
use crate::net::ConnId;
use crate::plan::{micros, millis};
use crate::sabotage::Sabotage;

/// A packet between watchdog and a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Prepared,
    Refused,
    /// With one end of the wire to that process.
    HandOver(Proc),
    /// It has not handed over to that process.
    Kept(Proc),
    Proceed,
}

/// What who takes over says to who hands over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Heard,
    Taken,
    /// It has ended.
    End,
}

/// What is handed over with a connection.
#[derive(Serialize, Deserialize)]
pub struct HandedOver {
    pub conversation: Conversation,
    pub waits: Option<(Request, Moment)>,
    pub jobs: Vec<Followed>,
}

/// What goes over the wire at once.
pub enum Frame {
    /// Connections, and what is to be known of each, as text.
    Clients(Vec<(ConnId, Vec<u8>)>),
    /// There were so many.
    End(usize),
}

/// A principal that is to take over: what it has heard.
#[derive(Default)]
struct Heir {
    /// Who hands over, once it listens.
    predecessor: Option<Proc>,
    frames: VecDeque<Frame>,
    replies: VecDeque<Reply>,
    estate: Vec<(ConnId, Vec<u8>)>,
    is_taken: bool,
}

/// All that is under way.
#[derive(Default)]
pub struct Wires {
    to_watchdog: BTreeMap<Proc, VecDeque<Word>>,
    to_principal: BTreeMap<Proc, VecDeque<Word>>,
    heirs: BTreeMap<Proc, Heir>,
}

impl Machine {
    /// People want a new configuration in force, now and again.
    pub fn ask_for_reload(&mut self) {
        if !self.is_quiet() {
            self.post(WATCHDOG, Key::Reload);
            self.soon(self.plan.reload_every * 2, Event::Reload);
        }
    }

    pub fn tell_watchdog(&mut self, me: Proc, word: Word) {
        self.system_call();
        self.trace.note(self.now, || format!("    {me} tells the watchdog: {word:?}"));
        self.wires.to_watchdog.entry(me).or_default().push_back(word);
        self.post(WATCHDOG, Key::Channel(me));
    }

    /// What that principal says.
    pub fn hear_principal(&mut self, principal: Proc) -> Option<Word> {
        self.system_call();
        self.wires.to_watchdog.get_mut(&principal)?.pop_front()
    }

    /// The watchdog tells a principal. Returns whether it lives.
    pub fn tell_principal(&mut self, principal: Proc, word: Word) -> bool {
        self.system_call();
        if self.has_ended(principal) {
            return false;
        }
        self.trace.note(self.now, || format!("    the watchdog tells {principal}: {word:?}"));
        self.wires.to_principal.entry(principal).or_default().push_back(word);
        if self.processes[principal].life == Life::Booting {
            self.soon(millis(3), Event::Heir(principal));
        } else {
            self.post(principal, Key::Channel(WATCHDOG));
        }
        true
    }

    pub fn hear_watchdog(&mut self, me: Proc) -> Option<Word> {
        self.system_call();
        self.wires.to_principal.get_mut(&me)?.pop_front()
    }

    /// Who hands over listens to who takes over.
    pub fn listen_to_heir(&mut self, me: Proc, heir: Proc) {
        self.system_call();
        match self.wires.heirs.get_mut(&heir) {
            Some(known) => known.predecessor = Some(me),
            None => self.post(me, Key::Successor),
        }
    }

    /// A frame, with descriptors of its connections: from now on both have them.
    pub fn send_frame(&mut self, heir: Proc, frame: Frame) {
        self.system_call();
        let Some(known) = self.wires.heirs.get_mut(&heir) else {
            return;
        };
        if let Frame::Clients(clients) = &frame {
            for (conn, _) in clients {
                self.net.conns[*conn].heir = Some(heir);
            }
        }
        known.frames.push_back(frame);
        self.after(micros(10), millis(2), Event::Heir(heir));
    }

    pub fn hear_heir(&mut self, heir: Proc) -> Option<Reply> {
        self.system_call();
        match self.wires.heirs.get_mut(&heir) {
            Some(known) => known.replies.pop_front(),
            None => Some(Reply::End),
        }
    }

    /// What it has said can still be heard; nobody says anything to it any more.
    pub fn wires_of_the_dead(&mut self, proc: Proc) {
        self.wires.to_principal.remove(&proc);
        let heir = self.wires.heirs.remove(&proc);
        if let Some(predecessor) = heir.and_then(|heir| heir.predecessor) {
            self.post(predecessor, Key::Successor);
        }
    }

    /// A principal that is to take over has attached to everything, or finds that it cannot.
    pub fn prepare_heir(&mut self, proc: Proc) {
        if self.wires.heirs.contains_key(&proc) {
            return;
        }
        self.wires.heirs.insert(proc, Heir::default());
        if !self.is_quiet() && self.dice.chance(30) {
            self.audit.succession.disturbed = true;
            self.tell_watchdog(proc, Word::Refused);
            self.soon(millis(20), Event::Fail(proc, CANNOT_START));
        } else {
            self.tell_watchdog(proc, Word::Prepared);
        }
    }

    /// It does one thing at a time, and writes nowhere.
    pub fn heir_steps(&mut self, proc: Proc) {
        let process = &self.processes[proc];
        let is_stuck = matches!(process.mood, Mood::Stuck(_));
        if process.life != Life::Booting || is_stuck || !self.wires.heirs.contains_key(&proc) {
            return;
        }
        if self.now < self.paused_until {
            self.at(self.paused_until, Event::Heir(proc));
            return;
        }
        if !self.is_quiet() && self.heir_fails(proc) {
            return;
        }
        let proceeds = self.wires.to_principal.get(&proc).is_some_and(|words| !words.is_empty());
        let heir = self.wires.heirs.get_mut(&proc).expect("it was there");
        let reply = match heir.frames.pop_front() {
            Some(Frame::Clients(clients)) => {
                heir.estate.extend(clients);
                Reply::Heard
            }
            Some(Frame::End(clients)) => {
                assert_eq!(clients, heir.estate.len(), "something was lost");
                heir.is_taken = true;
                Reply::Taken
            }
            None if proceeds => return self.begin_role(proc),
            None => return,
        };
        heir.replies.push_back(reply);
        if let Some(predecessor) = heir.predecessor {
            self.post(predecessor, Key::Successor);
        }
        if reply == Reply::Taken && self.sabotage == Sabotage::TakeOverEarly {
            self.begin_role(proc);
        }
    }

    /// Whether something goes wrong with it just now.
    fn heir_fails(&mut self, proc: Proc) -> bool {
        match self.dice.below(40) {
            0 => {
                self.audit.coverage.count("who was to take over died");
                self.end(proc, Exit::Signal(9));
            }
            1 => {
                self.audit.coverage.count("who was to take over hung");
                let stuck = self.dice.pick(&[Stuck::Waiting, Stuck::Stopped, Stuck::Spinning]);
                self.set_mood(proc, Mood::Stuck(stuck));
            }
            2..=3 => {
                let late: Duration = self.dice.up_to(millis(3000));
                self.at(self.now + late, Event::Heir(proc));
            }
            _ => return false,
        }
        self.audit.succession.disturbed = true;
        true
    }

    /// What was handed over to it, once it may proceed.
    pub fn take_estate(&mut self, me: Proc) -> Vec<(ConnId, HandedOver)> {
        let heir = self.wires.heirs.remove(&me).unwrap_or_default();
        self.audit_proceeds(me, heir.is_taken);
        let understood = |(conn, text): (ConnId, Vec<u8>)| {
            (conn, serde_json::from_slice(&text).expect("its predecessor wrote it"))
        };
        heir.estate.into_iter().map(understood).collect()
    }
}
