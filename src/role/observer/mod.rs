//! The observer: shows over HTTP what all processes are doing. It reads the shared pages, as `osps status` does, and
//! writes nowhere but in its own; nobody needs it, and it may crash without anybody's noticing but the log.

mod visitors;

use std::time::Duration;

use mio::Interest;
use rustix::io::Errno;
use rustix::process::Signal;
use slab::Slab;

use crate::core::moment::Moment;
use crate::core::name::Role as TreeRole;
use crate::exit::{Code, Failure};
use crate::observer::Site;
use crate::os::fifo;
use crate::os::listener::{ACCEPTS_PER_TURN, Accepted, Listener, Scarcity};
use crate::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};
use crate::os::rundir::Rundir;
use crate::os::{clock, process};
use crate::page::Access;
use crate::page::observer::{ObserverPage, Visits};
use crate::role::launch::{self, Launched};
use crate::role::liveness::Liveness;
use crate::status;
use crate::wire::order::Order;

use visitors::Visitor;

/// How often the pages are read for the charts,
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// and while somebody listens to events: what happens is on his page within a second.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Reading must not take more than one part in so many of this process's time: with a thousand secondaries it takes
/// longer, and is done less often.
const READING_SHARE: u32 = 20;
/// Whoever asks is told nothing that is older than this.
const FRESH: Duration = Duration::from_millis(100);
/// Connections at once, where descriptors suffice. One more waits in the backlog until another has left or has nothing
/// to say. Half of them may be for events.
const MAX_VISITORS: usize = 256;
/// Descriptors besides listeners and connections: eight that it holds, those of a look at the pages, and some to spare.
const OWN_DESCRIPTORS: u64 = 16;

/// What the reactor gives back with an event.
#[derive(Clone, Copy, Debug)]
enum Key {
    /// A listener, by its place.
    Listener(usize),
    /// A connection, by its place in the slab.
    Visitor(usize),
    Orders,
    Watchdog,
}

struct Observer {
    liveness: Liveness,
    page: ObserverPage,
    rundir: Rundir,
    listeners: Vec<(Listener, SourceId)>,
    visitors: Slab<Visitor>,
    /// How many there may be.
    places: usize,
    visits: Visits,
    /// What is shown, and when it was read last.
    site: Site,
    read_at: Option<Moment>,
    next_sample: Moment,
    /// Accepting goes on then.
    accept_at: Option<Moment>,
    scarcity: Scarcity,
    /// All places were taken when somebody came.
    is_full: bool,
}

/// Runs an observer until it is told to end.
///
/// # Errors
/// A [`Failure`] where it cannot start.
pub fn run() -> Result<Code, Failure> {
    let launched = launch::receive(TreeRole::Observer)?;
    process::set_name(c"osps-observer");
    process::ignore_strangers().map_err(|error| Failure::internal("ignore signals", &error))?;
    let mut reactor = Reactor::new(&[Signal::USR1, Signal::TERM])
        .map_err(|error| Failure::internal("create the event loop", &error))?;
    let mut observer = Observer::start(launched, reactor.handle())?;
    reactor.run(&mut observer).map_err(|error| Failure::internal("run the event loop", &error))?;
    Ok(Code::Ok)
}

impl Observer {
    fn start(launched: Launched, reactor: &mut Handle<Key>) -> Result<Self, Failure> {
        let Launched { sheet, watchdog, mut inheritance } = launched;
        let watchdog_page = inheritance.take_file()?;
        let orders = fifo::Reader::from(inheritance.take_file()?);
        let page = ObserverPage::attach(&inheritance.take_file()?, Access::ReadWrite)
            .map_err(|error| Failure::internal("attach", &error))?;
        let liveness = Liveness::begin(&sheet, watchdog, &watchdog_page, orders, page.page())?;
        let watch = |error| Failure::internal("watch a listener", &error);
        let addresses = sheet.config.observe.iter().flat_map(|observe| observe.addresses());
        let mut listeners = Vec::new();
        for index in 0..addresses.count() {
            let mut listener = Listener::from_inherited(inheritance.take()?).map_err(watch)?;
            let id =
                reactor.register(&mut listener, Key::Listener(index), Interest::READABLE).map_err(watch)?;
            listeners.push((listener, id));
        }
        let mut observer = Self {
            liveness,
            page,
            rundir: launch::rundir(&sheet),
            listeners,
            visitors: Slab::new(),
            places: MAX_VISITORS,
            visits: Visits::default(),
            site: Site::default(),
            read_at: None,
            next_sample: reactor.now(),
            accept_at: None,
            scarcity: Scarcity::default(),
            is_full: false,
        };
        observer.fit();
        observer.liveness.declare_ready(reactor, observer.page.page(), Key::Orders, Key::Watchdog)?;
        Ok(observer)
    }

