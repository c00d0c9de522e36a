//! One connection of a browser or a scraper: turns its bytes into requests, and responses into bytes.
//!
//! Pure: the shell feeds bytes and time, asks for the next action, and sends what collects in
//! [`Conversation::output`]. A turn of the shell is: [`Conversation::handle_input`] with what was read while
//! [`Conversation::wants_input`], then [`Conversation::poll_action`] until it has nothing more, then the output,
//! then [`Conversation::handle_written`]; from `poll_action` again where all was sent.
//!
//! Memory is bounded: as much input as one head and one read, one response, or one event.

use std::time::Duration;

use crate::core::moment::Moment;
use crate::wire::http::{Body, Fault, MAX_HEAD_BYTES, Request, Response, parse_request};

/// How long the head of a request may take from its first byte on.
pub const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may stay open without a request.
pub const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take nothing of what is sent to it.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take for all of a response, or of an event.
pub const ALL_TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// How long, and how much, is read and thrown away after a request that cannot be answered, so that closing
/// does not reset the connection before the client has read why.
const DISCARD_WITHIN: Duration = Duration::from_secs(1);
const DISCARD_BYTES: usize = 64 * 1024;

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give the response to this request to [`Conversation::respond`].
    Respond(Request),
    /// Close the connection.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing of a request has come.
    Idle { since: Moment },
    /// A request has begun.
    Head { since: Moment },
    /// A request waits for its response.
    Asked { is_head: bool, is_old: bool, keep_alive: bool },
    /// Events are sent until either side closes.
    Streaming,
    /// The client was told what is wrong; what still comes is thrown away.
    Discarding { until: Moment, bytes: usize },
    /// The connection closes when the output is sent.
    Over,
}

/// What has not been sent yet.
#[derive(Debug)]
struct Sending {
    bytes: Vec<u8>,
    sent: usize,
    since: Moment,
    taken_at: Moment,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Conversation {
    state: State,
    input: Vec<u8>,
    input_ended: bool,
    sending: Option<Sending>,
    /// Whether a fault was answered of which the shell has not heard: it counts them.
    refused: bool,
}

impl Conversation {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        let state = State::Idle { since: now };
        Self { state, input: Vec::new(), input_ended: false, sending: None, refused: false }
    }

    /// Bytes arrived.
    pub fn handle_input(&mut self, now: Moment, bytes: &[u8]) {
        match &mut self.state {
            State::Streaming | State::Over => {}
            State::Discarding { bytes: discarded, .. } => *discarded += bytes.len(),
            State::Idle { .. } if bytes.is_empty() => {}
            State::Idle { .. } => {
                self.state = State::Head { since: now };
                self.input.extend_from_slice(bytes);
            }
            State::Head { .. } | State::Asked { .. } => self.input.extend_from_slice(bytes),
        }
    }

    /// The client will send nothing more. One that has asked still gets its response.
    pub fn handle_end_of_input(&mut self) {
        self.input_ended = true;
    }

    /// So many bytes of the output were sent.
    pub fn handle_written(&mut self, now: Moment, bytes: usize) {
        if let Some(sending) = self.sending.as_mut().filter(|_| bytes > 0) {
            sending.sent += bytes;
            sending.taken_at = now;
            if sending.sent >= sending.bytes.len() {
                self.sending = None;
                self.after_response(now);
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        if self.sending.as_ref().is_some_and(|sending| sending.until() <= now) {
            self.sending = None;
            self.finish();
        }
        match self.state {
            State::Idle { since } if self.sending.is_none() && since + IDLE <= now => self.finish(),
            State::Head { since } if self.sending.is_none() && since + HEAD_WITHIN <= now => {
                self.refuse(now, Fault::TooSlow);
            }
            State::Discarding { until, .. } if until <= now => self.finish(),
            State::Idle { .. }
            | State::Head { .. }
            | State::Asked { .. }
            | State::Streaming
            | State::Discarding { .. }
            | State::Over => {}
        }
    }

    /// When [`Conversation::handle_timeout`] should be called, and [`Conversation::poll_action`] after it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let of_state = match self.state {
            State::Discarding { until, .. } => Some(until),
            // While something is being sent, its leaving is awaited.
            State::Idle { .. } | State::Head { .. } if self.sending.is_some() => None,
            State::Idle { since } => Some(since + IDLE),
            State::Head { since } => Some(since + HEAD_WITHIN),
            State::Asked { .. } | State::Streaming | State::Over => None,
        };
        of_state.into_iter().chain(self.sending.as_ref().map(Sending::until)).min()
    }

