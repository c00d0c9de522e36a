//! The secondary: accepts on its own ports, runs the handlers, tells the principal.

mod exchange;
mod jobs;

use std::process::ExitCode;

use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use signal_hook::consts::{SIGTERM, SIGUSR1};
use slab::Slab;

use crate::config::Config;
use crate::core::job::State;
use crate::core::moment::Moment;
use crate::core::name::Role as TreeRole;
use crate::core::timers::Timers;
use crate::exit::{Code, Failure};
use crate::handler::Handlers;
use crate::os::fifo;
use crate::os::listener;
use crate::os::process;
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::page::{Access, record, secondary::SecondaryPage};
use crate::role::launch::{self, Launched};
use crate::role::liveness::Liveness;
use crate::role::principal::GROUP_SIGNAL_WITHIN;
use crate::wire::client::TypeIndex;
use crate::wire::order::Order;
use crate::wire::tube::Command;

use exchange::Exchange;
use jobs::Jobs;

/// Connections accepted in one turn, per port.
const ACCEPTS_PER_TURN: usize = 64;
/// Bytes read from one client in one turn.
const READ_BYTES: usize = 16 * 1024;
/// How long accepting pauses when descriptors run out.
const DESCRIPTOR_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// What the reactor gives back with an event.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// A data listener, by request type.
    Listener(TypeIndex),
    /// A data connection, by its place in the slab.
    Exchange(usize),
    /// `dwtube<n>`, to read.
    Tube,
    /// `wdtube<n>`, writable again.
    TubeRoom,
    Orders,
    Watchdog,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// A session wants to be woken, or its client has been silent for too long.
    Exchange(usize),
    /// Accept again on that port: descriptors had run out.
    Accept(TypeIndex),
    /// The grace of a draining secondary is over.
    GraceOver,
    /// SIGTERM came a moment ago: for us alone, or for the whole group?
    Sigterm,
}

struct Listener {
    socket: TcpListener,
    id: SourceId,
    /// It is accepted from again when the timer comes.
    timer_armed: bool,
}

struct Secondary {
    config: Config,
    /// The principal that started us.
    parent: u32,
    liveness: Liveness,
    page: SecondaryPage,
    jobs: Jobs,
    handlers: Handlers,
    /// By request type; empty once it drains.
    listeners: Vec<Listener>,
    exchanges: Slab<Exchange>,
    timers: Timers<Timer>,
    tube: fifo::Reader,
    to_principal: fifo::Writer,
    buffer: Box<[u8; READ_BYTES]>,
    /// Output of the session whose turn it is, before it is sent.
    scratch: Vec<u8>,
    draining: bool,
    descriptors_ran_out: bool,
}

/// Runs a secondary until it is told to end.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run() -> Result<ExitCode, Failure> {
    let launched = launch::receive(TreeRole::Secondary)?;
    let name = launched.sheet.name();
    crate::os::log::init(&name.to_string());
    process::set_name(c"osps-secondary");
    process::ignore_strangers().map_err(|error| Failure::internal("ignore signals", &error))?;
    let mut reactor = Reactor::new(&[SIGUSR1, SIGTERM])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    let mut secondary = Secondary::start(launched, reactor.handle())?;
    reactor.run(&mut secondary).map_err(|error| Failure::internal("run the event loop", &error))?;
    Ok(Code::Ok.into())
}

