//! The event loop of every server: one poll, one thread, one next deadline.
//!
//! A turn of the loop polls with the earliest deadline (or not at all where somebody
//! said [`Progress::Again`]), reads the clock once, then goes through signals,
//! descriptors and timers in this order, and lets the role settle what the turn
//! produced. Signals come before timers, so an answer that is already there beats
//! its own expiry.
//!
//! mio is edge-triggered: a handler that stops early because of its budget gets no
//! second event. It says `Again` and is called in one of the next turns with the readiness
//! it had, behind all others that became ready meanwhile.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use mio::event::{Event, Source};
use mio::{Events, Interest, Poll, Token};
use rustix::process::Signal;
use slab::Slab;

use crate::core::moment::Moment;
use crate::os::clock;
use crate::os::signals::Signals;

/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 256;
/// Sources left over by the turns before that are called in one turn: what others wait for is
/// sent at its end, and must not wait for all that somebody has sent ahead.
const LEFTOVERS_PER_TURN: usize = 16;
/// A turn that has lasted so long calls nobody more.
const TURN_BUDGET: Duration = Duration::from_millis(5);
const SIGNALS: Token = Token(usize::MAX);

/// A role: what a process does with the events of its loop.
pub trait Role {
    /// The role's own name for what it registers, given back with each event.
    type Key: Copy;

    /// A signal arrived since the last turn, once or several times.
    fn on_signal(&mut self, reactor: &mut Handle<Self::Key>, signal: Signal);

    /// A registered source is ready.
    fn on_ready(
        &mut self,
        reactor: &mut Handle<Self::Key>,
        id: SourceId,
        key: Self::Key,
        ready: Ready,
    ) -> Progress;

    /// The earliest deadline of the role.
    fn deadline(&self) -> Option<Moment>;

    /// [`Role::deadline`] has come.
    fn on_deadline(&mut self, reactor: &mut Handle<Self::Key>);

    /// The turn is over: send what it produced.
    fn settle(&mut self, reactor: &mut Handle<Self::Key>);
}

/// Whether a handler is done with what made its source ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It took all there was: the kernel will report what comes next.
    Drained,
    /// It stopped early: call it again in one of the next turns.
    Again,
}

/// What a source is ready for. Hang-up and error count as both, so that the next
/// read or write meets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// A read will not block.
    pub readable: bool,
    /// A write will not block.
    pub writable: bool,
    /// The peer has closed its sending side: a short read is not the last one.
    pub read_closed: bool,
}

impl Ready {
    fn of(event: &Event) -> Self {
        let broken = event.is_error();
        Self {
            readable: event.is_readable() || event.is_read_closed() || broken,
            writable: event.is_writable() || event.is_write_closed() || broken,
            read_closed: event.is_read_closed() || broken,
        }
    }

    /// Both.
    pub fn merge(&mut self, other: Self) {
        self.readable |= other.readable;
        self.writable |= other.writable;
        self.read_closed |= other.read_closed;
    }
}

/// Names a registered source. It carries a generation, so that an event for a source
/// that was deregistered in the same turn never reaches the one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId {
    index: u32,
    generation: u32,
}

impl SourceId {
    fn token(self) -> Token {
        let bits = u64::from(self.generation) << 32 | u64::from(self.index);
        Token(usize::try_from(bits).unwrap_or(usize::MAX))
    }

    fn from_token(Token(bits): Token) -> Self {
        let [a, b, c, d, e, f, g, h] = (bits as u64).to_le_bytes();
        Self { index: u32::from_le_bytes([a, b, c, d]), generation: u32::from_le_bytes([e, f, g, h]) }
    }
}

struct Registered<K> {
    key: K,
    generation: u32,
    /// Readiness that no handler has seen yet.
    ready: Ready,
    /// Stands in the queue of this turn or of the next.
    queued: bool,
}

/// What a role may do with the reactor while it handles an event.
pub struct Handle<K> {
    poll: Poll,
    sources: Slab<Registered<K>>,
    generation: u32,
    queue: VecDeque<SourceId>,
    now: Moment,
    stopping: bool,
}

impl<K: Copy> Handle<K> {
    /// The time of this turn.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Before the loop runs, something was waited for, or took its time: it is another by now.
    pub fn has_waited(&mut self) {
        self.now = clock::now();
    }

    /// Whether this turn may go on: handlers that take long shall not add up, for signals, and so
    /// the watchdog's probes, are answered between turns only.
    #[must_use]
    pub fn has_time(&self) -> bool {
        clock::now().since(self.now) < TURN_BUDGET
    }

