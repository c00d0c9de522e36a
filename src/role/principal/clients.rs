//! Control connections.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use mio::Interest;
use slab::Slab;

use crate::core::conversation::Conversation;
use crate::core::crowd::Network;
use crate::core::dispatch::NoSlot;
use crate::core::following::News;
use crate::core::job::{ClientId, Job, JobNumber};
use crate::core::moment::Moment;
use crate::core::slots::Followed;
use crate::core::timers::{LazyTimer, TimerId};
use crate::core::turns::Turns;
use crate::os::fifo::READABLE;
use crate::os::random;
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::os::stream::{Received, Stream, Unread, write_some};
use crate::role::principal::estate::HandedOver;
use crate::role::principal::{Key, Principal, Timer};
use crate::wire::client::{Form, Host, Refusal, Request};
use crate::wire::jeton::Jeton;

/// More than any one answer needs; a buffer that had to be larger is not kept.
const KEPT_BYTES: usize = 256;
/// Bytes read from one client in one turn.
const READ_BYTES: usize = 4096;

/// Requests that are refused in one turn because they have waited for too long.
const REFUSALS_PER_TURN: usize = 256;

/// One control connection.
pub struct Client {
    pub stream: Stream,
    /// Tells it from those who were in its place before.
    pub serial: u32,
    id: Option<SourceId>,
    pub address: IpAddr,
    /// It has one of the places; else it is only told that it has none.
    pub counts: bool,
    conversation: Conversation,
    /// The kernel may hold input that was not read, because none was wanted.
    unread: Unread,
    timer: LazyTimer,
    dirty: bool,
    /// Since when a client of a Unix socket takes nothing of what is to be sent. Over TCP the kernel
    /// looks after that (`TCP_USER_TIMEOUT`).
    stuck_since: Option<Moment>,
    /// The request that waits for a secondary, and until when.
    waits: Option<(Request, Moment)>,
}

/// Clients that wait for a secondary: served in turn by address, refused in the order in which
/// they came. Who has gone or was answered meanwhile is passed over.
#[derive(Default)]
pub struct Waiting {
    turns: Turns<(usize, Moment)>,
    deadlines: VecDeque<(Network, usize, Moment)>,
    timer: Option<TimerId>,
}

impl Waiting {
    /// Takes out everybody.
    pub fn drain(&mut self) -> Vec<usize> {
        self.deadlines.clear();
        self.turns.drain().into_iter().map(|(key, _)| key).collect()
    }
}

impl Client {
    /// Since when it could be closed without breaking a promise.
    pub fn idle_since(&self) -> Option<Moment> {
        self.conversation.idle_since().filter(|_| !self.unread.is_likely())
    }

    /// All that a successor needs to go on with it.
    pub fn describe(&self, jobs: Vec<Followed>) -> HandedOver {
        HandedOver {
            address: self.address,
            is_tcp: self.stream.is_tcp(),
            counts: self.counts,
            conversation: Some(self.conversation.clone()),
            waits: self.waits,
            stuck_since: self.stuck_since,
            jobs,
        }
    }

    /// It has been somebody's client before. Returns its serial number here.
    pub fn go_on_being(&mut self, stuck_since: Option<Moment>) -> u32 {
        self.stuck_since = stuck_since;
        self.serial
    }

    /// What it waits for cannot be had any more.
    pub fn refuse(&mut self, now: Moment, refusal: Refusal<'_>) {
        self.conversation.refuse(now, refusal);
    }

    /// Reads once.
    fn read(&mut self, now: Moment) -> io::Result<()> {
        let mut buffer = [0; READ_BYTES];
        match self.unread.read(&mut self.stream, &mut buffer)? {
            Received::Bytes(length) => self.conversation.handle_input(now, &buffer[..length]),
            Received::End => self.conversation.handle_end_of_input(),
            Received::Nothing => {}
        }
        Ok(())
    }

    /// Reads once, although nothing was announced.
    fn look(&mut self, now: Moment) -> io::Result<()> {
        self.unread.note(READABLE);
        self.read(now)
    }

