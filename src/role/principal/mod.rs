//! The principal: answers clients on the control port, keeps the books, and starts
//! its secondaries again when they end.
//!
//! One turn of its loop: jobs are recorded in the tables, then the secondaries are
//! told, then the clients are answered (*told before answered*).

mod clients;
mod jobs;
mod servers;
mod slot;
mod stop;

use std::net::TcpListener as StdListener;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use mio::Interest;
use mio::net::TcpListener;
use signal_hook::consts::{SIGTERM, SIGUSR1};
use slab::Slab;

use crate::config::Config;
use crate::core::dispatch::Dispatch;
use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::Role as TreeRole;
use crate::core::timers::{TimerId, Timers};
use crate::exit::{Code, Failure};
use crate::os::fifo::READABLE;
use crate::os::listener;
use crate::os::process;
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::os::rundir::Rundir;
use crate::page::Access;
use crate::page::principal::PrincipalPage;
use crate::role::launch::{self, Launched, Sheet};
use crate::role::liveness::Liveness;
use crate::wire::client::Types;
use crate::wire::order::Order;

use clients::{Client, Waiting};
use slot::Slot;
use stop::Phase;

pub use stop::GROUP_SIGNAL_WITHIN;

/// What the reactor gives back with an event. Slots are counted from 0 in here.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// The control listener.
    Listener,
    /// A control connection, by its place in the slab.
    Client(usize),
    /// `wdtube<n>` of an incarnation, to read.
    Tube(usize, Incarnation),
    /// `dwtube<n>`, writable again.
    TubeRoom,
    /// A secondary has ended.
    Ended(usize, Incarnation),
    Orders,
    Watchdog,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// A control connection: silence, or a bare request is complete.
    Client(usize),
    /// The oldest waiting job of a slot expires.
    Expire(usize),
    /// The back-off of a slot is over.
    Start(usize),
    /// The request that has waited longest for a secondary has waited long enough.
    Waiting,
    /// Accept again: descriptors had run out.
    Accept,
    /// A stop has lasted as long as it may.
    Stop,
    /// SIGTERM came a moment ago, and no stop was ordered since.
    HandOver,
}

struct Principal {
    sheet: Sheet,
    config: Config,
    types: Types,
    rundir: Rundir,
    liveness: Liveness,
    page: PrincipalPage,
    /// Kept open for descriptors that the watchdog will send one day.
    _channel: Option<OwnedFd>,
    listener: Option<(TcpListener, SourceId)>,
    /// `max_clients` are connected: accepting goes on when one leaves.
    accept_paused: bool,
    accept_timer_armed: bool,
    /// Logged once, until a connection can be accepted again.
    descriptors_ran_out: bool,
    clients: Slab<Client>,
    /// Clients whose request waits until a secondary can take it, oldest first.
    waiting: Waiting,
    /// Clients to whom something is to be sent when the turn is over.
    dirty: Vec<usize>,
    slots: Vec<Slot>,
    /// The slot that is reconciled next.
    reconcile_next: usize,
    dispatch: Dispatch,
    timers: Timers<Timer>,
    phase: Phase,
    stop_timer: Option<TimerId>,
}

/// Runs a principal until it is told to end.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run() -> Result<ExitCode, Failure> {
    let launched = launch::receive(TreeRole::Principal)?;
    crate::os::log::init(&launched.sheet.name().to_string());
    process::set_name(c"osps-principal");
    process::ignore_strangers().map_err(|error| Failure::internal("ignore signals", &error))?;
    let mut reactor = Reactor::new(&[SIGUSR1, SIGTERM])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    let mut principal = Principal::start(launched, reactor.handle())?;
    reactor.run(&mut principal).map_err(|error| Failure::internal("run the event loop", &error))?;
    Ok(Code::Ok.into())
}

impl Principal {
    fn start(launched: Launched, reactor: &mut Handle<Key>) -> Result<Self, Failure> {
        let Launched { sheet, watchdog, channel, listeners } = launched;
        let rundir = launch::rundir(&sheet);
        let attach = |error| Failure::internal("attach", &error);
        let page = PrincipalPage::attach(&rundir.principal_page(), Access::ReadWrite).map_err(attach)?;
        let orders = crate::os::fifo::Reader::open(&rundir.principal_orders())
            .map_err(|error| Failure::internal("open the orders", &error))?;
        let liveness = Liveness::begin(sheet.name(), watchdog, &rundir.watchdog_page(), orders, page.page())?;
        let config = sheet.config.clone();
        let mut listeners = listeners.into_iter();
        let listener = listeners.next().map(listener::from_inherited);
        let slots = Self::take_slots(&sheet, &rundir, &mut listeners).map_err(attach)?;
        let mut principal = Self {
            types: Types::new(config.request.iter().map(|request| request.name.as_str())),
            dispatch: Dispatch::new(slots.len(), config.max_jobs),
            sheet,
            config,
            rundir,
            liveness,
            page,
            _channel: channel,
            listener: None,
            accept_paused: false,
            accept_timer_armed: false,
            descriptors_ran_out: false,
            clients: Slab::new(),
            waiting: Waiting::default(),
            dirty: Vec::new(),
            slots,
            reconcile_next: 0,
            timers: Timers::default(),
            phase: Phase::Serving,
            stop_timer: None,
        };
        if let Some(mut socket) = listener {
            let id = reactor
                .register(&mut socket, Key::Listener, Interest::READABLE)
                .map_err(|error| Failure::internal("watch the control listener", &error))?;
            principal.listener = Some((socket, id));
        }
        principal.redo_intent();
        for slot in 0..principal.slots.len() {
            principal.take_over(reactor, slot);
        }
        for slot in 0..principal.slots.len() {
            principal.start_secondary(reactor, slot);
        }
        principal.liveness.declare_ready(reactor, principal.page.page(), Key::Orders, Key::Watchdog)?;
        Ok(principal)
    }

