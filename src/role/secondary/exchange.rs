//! One data connection: moves bytes between the client and its session.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::Interest;
use mio::net::TcpStream;

use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::timers::LazyTimer;
use crate::handler::{AnySession, Over, Session, Turn, Wishes};
use crate::os::clock;
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::os::stream::{Received, Unread, write_some};
use crate::page::secondary::SecondaryPage;
use crate::role::access::Bytes;
use crate::role::secondary::linger::Closing;
use crate::role::secondary::{Key, READ_BYTES, Secondary, Timer};
use crate::wire::tube::JobRef;

/// With this much unsent output nothing more is read from a client.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// An exchange under way.
pub struct Exchange {
    stream: TcpStream,
    peer: SocketAddr,
    bytes: Bytes,
    id: Option<SourceId>,
    job: JobRef,
    session: AnySession,
    /// Whether the session knows that the exchange has begun.
    opened: bool,
    /// What the client has not taken yet.
    unsent: Vec<u8>,
    /// The kernel may hold input that was not read, because the session wanted none.
    unread: Unread,
    input_ended: bool,
    wishes: Wishes,
    /// When the job must have ended, where its type has a `time_limit`.
    until: Option<Moment>,
    quiet_since: Moment,
    timer: LazyTimer,
}

/// What reading or writing came to.
enum Io {
    /// Go on; whether there may be more to read right away.
    Open { more: bool },
    /// Every answer was given, and the client has ended its input or the session the exchange.
    Finished(End),
    /// The connection broke.
    Broken(Reason),
}

impl Exchange {
    /// An exchange that has just been admitted.
    pub fn new(
        (stream, peer): (TcpStream, SocketAddr),
        job: JobRef,
        session: AnySession,
        now: Moment,
        time_limit: Option<Duration>,
    ) -> Self {
        Self {
            stream,
            peer,
            bytes: Bytes::default(),
            id: None,
            job,
            session,
            opened: false,
            unsent: Vec::new(),
            unread: Unread::default(),
            input_ended: false,
            wishes: Wishes::default(),
            until: time_limit.map(|limit| now + limit),
            quiet_since: now,
            timer: LazyTimer::default(),
        }
    }

    fn wants_input(&self) -> bool {
        !self.input_ended
            && self.wishes.over.is_none()
            && self.session.wants_input()
            && self.unsent.len() < OUTPUT_LIMIT
    }

    fn owes_nothing(&self) -> bool {
        self.unsent.is_empty() && (self.wishes.over.is_some() || !self.session.owes_answer())
    }

    fn is_over_time(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Calls the session. Where its time is limited, the principal finds in the page that it is at
    /// work, should it not come back. Returns whether there was time left.
    fn call(
        &mut self,
        now: Moment,
        page: &SecondaryPage,
        output: &mut Vec<u8>,
        what: impl FnOnce(&mut AnySession, &mut Turn<'_>),
    ) -> bool {
        if self.until.is_some() {
            // Another session may have blocked since this turn of the loop began.
            let now = clock::now();
            if self.is_over_time(now) {
                return false;
            }
            page.enter_handler(self.job, now);
        }
        what(&mut self.session, &mut Turn::new(now, output, &mut self.wishes));
        if self.until.is_some() {
            page.leave_handler();
        }
        true
    }

    /// Reads once, if there is something and the session wants it; and once more where nothing but
    /// the end of the input is left. Who knows the end with the last input ends the job right after
    /// the last answer: a secondary that dies in between would fail a job whose client has it all.
    fn read(
        &mut self,
        now: Moment,
        page: &SecondaryPage,
        buffer: &mut [u8],
        output: &mut Vec<u8>,
    ) -> Result<(), Reason> {
        let in_time = |called: bool| if called { Ok(()) } else { Err(Reason::TimeLimit) };
        if !std::mem::replace(&mut self.opened, true) {
            in_time(self.call(now, page, output, |session, turn| session.on_open(turn)))?;
        }
        for _ in 0..2 {
            if !self.unread.is_likely() || !self.wants_input() {
                break;
            }
            match self.unread.read(&mut self.stream, buffer).map_err(|error| why_broken(&error))? {
                Received::Bytes(length) => {
                    self.quiet_since = now;
                    self.bytes.received += length as u64;
                    let input = &buffer[..length];
                    in_time(self.call(now, page, output, |session, turn| session.on_input(input, turn)))?;
                    if length == buffer.len() {
                        break;
                    }
                }
                Received::End => {
                    self.input_ended = true;
                    in_time(self.call(now, page, output, |session, turn| session.on_end(turn)))?;
                }
                Received::Nothing => break,
            }
        }
        Ok(())
    }

    /// Sends what was left over, then `output`; keeps what the client does not take.
    fn write(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.append(output);
            let sent = write_some(&mut self.stream, &self.unsent)?;
            self.bytes.sent += sent as u64;
            self.unsent.drain(..sent);
            return Ok(());
        }
        let sent = write_some(&mut self.stream, output)?;
        self.bytes.sent += sent as u64;
        self.unsent.extend_from_slice(&output[sent..]);
        output.clear();
        Ok(())
    }

    fn turn(&mut self, now: Moment, page: &SecondaryPage, buffer: &mut [u8], output: &mut Vec<u8>) -> Io {
        output.clear();
        match self.read(now, page, buffer, output) {
            Ok(()) => self.send(now, output),
            Err(reason) => Io::Broken(reason),
        }
    }

    fn send(&mut self, now: Moment, output: &mut Vec<u8>) -> Io {
        if !output.is_empty() {
            self.quiet_since = now;
        }
        if let Err(error) = self.write(output) {
            return Io::Broken(why_broken(&error));
        }
        match self.wishes.over {
            Some(over) if self.unsent.is_empty() => return Io::Finished(end(over)),
            None if self.input_ended && self.owes_nothing() => return Io::Finished(End::Done),
            Some(_) | None => {}
        }
        Io::Open { more: self.unread.is_likely() && self.wants_input() }
    }
}

fn end(over: Over) -> End {
    match over {
        Over::Closed => End::Done,
        Over::Failed => End::Failed(Reason::HandlerError),
    }
}

/// The kernel gives up a peer that takes nothing (`TCP_USER_TIMEOUT`, tcp(7)); others break off.
pub(super) fn why_broken(error: &io::Error) -> Reason {
    if error.kind() == io::ErrorKind::TimedOut { Reason::ConnectionTimedOut } else { Reason::ConnectionLost }
}

impl Secondary {
    /// Exchanges of all kinds: of sessions, of commands, of workers.
    pub(super) fn under_way(&self) -> usize {
        self.exchanges.len() + self.runs.len() + self.crews.askers.len()
    }

