//! The secondary: accepts on its own ports, runs the handlers, tells the principal.

mod access;
mod arrival;
mod commands;
mod crews;
mod errors;
mod exchange;
mod linger;
mod listening;
mod messages;
mod runs;
mod strays;
mod surroundings;
mod worker;

use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::File;

use memmap2::MmapMut;
use mio::Interest;
use slab::Slab;

use crate::config::{Admission, Config};
use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::name::Role as TreeRole;
use crate::core::recycling::{Recycling, Worn};
use crate::core::service::{Action, Departure, Service, Settings};
use crate::core::timers::Timers;
use crate::core::undecided::Undecided;
use crate::exit::{Code, Failure};
use crate::handler::{Handlers, Registry};
use crate::os::fifo;
use crate::os::listener::{self, ACCEPTS_PER_TURN, Accepted, Scarcity};
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::os::{proc, process, segment};
use crate::page::jobs::JobTable;
use crate::page::secondary::SecondaryPage;
use crate::page::{Access, record};
use crate::role::launch::{self, Launched};
use crate::role::liveness::Liveness;
use crate::wire::client::TypeIndex;
use crate::wire::order::Order;
use crate::wire::tube::Command;

use arrival::Arrival;
use commands::{CommandType, Owner};
use crews::Crews;
use exchange::Exchange;
use linger::Lingering;
use listening::Listener;
use runs::Runs;
use strays::Strays;

/// Bytes read from one client in one turn.
const READ_BYTES: usize = 64 * 1024;

/// What the reactor gives back with an event.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// A data listener, by its place among ours.
    Listener(usize),
    /// A data connection, by its place in the slab.
    Exchange(usize),
    /// A data connection that is undecided yet, by its place in another slab.
    Arrival(usize),
    /// A data connection whose job waits for a command, by its place among them.
    Run(usize),
    /// The standard error of a command, by the same place.
    Errors(usize),
    /// The client of a job that workers serve, by its place among them.
    Asker(usize),
    /// The standard input of a worker, by its place among them,
    WorkerInput(usize),
    /// its standard output,
    WorkerOutput(usize),
    /// its standard error.
    WorkerErrors(usize),
    /// A data connection whose exchange is over, by its place in a third slab.
    Lingering(usize),
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
    /// A session wants to be woken, its client has been silent for too long, or its time is over.
    Exchange(usize),
    /// A connection that is undecided has been silent, or has waited, for long enough.
    Arrival(usize),
    /// Something is due with a command.
    Run(usize),
    /// More children have ended than are reaped in one turn.
    Reap,
    /// Look again for what workers that have ended have started.
    Strays,
    /// The client of a job that workers serve has been silent for too long.
    Asker(usize),
    /// A connection whose exchange is over is closed, whatever its client does.
    Lingering(usize),
    /// Accept again: descriptors had run out.
    Accept,
}

struct Secondary {
    config: Config,
    /// The principal that started us.
    parent: u32,
    /// The end of a principal that had handed over was told to us by SIGTERM, and is no affair of ours.
    was_handed_over: bool,
    liveness: Liveness,
    page: SecondaryPage,
    /// Held open for the next principal, which finds it among our descriptors: its name may be gone.
    _page_file: File,
    service: Service<JobTable>,
    handlers: Handlers,
    /// Of each request type one on every host; empty once it drains.
    listeners: Slab<Listener>,
    /// Request types that are not offered any more.
    retired: BTreeSet<TypeIndex>,
    exchanges: Slab<Exchange>,
    /// Connections whose job is not known yet.
    arrivals: Slab<Arrival>,
    undecided: Undecided,
    /// Jobs that commands serve.
    runs: Runs,
    /// Workers and their jobs.
    crews: Crews,
    /// What both have left behind.
    strays: Strays,
    /// Connections that are over, until their clients have seen it.
    lingering: Slab<Lingering>,
    /// Jobs were announced in this turn.
    announced: bool,
    timers: Timers<Timer>,
    tube: fifo::Reader,
    to_principal: fifo::Writer,
    buffer: MmapMut,
    /// Output of the session whose turn it is, before it is sent.
    scratch: Vec<u8>,
    scarcity: Scarcity,
}