    /// Sends what the conversation says. Returns whether all of it is out.
    fn write(&mut self, now: Moment) -> io::Result<bool> {
        let output = self.conversation.output();
        let written = write_some(&mut self.stream, output)?;
        output.drain(..written);
        if output.is_empty() && output.capacity() > KEPT_BYTES {
            *output = Vec::new();
        }
        if output.is_empty() || self.stream.is_tcp() {
            self.stuck_since = None;
        } else if written > 0 || self.stuck_since.is_none() {
            self.stuck_since = Some(now);
        }
        Ok(self.conversation.output().is_empty())
    }
}

impl Principal {
    pub(super) fn open_client(
        &mut self,
        reactor: &mut Handle<Key>,
        stream: Stream,
        address: IpAddr,
        conversation: Conversation,
        counts: bool,
    ) -> Option<usize> {
        self.last_serial = self.last_serial.wrapping_add(1);
        let key = self.clients.insert(Client {
            stream,
            serial: self.last_serial,
            id: None,
            address,
            counts,
            conversation,
            unread: Unread::default(),
            timer: LazyTimer::default(),
            dirty: false,
            stuck_since: None,
            waits: None,
        });
        let client = &mut self.clients[key];
        let interest = Interest::READABLE | Interest::WRITABLE;
        match reactor.register(&mut client.stream, Key::Client(key), interest) {
            Ok(id) => {
                client.id = Some(id);
                self.touch(key);
                self.arm(key);
                Some(key)
            }
            Err(error) => {
                log::warn!("cannot watch a control connection: {error}");
                self.close_client(reactor, key);
                None
            }
        }
    }

    pub(super) fn on_client(&mut self, reactor: &mut Handle<Key>, key: usize, ready: Ready) -> Progress {
        let Some(client) = self.clients.get_mut(key) else {
            return Progress::Drained;
        };
        client.unread.note(ready);
        if client.unread.is_likely()
            && client.conversation.wants_input()
            && client.read(reactor.now()).is_err()
        {
            self.door.connections.broken += 1;
            self.close_client(reactor, key);
            return Progress::Drained;
        }
        if ready.writable {
            self.touch(key);
        }
        self.converse(reactor, key);
        let more = self
            .clients
            .get(key)
            .is_some_and(|client| client.unread.is_likely() && client.conversation.wants_input());
        if more { Progress::Again } else { Progress::Drained }
    }

    pub(super) fn on_client_timer(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.timer.fired();
        let idle = self.config.client_idle;
        if client.stuck_since.is_some_and(|since| since + idle <= reactor.now()) {
            self.door.connections.broken += 1;
            self.close_client(reactor, key);
            return;
        }
        // What came while this process had to wait for the CPU is no silence.
        if client.conversation.wants_input() && client.look(reactor.now()).is_err() {
            self.door.connections.broken += 1;
            self.close_client(reactor, key);
            return;
        }
        if client.conversation.handle_timeout(reactor.now(), &self.types, idle) {
            self.door.connections.idle += 1;
            self.close_client(reactor, key);
            return;
        }
        let is_unread = client.unread.is_likely();
        self.touch(key);
        self.converse(reactor, key);
        if is_unread {
            self.resume(reactor, key);
        }
    }

    /// Understands what has come and answers what can be answered.
    pub(super) fn converse(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let now = reactor.now();
        while let Some(client) = self.clients.get_mut(key)
            && let Some(request) = client.conversation.poll_request(now, &self.types)
        {
            // Nobody overtakes those who wait: who is served is settled at the end of the turn.
            let others_wait = self.waiting.turns.peek().is_some() && !self.core.refuses_requests();
            if others_wait || self.answer(reactor, key, request).is_err() {
                self.wait(reactor, key, request);
            }
        }
        self.touch(key);
        self.arm(key);
    }

