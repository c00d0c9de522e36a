//! The observer, as far as the watchdog can tell it from `src/role/observer/mod.rs`: whom it shows what does not
//! matter here.

use osps::core::moment::Moment;
use osps::page::Access;
use osps::page::observer::{ObserverPage, Visits};
use osps::wire::order::Order;

use crate::kernel::Sheet;
use crate::liveness::Liveness;
use crate::machine::{Key, Machine, Proc, Progress, Role, Signal, WATCHDOG};
use crate::plan::secs;
use crate::sabotage::Sabotage;

pub struct Observer {
    me: Proc,
    now: Moment,
    liveness: Liveness,
    page: ObserverPage,
    visits: Visits,
    /// When it reads the pages of the others again.
    next_sample: Moment,
    over: bool,
}

impl Observer {
    pub fn start(sys: &mut Machine, me: Proc, sheet: Sheet) -> Self {
        sys.system_call();
        let page = ObserverPage::attach(&sys.rundir.observer_page(), Access::ReadWrite);
        let page = page.expect("the watchdog created it");
        let now = sys.turn_began_at();
        let mut liveness = Liveness::begin(sys, me, sheet.name, sheet.orders, page.page());
        liveness.declare_ready(sys, me, page.page(), now);
        Self { me, now, liveness, page, visits: Visits::default(), next_sample: now, over: false }
    }

    /// The number that it answered last.
    pub fn answered(&self) -> u64 {
        self.page.record().answered
    }

    fn leave(&mut self, sys: &mut Machine) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if sys.has_ended(WATCHDOG) {
            sys.audit.coverage.count("observer: left without a watchdog");
        }
        sys.audit_ends_itself(self.me);
    }
}

impl Role for Observer {
    fn on_signal(&mut self, sys: &mut Machine, signal: Signal) {
        match signal {
            Signal::Usr1 => {
                self.liveness.answer_probe(sys, self.page.page(), self.now);
                if self.liveness.is_to_drain() && sys.sabotage != Sabotage::BelieveOrders {
                    self.leave(sys);
                }
            }
            Signal::Term => self.leave(sys),
            Signal::Usr2 | Signal::Chld => {}
        }
    }

    fn on_ready(&mut self, sys: &mut Machine, key: Key) -> Progress {
        match key {
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders(sys);
                if orders.iter().any(|order| matches!(order, Order::Drain | Order::Stop | Order::StopNow)) {
                    self.leave(sys);
                }
                return progress;
            }
            Key::Watchdog => self.leave(sys),
            Key::Listener(_)
            | Key::Conn(_)
            | Key::Tube(..)
            | Key::TubeRoom
            | Key::Channel(_)
            | Key::Successor
            | Key::Reload
            | Key::Ended(_) => {}
        }
        Progress::Drained
    }

    fn deadline(&self) -> Option<Moment> {
        Some(self.next_sample)
    }

    fn on_deadline(&mut self, sys: &mut Machine) {
        sys.system_call();
        self.visits.requests += 1;
        self.page.set_visits(self.visits);
        self.next_sample = self.now + secs(1);
    }

    fn settle(&mut self, _: &mut Machine) {}

    fn begin(&mut self, _: &mut Machine, now: Moment) {
        self.now = now;
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