    fn accept(&mut self, reactor: &mut Handle<Key>, index: usize) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.has_room() {
                self.is_full = true;
                return Progress::Drained;
            }
            let Some((listener, _)) = self.listeners.get(index) else {
                return Progress::Drained;
            };
            match Accepted::from(listener.accept()) {
                Accepted::One((stream, _)) => {
                    if self.visitors.len() >= self.places {
                        self.part_with_an_idle_one(reactor);
                    }
                    self.welcome(reactor, stream);
                }
                Accepted::Broken => {}
                Accepted::Nothing => return Progress::Drained,
                Accepted::Scarce(error) => {
                    let is_own_limit = error.raw_os_error() == Some(Errno::MFILE.raw_os_error());
                    if is_own_limit && self.fit_anew(reactor) {
                        continue;
                    }
                    self.accept_at = self.scarcity.met(reactor.now(), &error).or(self.accept_at);
                    return Progress::Drained;
                }
            }
        }
        Progress::Again
    }

    /// Fits the number of connections to the limit of open descriptors.
    fn fit(&mut self) {
        let limit = process::raise_descriptor_limit();
        let before = std::mem::replace(&mut self.places, places(limit, self.listeners.len()));
        if self.places < before {
            let places = self.places;
            log::warn!("no more than {places} connections at once: the limit of open descriptors is {limit}");
        }
    }

    /// The limit is another than it was, or something else takes descriptors: who stays must not keep out who comes.
    /// Returns whether somebody has left.
    fn fit_anew(&mut self, reactor: &mut Handle<Key>) -> bool {
        self.fit();
        let mut has_left = self.part_with_somebody(reactor);
        while has_left && self.visitors.len() >= self.places {
            has_left = self.part_with_somebody(reactor);
        }
        has_left
    }

    /// Looks into the backlogs again.
    fn accept_again(&self, reactor: &mut Handle<Key>) {
        for (_, id) in &self.listeners {
            reactor.again(*id, fifo::READABLE);
        }
    }

    /// Reads the pages, unless they were read just now.
    fn read(&mut self, now: Moment) {
        if self.read_at.is_some_and(|at| now.since(at) < FRESH) {
            return;
        }
        self.read_at = Some(now);
        let status = status::read(&self.rundir).map_err(|failure| failure.to_string());
        self.site.handle_status(now, clock::unix_time(), status);
    }

    /// It is time for a look: those who listen hear of it.
    fn sample(&mut self, reactor: &mut Handle<Key>) {
        let now = reactor.now();
        let begun = clock::now();
        self.read(now);
        let streaming = |(key, visitor): (usize, &Visitor)| visitor.is_streaming().then_some(key);
        let listening: Vec<usize> = self.visitors.iter().filter_map(streaming).collect();
        let event = if listening.is_empty() { String::new() } else { self.site.event(now) };
        let took = clock::now().since(begun);
        let every = if listening.is_empty() { SAMPLE_EVERY } else { TELL_EVERY };
        self.next_sample = now + every.max(took * READING_SHARE);
        for key in listening {
            self.visitors[key].tell(now, &event);
            self.go_on(reactor, key);
        }
    }
}

/// How many connections a limit of open descriptors suffices for.
fn places(limit: u64, listeners: usize) -> usize {
    let left = limit.saturating_sub(OWN_DESCRIPTORS + listeners as u64);
    // With two, one can listen to events and another ask.
    usize::try_from(left).map_or(MAX_VISITORS, |left| left.clamp(2, MAX_VISITORS))
}

impl Role for Observer {
    type Key = Key;

    fn on_signal(&mut self, reactor: &mut Handle<Key>, signal: Signal) {
        match signal {
            Signal::USR1 => {
                self.liveness.answer_probe(self.page.page(), reactor.now());
                if self.liveness.is_to_drain() {
                    reactor.stop();
                }
            }
            // It owes nothing to anybody, and browsers come again.
            _ => reactor.stop(),
        }
    }

    fn on_ready(&mut self, reactor: &mut Handle<Key>, _: SourceId, key: Key, ready: Ready) -> Progress {
        match key {
            Key::Listener(index) => self.accept(reactor, index),
            Key::Visitor(key) => self.on_visitor(reactor, key, ready),
            Key::Orders => {
                let (orders, progress) = self.liveness.read_orders();
                if orders.iter().any(|order| matches!(order, Order::Drain | Order::Stop | Order::StopNow)) {
                    reactor.stop();
                }
                progress
            }
            Key::Watchdog => {
                reactor.stop();
                Progress::Drained
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        let of_visitors = self.visitors.iter().filter_map(|(_, visitor)| visitor.deadline());
        of_visitors.chain([self.next_sample]).chain(self.accept_at).min()
    }

    fn on_deadline(&mut self, reactor: &mut Handle<Key>) {
        let now = reactor.now();
        if self.next_sample <= now {
            self.sample(reactor);
        }
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            self.scarcity.paused();
            self.accept_again(reactor);
        }
        let is_due = |visitor: &Visitor| visitor.deadline().is_some_and(|at| at <= now);
        let due: Vec<usize> =
            self.visitors.iter().filter(|(_, visitor)| is_due(visitor)).map(|(key, _)| key).collect();
        for key in due {
            self.visitors[key].let_time_pass(now);
            self.go_on(reactor, key);
        }
    }

    fn settle(&mut self, reactor: &mut Handle<Key>) {
        if self.is_full && self.has_room() {
            self.is_full = false;
            self.accept_again(reactor);
        }
        let connected = self.visitors.len() as u64;
        let visits = Visits { connected, ..self.visits };
        if visits != self.page.visits() {
            self.page.set_visits(visits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_what_descriptors_suffice_for() {
        let limits = [0, 40, 100, 273, 274, 1024, u64::MAX];
        assert_eq!(limits.map(|limit| places(limit, 2)), [2, 22, 82, 255, 256, 256, 256]);
    }
}
