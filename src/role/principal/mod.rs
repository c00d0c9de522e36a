//! The principal: answers clients on the control port, keeps the books, and starts
//! its secondaries again when they end.
//!
//! One turn of its loop: jobs are recorded in the tables, then the secondaries are
//! told, then the clients are answered (*told before answered*).

mod clients;
mod crowd;
mod estate;
mod families;
mod kills;
mod leaving;
mod obituaries;
mod retired;
mod servers;
mod slot;
mod spares;
mod succession;
mod takeover;

use rustix::process::Signal;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::os::fd::OwnedFd;

use mio::Interest;
use slab::Slab;

use crate::config::{self, Config};
use crate::core::job::Incarnation;
use crate::core::moment::Moment;
use crate::core::name::Role as TreeRole;
use crate::core::slots::{Settings, Slots};
use crate::core::timers::Timers;
use crate::exit::{Code, Failure};
use crate::handler::Registry;
use crate::os::channel::Channel;
use crate::os::fifo::READABLE;
use crate::os::listener::{self, ACCEPTS_PER_TURN, Accepted, Listener, Scarcity};
use crate::os::process;
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::os::reserve::Reserve;
use crate::os::rundir::Rundir;
use crate::page::Access;
use crate::page::books::Books;
use crate::page::principal::PrincipalPage;
use crate::role::launch::{self, Inheritance, Launched, Sheet};
use crate::role::liveness::Liveness;
use crate::wire::client::{Host, Types};
use crate::wire::order::Order;
use crate::wire::succession::Word;
use crate::wire::tube::Command;

use clients::{Client, Waiting};
use crowd::Door;
use families::Family;
use leaving::Leaving;
use obituaries::Dead;
use servers::Uninvited;
use slot::Slot;
use spares::Spares;
use succession::Estate;

/// What the reactor gives back with an event. Slots are counted from 0 in here.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// A control listener, by its place in `listen`.
    Listener(usize),
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
    /// What the watchdog says in packets.
    Channel,
    /// Who takes over from us.
    Successor,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Timer {
    /// Look for what is left of commands.
    Families,
    /// A control connection: silence, or a bare request is complete.
    Client(usize),
    /// The request that has waited longest for a secondary has waited long enough.
    Waiting,
    /// Accept again: descriptors had run out.
    Accept,
    /// Look again who could go for one who waits.
    Evict,
}

struct Principal {
    sheet: Sheet,
    config: Config,
    types: Types,
    /// Where clients of a Unix socket reach secondaries, and all others too where it is announced.
    host: Host,
    rundir: Rundir,
    liveness: Liveness,
    /// Who is in the slots, and which jobs they have.
    core: Slots<Books>,
    /// To the watchdog, for what comes with descriptors.
    channel: Channel,
    leaving: Leaving,
    /// To hand to secondaries.
    watchdog_page: File,
    /// In the order of `listen`; empty once nothing is accepted any more.
    listeners: Vec<(Listener, SourceId)>,
    /// The one that has the first chance when there is room again.
    first_listener: usize,
    /// Who is heard, and who waits to be.
    door: Door,
    /// Requests for a job of those who came uninvited, until there is room in their slot.
    uninvited: Vec<Uninvited>,
    /// Nobody more can be taken in: accepting goes on when one leaves.
    accept_paused: bool,
    scarcity: Scarcity,
    clients: Slab<Client>,
    /// Control connections so far.
    last_serial: u32,
    /// Clients whose request waits until a secondary can take it.
    waiting: Waiting,
    /// Clients to whom something is to be sent when the turn is over.
    dirty: Vec<usize>,
    /// Descriptors for a look for what dead secondaries have left.
    reserve: Reserve,
    /// Room for what a secondary says.
    heard: Vec<Command>,
    slots: Vec<Slot>,
    /// The slot that is reconciled next.
    reconcile_next: usize,
    dead: Dead,
    spares: Spares,
    /// A stop has lasted too long: whoever is left was killed for that.
    kills_all: bool,
    /// Commands whose secondary has died, until they have ended, too.
    families: Vec<Family>,
    timers: Timers<Timer>,
}

