//! The shell of a secondary, as far as its core can tell it from `src/role/secondary/mod.rs`.
//! Connections whose job is not known yet are in `arrivals`.

use std::collections::BTreeMap;

use osps::core::job::{End, Reason};
use osps::core::moment::Moment;
use osps::core::recycling::Recycling;
use osps::core::service::{Action, Departure, Service, Settings, Surroundings};
use osps::page::secondary::SecondaryPage;
use osps::page::{Access, record};
use osps::wire::order::Order;
use osps::wire::tube::{Command, JobRef};

use crate::arrivals::Arrivals;
use crate::books::SimTable;
use crate::clients::Step;
use crate::fifo::{FifoId, Line, Writer};
use crate::kernel::Sheet;
use crate::liveness::Liveness;
use crate::machine::{Key, Machine, Proc, Progress, Role, Signal, WATCHDOG};
use crate::net::{ACCEPTS_PER_TURN, ConnId, Input, data_listener};
use crate::plan::TYPES;
use crate::sabotage::Sabotage;

pub struct Secondary {
    pub me: Proc,
    pub now: Moment,
    sheet: Sheet,
    /// Counted from 0.
    pub slot: usize,
    liveness: Liveness,
    pub page: SecondaryPage,
    pub service: Service<SimTable>,
    pub listens: bool,
    pub exchanges: BTreeMap<ConnId, JobRef>,
    /// When jobs must have ended whose time is limited.
    pub until: BTreeMap<ConnId, Moment>,
    /// A handler blocks, or has blocked until just now.
    blocked: bool,
    pub arrivals: Arrivals,
    /// Jobs were announced in this turn.
    announced: bool,
    tube: FifoId,
    to_principal: Writer,
    /// The end of a principal that had handed over was told to it, and is no affair of its own.
    was_handed_over: bool,
    /// When it told that it is worn out.
    recycled_at: Option<Moment>,
    over: bool,
}

impl Secondary {
    /// `None` where its parent has died meanwhile.
    pub fn start(sys: &mut Machine, me: Proc, sheet: Sheet) -> Option<Self> {
        let name = sheet.name;
        let slot = usize::from(name.slot) - 1;
        sys.system_call();
        if sys.parent_pid(me) != sheet.parent {
            return None;
        }
        let own = sheet.own.as_ref().expect("a secondary has one");
        let page = SecondaryPage::attach(&*own.page, Access::ReadWrite).expect("it was created");
        let table = SimTable::attach(sys, slot, me);
        let (tube, to_principal) = (own.tube, Writer::new(own.to_principal));
        let now = sys.turn_began_at();
        let liveness = Liveness::begin(sys, me, name, sheet.orders, page.page());
        let settings = Settings {
            grace: sys.plan.settings.grace,
            types: TYPES,
            open: sys.plan.open,
            recycling: Recycling {
                max_jobs: sys.plan.max_jobs_served,
                max_bytes: 0,
                seed: u64::from(name.slot) << 16 | u64::from(name.incarnation),
            },
        };
        let mut secondary = Self {
            me,
            now,
            slot,
            liveness,
            page,
            service: Service::new(table, name.incarnation, settings),
            listens: true,
            exchanges: BTreeMap::new(),
            until: BTreeMap::new(),
            blocked: false,
            arrivals: Arrivals::default(),
            announced: false,
            tube,
            to_principal,
            was_handed_over: false,
            recycled_at: None,
            over: false,
            sheet,
        };
        sys.watch_fifo(tube, me, Key::Tube(slot, name.incarnation));
        for kind in 0..TYPES {
            sys.listen(me, data_listener(slot, kind), Key::Listener(kind));
        }
        secondary.to_principal.push(sys, Command::Ready);
        secondary.liveness.declare_ready(sys, me, secondary.page.page(), now);
        if secondary.is_orphan(sys) {
            secondary.service.handle_drain(now);
        }
        Some(secondary)
    }

    /// The number that it answered last.
    pub fn answered(&self) -> u64 {
        self.page.record().answered
    }

