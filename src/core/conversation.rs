//! One control connection: turns a client's bytes into requests, and answers into bytes.
//!
//! Two framings are told apart by the client's own bytes. A connection is *bare*
//! until its first newline, so that `send(b"requetetype1")` followed by one `recv`
//! works; from then on it is *line-framed*. What a client gets does not depend on
//! how TCP cuts its bytes into segments.
//!
//! Pure: the shell feeds bytes and time, asks for the next request, and writes out
//! what collects in [`Conversation::output`].

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::following::{Following, News};
use crate::core::job::JobNumber;
use crate::core::moment::Moment;
use crate::core::refused::Refused;
use crate::wire::client::{MAX_REQUEST_BYTES, Prefix, Refusal, Request, Types, parse_request};
use crate::wire::jeton::Jeton;

/// How long a bare request must be followed by silence where its end is not plain.
pub const BARE_SILENCE: Duration = Duration::from_millis(50);
/// How long a line may take from its first byte to its newline, where `client_idle` is not
/// shorter: who sends a byte a second must not keep a connection for minutes.
pub const LINE_WITHIN: Duration = Duration::from_secs(10);
/// How long, and how much, is read and thrown away after an over-long request, so
/// that closing does not reset the connection before the client has read its answer.
const DISCARD_WITHIN: Duration = Duration::from_secs(1);
const DISCARD_BYTES: usize = 64 * 1024;
/// With this much unsent output nothing more is read from a client.
const OUTPUT_LIMIT: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    /// No newline was seen yet.
    Bare,
    /// A bare request waits for its answer.
    BareAsked,
    /// A bare answer went out; a newline that comes next completes it to a line.
    BareAnswered { lacks: String },
    /// A newline was seen.
    Lines,
    /// A line request waits for its answer.
    LineAsked,
    /// The client was sent away with an answer; what still comes is thrown away.
    /// `lacks` is what a newline still brings, where none was seen.
    Discarding { until: Moment, bytes: usize, lacks: Option<String> },
    /// Nothing more will be read; the connection closes when the output is sent.
    Over,
}

/// The state of one control connection. A successor of its principal goes on from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Conversation {
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When the client's last byte came, or the last answer or news were given.
    quiet_since: Moment,
    /// When the client's last byte came.
    heard_at: Moment,
    /// When the first byte of what stands in `input` came.
    line_since: Moment,
    input_ended: bool,
    following: Following,
    refused: Refused,
}

