//! Data connections between their accept and the start of their exchange: whose job is it?

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

use mio::Interest;
use mio::net::TcpStream;

use crate::config::Admission;
use crate::core::arrival::{self, DECIDING_BYTES, Verdict};
use crate::core::crowd::Network;
use crate::core::job::{End, Reason};
use crate::core::moment::Moment;
use crate::core::service::{Undecided, Welcome};
use crate::core::timers::LazyTimer;
use crate::handler::Client;
use crate::os::clock;
use crate::os::listener;
use crate::os::reactor::{Handle, Ready, SourceId};
use crate::role::access::Bytes;
use crate::role::secondary::exchange::Exchange;
use crate::role::secondary::{Key, Secondary, Timer};
use crate::wire::client::TypeIndex;
use crate::wire::tube::JobRef;

/// So many connections may be undecided; then one goes for each that comes.
const MAX_ARRIVALS: usize = 1024;

/// A connection that has no job yet.
pub struct Arrival {
    stream: TcpStream,
    id: Option<SourceId>,
    kind: TypeIndex,
    peer: SocketAddr,
    waits: Waits,
    /// Its peer will send nothing more.
    closed: bool,
    since: Moment,
    timer: LazyTimer,
}

/// For what it waits.
#[derive(Clone, Copy)]
enum Waits {
    /// For its first bytes, or silence.
    Bytes(arrival::Arrival),
    /// For a job that the principal was asked for on its behalf.
    Job,
}

impl Arrival {
    fn new((stream, peer): (TcpStream, SocketAddr), kind: TypeIndex, waits: Waits, since: Moment) -> Self {
        Self { stream, id: None, kind, peer, waits, closed: false, since, timer: LazyTimer::default() }
    }
}

impl Secondary {
    /// A connection was accepted.
    pub(super) fn admit(
        &mut self,
        reactor: &mut Handle<Key>,
        kind: TypeIndex,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let (client, now) = (listener::client_address(peer), reactor.now());
        let connection = (stream, SocketAddr::new(client, peer.port()));
        if self.service.is_behind() {
            // The doorbell may still be in the tube.
            let _ = self.read_tube();
        }
        match self.service.welcome(kind, client, now) {
            Welcome::Admitted(job) => {
                self.make_up_for(kind, client);
                self.begin(reactor, kind, connection, job);
            }
            Welcome::Undecided => {
                let waits = Waits::Bytes(arrival::Arrival::new(now));
                let key = self.add_arrival(reactor, Arrival::new(connection, kind, waits, now));
                self.decide(reactor, key);
            }
            Welcome::Uninvited => self.uninvited(reactor, kind, connection),
        }
    }

    fn begin(
        &mut self,
        reactor: &mut Handle<Key>,
        kind: TypeIndex,
        connection: (TcpStream, SocketAddr),
        job: JobRef,
    ) {
        self.page.count_admitted();
        if self.runs.types[kind].is_some() {
            self.open_run(reactor, kind, connection, job);
            return;
        }
        if self.crews.crew(kind).is_some() {
            self.open_asker(reactor, kind, connection, job);
            return;
        }
        let time_limit = self.config.request[kind].time_limit;
        if time_limit.is_some() {
            self.page.enter_handler(job, clock::now());
        }
        let address = connection.1.ip();
        let session = self.handlers.open(kind, || Client { address, job: job.number });
        if time_limit.is_some() {
            self.page.leave_handler();
        }
        self.open_exchange(reactor, Exchange::new(connection, job, session, reactor.now(), time_limit));
    }

    /// Nobody waits for it: it is let in only where everybody is.
    fn uninvited(&mut self, reactor: &mut Handle<Key>, kind: TypeIndex, connection: (TcpStream, SocketAddr)) {
        let client = connection.1.ip();
        if self.config.admission != Admission::Open {
            self.reject(kind, client);
            return;
        }
        let now = reactor.now();
        self.service.ask_for_job(kind, client);
        let key = self.add_arrival(reactor, Arrival::new(connection, kind, Waits::Job, now));
        let until = now + self.config.queue_within;
        self.arrivals[key].timer.arm(&mut self.timers, until, Timer::Arrival(key));
    }