    fn accept(&mut self, sys: &mut Machine, kind: usize) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.service.is_worn() {
                return Progress::Drained;
            }
            if !self.listens && sys.sabotage != Sabotage::KeepListeners {
                return Progress::Drained;
            }
            let Some(conn) = sys.accept(self.me, data_listener(self.slot, kind)) else {
                return Progress::Drained;
            };
            sys.audit_accept(self.me, data_listener(self.slot, kind), self.listens);
            self.admit(sys, kind, conn);
        }
        Progress::Again
    }

    fn on_exchange(&mut self, sys: &mut Machine, conn: ConnId) -> Progress {
        if self.exchanges.contains_key(&conn) {
            sys.system_call();
            let input = sys.net.conns[conn].input;
            match input {
                Input::End | Input::Reset if self.calls_handler_that_blocks(sys, conn) => {}
                Input::End => self.close(sys, conn, End::Done),
                Input::Reset => self.close(sys, conn, End::Failed(Reason::ConnectionLost)),
                Input::Nothing => {}
            }
        }
        Progress::Drained
    }

    /// Where the time of a job is limited, its handler may block, or is not called any more.
    fn calls_handler_that_blocks(&mut self, sys: &mut Machine, conn: ConnId) -> bool {
        let (Some(&until), Some(&job)) = (self.until.get(&conn), self.exchanges.get(&conn)) else {
            return false;
        };
        if until <= sys.now {
            self.close(sys, conn, End::Failed(Reason::TimeLimit));
            return true;
        }
        let blocks = !self.blocked && !sys.is_quiet() && sys.dice.chance(100);
        if blocks {
            self.page.enter_handler(job, sys.now);
            self.blocked = true;
            sys.block(self.me);
            // It comes back to that input.
            sys.post(self.me, Key::Conn(conn));
        }
        blocks
    }

    fn close(&mut self, sys: &mut Machine, conn: ConnId, end: End) {
        let Some(job) = self.exchanges.remove(&conn) else {
            return;
        };
        let outlasts = |since| self.now.since(since) > sys.plan.settings.grace;
        if end == End::Done && self.recycled_at.is_some_and(outlasts) {
            sys.audit.coverage.count("recycled, and took longer than grace");
        }
        self.until.remove(&conn);
        sys.system_call();
        sys.close(conn, if end == End::Done { Step::Closed(conn) } else { Step::Broken(conn) });
        if let Some(ended) = self.service.handle_end(self.now, job, end) {
            sys.audit_record(&ended);
        }
    }

    pub fn read_tube(&mut self, sys: &mut Machine) -> Progress {
        let (mut stop, mut leave, mut malformed) = (false, false, 0);
        let (lines, more) = sys.take(self.tube);
        for line in lines {
            match line {
                Line::Command(Command::Job(job)) => {
                    self.announced = true;
                    self.service.handle_job(job);
                }
                Line::Command(Command::Resync) => {
                    self.announced = true;
                    self.service.look_through();
                }
                Line::Command(Command::Stop) => stop = true,
                Line::Command(Command::Leave) => leave = true,
                Line::Command(_) | Line::Order(_) | Line::Garbage => malformed += 1,
            }
        }
        if malformed > 0 {
            self.announced = true;
            self.service.look_through();
            self.page.count_malformed(malformed);
        }
        if stop {
            sys.audit_told_to_end(self.me, self.service.open());
            self.service.handle_stop();
        }
        if leave {
            sys.audit.coverage.count("told to leave");
            sys.processes[self.me].excused = true;
            self.service.handle_leave();
            self.service.handle_probe(self.liveness.may_leave(), 0);
        }
        if more { Progress::Again } else { Progress::Drained }
    }

    fn is_orphan(&self, sys: &mut Machine) -> bool {
        sys.system_call();
        sys.parent_pid(self.me) != self.sheet.parent && !self.is_handed_over()
    }

    fn is_handed_over(&self) -> bool {
        let (page, parent) = (&self.liveness.page, self.sheet.parent);
        self.was_handed_over
            || page.is_handing_over(parent)
            || !page.is_principal(parent, self.page.record().start_time)
    }

    /// The end of a principal that left all to a successor comes as SIGTERM, too.
    fn on_sigterm(&mut self, sys: &mut Machine) {
        let parent_has_ended = sys.parent_pid(self.me) != self.sheet.parent && !sys.has_ended(WATCHDOG);
        let is_deaf = sys.sabotage == Sabotage::DrainAtHandover;
        if parent_has_ended && !self.was_handed_over && self.is_handed_over() && !is_deaf {
            self.was_handed_over = true;
            sys.audit.coverage.count("went on when its principal had handed over");
            return;
        }
        let surroundings = self.surroundings(sys);
        self.service.handle_term(self.now, surroundings);
    }

    fn surroundings(&self, sys: &mut Machine) -> Surroundings {
        Surroundings {
            is_orphan: self.is_orphan(sys) || sys.has_ended(WATCHDOG),
            is_stopping: self.liveness.page.is_stopping(),
        }
    }

    fn carry_out(&mut self, sys: &mut Machine, action: Action) {
        match action {
            Action::Tell(command) => self.to_principal.push(sys, command),
            Action::StopAccepting => {
                sys.audit_drains(self.me);
                self.listens = false;
                if sys.sabotage != Sabotage::KeepListeners {
                    for kind in 0..TYPES {
                        sys.stop_listening(self.me, data_listener(self.slot, kind));
                    }
                }
            }
            Action::Declare(departure) => {
                match departure {
                    Departure::Drains => record::declare_draining(self.page.page()),
                    Departure::Recycles(_) => {
                        sys.audit.coverage.count("recycled");
                        self.recycled_at = Some(self.now);
                        self.page.count_recycled();
                        record::declare_recycling(self.page.page());
                    }
                }
                self.liveness.ring(sys);
            }
            Action::CutAll => {
                let open: Vec<ConnId> = self.exchanges.keys().copied().collect();
                for conn in open {
                    sys.audit.coverage.count("an exchange was cut off");
                    self.close(sys, conn, End::Failed(Reason::Stopping));
                }
            }
            Action::End => {
                sys.audit_ends_itself(self.me);
                self.over = true;
            }
        }
    }
}

