//! The shell of the principal, as far as its core can tell it from `src/role/principal/mod.rs`:
//! its loop. The control connections are in `control`, the secondaries in `servers`.

use osps::core::moment::Moment;
use osps::core::name::Name;
use osps::core::slots::{Settings, Slots};
use osps::page::Access;
use osps::page::principal::PrincipalPage;
use osps::wire::order::Order;

use crate::books::SimBooks;
use crate::control::Clients;
use crate::kernel::Sheet;
use crate::leaving::Leaving;
use crate::liveness::Liveness;
use crate::machine::{Key, Machine, Proc, Progress, Role, Signal, WATCHDOG};
use crate::net::CONTROL;
use crate::plan::TYPES;
use crate::sabotage::Sabotage;
use crate::servers::Slot;

pub struct Principal {
    pub me: Proc,
    pub name: Name,
    pub now: Moment,
    pub liveness: Liveness,
    pub core: Slots<SimBooks>,
    pub slots: Vec<Slot>,
    pub reconcile_next: usize,
    pub listens: bool,
    pub clients: Clients,
    pub leaving: Leaving,
    /// It leaves its place to a successor.
    pub hands_over: bool,
    pub over: bool,
}

impl Principal {
    pub fn start(sys: &mut Machine, me: Proc, sheet: Sheet) -> Option<Self> {
        sys.system_call();
        if sys.parent_pid(me) != sheet.parent {
            return None;
        }
        let page = PrincipalPage::attach(&sys.rundir.principal_page(), Access::ReadWrite)
            .expect("the watchdog created it");
        let estate = sheet.succeeds.then(|| sys.take_estate(me));
        let renews = sheet.renews;
        sys.audit_begins_to_write(me);
        page.set_handed_over(0);
        let now = sys.turn_began_at();
        let liveness = Liveness::begin(sys, me, sheet.name, sheet.orders, page.page());
        let books = SimBooks::attach(sys, page, me);
        let settings = Settings {
            max_jobs: sys.plan.max_jobs,
            claim_within: sys.plan.claim_within,
            grace: sys.plan.settings.grace,
        };
        let slots = usize::from(sys.plan.secondaries);
        let mut principal = Self {
            me,
            name: sheet.name,
            now,
            liveness,
            core: Slots::new(books, slots, settings, u64::from(sheet.name.incarnation))
                .with_limits((0..TYPES).map(|kind| sys.plan.time_limit(kind)))
                .with_resting(sheet.resting.iter().map(|slot| usize::from(*slot) - 1)),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            reconcile_next: 0,
            listens: true,
            clients: Clients::new(),
            leaving: Leaving::No,
            hands_over: false,
            over: false,
        };
        sys.listen(me, CONTROL, Key::Listener(0));
        match estate {
            Some(estate) => principal.succeed(sys, estate, renews),
            None => principal.take_over(sys),
        }
        let Self { liveness, core, .. } = &mut principal;
        liveness.declare_ready(sys, me, core.books().page().page(), now);
        Some(principal)
    }

    pub fn stop_accepting(&mut self, sys: &mut Machine) {
        if std::mem::replace(&mut self.listens, false) {
            sys.stop_listening(self.me, CONTROL);
        }
    }

    pub fn page(&self) -> &PrincipalPage {
        self.core.books().page()
    }

    pub fn answer_probe(&mut self, sys: &mut Machine) {
        sys.audit_writes(self.me);
        let Self { liveness, core, now, .. } = self;
        liveness.answer_probe(sys, core.books().page().page(), *now);
    }

    pub fn obey(&mut self, order: Order) {
        match order {
            Order::Look => self.read_verdicts(),
            Order::Stop => self.core.handle_stop(self.now),
            Order::StopNow => self.core.handle_stop_now(self.now),
            Order::Drain => self.core.handle_hand_over(),
            Order::Restart(slot) => self.core.handle_restart(self.now, usize::from(slot) - 1),
            Order::Rest(slot) => self.core.handle_rest(self.now, usize::from(slot) - 1),
        }
    }

    pub fn on_sigterm(&mut self, sys: &mut Machine) {
        if sys.has_ended(WATCHDOG) {
            self.core.handle_watchdog_died(self.now);
        }
        self.read_stop();
        self.core.handle_term(self.now);
    }

    pub fn read_stop(&mut self) {
        if self.liveness.page.is_stopping() {
            self.core.handle_stop(self.now);
        }
    }
}

impl Role for Principal {
    fn on_signal(&mut self, sys: &mut Machine, signal: Signal) {
        if self.leaving.is_under_way() {
            self.on_signal_while_leaving(sys, signal);
            return;
        }
        match signal {
            Signal::Usr1 => {
                self.answer_probe(sys);
                self.reconcile(sys);
            }
            Signal::Term => self.on_sigterm(sys),
            Signal::Usr2 | Signal::Chld => {}
        }
    }

    fn on_ready(&mut self, sys: &mut Machine, key: Key) -> Progress {
        if self.leaving.is_under_way() {
            return self.on_ready_while_leaving(sys, key);
        }
        match key {
            Key::Listener(_) => return self.accept(sys),
            Key::Conn(conn) => return self.on_client(sys, conn),
            Key::Tube(slot, incarnation) => return self.read_tube(sys, slot, incarnation),
            Key::Channel(_) => return self.on_channel(sys),
            Key::TubeRoom | Key::Successor | Key::Reload => {}
            Key::Ended(name) => self.on_ended(sys, usize::from(name.slot) - 1, name.incarnation),
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders(sys);
                for order in orders {
                    self.obey(order);
                }
                return progress;
            }
            Key::Watchdog => self.core.handle_watchdog_died(self.now),
        }
        Progress::Drained
    }

    fn deadline(&self) -> Option<Moment> {
        if self.leaving.is_under_way() {
            return self.leaving.deadline();
        }
        let leaving = self.leaving.deadline().into_iter();
        leaving.chain(self.clients.deadline()).chain(self.core.poll_timeout()).min()
    }

    fn on_deadline(&mut self, sys: &mut Machine) {
        if self.leaving.is_under_way() {
            self.on_deadline_while_leaving(sys);
            return;
        }
        self.on_client_timers(sys);
        if self.core.poll_timeout().is_some_and(|at| at <= self.now) {
            self.read_stop();
            self.core.handle_timeout(self.now);
        }
    }

    fn settle(&mut self, sys: &mut Machine) {
        if self.leaving.is_under_way() && sys.sabotage != Sabotage::ServeAfterAll {
            return;
        }
        sys.audit_writes(self.me);
        self.carry_out(sys);
        self.serve_waiting(sys);
        self.core.finish_turn(self.now);
        self.carry_out(sys);
        self.flush_tubes(sys);
        self.answer_clients(sys);
        self.leave_if_asked(sys);
    }

    fn begin(&mut self, _: &mut Machine, now: Moment) {
        self.now = now;
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
