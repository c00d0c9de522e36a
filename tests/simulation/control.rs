//! The principal's control connections, as `src/role/principal/clients.rs` keeps them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use osps::core::conversation::Conversation;
use osps::core::dispatch::NoSlot;
use osps::core::following::News;
use osps::core::job::{ClientId, End, Job, JobNumber};
use osps::core::moment::Moment;
use osps::core::slots::Followed;
use osps::wire::client::{Form, Refusal, Request, Types};
use slab::Slab;

use crate::machine::{Key, Machine, Progress};
use crate::net::{ACCEPTS_PER_TURN, CONTROL, ConnId, Input, Received};
use crate::plan::{NAMES, port};
use crate::principal::Principal;
use crate::reload::HandedOver;
use crate::sabotage::Sabotage;

const CLIENT_IDLE: Duration = Duration::from_secs(5);

/// A control connection.
struct Control {
    conn: ConnId,
    serial: u32,
    conversation: Conversation,
    timer: Option<Moment>,
    dirty: bool,
    /// The request that waits for a secondary, and until when.
    waits: Option<(Request, Moment)>,
}

/// All of them.
pub struct Clients {
    types: Types,
    all: Slab<Control>,
    places: BTreeMap<ConnId, usize>,
    last_serial: u32,
    dirty: Vec<usize>,
    waiting: VecDeque<(usize, Moment)>,
    waiting_timer: Option<Moment>,
}

impl Clients {
    /// The places of all.
    pub fn keys(&self) -> impl Iterator<Item = usize> + '_ {
        self.all.iter().map(|(key, _)| key)
    }

    pub fn is_known(&self, conn: ConnId) -> bool {
        self.places.contains_key(&conn)
    }

    /// A connection as it stands between two turns, for a successor.
    pub fn describe(&self, key: usize, followed: &[(ClientId, Followed)]) -> (ConnId, Vec<u8>) {
        let Control { conn, serial, ref conversation, waits, .. } = self.all[key];
        let id = ClientId { place: u32::try_from(key).expect("a few"), serial };
        let jobs = followed.iter().filter(|(client, _)| *client == id).map(|(_, job)| *job).collect();
        let handed_over = HandedOver { conversation: conversation.clone(), waits, jobs };
        (conn, serde_json::to_vec(&handed_over).expect("it is plain data"))
    }

    fn open(&mut self, conn: ConnId, conversation: Conversation) -> usize {
        self.last_serial += 1;
        let serial = self.last_serial;
        let client = Control { conn, serial, conversation, timer: None, dirty: false, waits: None };
        let key = self.all.insert(client);
        self.places.insert(conn, key);
        self.arm(key);
        key
    }

    pub fn new() -> Self {
        Self {
            types: Types::new(NAMES),
            all: Slab::new(),
            places: BTreeMap::new(),
            last_serial: 0,
            dirty: Vec::new(),
            waiting: VecDeque::new(),
            waiting_timer: None,
        }
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.all.iter().filter_map(|(_, client)| client.timer).chain(self.waiting_timer).min()
    }

    /// Each connection, how many of its jobs nobody has come for, and whether it follows any.
    pub fn followings(&self) -> impl Iterator<Item = (ConnId, u32, bool)> + '_ {
        self.all.iter().map(|(_, client)| {
            let following = client.conversation.following();
            (client.conn, following.unclaimed(), following.is_tracking())
        })
    }

    fn poll_request(&mut self, now: Moment, key: usize) -> Option<Request> {
        self.all[key].conversation.poll_request(now, &self.types)
    }

    fn touch(&mut self, key: usize) {
        if !std::mem::replace(&mut self.all[key].dirty, true) {
            self.dirty.push(key);
        }
    }

    fn arm(&mut self, key: usize) {
        let client = &mut self.all[key];
        client.timer = client.conversation.poll_timeout(&self.types, CLIENT_IDLE);
    }

    /// What a client waits for, if it still is the one that was put in line.
    fn waits(&self, key: usize, until: Moment) -> Option<Request> {
        let (request, its_until) = self.all.get(key)?.waits?;
        (its_until == until).then_some(request)
    }
}