impl Role for Secondary {
    fn on_signal(&mut self, sys: &mut Machine, signal: Signal) {
        match signal {
            Signal::Usr1 => {
                self.liveness.answer_probe(sys, self.page.page(), self.now);
                if self.liveness.is_to_drain() {
                    self.service.handle_drain(self.now);
                }
                self.service.handle_probe(self.liveness.may_leave(), 0);
            }
            Signal::Term => self.on_sigterm(sys),
            Signal::Usr2 | Signal::Chld => {}
        }
    }

    fn on_ready(&mut self, sys: &mut Machine, key: Key) -> Progress {
        match key {
            Key::Listener(kind) => self.accept(sys, kind),
            Key::Conn(conn) => {
                self.on_arrival(sys, conn);
                self.on_exchange(sys, conn)
            }
            Key::Tube(..) => self.read_tube(sys),
            Key::TubeRoom | Key::Ended(_) | Key::Channel(_) | Key::Successor | Key::Reload => {
                Progress::Drained
            }
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders(sys);
                for order in orders {
                    match order {
                        Order::Drain => self.service.handle_drain(self.now),
                        Order::Stop | Order::StopNow => self.service.handle_stop(),
                        Order::Look | Order::Restart(_) | Order::Rest(_) => {}
                    }
                }
                progress
            }
            Key::Watchdog => {
                self.service.handle_drain(self.now);
                Progress::Drained
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let until = self.until.values().min().copied();
        self.arrivals.deadline().into_iter().chain(self.service.poll_timeout()).chain(until).min()
    }

    fn on_deadline(&mut self, sys: &mut Machine) {
        self.on_arrival_timers(sys);
        let over = self.until.iter().filter(|(_, until)| **until <= self.now).map(|(conn, _)| *conn);
        for conn in over.collect::<Vec<_>>() {
            self.close(sys, conn, End::Failed(Reason::TimeLimit));
        }
        if self.service.poll_timeout().is_some_and(|at| at <= self.now) {
            let surroundings = self.surroundings(sys);
            self.service.handle_timeout(self.now, surroundings);
        }
    }

    fn settle(&mut self, sys: &mut Machine) {
        if std::mem::take(&mut self.announced) {
            self.seat_uninvited(sys);
        }
        self.service.finish_turn(self.arrivals.undecided());
        if self.page.open() != u64::from(self.service.open()) {
            self.page.set_open(self.service.open());
        }
        while let Some(action) = self.service.poll_action() {
            self.carry_out(sys, action);
        }
        self.to_principal.flush_or_watch(sys, self.me);
    }

    fn begin(&mut self, _: &mut Machine, now: Moment) {
        self.now = now;
        if std::mem::take(&mut self.blocked) {
            self.page.leave_handler();
        }
    }

    fn is_over(&self) -> bool {
        self.over
    }
}