    fn take_slots(
        sheet: &Sheet,
        rundir: &Rundir,
        listeners: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<Vec<Slot>, crate::page::PageError> {
        let types = sheet.config.request.len();
        let numbers = 1..=sheet.config.secondaries;
        numbers
            .map(|number| {
                let sockets = listeners.by_ref().take(types).map(StdListener::from).collect();
                Slot::attach(number, &rundir.jobs(number), sockets, u64::from(std::process::id()))
            })
            .collect()
    }

    fn accept(&mut self, reactor: &mut Handle<Key>) -> Progress {
        for _ in 0..clients::ACCEPTS_PER_TURN {
            let Some((listener, _)) = &self.listener else {
                return Progress::Drained;
            };
            if self.clients.len() >= self.config.max_clients {
                self.accept_paused = true;
                return Progress::Drained;
            }
            match listener.accept() {
                Ok((stream, peer)) => self.open_client(reactor, stream, listener::client_address(peer)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Progress::Drained,
                Err(error) if listener::is_connection_error(&error) => {}
                Err(error) => {
                    // The connection stays in the backlog: it waits, it is not refused.
                    if !std::mem::replace(&mut self.descriptors_ran_out, true) {
                        log::warn!(
                            "cannot accept, trying again every {:?}: {error}",
                            clients::DESCRIPTOR_PAUSE
                        );
                    }
                    if !std::mem::replace(&mut self.accept_timer_armed, true) {
                        self.timers.arm(reactor.now() + clients::DESCRIPTOR_PAUSE, Timer::Accept);
                    }
                    return Progress::Drained;
                }
            }
        }
        Progress::Again
    }

    fn accept_again(&mut self, reactor: &mut Handle<Key>) {
        self.accept_paused = false;
        if let Some((_, id)) = &self.listener {
            reactor.again(*id, READABLE);
        }
    }

    fn obey(&mut self, reactor: &mut Handle<Key>, order: Order) {
        match order {
            Order::Look => self.read_verdicts(reactor),
            Order::Stop => self.begin_stop(reactor),
            Order::StopNow => self.stop_now(reactor),
            Order::Drain => self.hand_over(reactor),
        }
    }
}

impl Role for Principal {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, signal: i32) {
        match signal {
            SIGUSR1 => {
                self.liveness.answer_probe(self.page.page(), reactor.now());
                self.reconcile(reactor);
            }
            SIGTERM => self.on_sigterm(reactor),
            _ => {}
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, ready: Ready) -> Progress {
        match key {
            Key::Listener => self.accept(reactor),
            Key::Client(key) => self.on_client(reactor, key, ready),
            Key::Tube(slot, incarnation) => self.read_tube(reactor, slot, incarnation),
            Key::TubeRoom => Progress::Drained,
            Key::Ended(slot, incarnation) => {
                self.on_ended(reactor, slot, incarnation);
                Progress::Drained
            }
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders();
                for order in orders {
                    self.obey(reactor, order);
                }
                progress
            }
            Key::Watchdog => {
                self.watchdog_died(reactor);
                Progress::Drained
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.timers.next()
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        // One that is armed again at once waits for the next turn: others come in between.
        for _ in 0..self.timers.len() {
            let Some(timer) = self.timers.pop_due(reactor.now()) else {
                break;
            };
            match timer {
                Timer::Client(key) => self.on_client_timer(reactor, key),
                Timer::Expire(slot) => self.expire(reactor, slot),
                Timer::Start(slot) => {
                    self.slots[slot].start_timer = None;
                    self.start_secondary(reactor, slot);
                }
                Timer::Waiting => self.refuse_the_tired(reactor),
                Timer::Accept => {
                    self.accept_timer_armed = false;
                    self.accept_again(reactor);
                }
                Timer::Stop => self.stop_is_over(reactor),
                Timer::HandOver => {
                    if !self.stop_is_ordered(reactor) {
                        self.hand_over(reactor);
                    }
                }
            }
        }
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        self.serve_waiting(reactor);
        self.advance_stop(reactor);
        self.flush_tubes(reactor);
        self.answer_clients(reactor);
    }
}