impl Secondary {
    fn start(launched: Launched, reactor: &mut Handle<Key>) -> Result<Self, Failure> {
        let Launched { sheet, watchdog, listeners, .. } = launched;
        let (rundir, slot) = (launch::rundir(&sheet), sheet.slot);
        let attach = |error| Failure::internal("attach", &error);
        let page = SecondaryPage::attach(&rundir.secondary_page(slot), Access::ReadWrite).map_err(attach)?;
        let jobs = Jobs::attach(&rundir.jobs(slot), sheet.incarnation).map_err(attach)?;
        let open = |error| Failure::internal("open the tubes", &error);
        let tube = fifo::Reader::open(&rundir.to_secondary(slot)).map_err(open)?;
        let to_principal = fifo::Writer::open(&rundir.from_secondary(slot)).map_err(open)?;
        let orders = fifo::Reader::open(&rundir.secondary_orders(slot)).map_err(open)?;
        // A successor of our principal makes new files under these names, once it is dead.
        launch::parent_lives(&sheet)?;
        let liveness = Liveness::begin(sheet.name(), watchdog, &rundir.watchdog_page(), orders, page.page())?;
        let mut secondary = Self {
            handlers: Handlers::new(&sheet.config, slot),
            parent: sheet.parent,
            config: sheet.config,
            liveness,
            page,
            jobs,
            listeners: Vec::new(),
            exchanges: Slab::new(),
            timers: Timers::default(),
            tube,
            to_principal,
            buffer: Box::new([0; READ_BYTES]),
            scratch: Vec::new(),
            draining: false,
            descriptors_ran_out: false,
        };
        let watch = |error| Failure::internal("watch a descriptor", &error);
        secondary.tube.watch(reactor, Key::Tube).map_err(watch)?;
        for (kind, fd) in listeners.into_iter().enumerate() {
            let mut socket = listener::from_inherited(fd);
            let id = reactor.register(&mut socket, Key::Listener(kind), Interest::READABLE).map_err(watch)?;
            secondary.listeners.push(Listener { socket, id, timer_armed: false });
        }
        secondary.to_principal.push(Command::Ready);
        secondary.liveness.declare_ready(reactor, secondary.page.page(), Key::Orders, Key::Watchdog)?;
        if secondary.is_orphan() {
            secondary.drain(reactor);
        }
        Ok(secondary)
    }

    fn accept(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = self.listeners.get(kind) else {
                return Progress::Drained;
            };
            match listener.socket.accept() {
                Ok((stream, peer)) => self.admit(reactor, kind, stream, peer),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Progress::Drained,
                Err(error) if listener::is_connection_error(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.descriptors_ran_out, true) {
                        log::warn!("cannot accept, trying again every {DESCRIPTOR_PAUSE:?}: {error}");
                    }
                    if !std::mem::replace(&mut self.listeners[kind].timer_armed, true) {
                        self.timers.arm(reactor.now() + DESCRIPTOR_PAUSE, Timer::Accept(kind));
                    }
                    return Progress::Drained;
                }
            }
        }
        Progress::Again
    }

    fn admit(
        &mut self,
        reactor: &mut Handle<Key>,
        kind: TypeIndex,
        stream: TcpStream,
        peer: std::net::SocketAddr,
    ) {
        self.descriptors_ran_out = false;
        let client = listener::client_address(peer);
        let mut job = self.jobs.claim(kind, client, reactor.now());
        if job.is_none() {
            // Perhaps its doorbell is still in the tube.
            let _ = self.read_tube(reactor);
            job = self.jobs.claim_after_look(kind, client, reactor.now());
        }
        let Some(job) = job else {
            self.page.count_rejected();
            log::debug!("rejected {peer}: no job of \"{}\" waits for it", self.config.request[kind].name);
            return;
        };
        self.page.count_admitted();
        self.to_principal.push(Command::Debut(job));
        let session = self.handlers.open(kind);
        self.open_exchange(reactor, Exchange::new(stream, job, session, reactor.now()));
    }

    /// Reads `dwtube<n>`: jobs, and perhaps the order to end.
    fn read_tube(&mut self, reactor: &mut Handle<Key>) -> Progress {
        let (mut stop, mut malformed) = (false, 0);
        let Self { tube, jobs, .. } = self;
        let read = tube.read(|line| match Command::parse(line) {
            Ok(Command::Job(job)) => jobs.announce(job),
            Ok(Command::Resync) => jobs.look_through(),
            Ok(Command::Stop) => stop = true,
            Ok(
                Command::Ready
                | Command::Draining
                | Command::Debut(_)
                | Command::Fin(_)
                | Command::Err(_)
                | Command::Ping(_)
                | Command::Pong(_),
            )
            | Err(_) => malformed += 1,
        });
        if malformed > 0 {
            // A line of ours may have been among them.
            jobs.look_through();
            self.page.count_malformed(malformed);
        }
        if stop {
            self.stop_now(reactor);
        }
        read.unwrap_or_else(|error| {
            log::warn!("cannot read the tube: {error}");
            Progress::Drained
        })
    }

    /// The kernel sends SIGTERM when the principal dies; others may send it to this process
    /// alone, or to the whole group.
    fn on_sigterm(&mut self, reactor: &mut Handle<Key>) {
        if self.is_orphan() || self.liveness.watchdog().has_ended() {
            self.drain(reactor);
        } else {
            self.timers.arm(reactor.now() + GROUP_SIGNAL_WITHIN, Timer::Sigterm);
        }
    }

    fn is_orphan(&self) -> bool {
        process::parent_pid() != self.parent
    }

    /// Takes nothing new, finishes what it has, then ends.
    fn drain(&mut self, reactor: &mut Handle<Key>) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        // The watchdog holds these sockets open: only deregistering ends our interest.
        for Listener { mut socket, id, .. } in self.listeners.drain(..) {
            reactor.deregister(&mut socket, id);
        }
        record::declare_draining(self.page.page());
        self.to_principal.push(Command::Draining);
        self.liveness.ring();
        self.timers.arm(reactor.now() + self.config.watchdog.grace, Timer::GraceOver);
    }

    /// Ends at once: what is open fails.
    fn stop_now(&mut self, reactor: &mut Handle<Key>) {
        let open: Vec<usize> = self.exchanges.iter().map(|(key, _)| key).collect();
        for key in open {
            self.close_exchange(reactor, key, State::Failed);
        }
        reactor.stop();
    }

    fn obey(&mut self, reactor: &mut Handle<Key>, order: Order) {
        match order {
            Order::Drain => self.drain(reactor),
            Order::Stop | Order::StopNow => self.stop_now(reactor),
            Order::Look => {}
        }
    }
}

