//! The clients of workers: each sends one message and ends its input, and gets one answer.

use std::net::SocketAddr;

use mio::Interest;
use mio::net::TcpStream;

use crate::core::crowd::Network;
use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::timers::LazyTimer;
use crate::core::workers::Place;
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::os::stream::{Received, Unread, WRITE_BUDGET, write_some};
use crate::role::access::Bytes;
use crate::role::secondary::exchange::why_broken;
use crate::role::secondary::{Key, Secondary, Timer};
use crate::wire::client::TypeIndex;
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::tube::JobRef;

/// A client with its job.
pub struct Asker {
    stream: TcpStream,
    peer: SocketAddr,
    bytes: Bytes,
    id: Option<SourceId>,
    /// Its job.
    pub job: JobRef,
    /// What it asked for.
    pub kind: TypeIndex,
    unread: Unread,
    stage: Stage,
    quiet_since: Moment,
    timer: LazyTimer,
}

/// What is in the way to or from a client.
enum Stage {
    /// Its message, with room for a header, as far as it has come.
    Collecting(Vec<u8>),
    /// Its message in a frame; empty while a worker has it.
    Waiting(Vec<u8>),
    /// The answer, and how much of that it has taken.
    Answering(Vec<u8>, usize),
}

impl Asker {
    /// Its message, for a worker.
    pub fn take_message(&mut self) -> Vec<u8> {
        match &mut self.stage {
            Stage::Waiting(message) => std::mem::take(message),
            Stage::Collecting(_) | Stage::Answering(..) => Vec::new(),
        }
    }

    /// A worker has left its message unread.
    pub fn give_back(&mut self, message: Vec<u8>) {
        if let Stage::Waiting(_) = self.stage {
            self.stage = Stage::Waiting(message);
        }
    }

    /// Whether nothing has come of a message yet.
    fn is_mute(&self) -> bool {
        matches!(&self.stage, Stage::Collecting(message) if message.len() == HEADER_BYTES)
    }
}

/// What reading a message came to.
enum Read {
    /// There may be more right away.
    More,
    /// Nothing more is there now.
    Nothing,
    /// The client has ended its input.
    Complete,
    /// It is no use.
    Failed(Reason),
}

impl Secondary {
    /// A job was claimed that workers serve.
    pub(super) fn open_asker(
        &mut self,
        reactor: &mut Handle<Key>,
        kind: TypeIndex,
        (stream, peer): (TcpStream, SocketAddr),
        job: JobRef,
    ) {
        let key = self.crews.askers.insert(Asker {
            stream,
            peer,
            bytes: Bytes::default(),
            id: None,
            job,
            kind,
            unread: Unread::default(),
            stage: Stage::Collecting(frame::begin()),
            quiet_since: reactor.now(),
            timer: LazyTimer::default(),
        });
        let asker = &mut self.crews.askers[key];
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = reactor.register(&mut asker.stream, Key::Asker(key), interest);
        if let Some(crew) = self.crews.crew(kind) {
            crew.pool.handle_job(key, Network::from(peer.ip()));
        }
        match registered {
            Ok(id) => {
                self.crews.askers[key].id = Some(id);
                self.arm_asker(key);
            }
            Err(error) => {
                log::warn!("cannot watch a data connection: {error}");
                self.fail_asker(reactor, key, Reason::ConnectionLost);
            }
        }
    }

    /// Something happened to the connection of a client.
    pub(super) fn on_asker(&mut self, reactor: &mut Handle<Key>, key: Place, ready: Ready) -> Progress {
        let Some(asker) = self.crews.askers.get_mut(key) else {
            return Progress::Drained;
        };
        asker.unread.note(ready);
        match &asker.stage {
            Stage::Collecting(_) => self.collect(reactor, key),
            Stage::Waiting(_) => {
                // All its input was read: what comes now is that it has gone.
                if let Ok(Some(error)) = asker.stream.take_error() {
                    self.fail_asker(reactor, key, why_broken(&error));
                }
                Progress::Drained
            }
            Stage::Answering(..) => self.send_answer(reactor, key),
        }
    }

    fn collect(&mut self, reactor: &mut Handle<Key>, key: Place) -> Progress {
        let kind = self.crews.askers[key].kind;
        let Some(limit) = self.crews.crew(kind).map(|crew| crew.max_message) else {
            return Progress::Drained;
        };
        let read = self.crews.askers[key].read(reactor.now(), &mut self.buffer, limit);
        match read {
            Read::More => return Progress::Again,
            Read::Nothing => {}
            Read::Complete => {
                if let Some(crew) = self.crews.crew(kind) {
                    crew.pool.handle_message(reactor.now(), key);
                    self.run_crew(reactor, kind);
                }
            }
            Read::Failed(reason) => self.fail_asker(reactor, key, reason),
        }
        Progress::Drained
    }

