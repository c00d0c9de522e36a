//! Named FIFOs that fill, and their ends, as `src/os/fifo.rs` makes them.

use std::collections::{BTreeMap, VecDeque};

use osps::core::job::Incarnation;
use osps::core::name::Role;
use osps::wire::order::Order;
use osps::wire::tube::Command;

use crate::machine::{Key, Machine, Proc};

/// A FIFO, for as long as somebody has it open.
pub type FifoId = usize;

/// What stands in a FIFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Command(Command),
    Order(Order),
    /// Somebody's who has no business here.
    Garbage,
}

/// The name of a FIFO; a predecessor's carries its incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FifoName {
    /// `dwtube<n>`
    ToSecondary(u16, Option<Incarnation>),
    /// `wdtube<n>`
    FromSecondary(u16, Option<Incarnation>),
    /// `orders.<n>`; 0 is the principal's, with an incarnation one's that is to take over.
    Orders(u16, Option<Incarnation>),
    /// `orders.observer`
    ObserverOrders,
}

const OF_A_SECONDARY: [fn(u16, Option<Incarnation>) -> FifoName; 3] =
    [FifoName::ToSecondary, FifoName::FromSecondary, FifoName::Orders];

/// Lines that one `write(2)` carries; they go in together or not at all.
const ATOMIC: usize = 4;
/// Lines that a writer keeps for a FIFO that is full.
const PENDING_LIMIT: usize = 4;
/// Lines that are read in one turn.
const READ_BUDGET: usize = 8;

#[derive(Debug, Default)]
struct Fifo {
    lines: VecDeque<Line>,
    readers: Vec<(Proc, Key)>,
    writers: Vec<(Proc, Key)>,
    was_full: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Fifos {
    all: Vec<Fifo>,
    names: BTreeMap<FifoName, FifoId>,
}

impl Machine {
    /// Creates a FIFO. Returns whether there was none of that name.
    pub fn mkfifo(&mut self, name: FifoName) -> bool {
        self.system_call();
        if self.fifos.names.contains_key(&name) {
            return false;
        }
        self.fifos.names.insert(name, self.fifos.all.len());
        self.fifos.all.push(Fifo::default());
        true
    }

    pub fn open_fifo(&mut self, name: FifoName) -> Option<FifoId> {
        self.system_call();
        self.fifos.names.get(&name).copied()
    }

    pub fn rename_fifo(&mut self, from: FifoName, to: FifoName) {
        self.system_call();
        if let Some(fifo) = self.fifos.names.remove(&from) {
            self.fifos.names.insert(to, fifo);
        }
    }

    pub fn unlink_fifo(&mut self, name: FifoName) {
        self.system_call();
        self.fifos.names.remove(&name);
    }

    /// Gives the FIFOs of a secondary the names of a predecessor.
    pub fn retire_fifos(&mut self, slot: u16, incarnation: Incarnation) {
        for name in OF_A_SECONDARY {
            self.system_call();
            if let Some(fifo) = self.fifos.names.remove(&name(slot, None)) {
                self.fifos.names.insert(name(slot, Some(incarnation)), fifo);
            }
        }
    }

    pub fn remove_fifos(&mut self, slot: u16, incarnation: Option<Incarnation>) {
        for name in OF_A_SECONDARY {
            self.unlink_fifo(name(slot, incarnation));
        }
    }

    /// Has the process called when there are lines.
    pub fn watch_fifo(&mut self, fifo: FifoId, proc: Proc, key: Key) {
        self.system_call();
        self.fifos.all[fifo].readers.push((proc, key));
        if !self.fifos.all[fifo].lines.is_empty() {
            self.post(proc, key);
        }
    }

    pub fn unwatch_fifo(&mut self, fifo: FifoId, proc: Proc) {
        self.fifos.all[fifo].readers.retain(|(reader, _)| *reader != proc);
        self.fifos.all[fifo].writers.retain(|(writer, _)| *writer != proc);
    }

    /// One `write(2)`: all of the lines, or none where there is no room.
    pub fn put(&mut self, fifo: FifoId, lines: &[Line]) -> bool {
        self.system_call();
        self.put_lines(fifo, lines)
    }

    fn put_lines(&mut self, fifo: FifoId, lines: &[Line]) -> bool {
        let capacity = self.plan.fifo_lines;
        let known = &mut self.fifos.all[fifo];
        if known.lines.len() + lines.len() > capacity {
            known.was_full = true;
            self.audit.coverage.count("a FIFO was full");
            return false;
        }
        known.lines.extend(lines);
        for (reader, key) in known.readers.clone() {
            self.post(reader, key);
        }
        true
    }

    /// Takes lines; and whether there may be more.
    pub fn take(&mut self, fifo: FifoId) -> (Vec<Line>, bool) {
        self.system_call();
        let known = &mut self.fifos.all[fifo];
        let taken = known.lines.len().min(READ_BUDGET);
        let lines = known.lines.drain(..taken).collect();
        let more = !known.lines.is_empty();
        if taken > 0 && std::mem::take(&mut known.was_full) {
            for (writer, key) in known.writers.clone() {
                self.post(writer, key);
            }
        }
        (lines, more)
    }