    /// Gives the job or refuses it.
    ///
    /// # Errors
    /// Says why the request has to wait.
    fn answer(&mut self, reactor: &mut Handle<Key>, key: usize, request: Request) -> Result<(), NoSlot> {
        let now = reactor.now();
        let Client { address, serial, ref mut conversation, .. } = self.clients[key];
        if self.core.refuses_requests() {
            conversation.refuse(now, Refusal::Stopping);
            return Ok(());
        }
        self.core.may_give(address)?;
        let Request { kind, form } = request;
        let jeton = match form {
            Form::Tracked => match random::bytes() {
                Ok(bytes) => Some(Jeton::from_bytes(bytes)),
                Err(error) => {
                    log::error!("no random bytes for a jeton: {error}");
                    conversation.refuse(now, Refusal::NoneReady);
                    return Ok(());
                }
            },
            Form::Port | Form::Address => None,
        };
        let job = Job { kind, client: address, given_at: now, jeton };
        let client = u32::try_from(key).ok().map(|place| ClientId { place, serial });
        let placed = self.core.give(job, client)?;
        let (number, port) = (placed.number, self.sheet.ports[placed.slot][kind]);
        log::debug!(
            "job {number}, {}, for {address}: secondary {}",
            self.config.request[kind].name,
            placed.slot + 1
        );
        match (form, jeton) {
            (Form::Address, _) => {
                let address = self.host(key).with_port(port);
                self.clients[key].conversation.answer_address(now, number, &address);
            }
            (_, Some(jeton)) => conversation.answer_tracked(now, number, port, jeton),
            (_, None) => conversation.answer_port(now, number, port),
        }
        Ok(())
    }

    /// Where this client reaches secondaries: as is announced, else where it has reached us.
    fn host(&self, key: usize) -> Host {
        match self.clients[key].stream.reached_at() {
            Some(address) if self.config.announce.is_none() => Host::Address(address),
            Some(_) | None => self.host.clone(),
        }
    }

    /// Tells a client, unless it has gone, what has become of a job that it was given.
    pub(super) fn report(
        &mut self,
        reactor: &mut Handle<Key>,
        client: ClientId,
        number: JobNumber,
        news: News,
    ) {
        let key = client.place as usize;
        if let Some(known) = self.clients.get_mut(key).filter(|known| known.serial == client.serial) {
            known.conversation.handle_news(reactor.now(), number, news);
            if known.conversation.has_input() || known.unread.is_likely() {
                // It may have been waiting for that.
                self.resume(reactor, key);
            } else if !known.conversation.output().is_empty() {
                self.touch(key);
            }
            self.arm(key);
        }
    }

    fn wait(&mut self, reactor: &mut Handle<Key>, key: usize, request: Request) {
        self.wait_until(key, request, reactor.now() + self.config.queue_within);
    }

    pub(super) fn wait_until(&mut self, key: usize, request: Request, until: Moment) {
        self.clients[key].waits = Some((request, until));
        self.forget_who_left();
        let network = Network::from(self.clients[key].address);
        self.waiting.turns.push(network, (key, until));
        self.waiting.deadlines.push_back((network, key, until));
        if self.waiting.timer.is_none() {
            self.waiting.timer = Some(self.timers.arm(until, Timer::Waiting));
        }
    }

    /// Passes over those who no longer wait before the queues grow: they have room for twice as many as
    /// ever waited at once, however many come and go within `queue_within`.
    fn forget_who_left(&mut self) {
        let Waiting { turns, deadlines, .. } = &mut self.waiting;
        if deadlines.len() < deadlines.capacity() {
            return;
        }
        let clients = &self.clients;
        let waits = |key, until| request_that_waits(clients, key, until).is_some();
        deadlines.retain(|&(_, key, until)| waits(key, until));
        turns.retain(|&(key, until)| waits(key, until));
        if deadlines.len() > deadlines.capacity() / 2 {
            deadlines.reserve(deadlines.capacity());
        }
    }

    /// Answers those who wait, as far as secondaries can take their jobs.
    pub(super) fn serve_waiting(&mut self, reactor: &mut Handle<Key>) {
        while let Some(&(key, until)) = self.waiting.turns.peek() {
            if let Some(request) = self.waits(key, until) {
                match self.answer(reactor, key, request) {
                    Ok(()) => {
                        self.clients[key].waits = None;
                        self.resume(reactor, key);
                        self.waiting.turns.pop();
                    }
                    Err(NoSlot::OverShare) => self.waiting.turns.put_off(),
                    Err(NoSlot::NoneReady | NoSlot::AllFull) => break,
                }
            } else {
                self.waiting.turns.discard();
            }
        }
        self.waiting.turns.bring_back();
    }