impl Principal {
    pub fn accept(&mut self, sys: &mut Machine) -> Progress {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.listens {
                return Progress::Drained;
            }
            let Some(conn) = sys.accept(self.me, CONTROL) else {
                return Progress::Drained;
            };
            let key = self.clients.open(conn, Conversation::new(self.now));
            if key + 1 < usize::try_from(self.clients.last_serial).expect("a few") {
                sys.audit.coverage.count("a place among the connections was used again");
            }
        }
        Progress::Again
    }

    pub fn on_client(&mut self, sys: &mut Machine, conn: ConnId) -> Progress {
        let Some(&key) = self.clients.places.get(&conn) else {
            return Progress::Drained;
        };
        if sys.net.conns[conn].input == Input::Reset {
            self.close_client(sys, key);
            return Progress::Drained;
        }
        let conversation = &mut self.clients.all[key].conversation;
        if conversation.wants_input() {
            match sys.read(conn) {
                Received::Bytes(bytes) => conversation.handle_input(self.now, &bytes),
                Received::End => conversation.handle_end_of_input(),
                Received::Nothing => {}
            }
        }
        self.converse(sys, key);
        let more = self.clients.all[key].conversation.wants_input() && sys.has_unread(conn);
        if more { Progress::Again } else { Progress::Drained }
    }

    fn converse(&mut self, sys: &mut Machine, key: usize) {
        while let Some(request) = self.clients.poll_request(self.now, key) {
            if !self.answer(sys, key, request) {
                self.wait(sys, key, request);
            }
        }
        self.clients.touch(key);
        self.clients.arm(key);
    }

    /// Gives the job or refuses it; false where the request may wait for a secondary.
    fn answer(&mut self, sys: &mut Machine, key: usize, request: Request) -> bool {
        let (now, Request { kind, form }) = (self.now, request);
        let Control { conn, serial, ref mut conversation, .. } = self.clients.all[key];
        if self.core.refuses_requests() {
            sys.audit_refusal(false);
            conversation.refuse(now, Refusal::Stopping);
            return true;
        }
        let jeton = (form == Form::Tracked).then(|| sys.new_jeton());
        let job = Job { kind, client: sys.peer(conn), given_at: now, jeton };
        let client = ClientId { place: u32::try_from(key).expect("a few"), serial };
        let placed = match self.core.give(job, Some(client)) {
            Ok(placed) => placed,
            Err(NoSlot::NoneReady | NoSlot::AllFull | NoSlot::OverShare) => return false,
        };
        sys.audit_given_to(placed.number, conn);
        let (number, port) = (placed.number, port(placed.slot, kind));
        match (form, jeton) {
            (Form::Address, _) => conversation.answer_address(now, number, &format!("[::1]:{port}")),
            (_, Some(jeton)) => conversation.answer_tracked(now, number, port, jeton),
            (_, None) => conversation.answer_port(now, number, port),
        }
        true
    }

    /// Tells a client, unless it has gone, what has become of a job that it was given.
    pub fn report(&mut self, sys: &mut Machine, client: ClientId, number: JobNumber, news: News) {
        let key = usize::try_from(client.place).expect("a few");
        let is_meant =
            |known: &&mut Control| known.serial == client.serial || sys.sabotage == Sabotage::ReportByPlace;
        let known = self.clients.all.get_mut(key).filter(is_meant);
        sys.audit_report(known.as_ref().map(|known| known.conn), number, news);
        let Some(known) = known else {
            return;
        };
        match (sys.sabotage, news) {
            (Sabotage::ForgetStarts, News::Claimed) => return,
            (Sabotage::ForgetExpiries, News::Ended { end: End::Expired, .. }) => return,
            _ => {}
        }
        let before = known.conversation.output().len();
        known.conversation.handle_news(self.now, number, news);
        if sys.sabotage == Sabotage::ReportTwice {
            let again = known.conversation.output()[before..].to_vec();
            known.conversation.output().extend(again);
        }
        if known.conversation.has_input() || sys.has_unread(known.conn) {
            self.resume(sys, key);
        } else {
            self.clients.touch(key);
            self.clients.arm(key);
        }
    }

    fn wait(&mut self, sys: &mut Machine, key: usize, request: Request) {
        sys.audit.coverage.count("a request waited for a secondary");
        let until = self.now + sys.plan.queue_within;
        self.wait_until(key, request, until);
    }

    fn wait_until(&mut self, key: usize, request: Request, until: Moment) {
        self.clients.all[key].waits = Some((request, until));
        self.clients.waiting.push_back((key, until));
        self.clients.waiting_timer.get_or_insert(until);
    }

    pub fn serve_waiting(&mut self, sys: &mut Machine) {
        if sys.sabotage == Sabotage::ForgetWaiting {
            return;
        }
        while let Some(&(key, until)) = self.clients.waiting.front() {
            if let Some(request) = self.clients.waits(key, until) {
                if !self.answer(sys, key, request) {
                    return;
                }
                self.clients.all[key].waits = None;
                self.resume(sys, key);
            }
            self.clients.waiting.pop_front();
        }
    }

    /// Returns its place, and for whom it waits.
    pub fn take_over_client(
        &mut self,
        sys: &mut Machine,
        conn: ConnId,
        handed_over: HandedOver,
        followed: &mut Vec<(ClientId, Followed)>,
    ) -> (usize, Option<(Request, Moment)>) {
        let HandedOver { conversation, waits, jobs } = handed_over;
        let key = self.clients.open(conn, conversation);
        let id = ClientId { place: u32::try_from(key).expect("a few"), serial: self.clients.all[key].serial };
        followed.extend(jobs.into_iter().map(|job| (id, job)));
        sys.post(self.me, Key::Conn(conn));
        (key, waits)
    }

    /// What they have asked for waits on, in its order; what they have sent besides is understood.
    pub fn resume_all(&mut self, sys: &mut Machine, taken: Vec<(usize, Option<(Request, Moment)>)>) {
        let (mut waiting, mut others) = (Vec::new(), Vec::new());
        for (key, waits) in taken {
            match waits {
                Some((request, until)) => waiting.push((until, key, request)),
                None => others.push(key),
            }
        }
        waiting.sort_by_key(|&(until, key, _)| (until, key));
        for (until, key, request) in waiting {
            sys.audit.coverage.count("a request that waited was handed over");
            self.wait_until(key, request, until);
        }
        for key in others {
            self.converse(sys, key);
        }
    }

    fn refuse_the_tired(&mut self, sys: &mut Machine) {
        self.clients.waiting_timer = None;
        self.serve_waiting(sys);
        while let Some(&(key, until)) = self.clients.waiting.front() {
            if until > self.now {
                self.clients.waiting_timer = Some(until);
                return;
            }
            self.clients.waiting.pop_front();
            if self.clients.waits(key, until).is_some() {
                sys.audit.coverage.count("a request waited for too long");
                let why = self.core.dispatch().find();
                sys.audit_refusal(why.is_err());
                let why = if why == Err(NoSlot::NoneReady) { Refusal::NoneReady } else { Refusal::AllFull };
                self.refuse(sys, key, why);
            }
        }
    }

    fn refuse(&mut self, sys: &mut Machine, key: usize, why: Refusal<'_>) {
        if let Some(client) = self.clients.all.get_mut(key)
            && client.waits.take().is_some()
        {
            client.conversation.refuse(self.now, why);
            self.resume(sys, key);
        }
    }

    pub fn refuse_all_waiting(&mut self, sys: &mut Machine) {
        sys.audit_refusal(false);
        let waiting: Vec<usize> = self.clients.waiting.drain(..).map(|(key, _)| key).collect();
        for key in waiting {
            self.refuse(sys, key, Refusal::Stopping);
        }
    }

    /// Sends what is to be said, and goes on with what was said since.
    fn resume(&mut self, sys: &mut Machine, key: usize) {
        self.clients.touch(key);
        sys.post(self.me, Key::Conn(self.clients.all[key].conn));
    }

    pub fn on_client_timers(&mut self, sys: &mut Machine) {
        if self.clients.waiting_timer.is_some_and(|at| at <= self.now) {
            self.refuse_the_tired(sys);
        }
        let due = |client: &Control| client.timer.is_some_and(|at| at <= self.now);
        let due: Vec<usize> =
            self.clients.all.iter().filter(|(_, client)| due(client)).map(|(key, _)| key).collect();
        for key in due {
            let Clients { all, types, .. } = &mut self.clients;
            if all[key].conversation.handle_timeout(self.now, types, CLIENT_IDLE) {
                sys.audit.coverage.count("an idle control connection was closed");
                self.close_client(sys, key);
            } else {
                self.converse(sys, key);
            }
        }
    }

    /// The end of a turn: sends the answers. The secondaries were told before.
    pub fn answer_clients(&mut self, sys: &mut Machine) {
        for key in std::mem::take(&mut self.clients.dirty) {
            let Some(client) = self.clients.all.get_mut(key).filter(|client| client.dirty) else {
                continue;
            };
            client.dirty = false;
            let refused = client.conversation.take_refused();
            self.core.books().page().count_refused(refused);
            let (conn, output) = (client.conn, std::mem::take(client.conversation.output()));
            let is_over = client.conversation.is_over();
            if !output.is_empty() {
                sys.write(conn, &output);
                if sys.has_unread(conn) || self.clients.all[key].conversation.has_input() {
                    sys.post(self.me, Key::Conn(conn));
                }
                self.clients.arm(key);
            }
            if is_over {
                self.close_client(sys, key);
            }
        }
    }

    fn close_client(&mut self, sys: &mut Machine, key: usize) {
        let mut client = self.clients.all.remove(key);
        self.clients.places.remove(&client.conn);
        self.page().count_refused(client.conversation.take_refused());
        sys.audit_closed(client.conn);
        sys.hang_up(client.conn, false);
    }
}
