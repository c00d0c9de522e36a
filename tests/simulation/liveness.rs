//! What principal and secondaries owe the watchdog, as `src/role/liveness.rs` does it.

use std::rc::Rc;

use osps::core::moment::Moment;
use osps::core::name::Name;
use osps::page::watchdog::{RecordIndex, Verdict, WatchdogPage};
use osps::page::{Page, record};
use osps::wire::order::Order;

use crate::fifo::{FifoId, Line};
use crate::machine::{Key, Machine, Proc, Progress, Signal, WATCHDOG};

pub struct Liveness {
    name: Name,
    pub page: Rc<WatchdogPage>,
    orders: FifoId,
    record: Option<RecordIndex>,
}

impl Liveness {
    pub fn begin(sys: &mut Machine, me: Proc, name: Name, orders: FifoId, page: &Page) -> Self {
        let (pid, start_time) = (sys.processes[me].pid, sys.processes[me].start_time);
        record::introduce(page, name.incarnation, pid, start_time);
        sys.system_call();
        let page = Rc::clone(&sys.watchdog_page);
        Self { name, page, orders, record: None }
    }

    pub fn declare_ready(&mut self, sys: &mut Machine, me: Proc, page: &Page, now: Moment) {
        sys.watch_fifo(self.orders, me, Key::Orders);
        sys.watch_end(WATCHDOG, me, Key::Watchdog);
        record::declare_ready(page, now);
        sys.handlers_stand(me);
        self.ring(sys);
    }

    pub fn answer_probe(&mut self, sys: &mut Machine, page: &Page, now: Moment) {
        let current =
            |index: &RecordIndex| self.page.load(*index).is_some_and(|watched| watched.name == self.name);
        self.record = self.record.filter(current).or_else(|| self.page.find(self.name));
        if let Some(watched) = self.record.and_then(|index| self.page.load(index)) {
            record::answer(page, watched.probe, now);
            self.ring(sys);
        }
    }

    pub fn ring(&self, sys: &mut Machine) {
        sys.system_call();
        sys.send(WATCHDOG, Signal::Usr2);
    }

    pub fn read_orders(&mut self, sys: &mut Machine) -> (Vec<Order>, Progress) {
        let (lines, more) = sys.take(self.orders);
        let orders = lines.into_iter().filter_map(|line| match line {
            Line::Order(order) => Some(order),
            Line::Command(_) | Line::Garbage => None,
        });
        (orders.collect(), if more { Progress::Again } else { Progress::Drained })
    }

    pub fn is_to_drain(&self) -> bool {
        let watched = self.record.and_then(|index| self.page.load(index));
        watched.is_some_and(|watched| watched.name == self.name && watched.verdict == Verdict::Draining)
    }

    pub fn may_leave(&self) -> bool {
        self.record.is_some() && self.page.has_room() && !self.page.is_stopping()
    }

    pub fn suspects(&self) -> Vec<Name> {
        let watched = self.page.watched();
        watched.filter(|watched| watched.verdict == Verdict::Suspect).map(|watched| watched.name).collect()
    }
}