    /// Somebody gets a job while others wait for those that were asked for: his may be one of them,
    /// so another is asked for. At worst it expires.
    fn make_up_for(&mut self, kind: TypeIndex, client: IpAddr) {
        let waits = |arrival: &Arrival| arrival.kind == kind && matches!(arrival.waits, Waits::Job);
        if self.config.admission == Admission::Open && self.arrivals.iter().any(|(_, arrival)| waits(arrival))
        {
            self.service.ask_for_job(kind, client);
        }
    }

    /// Connections that have no job, yet or any more.
    pub(super) fn undecided(&self) -> Undecided {
        let asked_for = |(_, arrival): &(usize, &Arrival)| matches!(arrival.waits, Waits::Job);
        let asked_for = match self.config.admission {
            Admission::Open => self.arrivals.iter().filter(asked_for).count(),
            Admission::Address => 0,
        };
        Undecided { all: self.arrivals.len() + self.lingering.len(), asked_for }
    }

    fn reject(&mut self, kind: TypeIndex, client: IpAddr) {
        self.page.count_rejected();
        log::debug!("rejected {client}: no job of \"{}\" waits for it", self.config.request[kind].name);
    }

    fn add_arrival(&mut self, reactor: &mut Handle<Key>, arrival: Arrival) -> usize {
        if self.arrivals.len() >= MAX_ARRIVALS
            && let Some(goes) = self.undecided.oldest_of_greediest()
        {
            self.dismiss(reactor, goes);
        }
        let (network, since) = (Network::from(arrival.peer.ip()), arrival.since);
        let key = self.arrivals.insert(arrival);
        self.undecided.add(network, since, key);
        key
    }

    /// Something came on an undecided connection.
    pub(super) fn on_arrival(&mut self, reactor: &mut Handle<Key>, key: usize, ready: Ready) {
        if let Some(arrival) = self.arrivals.get_mut(key) {
            arrival.closed |= ready.read_closed;
            self.decide(reactor, key);
        }
    }

    pub(super) fn on_arrival_timer(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let Some(arrival) = self.arrivals.get_mut(key) else {
            return;
        };
        arrival.timer.fired();
        match arrival.waits {
            Waits::Bytes(_) => self.decide(reactor, key),
            Waits::Job if arrival.since + self.config.queue_within <= reactor.now() => {
                // The doorbell may have been lost: the table is the truth.
                if !self.seat_if_given(reactor, key) {
                    self.dismiss(reactor, key);
                }
            }
            Waits::Job => {}
        }
    }

    fn decide(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let now = reactor.now();
        let Arrival { stream, kind, peer, waits, closed, .. } = &mut self.arrivals[key];
        let (kind, peer, client, closed) = (*kind, *peer, peer.ip(), *closed);
        let Waits::Bytes(undecided) = waits else {
            return;
        };
        let mut bytes = [0; DECIDING_BYTES];
        let Ok((length, ended)) = peek(stream, &mut bytes) else {
            self.dismiss(reactor, key);
            return;
        };
        let verdict = undecided.judge(now, &bytes[..length], ended || closed, self.config.claim_within);
        let job = match verdict {
            Verdict::Wait(until) => {
                self.wait_for_bytes(reactor, key, until);
                return;
            }
            Verdict::Plain | Verdict::Silent(_) => self.service.claim_plain(kind, client, now),
            Verdict::Tracked { jeton, .. } => self.service.claim_tracked(kind, jeton, now),
            Verdict::Wrong => None,
        };
        match (job, verdict) {
            (Some(job), Verdict::Tracked { line_bytes, .. }) => {
                let taken = self.arrivals[key].stream.read_exact(&mut bytes[..line_bytes]);
                if taken.is_ok() {
                    self.seat(reactor, key, job);
                } else {
                    let end = End::Failed(Reason::ConnectionLost);
                    self.end_job(job, end, peer, Some(Bytes::default()));
                    self.dismiss(reactor, key);
                }
            }
            (Some(job), _) => {
                self.make_up_for(kind, client);
                self.seat(reactor, key, job);
            }
            (None, Verdict::Plain | Verdict::Silent(_)) if self.config.admission == Admission::Open => {
                let stream = self.leave(reactor, key);
                self.uninvited(reactor, kind, (stream, peer));
            }
            (None, Verdict::Silent(until)) => self.wait_for_bytes(reactor, key, until),
            (None, _) => self.dismiss(reactor, key),
        }
    }