impl Conversation {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            state: State::Bare,
            input: Vec::new(),
            output: Vec::new(),
            quiet_since: now,
            heard_at: now,
            line_since: now,
            input_ended: false,
            following: Following::default(),
            refused: Refused::default(),
        }
    }

    /// A connection that is sent away before it has said anything.
    #[must_use]
    pub fn turned_away(now: Moment, refusal: Refusal<'_>) -> Self {
        let mut conversation = Self { state: State::LineAsked, ..Self::new(now) };
        conversation.refuse(now, refusal);
        conversation.discard_from(now, None);
        conversation
    }

    /// Bytes arrived. Call [`Conversation::poll_request`] until it has nothing more.
    pub fn handle_input(&mut self, now: Moment, bytes: &[u8]) {
        self.quiet_since = now;
        self.heard_at = now;
        if self.input.is_empty() {
            self.line_since = now;
        }
        self.input.extend_from_slice(bytes);
    }

    /// The client will send nothing more.
    pub fn handle_end_of_input(&mut self) {
        self.input_ended = true;
    }

    /// Something has become of a job that was given here.
    pub fn handle_news(&mut self, now: Moment, number: JobNumber, news: News) {
        self.quiet_since = now;
        self.following.handle_news(number, news, &mut self.output);
    }

    /// Time has passed. Returns whether the client was silent for `idle` while nothing was owed
    /// to it: then the connection is over. (Who takes nothing of what was sent to it is the
    /// kernel's business: `TCP_USER_TIMEOUT`.)
    pub fn handle_timeout(&mut self, now: Moment, types: &Types, idle: Duration) -> bool {
        if let State::Discarding { until, .. } = self.state
            && until.min(self.heard_at + BARE_SILENCE) <= now
        {
            self.finish();
        }
        if self.waits_for_newline(types) && self.line_until(idle) <= now {
            // Who is bare yet has begun what can only be a line.
            self.send_away(now, State::LineAsked, Refusal::Incomplete(LINE_WITHIN.min(idle)));
            return false;
        }
        let gone = self.waits_for_client() && self.output.is_empty() && self.quiet_since + idle <= now;
        if gone {
            self.finish();
        }
        gone
    }

    /// The next request that can be understood, if any. Refuses by itself what is no
    /// request, and counts it. A request that is returned must be answered before the
    /// next one is returned.
    pub fn poll_request(&mut self, now: Moment, types: &Types) -> Option<Request> {
        while !self.following.is_full() && self.output.len() < OUTPUT_LIMIT {
            self.shrink();
            let next = match &self.state {
                State::Bare => self.next_bare(now, types),
                State::BareAnswered { .. } => self.complete_bare_answer(),
                State::Lines => self.next_line(now, types),
                State::Discarding { .. } => self.discard(),
                State::BareAsked | State::LineAsked | State::Over => Step::Wait,
            };
            match next {
                Step::Request(request) => return Some(request),
                Step::Again => {}
                Step::Wait => break,
            }
        }
        None
    }

    /// Answers the request that is asked with the port of a job.
    pub fn answer_port(&mut self, now: Moment, number: JobNumber, port: u16) {
        self.following.add(number, None);
        self.answer(now, format_args!("{port}"), "");
    }

    /// As [`Conversation::answer_port`], with the jeton of a tracked job.
    pub fn answer_tracked(&mut self, now: Moment, number: JobNumber, port: u16, jeton: Jeton) {
        self.following.add(number, Some(jeton));
        self.answer(now, format_args!("{port} {jeton}"), "");
    }

    /// As [`Conversation::answer_port`], with `HOST:PORT`.
    pub fn answer_address(&mut self, now: Moment, number: JobNumber, address: &str) {
        self.following.add(number, None);
        self.answer(now, format_args!("{address}"), "");
    }

    /// Answers the request that is asked with `-1`, and the reason where the client reads lines.
    pub fn refuse(&mut self, now: Moment, refusal: Refusal<'_>) {
        self.refused.count(&refusal);
        let mut reason = String::from(" ");
        let _ = write!(reason, "{refusal}");
        self.answer(now, format_args!("-1"), &reason);
    }

    /// What was refused since the last call.
    pub fn take_refused(&mut self) -> Refused {
        std::mem::take(&mut self.refused)
    }

    /// Bytes to send to the client; the shell drains what it has sent.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The jobs that were given here.
    #[must_use]
    pub fn following(&self) -> &Following {
        &self.following
    }

    /// Whether a request waits for its answer.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        matches!(self.state, State::BareAsked | State::LineAsked)
    }

    /// Whether more bytes should be read from the client now. What it has sent ahead is understood
    /// first: else who takes no answers could fill the memory with requests.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.input_ended
            && self.input.len() <= MAX_REQUEST_BYTES + 1
            && !self.is_asked()
            && !self.following.is_full()
            && self.state != State::Over
            && self.output.len() < OUTPUT_LIMIT
    }

    /// Whether there is something to understand, as soon as that can be: bytes, or their end.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.input.is_empty() || self.input_ended
    }

    /// Whether the client is owed nothing and has asked for nothing that is still open: the
    /// connection could be closed without breaking a promise. Returns since when. Half a line is
    /// no request.
    #[must_use]
    pub fn idle_since(&self) -> Option<Moment> {
        (self.waits_for_client() && self.output.is_empty()).then_some(self.quiet_since)
    }

    /// Whether the connection is to be closed once the output is sent.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// When [`Conversation::handle_timeout`] and [`Conversation::poll_request`] should be
    /// called again; `idle` is how long a client may be silent.
    #[must_use]
    pub fn poll_timeout(&self, types: &Types, idle: Duration) -> Option<Moment> {
        match &self.state {
            State::Bare if self.waits_for_silence(types) => Some(self.heard_at + BARE_SILENCE),
            State::Bare | State::Lines if self.waits_for_newline(types) => Some(self.line_until(idle)),
            // While output is stuck, its leaving is awaited, not the client's next word.
            State::Bare | State::BareAnswered { .. } | State::Lines => {
                (self.waits_for_client() && self.output.is_empty()).then_some(self.quiet_since + idle)
            }
            State::Discarding { until, .. } => Some((*until).min(self.heard_at + BARE_SILENCE)),
            State::BareAsked | State::LineAsked | State::Over => None,
        }
    }

    fn waits_for_silence(&self, types: &Types) -> bool {
        !self.input.is_empty() && types.prefix(&self.input) == Prefix::Open
    }

    /// Whether a line was begun whose end only the client can send, and nothing else is open
    /// that would be cut off with the connection.
    fn waits_for_newline(&self, types: &Types) -> bool {
        let is_line = match self.state {
            State::Bare => types.prefix(&self.input) == Prefix::WaitsForNewline,
            State::Lines => !self.input.is_empty() && !self.input.contains(&b'\n'),
            State::BareAsked
            | State::BareAnswered { .. }
            | State::LineAsked
            | State::Discarding { .. }
            | State::Over => false,
        };
        is_line && self.waits_for_client()
    }

    fn line_until(&self, idle: Duration) -> Moment {
        self.line_since + LINE_WITHIN.min(idle)
    }

    /// Whether it is the client's turn, and no tracked job of it is open.
    fn waits_for_client(&self) -> bool {
        let its_turn = match self.state {
            State::Bare | State::BareAnswered { .. } | State::Lines => true,
            State::BareAsked | State::LineAsked | State::Discarding { .. } | State::Over => false,
        };
        its_turn && !self.following.is_full() && !self.following.is_tracking()
    }

    fn next_bare(&mut self, now: Moment, types: &Types) -> Step {
        let limit = self.input.len().min(MAX_REQUEST_BYTES + 2);
        if self.input[..limit].contains(&b'\n') {
            self.state = State::Lines;
            return Step::Again;
        }
        if without_return(&self.input) > MAX_REQUEST_BYTES {
            let is_line = types.prefix(&self.input) == Prefix::WaitsForNewline;
            let asked = if is_line { State::LineAsked } else { State::BareAsked };
            return self.send_away(now, asked, Refusal::TooLong);
        }
        if self.input.is_empty() {
            return self.end_if_input_ended();
        }
        let complete = match types.prefix(&self.input) {
            Prefix::Complete(_) => true,
            // Such a request is a line, and so is its answer.
            Prefix::WaitsForNewline if self.input_ended => {
                self.state = State::Lines;
                return Step::Again;
            }
            Prefix::WaitsForNewline => false,
            Prefix::Open => self.input_ended || self.heard_at + BARE_SILENCE <= now,
        };
        if !complete {
            return Step::Wait;
        }
        self.state = State::BareAsked;
        let mut request = std::mem::take(&mut self.input);
        let step = self.understand(now, &request, types);
        request.clear();
        self.input = request;
        step
    }

    fn next_line(&mut self, now: Moment, types: &Types) -> Step {
        let newline = self.input.iter().position(|&byte| byte == b'\n');
        let length = match newline {
            Some(length) => length,
            None if without_return(&self.input) <= MAX_REQUEST_BYTES => {
                return if !self.input_ended {
                    Step::Wait
                } else if self.input.is_empty() {
                    self.end_if_input_ended()
                } else {
                    self.understand_line(now, self.input.len(), self.input.len(), types)
                };
            }
            None => self.input.len(),
        };
        self.understand_line(now, length, newline.map_or(length, |at| at + 1), types)
    }

    /// A line of `length` bytes, `\r` included, that takes `consumed` bytes of the input.
    fn understand_line(&mut self, now: Moment, length: usize, consumed: usize, types: &Types) -> Step {
        let with_return = length > 0 && self.input[length - 1] == b'\r' && consumed > length;
        let length = if with_return { length - 1 } else { length };
        if length > MAX_REQUEST_BYTES {
            return self.send_away(now, State::LineAsked, Refusal::TooLong);
        }
        if length == 0 {
            self.input.drain(..consumed);
            return Step::Again;
        }
        self.state = State::LineAsked;
        let input = std::mem::take(&mut self.input);
        let step = self.understand(now, &input[..length], types);
        self.input = input;
        self.input.drain(..consumed);
        // What is left came with the last bytes, or before: nobody is given less time.
        self.line_since = self.heard_at;
        step
    }

    fn understand(&mut self, now: Moment, request: &[u8], types: &Types) -> Step {
        match parse_request(request, types) {
            Ok(request) => Step::Request(request),
            Err(asked) => {
                self.refuse(now, Refusal::Unknown { asked, types });
                Step::Again
            }
        }
    }

    /// The very next bytes after a bare answer: a newline belongs to the request.
    fn complete_bare_answer(&mut self) -> Step {
        let State::BareAnswered { lacks } = &mut self.state else {
            return Step::Wait;
        };
        let newline = match self.input.as_slice() {
            [] => return self.end_if_input_ended(),
            [b'\r'] if !self.input_ended => return Step::Wait,
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => {
                self.state = State::Bare;
                return Step::Again;
            }
        };
        let lacks = std::mem::take(lacks);
        self.output.extend_from_slice(lacks.as_bytes());
        self.output.push(b'\n');
        self.input.drain(..newline);
        self.state = State::Lines;
        Step::Again
    }

    /// Answers what cannot be served, and closes once the client has had time to read that.
    fn send_away(&mut self, now: Moment, asked: State, refusal: Refusal<'_>) -> Step {
        self.state = asked;
        self.refuse(now, refusal);
        let lacks = match std::mem::replace(&mut self.state, State::Over) {
            State::BareAnswered { lacks } => Some(lacks),
            _ => None,
        };
        self.discard_from(now, lacks);
        Step::Again
    }

    fn discard_from(&mut self, now: Moment, lacks: Option<String>) {
        // Its silence counts from here: it may have been silent for long.
        self.heard_at = now;
        self.state = State::Discarding { until: now + DISCARD_WITHIN, bytes: 0, lacks };
    }

    /// Throws input away until the client has seen its answer, or has sent enough.
    fn discard(&mut self) -> Step {
        let ended = self.input_ended;
        let newline = self.input.contains(&b'\n');
        let State::Discarding { bytes, lacks, .. } = &mut self.state else {
            return Step::Wait;
        };
        *bytes += self.input.len();
        let enough = *bytes > DISCARD_BYTES;
        if newline && let Some(lacks) = lacks.take() {
            self.output.extend_from_slice(lacks.as_bytes());
            self.output.push(b'\n');
        }
        self.input = Vec::new();
        if ended || enough {
            self.finish();
        }
        Step::Wait
    }

    /// A client that once pipelined much must not hold the memory for ever.
    fn shrink(&mut self) {
        if self.input.is_empty() && self.input.capacity() > MAX_REQUEST_BYTES {
            self.input = Vec::new();
        }
    }

    fn end_if_input_ended(&mut self) -> Step {
        if self.input_ended && !self.following.is_tracking() {
            self.finish();
        }
        Step::Wait
    }

    fn finish(&mut self) {
        self.state = State::Over;
        self.input = Vec::new();
    }

    fn answer(&mut self, now: Moment, answer: std::fmt::Arguments<'_>, rest: &str) {
        debug_assert!(self.is_asked(), "an answer without a request");
        self.quiet_since = now;
        // Writing to a Vec<u8> does not fail.
        let _ = std::io::Write::write_fmt(&mut self.output, answer);
        if self.state == State::BareAsked {
            self.state = State::BareAnswered { lacks: rest.to_owned() };
        } else {
            self.output.extend_from_slice(rest.as_bytes());
            self.output.push(b'\n');
            self.state = State::Lines;
        }
    }
}

/// The length of a request whose newline may still come after its `\r`.
fn without_return(input: &[u8]) -> usize {
    input.len() - usize::from(input.ends_with(b"\r"))
}

enum Step {
    Request(Request),
    /// Something was consumed: look again.
    Again,
    /// Nothing to do until more bytes, an answer or time come.
    Wait,
}