/// Runs a secondary until it is told to end. Its handlers may be registered ones.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run(registry: &Registry) -> Result<Code, Failure> {
    let launched = launch::receive(TreeRole::Secondary)?;
    #[cfg(debug_assertions)]
    let name = launched.sheet.name();
    process::set_name(c"osps-secondary");
    process::let_successors_in();
    process::ignore_strangers().map_err(|error| Failure::internal("ignore signals", &error))?;
    // What a command leaves behind comes to us, and ends with its job.
    process::become_subreaper().map_err(|error| Failure::internal("adopt orphans", &error))?;
    let mut reactor = Reactor::new(&[Signal::USR1, Signal::TERM, Signal::CHILD])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    let mut secondary = Secondary::start(launched, registry, reactor.handle())?;
    #[cfg(debug_assertions)]
    crate::page::fuse::light_by_environment(&name.to_string());
    reactor.run(&mut secondary).map_err(|error| Failure::internal("run the event loop", &error))?;
    Ok(Code::Ok)
}

impl Secondary {
    fn start(launched: Launched, registry: &Registry, reactor: &mut Handle<Key>) -> Result<Self, Failure> {
        let Launched { mut sheet, watchdog, mut inheritance } = launched;
        let kinds = std::mem::take(&mut sheet.kinds);
        // The configuration was good when the watchdog tried it: whatever is missing now may come back.
        let handlers = Handlers::new(&sheet.config, sheet.slot, registry)
            .map_err(|error| Failure::new(Code::Unavailable, error))?;
        let watchdog_page = inheritance.take_file()?;
        let orders = fifo::Reader::from(inheritance.take_file()?);
        let attach = |error| Failure::internal("attach", &error);
        let page_file = inheritance.take_file()?;
        let page = SecondaryPage::attach(&page_file, Access::ReadWrite).map_err(attach)?;
        let table = JobTable::attach(&inheritance.take_file()?, Access::ReadWrite).map_err(attach)?;
        let tube = fifo::Reader::from(inheritance.take_file()?);
        let to_principal = fifo::Writer::from(inheritance.take_file()?);
        let liveness = Liveness::begin(&sheet, watchdog, &watchdog_page, orders, page.page())?;
        let tree = liveness.watchdog_page().tree();
        let owner = Owner { tree, slot: sheet.slot, incarnation: sheet.incarnation };
        let crews = Crews::of(&sheet.config, sheet.open_files, reactor.now())?;
        let types_of_commands = CommandType::of(&sheet.config, sheet.open_files)?;
        let mut secondary = Self {
            handlers,
            service: Service::new(table, sheet.incarnation, settings(&sheet.config, reactor.now())),
            parent: sheet.parent,
            was_handed_over: false,
            config: sheet.config,
            liveness,
            page,
            _page_file: page_file,
            listeners: Slab::new(),
            retired: sheet.retired,
            exchanges: Slab::new(),
            arrivals: Slab::new(),
            undecided: Undecided::default(),
            runs: Runs::new(types_of_commands),
            crews,
            strays: Strays::new(owner),
            lingering: Slab::new(),
            announced: false,
            timers: Timers::default(),
            tube,
            to_principal,
            buffer: segment::scratch(READ_BYTES)
                .map_err(|error| Failure::internal("map a buffer", &error))?,
            scratch: Vec::new(),
            scarcity: Scarcity::default(),
        };
        let watch = |error| Failure::internal("watch a descriptor", &error);
        secondary.tube.watch(reactor, Key::Tube).map_err(watch)?;
        let hosts = secondary.config.listen.hosts().len();
        let kinds = kinds.into_iter().flat_map(|kind| std::iter::repeat_n(kind, hosts));
        for kind in kinds {
            let index = secondary.listeners.vacant_key();
            let mut socket = listener::from_inherited(inheritance.take()?);
            let id =
                reactor.register(&mut socket, Key::Listener(index), Interest::READABLE).map_err(watch)?;
            secondary.listeners.insert(Listener { socket, id, kind });
        }
        secondary.to_principal.push(Command::Ready);
        secondary.liveness.declare_ready(reactor, secondary.page.page(), Key::Orders, Key::Watchdog)?;
        if secondary.is_orphan() {
            secondary.service.handle_drain(reactor.now());
        }
        secondary.run_crews(reactor);
        Ok(secondary)
    }