/// Runs a principal until it is told to end.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run(registry: &Registry) -> Result<Code, Failure> {
    let launched = launch::receive(TreeRole::Principal)?;
    process::set_name(c"osps-principal");
    process::ignore_strangers().map_err(|error| Failure::internal("ignore signals", &error))?;
    let mut reactor = Reactor::new(&[Signal::USR1, Signal::TERM])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    let succeeds = launched.sheet.succeeds;
    let mut principal = match Principal::start(launched, registry, reactor.handle()) {
        Ok(principal) => principal,
        // Whoever asked for it is told by the watchdog; the system goes on.
        Err(failure) if succeeds => {
            log::warn!("does not take over: {failure}");
            return Ok(failure.code);
        }
        Err(failure) => return Err(failure),
    };
    reactor.run(&mut principal).map_err(|error| Failure::internal("run the event loop", &error))?;
    Ok(Code::Ok)
}

impl Principal {
    fn start(launched: Launched, registry: &Registry, reactor: &mut Handle<Key>) -> Result<Self, Failure> {
        let Launched { sheet, watchdog, mut inheritance } = launched;
        let attach = |error| Failure::internal("attach", &error);
        let config = sheet.config.clone();
        let watchdog_page = inheritance.take_file()?;
        let orders = crate::os::fifo::Reader::from(inheritance.take_file()?);
        let page = PrincipalPage::attach(&inheritance.take_file()?, Access::ReadWrite).map_err(attach)?;
        is_for(&page, &sheet)?;
        let mut channel = Channel::from(inheritance.take()?);
        let predecessor = sheet.succeeds.then(|| inheritance.take().map(Channel::from)).transpose()?;
        let tables = (0..sheet.slots).map(|_| inheritance.take_file()).collect::<Result<Vec<_>, _>>()?;
        let books = Books::attach(page, &tables).map_err(attach)?;
        let listeners = (0..config.listen.addresses().len() + sheet.closing)
            .map(|_| inheritance.take())
            .collect::<Result<Vec<_>, Failure>>()?;
        let slots = take_slots(&mut inheritance, &sheet, tables)?;
        // All that a stranger may have spoilt was looked at: from here on a predecessor may give up its place.
        let prepared = |predecessor| prepared(&channel, &predecessor, &sheet, registry);
        let estate = predecessor.map(prepared).transpose()?;
        channel
            .watch(reactor, Key::Channel)
            .map_err(|error| Failure::internal("watch the channel", &error))?;
        let listeners = take_listeners(reactor, listeners)?;
        books.page().set_handed_over(0);
        let page = books.page().page();
        let liveness = Liveness::begin(&sheet, watchdog, &watchdog_page, orders, page)?;
        let door = Door::new(&config, sheet.parking_places, books.page().connections());
        let resting = sheet.resting.iter().copied().chain(config.secondaries + 1..=sheet.slots);
        let mut principal = Self {
            types: offered(&sheet, sheet.succeeds),
            core: Slots::new(books, slots.len(), settings(&config), u64::from(std::process::id()))
                .with_limits(config.request.iter().map(config::Request::session_limit))
                .with_resting(resting.map(index)),
            host: host(&config),
            rundir: launch::rundir(&sheet),
            spares: Spares::found(&launch::rundir(&sheet), slots.len()),
            sheet,
            config,
            liveness,
            watchdog_page,
            channel,
            leaving: Leaving::No,
            listeners,
            first_listener: 0,
            door,
            uninvited: Vec::new(),
            accept_paused: false,
            scarcity: Scarcity::default(),
            clients: Slab::new(),
            last_serial: 0,
            waiting: Waiting::default(),
            dirty: Vec::new(),
            heard: Vec::new(),
            reserve: Reserve::new(),
            slots,
            reconcile_next: 0,
            families: Vec::new(),
            dead: Dead::default(),
            kills_all: false,
            timers: Timers::default(),
        };
        #[cfg(debug_assertions)]
        crate::page::fuse::light_by_environment(&principal.sheet.name().to_string());
        match estate {
            Some(estate) => principal.succeed(reactor, estate)?,
            None => principal.take_over(reactor)?,
        }
        let Self { liveness, core, .. } = &mut principal;
        liveness.declare_ready(reactor, core.books().page().page(), Key::Orders, Key::Watchdog)?;
        Ok(principal)
    }

