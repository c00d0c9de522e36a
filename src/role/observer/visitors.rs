//! Connections of browsers and scrapers.

use mio::Interest;

use crate::core::moment::Moment;
use crate::observer::conversation::{Action, Conversation};
use crate::os::reactor::{Handle, Progress, Ready, SourceId};
use crate::os::stream::{Received, Stream, Unread, WRITE_BUDGET, write_some};
use crate::role::observer::{Key, Observer};
use crate::wire::http::{Body, Request, Response};

/// Bytes read from one visitor in one turn.
const READ_BYTES: usize = 4096;
/// Requests of one visitor that are answered in one turn.
const REQUESTS_PER_TURN: usize = 8;

/// A connection.
pub struct Visitor {
    stream: Stream,
    id: SourceId,
    conversation: Conversation,
    unread: Unread,
    /// The kernel took less than there was: it tells when it takes more.
    is_choked: bool,
}

impl Visitor {
    pub fn is_streaming(&self) -> bool {
        self.conversation.is_streaming()
    }

    pub fn tell(&mut self, now: Moment, event: &str) {
        self.conversation.send_event(now, event);
    }

    pub fn deadline(&self) -> Option<Moment> {
        self.conversation.poll_timeout()
    }

    pub fn let_time_pass(&mut self, now: Moment) {
        self.conversation.handle_timeout(now);
    }

    /// Sends what there is, as far as it is taken. Returns whether the connection lives.
    fn write(&mut self, now: Moment) -> bool {
        let output = self.conversation.output();
        if output.is_empty() || self.is_choked {
            return true;
        }
        let part = &output[..output.len().min(WRITE_BUDGET)];
        match write_some(&mut self.stream, part) {
            Ok(written) => {
                self.is_choked = written < part.len();
                self.conversation.handle_written(now, written);
                true
            }
            Err(_) => false,
        }
    }

    /// Reads once. Returns whether the connection lives.
    fn read(&mut self, now: Moment) -> bool {
        let mut buffer = [0; READ_BYTES];
        match self.unread.read(&mut self.stream, &mut buffer) {
            Ok(Received::Bytes(length)) => self.conversation.handle_input(now, &buffer[..length]),
            Ok(Received::End) => self.conversation.handle_end_of_input(),
            Ok(Received::Nothing) => {}
            Err(_) => return false,
        }
        true
    }
}

impl Observer {
    pub(super) fn welcome(&mut self, reactor: &mut Handle<Key>, mut stream: Stream) {
        let entry = self.visitors.vacant_entry();
        let key = Key::Visitor(entry.key());
        match reactor.register(&mut stream, key, Interest::READABLE | Interest::WRITABLE) {
            Ok(id) => {
                self.visits.accepted += 1;
                let conversation = Conversation::new(reactor.now());
                let unread = Unread::default();
                entry.insert(Visitor { stream, id, conversation, unread, is_choked: false });
            }
            Err(error) => log::warn!("cannot watch a connection: {error}"),
        }
    }

    /// Closes the connection that has been idle longest. Returns whether there was one.
    pub(super) fn part_with_an_idle_one(&mut self, reactor: &mut Handle<Key>) -> bool {
        let idle = |(key, visitor): (usize, &Visitor)| Some((visitor.conversation.idle_since()?, key));
        let Some((_, key)) = self.visitors.iter().filter_map(idle).min() else {
            return false;
        };
        self.close(reactor, key);
        true
    }

    /// Closes a connection where there are as many as there can be: one for events while these are more than half,
    /// as its browser comes again by itself, else an idle one. Returns whether there was one.
    pub(super) fn part_with_somebody(&mut self, reactor: &mut Handle<Key>) -> bool {
        let too_many_listen = self.listening() > self.visitors.len() / 2;
        let listens = |(key, visitor): (usize, &Visitor)| visitor.is_streaming().then_some(key);
        match self.visitors.iter().find_map(listens).filter(|_| too_many_listen) {
            Some(key) => {
                self.close(reactor, key);
                true
            }
            None => self.part_with_an_idle_one(reactor),
        }
    }

    fn listening(&self) -> usize {
        self.visitors.iter().filter(|(_, visitor)| visitor.is_streaming()).count()
    }

    pub(super) fn on_visitor(&mut self, reactor: &mut Handle<Key>, key: usize, ready: Ready) -> Progress {
        let Some(visitor) = self.visitors.get_mut(key) else {
            return Progress::Drained;
        };
        visitor.unread.note(ready);
        visitor.is_choked &= !ready.writable;
        self.go_on(reactor, key);
        Progress::Drained
    }

    /// Does what can be done for a visitor now.
    pub(super) fn go_on(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let now = reactor.now();
        for _ in 0..REQUESTS_PER_TURN {
            let Some(visitor) = self.visitors.get_mut(key) else {
                return;
            };
            let reads = visitor.conversation.wants_input() && visitor.unread.is_likely();
            let lives = !reads || visitor.read(now);
            let action = if lives { visitor.conversation.poll_action(now) } else { Some(Action::Close) };
            let is_idle = action.is_none();
            self.visits.note_refused(visitor.conversation.take_refused());
            match action {
                Some(Action::Close) => {
                    self.close(reactor, key);
                    return;
                }
                Some(Action::Respond(request)) => {
                    let response = self.answer(now, &request);
                    self.visits.note_answer(response.status);
                    self.visitors[key].conversation.respond(now, &response);
                }
                None => {}
            }
            let visitor = &mut self.visitors[key];
            let was_sending = !visitor.conversation.output().is_empty();
            if !visitor.write(now) {
                self.close(reactor, key);
                return;
            }
            let is_sending = !visitor.conversation.output().is_empty();
            let (all_sent, can_write) = (was_sending && !is_sending, is_sending && !visitor.is_choked);
            let can_read = visitor.conversation.wants_input() && visitor.unread.is_likely();
            // What was sent to its end has something behind it: the next request, or the end.
            if is_idle && !all_sent && !can_write && !can_read {
                return;
            }
        }
        // The others first.
        reactor.again(self.visitors[key].id, Ready::default());
    }

    fn answer(&mut self, now: Moment, request: &Request) -> Response {
        self.read(now);
        let response = self.site.respond(now, request);
        // Who listens stays: some places are for those who ask once.
        let most = self.places / 2;
        if response.body == Body::Events && self.listening() >= most {
            return Response::text(503, format!("{most} listen already: no more at once\n"));
        }
        response
    }

    /// Whether a place is free, or can be made so.
    pub(super) fn has_room(&self) -> bool {
        let is_idle = |(_, visitor): (usize, &Visitor)| visitor.conversation.idle_since().is_some();
        self.visitors.len() < self.places || self.visitors.iter().any(is_idle)
    }

    fn close(&mut self, reactor: &mut Handle<Key>, key: usize) {
        let mut visitor = self.visitors.remove(key);
        reactor.deregister(&mut visitor.stream, visitor.id);
    }
}
