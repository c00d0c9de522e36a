//! The shell of the principal, as far as its core can tell it from `src/role/principal/mod.rs`:
//! its loop and its control connections. The secondaries are in `servers`.

use std::collections::{BTreeMap, VecDeque};

use osps::core::conversation::Refused;
use osps::core::dispatch::NoSlot;
use osps::core::job::Job;
use osps::core::moment::Moment;
use osps::core::slots::{Settings, Slots};
use osps::page::Access;
use osps::page::principal::PrincipalPage;
use osps::wire::order::Order;

use crate::books::SimBooks;
use crate::clients::Step;
use crate::kernel::Sheet;
use crate::liveness::Liveness;
use crate::machine::{Event, Key, Machine, Proc, Progress, Role, Signal, WATCHDOG};
use crate::net::{ACCEPTS_PER_TURN, CONTROL, ConnId, Input};
use crate::plan::{micros, millis};
use crate::sabotage::Sabotage;
use crate::servers::Slot;

/// A control connection.
struct Control {
    /// The request that waits for a secondary, and until when.
    waits: Option<(usize, Moment)>,
    /// What is sent when the turn is over.
    answer: Option<Option<usize>>,
}

pub struct Principal {
    pub me: Proc,
    pub now: Moment,
    pub liveness: Liveness,
    pub core: Slots<SimBooks>,
    pub slots: Vec<Slot>,
    pub reconcile_next: usize,
    listens: bool,
    clients: BTreeMap<ConnId, Control>,
    waiting: VecDeque<(ConnId, Moment)>,
    waiting_timer: Option<Moment>,
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
            now,
            liveness,
            core: Slots::new(books, slots, settings, u64::from(sheet.name.incarnation)),
            slots: (0..slots).map(|_| Slot::default()).collect(),
            reconcile_next: 0,
            listens: true,
            clients: BTreeMap::new(),
            waiting: VecDeque::new(),
            waiting_timer: None,
            over: false,
        };
        sys.listen(me, CONTROL, Key::Listener(0));
        principal.take_over(sys);
        let Self { liveness, core, .. } = &mut principal;
        liveness.declare_ready(sys, me, core.books().page().page(), now);
        Some(principal)
    }

    pub fn page(&self) -> &PrincipalPage {
        self.core.books().page()
    }

    fn accept(&mut self, sys: &mut Machine) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.listens {
                return Progress::Drained;
            }
            let Some(conn) = sys.accept(self.me, CONTROL) else {
                return Progress::Drained;
            };
            self.clients.insert(conn, Control { waits: None, answer: None });
        }
        Progress::Again
    }

    fn on_client(&mut self, sys: &mut Machine, conn: ConnId) {
        let Some(client) = self.clients.get(&conn) else {
            return;
        };
        sys.system_call();
        match sys.net.conns[conn].input {
            Input::Request(kind) if client.waits.is_none() && client.answer.is_none() => {
                if !self.answer(sys, conn, kind) {
                    self.wait(sys, conn, kind);
                }
            }
            Input::Reset => {
                self.clients.remove(&conn);
                sys.close(conn, Step::Broken(conn));
            }
            Input::Request(_) | Input::Nothing | Input::End => {}
        }
    }

    /// Gives the job or refuses it; false where the request may wait for a secondary.
    fn answer(&mut self, sys: &mut Machine, conn: ConnId, kind: usize) -> bool {
        if self.core.refuses_requests() {
            sys.audit_refusal(false);
            self.say(conn, None);
            return true;
        }
        let job = Job { kind, client: sys.peer(conn), given_at: self.now, jeton: None };
        match self.core.give(job, None) {
            Ok(placed) => {
                self.say(conn, Some(placed.slot));
                true
            }
            Err(NoSlot::NoneReady | NoSlot::AllFull) => false,
        }
    }

    fn say(&mut self, conn: ConnId, answer: Option<usize>) {
        self.clients.entry(conn).and_modify(|client| client.answer = Some(answer));
    }

    fn wait(&mut self, sys: &mut Machine, conn: ConnId, kind: usize) {
        sys.audit.coverage.count("a request waited for a secondary");
        let until = self.now + sys.plan.queue_within;
        self.clients.entry(conn).and_modify(|client| client.waits = Some((kind, until)));
        self.waiting.push_back((conn, until));
        if self.waiting_timer.is_none() {
            self.waiting_timer = Some(until);
        }
    }

    fn serve_waiting(&mut self, sys: &mut Machine) {
        if sys.sabotage == Sabotage::ForgetWaiting {
            return;
        }
        while let Some(&(conn, until)) = self.waiting.front() {
            if let Some(kind) = self.waits(conn, until) {
                if !self.answer(sys, conn, kind) {
                    return;
                }
                self.clients.entry(conn).and_modify(|client| client.waits = None);
            }
            self.waiting.pop_front();
        }
    }

    fn refuse_the_tired(&mut self, sys: &mut Machine) {
        self.waiting_timer = None;
        self.serve_waiting(sys);
        while let Some(&(conn, until)) = self.waiting.front() {
            if until > self.now {
                self.waiting_timer = Some(until);
                return;
            }
            self.waiting.pop_front();
            if self.waits(conn, until).is_some() {
                sys.audit.coverage.count("a request waited for too long");
                sys.audit_refusal(self.core.dispatch().find().is_err());
                self.refuse(conn);
            }
        }
    }

    fn waits(&self, conn: ConnId, until: Moment) -> Option<usize> {
        let (kind, its_until) = self.clients.get(&conn)?.waits?;
        (its_until == until).then_some(kind)
    }

    fn refuse(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn)
            && client.waits.take().is_some()
        {
            client.answer = Some(None);
        }
    }

    pub fn refuse_all_waiting(&mut self, sys: &mut Machine) {
        sys.audit_refusal(false);
        let waiting: Vec<ConnId> = self.waiting.drain(..).map(|(conn, _)| conn).collect();
        for conn in waiting {
            self.refuse(conn);
        }
    }

    pub fn stop_accepting(&mut self, sys: &mut Machine) {
        if std::mem::replace(&mut self.listens, false) {
            sys.stop_listening(self.me, CONTROL);
        }
    }

    /// The end of a turn: sends the answers. The secondaries were told before.
    fn answer_clients(&mut self, sys: &mut Machine) {
        let answered: Vec<(ConnId, Option<usize>)> =
            self.clients.iter().filter_map(|(conn, client)| Some((*conn, client.answer?))).collect();
        for (conn, answer) in answered {
            sys.system_call();
            if answer.is_none() {
                self.page().count_refused(Refused { busy: 1, ..Refused::default() });
            }
            self.clients.remove(&conn);
            let client = sys.net.conns[conn].client;
            let wait = sys.dice.between(micros(10), millis(1));
            sys.net.conns[conn].place = crate::net::Place::Gone;
            sys.at(sys.now + wait, Event::Client(client, Step::Answered(conn, answer)));
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Look => self.read_verdicts(),
            Order::Stop => self.core.handle_stop(self.now),
            Order::StopNow => self.core.handle_stop_now(self.now),
            Order::Drain => self.core.handle_hand_over(),
        }
    }

    pub fn read_stop(&mut self) {
        if self.liveness.page.is_stopping() {
            self.core.handle_stop(self.now);
        }
    }
}