    fn accept(&mut self, reactor: &mut Handle<Key>, index: usize) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.service.is_worn() {
                return Progress::Drained;
            }
            let Some(Listener { socket, kind, .. }) = self.listeners.get(index) else {
                return Progress::Drained;
            };
            let kind = *kind;
            match Accepted::from(socket.accept()) {
                Accepted::One((stream, peer)) => self.admit(reactor, kind, stream, peer),
                Accepted::Broken => {}
                Accepted::Nothing => return Progress::Drained,
                Accepted::Scarce(error) => {
                    if let Some(at) = self.scarcity.met(reactor.now(), &error) {
                        self.timers.arm(at, Timer::Accept);
                    }
                    return Progress::Drained;
                }
            }
        }
        Progress::Again
    }

    /// Reads `dwtube<n>`: jobs, and perhaps the order to end.
    fn read_tube(&mut self) -> Progress {
        let (mut stop, mut leave, mut malformed) = (false, false, 0);
        let Self { tube, service, announced, .. } = self;
        let read = tube.read(|line| match Command::parse(line) {
            Ok(Command::Job(job)) => {
                *announced = true;
                service.handle_job(job);
            }
            Ok(Command::Resync) => {
                *announced = true;
                service.look_through();
            }
            Ok(Command::Stop) => stop = true,
            Ok(Command::Leave) => leave = true,
            // What only a secondary says, or nobody.
            Ok(_) | Err(_) => malformed += 1,
        });
        if malformed > 0 {
            // A line of ours may have been among them.
            *announced = true;
            service.look_through();
            self.page.count_malformed(malformed);
        }
        if stop {
            service.handle_stop();
        }
        if leave {
            service.handle_leave();
            self.measure();
        }
        read.unwrap_or_else(|error| {
            log::warn!("cannot read the tube: {error}");
            Progress::Drained
        })
    }

    fn obey(&mut self, reactor: &mut Handle<Key>, order: Order) {
        match order {
            Order::Drain => self.service.handle_drain(reactor.now()),
            Order::Stop | Order::StopNow => self.service.handle_stop(),
            Order::Look | Order::Restart(_) | Order::Rest(_) => {}
        }
    }

    /// At a probe: whether it may leave, and what it has of what may wear it out.
    fn measure(&mut self) {
        if !self.service.can_wear_out() {
            return;
        }
        let resident = match self.config.max_memory {
            Some(_) => proc::resident_bytes(std::process::id()).unwrap_or_else(|error| {
                log::debug!("cannot read /proc/self/statm: {error}");
                0
            }),
            None => 0,
        };
        self.service.handle_probe(self.liveness.may_leave(), resident);
    }

    fn declare(&mut self, departure: Departure) {
        match departure {
            Departure::Drains => record::declare_draining(self.page.page()),
            Departure::Recycles(worn) => {
                let open = self.service.open();
                log::info!("leaves its place: {worn}; exchanges under way, to be finished first: {open}");
                if worn != Worn::Told {
                    self.page.count_recycled();
                }
                record::declare_recycling(self.page.page());
            }
        }
        self.liveness.ring();
    }

    /// The watchdog holds these sockets open: only deregistering ends our interest.
    /// No job is left: ends, once no worker is left either.
    fn end(&mut self, reactor: &mut Handle<Key>) {
        self.stop_accepting(reactor);
        self.dismiss_all(reactor);
        self.end_crews(reactor);
    }

    fn on_timer(&mut self, reactor: &mut Handle<Key>, timer: Timer) {
        match timer {
            Timer::Exchange(key) => self.on_exchange_timer(reactor, key),
            Timer::Arrival(key) => self.on_arrival_timer(reactor, key),
            Timer::Run(key) => self.on_run_timer(reactor, key),
            Timer::Reap => self.reap(reactor),
            Timer::Strays => self.look_for_strays_again(reactor),
            Timer::Asker(key) => self.on_asker_timer(reactor, key),
            Timer::Lingering(key) => self.close_lingering(reactor, key),
            Timer::Accept => {
                self.scarcity.paused();
                for (_, listener) in &self.listeners {
                    reactor.again(listener.id, fifo::READABLE);
                }
            }
        }
    }

    /// Does what the core says.
    fn carry_out(&mut self, reactor: &mut Handle<Key>, action: Action) {
        match action {
            Action::Tell(command) => self.to_principal.push(command),
            Action::StopAccepting => self.stop_accepting(reactor),
            Action::Declare(departure) => self.declare(departure),
            Action::CutAll => {
                if self.under_way() > 0 {
                    log::warn!("{} exchanges are cut off", self.under_way());
                }
                let open: Vec<usize> = self.exchanges.iter().map(|(key, _)| key).collect();
                for key in open {
                    drop(self.close_exchange(reactor, key, End::Failed(Reason::Stopping)));
                }
                self.cut_runs(reactor);
                self.cut_askers(reactor);
            }
            Action::End => self.end(reactor),
        }
    }
}