    pub(super) fn open_exchange(&mut self, reactor: &mut Handle<Key>, exchange: Exchange) {
        let key = self.exchanges.insert(exchange);
        let exchange = &mut self.exchanges[key];
        let interest = Interest::READABLE | Interest::WRITABLE;
        match reactor.register(&mut exchange.stream, Key::Exchange(key), interest) {
            Ok(id) => {
                exchange.id = Some(id);
                self.arm(key);
            }
            Err(error) => {
                log::warn!("cannot watch a data connection: {error}");
                drop(self.close_exchange(reactor, key, End::Failed(Reason::ConnectionLost)));
            }
        }
    }

    pub(super) fn on_exchange(&mut self, reactor: &mut Handle<Key>, key: usize, ready: Ready) -> Progress {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return Progress::Drained;
        };
        exchange.unread.note(ready);
        let io = exchange.turn(reactor.now(), &self.page, &mut self.buffer[..], &mut self.scratch);
        self.conclude(reactor, key, io)
    }

    /// The session wants to be woken, the client has been silent for too long, or the time is over.
    pub(super) fn on_exchange_timer(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let now = reactor.now();
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        exchange.timer.fired();
        self.scratch.clear();
        let mut in_time = !exchange.is_over_time(now);
        if in_time && exchange.wishes.over.is_none() && exchange.wishes.take_wake(now) {
            let wake = |session: &mut AnySession, turn: &mut Turn<'_>| session.on_timer(turn);
            in_time = exchange.call(now, &self.page, &mut self.scratch, wake);
        } else if in_time && exchange.owes_nothing() && exchange.quiet_since + self.config.client_idle <= now
        {
            drop(self.close_exchange(reactor, key, End::Done));
            return;
        }
        let io = if in_time { exchange.send(now, &mut self.scratch) } else { Io::Broken(Reason::TimeLimit) };
        if self.conclude(reactor, key, io) == Progress::Again
            && let Some(id) = self.exchanges.get(key).and_then(|exchange| exchange.id)
        {
            reactor.again(id, Ready::default());
        }
    }

    fn conclude(&mut self, reactor: &mut Handle<Key>, key: usize, io: Io) -> Progress {
        match io {
            Io::Open { more } => {
                self.arm(key);
                if more { Progress::Again } else { Progress::Drained }
            }
            Io::Finished(end) => {
                let closing = self.close_exchange(reactor, key, end);
                self.linger(reactor, closing);
                Progress::Drained
            }
            Io::Broken(reason) => {
                drop(self.close_exchange(reactor, key, End::Failed(reason)));
                Progress::Drained
            }
        }
    }

    /// Closes the connection, unless the caller keeps it, and tells how its job ended.
    pub(super) fn close_exchange(&mut self, reactor: &mut Handle<Key>, key: usize, end: End) -> Closing {
        let mut exchange = self.exchanges.remove(key);
        self.end_job(exchange.job, end, exchange.peer, Some(exchange.bytes));
        exchange.timer.cancel(&mut self.timers);
        if let Some(id) = exchange.id {
            reactor.deregister(&mut exchange.stream, id);
        }
        if end == End::Failed(Reason::TimeLimit) {
            log::debug!("job {} has reached its time_limit", exchange.job.number);
        }
        Closing { stream: exchange.stream, input_ended: exchange.input_ended }
    }

    /// One timer serves all: the session's wish, the client's silence, and the time that is left.
    fn arm(&mut self, key: usize) {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        let idle = exchange.owes_nothing().then_some(exchange.quiet_since + self.config.client_idle);
        let wake = exchange.wishes.wake_at.filter(|_| exchange.wishes.over.is_none());
        let Some(at) = wake.into_iter().chain(idle).chain(exchange.until).min() else {
            return;
        };
        exchange.timer.arm(&mut self.timers, at, Timer::Exchange(key));
    }
}

// A full buffer of input, echoed, must fit below the limit at which reading stops.
const _: () = assert!(READ_BYTES <= OUTPUT_LIMIT);