impl Role for Principal {
    fn on_signal(&mut self, sys: &mut Machine, signal: Signal) {
        match signal {
            Signal::Usr1 => {
                let Self { liveness, core, now, .. } = self;
                liveness.answer_probe(sys, core.books().page().page(), *now);
                self.reconcile(sys);
            }
            Signal::Term => {
                if sys.has_ended(WATCHDOG) {
                    self.core.handle_watchdog_died(self.now);
                }
                self.read_stop();
                self.core.handle_term(self.now);
            }
            Signal::Usr2 | Signal::Chld => {}
        }
    }

    fn on_ready(&mut self, sys: &mut Machine, key: Key) -> Progress {
        match key {
            Key::Listener(_) => return self.accept(sys),
            Key::Conn(conn) => self.on_client(sys, conn),
            Key::Tube(slot, incarnation) => return self.read_tube(sys, slot, incarnation),
            Key::TubeRoom => {}
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
        self.waiting_timer.into_iter().chain(self.core.poll_timeout()).min()
    }

    fn on_deadline(&mut self, sys: &mut Machine) {
        if self.waiting_timer.is_some_and(|at| at <= self.now) {
            self.refuse_the_tired(sys);
        }
        if self.core.poll_timeout().is_some_and(|at| at <= self.now) {
            self.read_stop();
            self.core.handle_timeout(self.now);
        }
    }

    fn settle(&mut self, sys: &mut Machine) {
        self.carry_out(sys);
        self.serve_waiting(sys);
        self.core.finish_turn(self.now);
        self.carry_out(sys);
        self.flush_tubes(sys);
        self.answer_clients(sys);
    }

    fn begin(&mut self, _: &mut Machine, now: Moment) {
        self.now = now;
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