    /// What the shell is to do next. A request that is returned must be answered before there is another; the
    /// next one waits until the response to the one before was sent.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action> {
        match self.state {
            State::Head { .. } if self.sending.is_none() => {
                if let Some(request) = self.next_request(now) {
                    return Some(Action::Respond(request));
                }
            }
            State::Discarding { bytes, .. } if self.input_ended || bytes > DISCARD_BYTES => self.finish(),
            State::Idle { .. } | State::Streaming if self.input_ended => self.finish(),
            State::Idle { .. }
            | State::Head { .. }
            | State::Asked { .. }
            | State::Streaming
            | State::Discarding { .. }
            | State::Over => {}
        }
        (self.state == State::Over && self.sending.is_none()).then_some(Action::Close)
    }

    /// The response to the request that was returned last.
    pub fn respond(&mut self, now: Moment, response: &Response) {
        let State::Asked { is_head, is_old, keep_alive } = self.state else {
            debug_assert!(false, "a response without a request");
            return;
        };
        let streams = response.body == Body::Events;
        let connection = match (keep_alive && !streams, is_old) {
            (false, _) => Some("close"),
            (true, true) => Some("keep-alive"),
            (true, false) => None,
        };
        self.send(now, |output| response.write(connection, is_head, output));
        self.state = match (streams && !is_head, keep_alive && !streams) {
            (true, _) => State::Streaming,
            (false, false) => State::Over,
            (false, true) if self.input.is_empty() => State::Idle { since: now },
            // Its time counts from when the response before it was sent.
            (false, true) => State::Head { since: now },
        };
        if !matches!(self.state, State::Head { .. }) {
            // A client that once sent much ahead must not hold the memory for ever.
            self.input = Vec::new();
        }
    }

    /// Whether a request that is none, or that nobody may make here, was answered with what is wrong since this
    /// was asked last. The shell never sees such a request.
    pub fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// Whether this is a connection for events.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.state == State::Streaming
    }

    /// Sends an event, as [`crate::wire::http::event`] makes it, unless the client is still taking what was sent
    /// before: it misses this one, and gets a newer one later. Returns whether it was sent.
    pub fn send_event(&mut self, now: Moment, event: &str) -> bool {
        let is_free = self.is_streaming() && self.sending.is_none();
        if is_free {
            self.send(now, |output| output.extend_from_slice(event.as_bytes()));
        }
        is_free
    }

    /// Bytes to send to the client.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.sending.as_ref().map_or(&[], |sending| &sending.bytes[sending.sent..])
    }

    /// Whether more bytes should be read from the client now.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.input_ended && self.state != State::Over && self.input.len() < MAX_HEAD_BYTES
    }

    /// Since when the client has nothing to get and has asked for nothing: such a connection may be closed
    /// where places are needed.
    #[must_use]
    pub fn idle_since(&self) -> Option<Moment> {
        match self.state {
            State::Idle { since } if self.sending.is_none() => Some(since),
            State::Idle { .. }
            | State::Head { .. }
            | State::Asked { .. }
            | State::Streaming
            | State::Discarding { .. }
            | State::Over => None,
        }
    }

    fn next_request(&mut self, now: Moment) -> Option<Request> {
        self.skip_empty_lines();
        match parse_request(&self.input) {
            Ok(Some((request, length))) => {
                self.input.drain(..length);
                let Request { is_head, is_old, keep_alive, .. } = request;
                self.state = State::Asked { is_head, is_old, keep_alive };
                return Some(request);
            }
            // What has come was empty lines only.
            Ok(None) if self.input.is_empty() && self.input_ended => self.finish(),
            Ok(None) if self.input.is_empty() => self.state = State::Idle { since: now },
            Ok(None) if !self.input_ended => {}
            Ok(None) => self.refuse(now, Fault::CutOff),
            Err(fault) => self.refuse(now, fault),
        }
        None
    }

    /// Empty lines before a request are passed over (RFC 9112, section 2.2): they are no beginning of one.
    fn skip_empty_lines(&mut self) {
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let empty = self.input.iter().take_while(|byte| is_end(byte)).count();
        self.input.drain(..empty);
    }

    /// Answers what cannot be served, and closes once the client has had time to read that.
    fn refuse(&mut self, now: Moment, fault: Fault) {
        let is_head = self.input.starts_with(b"HEAD ");
        self.send(now, |output| Response::from(fault).write(Some("close"), is_head, output));
        self.state = State::Discarding { until: now + DISCARD_WITHIN, bytes: self.input.len() };
        self.input = Vec::new();
        self.refused = true;
    }

    /// All was sent: the time of what comes next counts from here.
    fn after_response(&mut self, now: Moment) {
        match &mut self.state {
            State::Idle { since } | State::Head { since } => *since = now,
            State::Discarding { until, .. } => *until = now + DISCARD_WITHIN,
            State::Asked { .. } | State::Streaming | State::Over => {}
        }
    }

    fn send(&mut self, now: Moment, write: impl FnOnce(&mut Vec<u8>)) {
        let sending = self.sending.get_or_insert_with(|| Sending::new(now));
        write(&mut sending.bytes);
    }

    fn finish(&mut self) {
        self.state = State::Over;
        self.input = Vec::new();
    }
}

impl Sending {
    fn new(now: Moment) -> Self {
        Self { bytes: Vec::new(), sent: 0, since: now, taken_at: now }
    }

    /// Until when the client has to take more of it.
    fn until(&self) -> Moment {
        (self.taken_at + TAKEN_WITHIN).min(self.since + ALL_TAKEN_WITHIN)
    }
}

#[cfg(test)]
mod tests;