    fn page(&self) -> &PrincipalPage {
        self.core.books().page()
    }

    fn accept(&mut self, reactor: &mut Handle<Key>, index: usize) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some((listener, _)) = self.listeners.get(index) else {
                return Progress::Drained;
            };
            if !self.door.crowd.may_accept() {
                self.accept_paused = true;
                return Progress::Drained;
            }
            match Accepted::from(listener.accept()) {
                Accepted::One((stream, address)) => self.accepted(reactor, stream, address),
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

    fn accept_again(&mut self, reactor: &mut Handle<Key>) {
        self.accept_paused = false;
        // They take turns at being first, so that a flood at one does not keep out the others.
        self.first_listener = self.first_listener.wrapping_add(1);
        let first = self.first_listener % self.listeners.len().max(1);
        let (others, from_first) = self.listeners.split_at(first);
        for (_, id) in from_first.iter().chain(others) {
            reactor.again(*id, READABLE);
        }
    }

    fn obey(&mut self, reactor: &mut Handle<Key>, order: Order) {
        match order {
            Order::Look => self.read_verdicts(reactor),
            Order::Stop => self.core.handle_stop(reactor.now()),
            Order::StopNow => self.core.handle_stop_now(reactor.now()),
            Order::Drain => self.core.handle_hand_over(),
            Order::Restart(number) => self.core.handle_restart(reactor.now(), index(number)),
            Order::Rest(number) => self.core.handle_rest(reactor.now(), index(number)),
        }
    }

    /// Stops if the watchdog's page says so, its order notwithstanding.
    fn read_stop(&mut self, reactor: &mut Handle<Key>) {
        if self.liveness.watchdog_page().is_stopping() {
            self.core.handle_stop(reactor.now());
        }
    }

    fn on_sigterm(&mut self, reactor: &mut Handle<Key>) {
        if self.liveness.watchdog().has_ended() {
            self.core.handle_watchdog_died(reactor.now());
        }
        self.read_stop(reactor);
        self.core.handle_term(reactor.now());
    }
}

/// Finds out whether all could be taken over that a predecessor has, and takes what it hands over.
fn prepared(
    watchdog: &Channel,
    predecessor: &Channel,
    sheet: &Sheet,
    registry: &Registry,
) -> Result<Estate, Failure> {
    // The watchdog does not try handlers that somebody else has written: to make one may take a while.
    let offered = sheet.config.clone().only_with(|kind| !sheet.retired.contains(&kind));
    registry.check(&offered).map_err(|error| {
        let _ = watchdog.send(Word::Refused(error.to_string()).to_string().as_bytes(), &[]);
        Failure::new(Code::Config, error)
    })?;
    Estate::receive(watchdog, predecessor, usize::from(sheet.slots))
}

/// Whether that is the page of a principal with so many slots and types.
fn is_for(page: &PrincipalPage, sheet: &Sheet) -> Result<(), Failure> {
    if page.slots() >= sheet.slots && page.types() >= sheet.config.request.len() {
        return Ok(());
    }
    let found = format!("{} slots, {} types", page.slots(), page.types());
    Err(Failure::internal("take over principal.page", &found))
}

fn settings(config: &Config) -> Settings {
    Settings { max_jobs: config.max_jobs, claim_within: config.claim_within, grace: config.watchdog.grace }
}

/// What is announced, else the first address that is listened on.
fn host(config: &Config) -> Host {
    let first = config.listen.tcp().next().map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip());
    let announced = config.announce.as_deref().and_then(Host::parse);
    announced.unwrap_or(Host::Address(listener::reachable_host(first)))
}

