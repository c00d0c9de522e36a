//! A role that keeps a log, for the tests of the event loop.

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::Interest;
use mio::net::UnixStream;
use nix::sys::signal::Signal;
use osps::core::moment::Moment;
use osps::os::clock;
use osps::os::reactor::{Handle, Progress, Reactor, Ready, Role, SourceId};

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long a test watches that nothing comes. Too short hides a bug, never makes one.
pub const QUIET: Duration = Duration::from_millis(5);

/// What a role was told, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Signal(Signal),
    Ready(char),
    Deadline,
    /// The turn is over.
    Settled,
}

/// The part of a role that a test is about.
pub trait Part {
    fn on_signal(&mut self, _signal: Signal) {}

    fn on_ready(&mut self, reactor: &mut Handle<char>, id: SourceId, key: char, ready: Ready) -> Progress;
}

/// A role that keeps a log and leaves the rest to its part.
pub struct Stage<P> {
    pub part: P,
    pub log: Vec<Seen>,
    pub deadline: Option<Moment>,
}

impl<P: Part> Stage<P> {
    pub fn new(part: P) -> Self {
        Self { part, log: Vec::new(), deadline: None }
    }

    /// Takes one turn and tells what it was made of.
    pub fn turn(&mut self, reactor: &mut Reactor<char>) -> Vec<Seen> {
        let before = self.log.len();
        self.deadline.get_or_insert_with(|| clock::now() + PATIENCE);
        reactor.turn(self).unwrap();
        self.log[before..].to_vec()
    }

    pub fn turn_until(&mut self, reactor: &mut Reactor<char>, done: impl Fn(&Self) -> bool) {
        let limit = clock::now() + PATIENCE;
        while !done(self) {
            assert!(clock::now() < limit, "it never came: {:?}", self.log.rchunks(20).next());
            self.turn(reactor);
        }
    }

    /// Nothing but its deadline wakes the loop.
    pub fn assert_quiet(&mut self, reactor: &mut Reactor<char>) {
        let before = self.log.len();
        self.deadline = Some(clock::now() + QUIET);
        while !self.log[before..].contains(&Seen::Deadline) {
            reactor.turn(self).unwrap();
        }
        let events: Vec<_> = self.log[before..].iter().filter(|&&seen| seen != Seen::Settled).collect();
        assert_eq!(events, [&Seen::Deadline]);
    }

    pub fn turns(&self) -> impl Iterator<Item = &[Seen]> {
        self.log.split_inclusive(|&seen| seen == Seen::Settled)
    }
}

impl<P: Part> Role for Stage<P> {
    type Key = char;

    fn on_signal(&mut self, _: &mut Handle<char>, signal: rustix::process::Signal) {
        let signal = Signal::try_from(signal.as_raw()).unwrap();
        self.log.push(Seen::Signal(signal));
        self.part.on_signal(signal);
    }

    fn on_ready(&mut self, reactor: &mut Handle<char>, id: SourceId, key: char, ready: Ready) -> Progress {
        self.log.push(Seen::Ready(key));
        self.part.on_ready(reactor, id, key, ready)
    }

    fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    fn on_deadline(&mut self, reactor: &mut Handle<char>) {
        let deadline = self.deadline.take().expect("a deadline that nobody set has come");
        assert!(deadline <= reactor.now(), "{deadline} has come at {}", reactor.now());
        self.log.push(Seen::Deadline);
    }

    fn settle(&mut self, _: &mut Handle<char>) {
        self.log.push(Seen::Settled);
    }
}

pub fn reactor(signals: &[Signal]) -> Reactor<char> {
    let signals: Vec<_> = signals
        .iter()
        .map(|&signal| rustix::process::Signal::from_named_raw(signal as i32).unwrap())
        .collect();
    Reactor::new(&signals).unwrap()
}

/// Reads once. `Again` where there may be more.
pub fn read_some(stream: &mut impl Read, most: usize, into: &mut Vec<u8>) -> Progress {
    let mut buffer = vec![0; most];
    match stream.read(&mut buffer) {
        Ok(0) => Progress::Drained,
        Ok(length) => {
            into.extend_from_slice(&buffer[..length]);
            Progress::Again
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Drained,
        Err(error) => panic!("cannot read: {error}"),
    }
}

/// A registered end, and the end that makes it ready.
pub struct Line {
    pub key: char,
    pub near: UnixStream,
    pub far: UnixStream,
    pub id: SourceId,
}

impl Line {
    pub fn new(handle: &mut Handle<char>, key: char) -> Self {
        let (mut near, far) = UnixStream::pair().unwrap();
        let id = handle.register(&mut near, key, Interest::READABLE).unwrap();
        Self { key, near, far, id }
    }

    pub fn make_ready(&mut self) {
        self.far.write_all(b"!").unwrap();
    }

    pub fn drain(&mut self) -> Progress {
        while read_some(&mut self.near, 64, &mut Vec::new()) == Progress::Again {}
        Progress::Drained
    }
}

/// No source, hence no event.
pub struct Nobody;

impl Part for Nobody {
    fn on_ready(&mut self, _: &mut Handle<char>, _: SourceId, key: char, _: Ready) -> Progress {
        panic!("an event for {key}, which nobody registered")
    }
}