    /// Refuses those who have waited for `queue_within`.
    pub(super) fn refuse_the_tired(&mut self, reactor: &mut Handle<Key>) {
        self.waiting.timer = None;
        self.serve_waiting(reactor);
        for refused in 0.. {
            let Some(&(network, key, until)) = self.waiting.deadlines.front() else {
                return;
            };
            if until > reactor.now() || refused == REFUSALS_PER_TURN {
                self.waiting.timer = Some(self.timers.arm(until, Timer::Waiting));
                return;
            }
            self.waiting.deadlines.pop_front();
            self.waiting.turns.drop_while(network, |&(_, its_until)| its_until <= until);
            if self.waits(key, until).is_some() {
                let why = match self.core.may_give(self.clients[key].address) {
                    Err(NoSlot::NoneReady) => Refusal::NoneReady,
                    Err(NoSlot::OverShare) => Refusal::OverShare,
                    Ok(()) | Err(NoSlot::AllFull) => Refusal::AllFull,
                };
                self.refuse_waiting(reactor, key, why);
            }
        }
    }

    /// What a client waits for, if it still is the one that was put in line.
    fn waits(&self, key: usize, until: Moment) -> Option<Request> {
        request_that_waits(&self.clients, key, until)
    }

    pub(super) fn refuse_waiting(&mut self, reactor: &mut Handle<Key>, key: usize, refusal: Refusal<'_>) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        if client.waits.take().is_some() {
            client.conversation.refuse(reactor.now(), refusal);
            self.resume(reactor, key);
        }
    }

    /// A client that had waited was answered: sends that, and goes on with what it said since.
    fn resume(&mut self, reactor: &mut Handle<Key>, key: usize) {
        self.touch(key);
        if let Some(id) = self.clients.get(key).and_then(|client| client.id) {
            reactor.again(id, Ready::default());
        }
    }

    fn touch(&mut self, key: usize) {
        if let Some(client) = self.clients.get_mut(key)
            && !std::mem::replace(&mut client.dirty, true)
        {
            self.dirty.push(key);
        }
    }

    /// The end of a turn: sends the answers. The secondaries were told before.
    pub(super) fn answer_clients(&mut self, reactor: &mut Handle<Key>) {
        // A connection that closes may let another be heard, which is to be answered, too.
        let mut next = 0;
        while let Some(&key) = self.dirty.get(next) {
            next += 1;
            if let Some(client) = self.clients.get_mut(key).filter(|client| client.dirty) {
                client.dirty = false;
                self.send_answers(reactor, key);
            }
        }
        self.dirty.clear();
    }

    fn send_answers(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let client = &mut self.clients[key];
        self.core.books().page().count_refused(client.conversation.take_refused());
        let before = client.conversation.output().len();
        match client.write(reactor.now()) {
            Err(_) => {
                self.door.connections.broken += 1;
                self.close_client(reactor, key);
            }
            Ok(true) if client.conversation.is_over() => self.close_client(reactor, key),
            Ok(true) if before > 0 => {
                // There is room again for what may have been held back.
                let held_back = client.unread.is_likely() || client.conversation.has_input();
                if held_back && let Some(id) = client.id {
                    reactor.again(id, Ready::default());
                }
                self.arm(key);
            }
            Ok(true) => {}
            Ok(false) => self.arm(key),
        }
    }

    pub(super) fn close_client(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let mut client = self.clients.remove(key);
        client.timer.cancel(&mut self.timers);
        if let Some(id) = client.id {
            reactor.deregister(&mut client.stream, id);
        }
        self.page().count_refused(client.conversation.take_refused());
        let Client { stream, address, counts, .. } = client;
        drop(stream);
        if counts {
            self.door.crowd.handle_departure(address.into());
        }
    }

    /// Sees to it that the conversation is woken in time.
    fn arm(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let idle = self.config.client_idle;
        let stuck_until = client.stuck_since.map(|since| since + idle);
        let at = client.conversation.poll_timeout(&self.types, idle).into_iter().chain(stuck_until).min();
        let Some(at) = at else {
            return;
        };
        client.timer.arm(&mut self.timers, at, Timer::Client(key));
    }
}

/// The request of a client that still waits until then.
fn request_that_waits(clients: &Slab<Client>, key: usize, until: Moment) -> Option<Request> {
    let (request, its_until) = clients.get(key)?.waits?;
    (its_until == until).then_some(request)
}