    pub fn steal_lines(&mut self, fifo: FifoId) {
        if !self.fifos.all[fifo].lines.is_empty() {
            self.audit.coverage.count("doorbells stolen");
        }
        self.fifos.all[fifo].lines.clear();
    }

    /// `cat wdtube1 >/dev/null`, or `echo nonsense >wdtube1`, of any FIFO that has a name.
    pub fn disturb_fifos(&mut self, steals: bool) {
        let named: Vec<FifoId> = self.fifos.names.values().copied().collect();
        if named.is_empty() {
            return;
        }
        let fifo = self.dice.pick(&named);
        if steals {
            self.steal_lines(fifo);
        } else if self.put_lines(fifo, &[Line::Garbage]) {
            self.audit.coverage.count("garbage in a FIFO");
        }
    }
}

impl Machine {
    /// Somebody asks for a new secondary, or for none, by the tools.
    pub fn ask_for_slot(&mut self) {
        let slot = u16::try_from(self.dice.below(u64::from(self.plan.secondaries))).expect("a few") + 1;
        let Some(principal) = self.principals().next() else {
            return;
        };
        if self.dice.chance(600) {
            self.order_principal(principal, Order::Restart(slot));
        } else if self.order_principal(principal, Order::Rest(slot)) {
            self.rested.insert(slot);
        }
    }

    /// All slots are wanted again, whoever is about to take over; where a FIFO is full, people wait for room.
    pub fn ask_for_all_slots(&mut self) {
        for slot in std::mem::take(&mut self.rested) {
            for principal in self.principals().collect::<Vec<_>>() {
                let order = Order::Restart(slot);
                if !self.order_principal(principal, order) {
                    let orders = self.processes[principal].sheet.as_ref().map(|sheet| sheet.orders);
                    orders
                        .into_iter()
                        .for_each(|orders| self.fifos.all[orders].lines.push_back(Line::Order(order)));
                }
            }
        }
    }

    /// Those that live; one that is to take over comes last.
    pub fn principals(&self) -> impl Iterator<Item = Proc> + '_ {
        (0..self.processes.len())
            .filter(|proc| self.processes[*proc].is_alive() && self.role_of(*proc) == Some(Role::Principal))
    }

    /// A principal that starts after the death of one knows nothing of it, and starts all.
    fn order_principal(&mut self, principal: Proc, order: Order) -> bool {
        self.audit.succession.disturbed = true;
        let orders = self.processes[principal].sheet.as_ref().map(|sheet| sheet.orders);
        let ordered = orders.is_some_and(|orders| self.put_lines(orders, &[Line::Order(order)]));
        self.trace.note(self.now, || format!("people tell {principal}: {order:?}, heard: {ordered}"));
        if ordered {
            self.audit.coverage.count(match order {
                Order::Rest(_) => "a slot was told to rest",
                _ => "a slot was told to start again",
            });
        }
        ordered
    }
}

/// The writing end of a tube, as the real one.
#[derive(Debug)]
pub struct Writer {
    fifo: FifoId,
    pending: Vec<Command>,
    watched: bool,
}

impl Writer {
    pub fn new(fifo: FifoId) -> Self {
        Self { fifo, pending: Vec::new(), watched: false }
    }

    pub fn push(&mut self, sys: &mut Machine, command: Command) {
        if self.pending.len() > PENDING_LIMIT {
            sys.audit.coverage.count("a writer overflowed");
            let kept = |command: &Command| match command {
                Command::Ready | Command::Draining | Command::Recycling | Command::Stop | Command::Leave => {
                    true
                }
                Command::Job(_)
                | Command::Resync
                | Command::Debut(_)
                | Command::Fin(_)
                | Command::Err(_)
                | Command::Uninvited { .. }
                | Command::Ping(_)
                | Command::Pong(_) => false,
            };
            self.pending.retain(kept);
            self.pending.insert(0, Command::Resync);
        }
        self.pending.push(command);
    }

    /// Writes what is queued; where the FIFO is full, has the process called when there is room.
    pub fn flush_or_watch(&mut self, sys: &mut Machine, me: Proc) {
        while !self.pending.is_empty() {
            let chunk = self.pending.len().min(ATOMIC);
            let lines: Vec<Line> = self.pending[..chunk].iter().copied().map(Line::Command).collect();
            if !sys.put(self.fifo, &lines) {
                if !std::mem::replace(&mut self.watched, true) {
                    sys.fifos.all[self.fifo].writers.push((me, Key::TubeRoom));
                }
                return;
            }
            self.pending.drain(..chunk);
        }
    }

    pub fn unwatch(&self, sys: &mut Machine, me: Proc) {
        sys.unwatch_fifo(self.fifo, me);
    }
}