    /// A job has its answer.
    pub(super) fn answer_asker(&mut self, reactor: &mut Handle<Key>, key: Place, payload: Vec<u8>) {
        if let Some(asker) = self.crews.askers.get_mut(key) {
            asker.stage = Stage::Answering(payload, 0);
            let id = asker.id;
            if self.send_answer(reactor, key) == Progress::Again
                && let Some(id) = id
            {
                reactor.again(id, Ready::default());
            }
        }
    }

    fn send_answer(&mut self, reactor: &mut Handle<Key>, key: Place) -> Progress {
        let Some(asker) = self.crews.askers.get_mut(key) else {
            return Progress::Drained;
        };
        let (kind, Stage::Answering(answer, sent)) = (asker.kind, &mut asker.stage) else {
            return Progress::Drained;
        };
        let end = answer.len().min(*sent + WRITE_BUDGET);
        match write_some(&mut asker.stream, &answer[*sent..end]) {
            Ok(length) => {
                *sent += length;
                asker.bytes.sent += length as u64;
            }
            Err(error) => {
                self.fail_asker(reactor, key, why_broken(&error));
                return Progress::Drained;
            }
        }
        if *sent < answer.len() {
            return if *sent == end { Progress::Again } else { Progress::Drained };
        }
        if let Some(crew) = self.crews.crew(kind) {
            crew.pool.handle_taken(key);
            self.run_crew(reactor, kind);
        }
        Progress::Drained
    }

    /// A client has been silent for too long while its message is awaited.
    pub(super) fn on_asker_timer(&mut self, reactor: &mut Handle<Key>, key: Place) {
        let Some(asker) = self.crews.askers.get_mut(key) else {
            return;
        };
        asker.timer.fired();
        if asker.quiet_since + self.config.client_idle > reactor.now() {
            self.arm_asker(key);
        } else if let Stage::Collecting(_) = asker.stage {
            let end = if asker.is_mute() { End::Done } else { End::Failed(Reason::ConnectionTimedOut) };
            self.end_asker(reactor, key, end);
        }
    }

    fn arm_asker(&mut self, key: Place) {
        let asker = &mut self.crews.askers[key];
        if let Stage::Collecting(_) = asker.stage {
            let at = asker.quiet_since + self.config.client_idle;
            asker.timer.arm(&mut self.timers, at, Timer::Asker(key));
        }
    }

    fn fail_asker(&mut self, reactor: &mut Handle<Key>, key: Place, reason: Reason) {
        self.end_asker(reactor, key, End::Failed(reason));
    }

    fn end_asker(&mut self, reactor: &mut Handle<Key>, key: Place, end: End) {
        let kind = self.crews.askers[key].kind;
        if let Some(crew) = self.crews.crew(kind) {
            crew.pool.handle_end(key, end);
            self.run_crew(reactor, kind);
        }
    }

    /// Closes the connection and tells how its job ended.
    pub(super) fn close_asker(&mut self, reactor: &mut Handle<Key>, key: Place, end: End) {
        let mut asker = self.crews.askers.remove(key);
        self.end_job(asker.job, end, asker.peer, Some(asker.bytes));
        asker.timer.cancel(&mut self.timers);
        if let Some(id) = asker.id {
            reactor.deregister(&mut asker.stream, id);
        }
    }
}

impl Asker {
    /// Reads once, and once more where nothing but the end of the input is left.
    fn read(&mut self, now: Moment, buffer: &mut [u8], limit: usize) -> Read {
        let Stage::Collecting(message) = &mut self.stage else {
            return Read::Nothing;
        };
        for _ in 0..2 {
            if !self.unread.is_likely() {
                return Read::Nothing;
            }
            match self.unread.read(&mut self.stream, buffer) {
                Ok(Received::Bytes(length)) => {
                    self.quiet_since = now;
                    self.bytes.received += length as u64;
                    if message.len() - HEADER_BYTES + length > limit {
                        return Read::Failed(Reason::MessageTooLong);
                    }
                    message.extend_from_slice(&buffer[..length]);
                    if length == buffer.len() {
                        break;
                    }
                }
                Ok(Received::End) => {
                    frame::finish(message);
                    self.stage = Stage::Waiting(std::mem::take(message));
                    return Read::Complete;
                }
                Ok(Received::Nothing) => return Read::Nothing,
                Err(error) => return Read::Failed(why_broken(&error)),
            }
        }
        if self.unread.is_likely() { Read::More } else { Read::Nothing }
    }
}