fn settings(config: &Config, now: Moment) -> Settings {
    Settings {
        recycling: Recycling {
            max_jobs: config.max_jobs_served,
            max_bytes: config.max_memory.map_or(0, |size| size.0),
            seed: now.as_nanos() ^ u64::from(std::process::id()) << 32,
        },
        grace: config.watchdog.grace,
        types: config.request.len(),
        open: config.admission == Admission::Open,
    }
}

impl Role for Secondary {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, signal: Signal) {
        match signal {
            Signal::USR1 => {
                self.liveness.answer_probe(self.page.page(), reactor.now());
                if self.liveness.is_to_drain() {
                    self.service.handle_drain(reactor.now());
                }
                self.measure();
                self.close_what_is_retired(reactor);
            }
            Signal::CHILD => self.reap(reactor),
            Signal::TERM => self.on_sigterm(reactor.now()),
            _ => {}
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, ready: Ready) -> Progress {
        match key {
            Key::Listener(index) => self.accept(reactor, index),
            Key::Exchange(key) => self.on_exchange(reactor, key, ready),
            Key::Arrival(key) => {
                self.on_arrival(reactor, key, ready);
                Progress::Drained
            }
            Key::Run(key) => {
                self.on_run(reactor, key);
                Progress::Drained
            }
            Key::Errors(key) => self.read_errors(reactor.now(), key),
            Key::Asker(key) => self.on_asker(reactor, key, ready),
            Key::WorkerInput(place) => self.on_worker_input(reactor, place),
            Key::WorkerOutput(place) => self.on_worker_output(reactor, place, ready),
            Key::WorkerErrors(place) => self.read_worker_errors(reactor.now(), place),
            Key::Lingering(key) => self.on_lingering(reactor, key),
            Key::Tube => self.read_tube(),
            Key::TubeRoom => Progress::Drained,
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders();
                for order in orders {
                    self.obey(reactor, order);
                }
                progress
            }
            Key::Watchdog => {
                log::warn!("the watchdog has died: {} exchanges to finish", self.under_way());
                self.service.handle_drain(reactor.now());
                Progress::Drained
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let others = [self.service.poll_timeout(), self.crews.poll_timeout()];
        self.timers.next().into_iter().chain(others.into_iter().flatten()).min()
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        // One that is armed again at once waits for the next turn: others come in between.
        for _ in 0..self.timers.len() {
            let Some(timer) = self.timers.pop_due(reactor.now()) else {
                break;
            };
            self.on_timer(reactor, timer);
            // What is due stays so: it comes in the next turn.
            if !reactor.has_time() {
                break;
            }
        }
        if self.crews.poll_timeout().is_some_and(|at| at <= reactor.now()) {
            self.on_crews_timeout(reactor);
        }
        if self.service.poll_timeout().is_some_and(|at| at <= reactor.now()) {
            self.service.handle_timeout(reactor.now(), self.surroundings());
        }
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        if std::mem::take(&mut self.announced) {
            self.seat_uninvited(reactor);
        }
        self.service.finish_turn(self.undecided());
        if self.page.open() != u64::from(self.service.open()) {
            self.page.set_open(self.service.open());
        }
        while let Some(action) = self.service.poll_action() {
            self.carry_out(reactor, action);
        }
        if self.crews.have_ended() {
            reactor.stop();
        }
        self.to_principal.flush_or_watch(reactor, Key::TubeRoom);
    }
}