impl Role for Secondary {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, signal: i32) {
        match signal {
            SIGUSR1 => {
                self.liveness.answer_probe(self.page.page(), reactor.now());
                if self.liveness.is_to_drain() {
                    self.drain(reactor);
                }
            }
            SIGTERM => self.on_sigterm(reactor),
            _ => {}
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, ready: Ready) -> Progress {
        match key {
            Key::Listener(kind) => self.accept(reactor, kind),
            Key::Exchange(key) => self.on_exchange(reactor, key, ready),
            Key::Tube => self.read_tube(reactor),
            Key::TubeRoom => Progress::Drained,
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders();
                for order in orders {
                    self.obey(reactor, order);
                }
                progress
            }
            Key::Watchdog => {
                if !self.draining {
                    log::warn!("the watchdog has died: finishing {} exchanges", self.exchanges.len());
                    self.drain(reactor);
                }
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
                Timer::Exchange(key) => self.on_exchange_timer(reactor, key),
                Timer::Accept(kind) => {
                    if let Some(listener) = self.listeners.get_mut(kind) {
                        listener.timer_armed = false;
                        reactor.again(listener.id, fifo::READABLE);
                    }
                }
                Timer::Sigterm => {
                    // A stop is the principal's business: it says when no job is left for us.
                    if !self.liveness.watchdog_page().is_stopping() || self.is_orphan() {
                        self.drain(reactor);
                    }
                }
                Timer::GraceOver => {
                    log::warn!("grace is over: {} exchanges are cut off", self.exchanges.len());
                    self.stop_now(reactor);
                }
            }
        }
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        if self.draining && self.exchanges.is_empty() {
            reactor.stop();
        }
        self.to_principal.flush_or_watch(reactor, Key::TubeRoom);
    }
}