/// The slots, with nobody in them.
fn take_slots(inheritance: &mut Inheritance, sheet: &Sheet, tables: Vec<File>) -> Result<Vec<Slot>, Failure> {
    let hosts = sheet.config.listen.hosts().len();
    let mut pair = |port: u16| -> Result<Vec<StdListener>, Failure> {
        let here = if port == 0 { 0 } else { hosts };
        (0..here).map(|_| inheritance.take().map(StdListener::from)).collect()
    };
    let slot = |(table, ports): (File, &Vec<u16>)| {
        let listeners = ports.iter().map(|&port| pair(port)).collect::<Result<_, _>>()?;
        Ok(Slot { listeners, ..Slot::new(table) })
    };
    tables.into_iter().zip(&sheet.ports).map(slot).collect()
}

/// The request types that clients can ask for; `yet` without those that not all secondaries serve.
fn offered(sheet: &Sheet, yet: bool) -> Types {
    let requests = sheet.config.request.iter().enumerate();
    let is_offered = |kind: &usize| !(sheet.retired.contains(kind) || yet && sheet.fresh.contains(kind));
    let offered = requests.filter(|(kind, _)| is_offered(kind));
    Types::of(offered.map(|(kind, request)| (kind, request.name.as_str())))
}

fn take_listeners(
    reactor: &mut Handle<Key>,
    inherited: Vec<OwnedFd>,
) -> Result<Vec<(Listener, SourceId)>, Failure> {
    // A successor has waited until they were its own.
    reactor.has_waited();
    let watch = |error| Failure::internal("watch a control listener", &error);
    let take = |(index, fd)| {
        let mut listener = Listener::from_inherited(fd).map_err(watch)?;
        let id = reactor.register(&mut listener, Key::Listener(index), Interest::READABLE).map_err(watch)?;
        Ok((listener, id))
    };
    inherited.into_iter().enumerate().map(take).collect()
}

/// Where the slot of that number is; nowhere, where there is none.
fn index(number: u16) -> usize {
    usize::from(number).checked_sub(1).unwrap_or(usize::MAX)
}

/// Slots count from 0 in memory, from 1 in names and files.
fn number(slot: usize) -> u16 {
    u16::try_from(slot + 1).unwrap_or(u16::MAX)
}

impl Role for Principal {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, signal: Signal) {
        if self.leaving.is_under_way() {
            self.on_signal_while_leaving(reactor, signal);
            return;
        }
        match signal {
            Signal::USR1 => {
                let Self { liveness, core, .. } = self;
                liveness.answer_probe(core.books().page().page(), reactor.now());
                self.reconcile(reactor);
            }
            Signal::TERM => self.on_sigterm(reactor),
            _ => {}
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, id: SourceId, key: Key, ready: Ready) -> Progress {
        if self.leaving.is_under_way() {
            return self.on_ready_while_leaving(reactor, id, key, ready);
        }
        match key {
            Key::Listener(index) => self.accept(reactor, index),
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
                self.core.handle_watchdog_died(reactor.now());
                Progress::Drained
            }
            Key::Channel => self.on_channel(reactor),
            Key::Successor => Progress::Drained,
        }
    }

    fn deadline(&self) -> Option<Moment> {
        if self.leaving.is_under_way() {
            return self.leaving.deadline();
        }
        let leaving = self.leaving.deadline().into_iter();
        leaving.chain(self.timers.next()).chain(self.core.poll_timeout()).min()
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        if self.leaving.is_under_way() {
            self.on_deadline_while_leaving(reactor);
            return;
        }
        // One that is armed again at once waits for the next turn: others come in between.
        for _ in 0..self.timers.len() {
            let Some(timer) = self.timers.pop_due(reactor.now()) else {
                break;
            };
            match timer {
                Timer::Client(key) => self.on_client_timer(reactor, key),
                Timer::Waiting => self.refuse_the_tired(reactor),
                Timer::Families => self.sweep_families(reactor),
                Timer::Evict => self.door.evict_timer_armed = false,
                Timer::Accept => {
                    self.scarcity.paused();
                    self.accept_again(reactor);
                }
            }
        }
        if self.core.poll_timeout().is_some_and(|at| at <= reactor.now()) {
            self.read_stop(reactor);
            self.core.handle_timeout(reactor.now());
        }
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        if !self.leaving.is_under_way() {
            self.work_off(reactor);
        }
        // Once, and last: woken before, the watchdog takes the core that a child is to start on.
        self.liveness.ring_if_due();
    }
}
