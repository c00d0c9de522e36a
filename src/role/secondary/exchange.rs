//! One data connection: moves bytes between the client and its session.

use std::io;

use mio::Interest;
use mio::net::TcpStream;

use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::timers::LazyTimer;
use crate::handler::{BuiltIn, Session, Turn};
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::os::stream::{Received, Unread, write_some};
use crate::role::secondary::{Key, READ_BYTES, Secondary, Timer};
use crate::wire::tube::JobRef;

/// With this much unsent output nothing more is read from a client.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// An exchange under way.
pub struct Exchange {
    stream: TcpStream,
    id: Option<SourceId>,
    job: JobRef,
    session: BuiltIn,
    /// What the client has not taken yet.
    unsent: Vec<u8>,
    /// The kernel may hold input that was not read, because the session wanted none.
    unread: Unread,
    input_ended: bool,
    wake_at: Option<Moment>,
    quiet_since: Moment,
    timer: LazyTimer,
}

/// What reading or writing came to.
enum Io {
    /// Go on; whether there may be more to read right away.
    Open { more: bool },
    /// Every answer was given and the client has ended its input.
    Finished,
    /// The connection broke.
    Broken(Reason),
}

impl Exchange {
    /// An exchange that has just been admitted.
    pub fn new(stream: TcpStream, job: JobRef, session: BuiltIn, now: Moment) -> Self {
        Self {
            stream,
            id: None,
            job,
            session,
            unsent: Vec::new(),
            unread: Unread::default(),
            input_ended: false,
            wake_at: None,
            quiet_since: now,
            timer: LazyTimer::default(),
        }
    }

    fn wants_input(&self) -> bool {
        !self.input_ended && self.session.wants_input() && self.unsent.len() < OUTPUT_LIMIT
    }

    fn owes_nothing(&self) -> bool {
        self.unsent.is_empty() && !self.session.owes_answer()
    }

    /// Reads once, if there is something and the session wants it; and once more where nothing but
    /// the end of the input is left. Who knows the end with the last input ends the job right after
    /// the last answer: a secondary that dies in between would fail a job whose client has it all.
    fn read(&mut self, now: Moment, buffer: &mut [u8], output: &mut Vec<u8>) -> io::Result<()> {
        for _ in 0..2 {
            if !self.unread.is_likely() || !self.wants_input() {
                break;
            }
            match self.unread.read(&mut self.stream, buffer)? {
                Received::Bytes(length) => {
                    self.quiet_since = now;
                    let mut turn = Turn { now, output, wake_at: &mut self.wake_at };
                    self.session.on_input(&buffer[..length], &mut turn);
                    if length == buffer.len() {
                        break;
                    }
                }
                Received::End => self.input_ended = true,
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
            self.unsent.drain(..sent);
            return Ok(());
        }
        let sent = write_some(&mut self.stream, output)?;
        self.unsent.extend_from_slice(&output[sent..]);
        output.clear();
        Ok(())
    }

    fn turn(&mut self, now: Moment, buffer: &mut [u8], output: &mut Vec<u8>) -> Io {
        output.clear();
        match self.read(now, buffer, output) {
            Ok(()) => self.send(now, output),
            Err(error) => Io::Broken(why_broken(&error)),
        }
    }

    fn send(&mut self, now: Moment, output: &mut Vec<u8>) -> Io {
        if !output.is_empty() {
            self.quiet_since = now;
        }
        if let Err(error) = self.write(output) {
            return Io::Broken(why_broken(&error));
        }
        if self.input_ended && self.owes_nothing() {
            return Io::Finished;
        }
        Io::Open { more: self.unread.is_likely() && self.wants_input() }
    }
}

/// The kernel gives up a peer that takes nothing (`TCP_USER_TIMEOUT`, tcp(7)); others break off.
pub(super) fn why_broken(error: &io::Error) -> Reason {
    if error.kind() == io::ErrorKind::TimedOut { Reason::ConnectionTimedOut } else { Reason::ConnectionLost }
}

impl Secondary {
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
                self.close_exchange(reactor, key, End::Failed(Reason::ConnectionLost));
            }
        }
    }

    pub(super) fn on_exchange(&mut self, reactor: &mut Handle<Key>, key: usize, ready: Ready) -> Progress {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return Progress::Drained;
        };
        exchange.unread.note(ready);
        let io = exchange.turn(reactor.now(), &mut self.buffer[..], &mut self.scratch);
        self.conclude(reactor, key, io)
    }

    /// The session wants to be woken, or the client has been silent for too long.
    pub(super) fn on_exchange_timer(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let now = reactor.now();
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        exchange.timer.fired();
        self.scratch.clear();
        if exchange.wake_at.is_some_and(|wake_at| wake_at <= now) {
            exchange.wake_at = None;
            let mut turn = Turn { now, output: &mut self.scratch, wake_at: &mut exchange.wake_at };
            exchange.session.on_timer(&mut turn);
        } else if exchange.owes_nothing() && exchange.quiet_since + self.config.client_idle <= now {
            self.close_exchange(reactor, key, End::Done);
            return;
        }
        let io = exchange.send(now, &mut self.scratch);
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
            Io::Finished => {
                self.close_exchange(reactor, key, End::Done);
                Progress::Drained
            }
            Io::Broken(reason) => {
                self.close_exchange(reactor, key, End::Failed(reason));
                Progress::Drained
            }
        }
    }

    /// Closes the connection and tells how its job ended.
    pub(super) fn close_exchange(&mut self, reactor: &mut Handle<Key>, key: usize, end: End) {
        let mut exchange = self.exchanges.remove(key);
        self.service.handle_end(exchange.job, end);
        exchange.timer.cancel(&mut self.timers);
        if let Some(id) = exchange.id {
            reactor.deregister(&mut exchange.stream, id);
        }
    }

    /// One timer serves both: the session's wish and the client's silence.
    fn arm(&mut self, key: usize) {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        let idle = exchange.owes_nothing().then_some(exchange.quiet_since + self.config.client_idle);
        let Some(at) = exchange.wake_at.into_iter().chain(idle).min() else {
            return;
        };
        exchange.timer.arm(&mut self.timers, at, Timer::Exchange(key));
    }
}

// A full buffer of input, echoed, must fit below the limit at which reading stops.
const _: () = assert!(READ_BYTES <= OUTPUT_LIMIT);