    /// Starts watching a source.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn register(
        &mut self,
        source: &mut (impl Source + ?Sized),
        key: K,
        interest: Interest,
    ) -> io::Result<SourceId> {
        // Half of the numbers suffice to keep every token apart from SIGNALS.
        self.generation = (self.generation + 1) & (u32::MAX >> 1);
        let generation = self.generation;
        let entry = self.sources.vacant_entry();
        let index = u32::try_from(entry.key()).map_err(io::Error::other)?;
        let id = SourceId { index, generation };
        self.poll.registry().register(source, id.token(), interest)?;
        entry.insert(Registered { key, generation, ready: Ready::default(), queued: false });
        Ok(id)
    }

    /// Stops watching a source. Events for it that were already taken from the kernel are
    /// dropped. Must come before the descriptor is closed: where another process holds
    /// the same open file, closing alone does not end the registration (epoll(7)).
    pub fn deregister(&mut self, source: &mut (impl Source + ?Sized), id: SourceId) {
        if self.get(id).is_none() {
            return;
        }
        self.sources.remove(id.index as usize);
        if let Err(error) = self.poll.registry().deregister(source) {
            log::warn!("cannot deregister a descriptor: {error}");
        }
    }

    /// Calls the source's handler soon, as if it were ready in that way: in one of the next turns,
    /// or still in this one where its handler has not been called yet.
    pub fn again(&mut self, id: SourceId, ready: Ready) {
        self.enqueue(id, ready);
    }

    /// Ends the loop when this turn is over.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    fn get(&mut self, id: SourceId) -> Option<&mut Registered<K>> {
        self.sources.get_mut(id.index as usize).filter(|registered| registered.generation == id.generation)
    }

    fn enqueue(&mut self, id: SourceId, ready: Ready) {
        let Some(registered) = self.get(id) else {
            return;
        };
        registered.ready.merge(ready);
        if !std::mem::replace(&mut registered.queued, true) {
            self.queue.push_back(id);
        }
    }

    /// Takes the readiness of a queued source; `None` where it is gone.
    fn take_ready(&mut self, id: SourceId) -> Option<(K, Ready)> {
        let registered = self.get(id)?;
        registered.queued = false;
        Some((registered.key, std::mem::take(&mut registered.ready)))
    }
}

/// The loop itself.
pub struct Reactor<K> {
    handle: Handle<K>,
    events: Events,
    signals: Signals,
    /// The sources of the turn under way: first what the kernel reported, then what was left
    /// over by the last turn.
    turn: Vec<SourceId>,
    /// The signals of the turn under way, each once.
    arrived: Vec<Signal>,
}

impl<K: Copy> Reactor<K> {
    /// A reactor that takes over these signals, and lets in all others: none of these can do harm any
    /// more, and none that comes before the first turn is lost.
    ///
    /// # Errors
    /// What `epoll_create1(2)`, `signalfd(2)`, `pthread_sigmask(3)` or `sigaction(2)` say.
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut signals = Signals::take(signals)?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        Ok(Self {
            handle: Handle {
                poll,
                sources: Slab::new(),
                generation: 0,
                queue: VecDeque::new(),
                now: clock::now(),
                stopping: false,
            },
            events: Events::with_capacity(EVENTS_PER_TURN),
            signals,
            turn: Vec::new(),
            arrived: Vec::new(),
        })
    }

    /// To register the first sources.
    pub fn handle(&mut self) -> &mut Handle<K> {
        &mut self.handle
    }

    /// Runs until the role calls [`Handle::stop`].
    ///
    /// # Errors
    /// What `epoll_wait(2)` says, interruptions apart, or `read(2)` of the signals.
    pub fn run(&mut self, role: &mut impl Role<Key = K>) -> io::Result<()> {
        // What the start produced is sent now, not after the first event.
        self.handle.now = clock::now();
        role.settle(&mut self.handle);
        while !self.handle.stopping {
            self.turn(role)?;
        }
        Ok(())
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// What `epoll_wait(2)` says, interruptions apart, or `read(2)` of the signals.
    pub fn turn(&mut self, role: &mut impl Role<Key = K>) -> io::Result<()> {
        let signalled = self.wait(role.deadline())?;
        let Self { handle, events, signals, turn, arrived } = self;
        handle.now = clock::now();
        if signalled {
            signals.read(arrived)?;
            for signal in arrived.drain(..) {
                role.on_signal(handle, signal);
            }
        }
        Self::add_events(handle, events, turn);
        turn.extend(handle.queue.drain(..handle.queue.len().min(LEFTOVERS_PER_TURN)));
        for id in turn.drain(..) {
            let Some((key, ready)) = handle.take_ready(id) else {
                continue;
            };
            if role.on_ready(handle, id, key, ready) == Progress::Again {
                handle.enqueue(id, ready);
            }
        }
        if role.deadline().is_some_and(|deadline| deadline <= handle.now) {
            role.on_deadline(handle);
        }
        role.settle(handle);
        crate::os::log::turn(handle.now);
        Ok(())
    }

    /// Waits for events. Returns whether signals are among them.
    fn wait(&mut self, deadline: Option<Moment>) -> io::Result<bool> {
        let mut timeout = if self.handle.queue.is_empty() {
            deadline.map(|deadline| deadline.since(clock::now()))
        } else {
            Some(Duration::ZERO)
        };
        loop {
            match self.handle.poll.poll(&mut self.events, timeout) {
                Ok(()) => return Ok(self.events.iter().any(|event| event.token() == SIGNALS)),
                // By a stop and its end, or by a debugger (signal(7)). A wait that does not block is not
                // interrupted: it finds whatever became ready, in this turn, before its deadline.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => timeout = Some(Duration::ZERO),
                Err(error) => return Err(error),
            }
        }
    }

    /// Joins this turn's events to what was left over by the last one.
    fn add_events(handle: &mut Handle<K>, events: &Events, turn: &mut Vec<SourceId>) {
        for event in events {
            let id = SourceId::from_token(event.token());
            let Some(registered) = handle.get(id) else {
                continue;
            };
            registered.ready.merge(Ready::of(event));
            if !std::mem::replace(&mut registered.queued, true) {
                turn.push(id);
            }
        }
    }
}