    fn wait_for_bytes(&mut self, reactor: &mut Handle<Key>, key: usize, until: Moment) {
        let arrival = &mut self.arrivals[key];
        if arrival.id.is_none() {
            match reactor.register(&mut arrival.stream, Key::Arrival(key), Interest::READABLE) {
                Ok(id) => arrival.id = Some(id),
                Err(error) => {
                    log::warn!("cannot watch a data connection: {error}");
                    self.dismiss(reactor, key);
                    return;
                }
            }
        }
        arrival.timer.arm(&mut self.timers, until, Timer::Arrival(key));
    }

    /// Jobs were announced: some may be those that were asked for.
    pub(super) fn seat_uninvited(&mut self, reactor: &mut Handle<Key>) {
        if self.config.admission != Admission::Open {
            return;
        }
        let waiting = self.arrivals.iter().filter(|(_, arrival)| matches!(arrival.waits, Waits::Job));
        let mut waiting: Vec<(Moment, usize)> = waiting.map(|(key, arrival)| (arrival.since, key)).collect();
        waiting.sort_unstable();
        for (_, key) in waiting {
            self.seat_if_given(reactor, key);
        }
    }

    /// Seats a connection that waits for a job, if there is one by now.
    fn seat_if_given(&mut self, reactor: &mut Handle<Key>, key: usize) -> bool {
        let Arrival { kind, peer, .. } = self.arrivals[key];
        let job = self.service.claim_plain(kind, peer.ip(), reactor.now());
        if let Some(job) = job {
            self.seat(reactor, key, job);
        }
        job.is_some()
    }

    fn seat(&mut self, reactor: &mut Handle<Key>, key: usize, job: JobRef) {
        let Arrival { kind, peer, .. } = self.arrivals[key];
        let stream = self.leave(reactor, key);
        self.begin(reactor, kind, (stream, peer), job);
    }

    /// Closes a connection that nobody waits for.
    fn dismiss(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let Arrival { kind, peer, .. } = self.arrivals[key];
        drop(self.leave(reactor, key));
        self.reject(kind, peer.ip());
    }

    /// This process ends: nobody of them gets a job here.
    pub(super) fn dismiss_all(&mut self, reactor: &mut Handle<Key>) {
        let all: Vec<usize> = self.arrivals.iter().map(|(key, _)| key).collect();
        for key in all {
            drop(self.leave(reactor, key));
        }
    }

    fn leave(&mut self, reactor: &mut Handle<Key>, key: usize) -> TcpStream {
        let Arrival { mut stream, id, mut timer, peer, since, .. } = self.arrivals.remove(key);
        self.undecided.remove(peer.ip().into(), since, key);
        timer.cancel(&mut self.timers);
        if let Some(id) = id {
            reactor.deregister(&mut stream, id);
        }
        stream
    }
}

/// The first bytes that stand in a connection, left there; and whether nothing more will come
/// after them, as far as that shows: an end shows behind bytes only once they are taken.
fn peek(stream: &TcpStream, bytes: &mut [u8]) -> io::Result<(usize, bool)> {
    loop {
        match stream.peek(bytes) {
            Ok(0) => return Ok((0, true)),
            Ok(length) => return Ok((length, false)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, false)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
