//! A connection of the observer as a sequence of operations: requests, garbage, time, events, a client that takes its
//! responses late, an end of input; against a model of what is sent and when it is over.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use osps::core::moment::Moment;
use osps::observer::conversation::{ALL_TAKEN_WITHIN, Action, Conversation, HEAD_WITHIN, IDLE};
use osps::wire::http::{MAX_HEAD_BYTES, Response, event};

/// What a shell reads at once.
const READ_BYTES: usize = 4096;
const BODY_BYTES: usize = 10_000;
const HEAD_BYTES: usize = 1024;

#[derive(Arbitrary, Debug)]
enum Op {
    Say(Said),
    Pause(u16),
    Event,
    /// The client takes so much of what was sent.
    Take(u16),
    TakeAll,
    EndOfInput,
}

#[derive(Arbitrary, Debug)]
enum Said {
    Get(bool),
    Head,
    Subscribe,
    Post,
    Half,
    Newline,
    Bytes(Vec<u8>),
    Much(u8, u16),
}

struct Shell {
    conversation: Conversation,
    now: Moment,
    sent: Vec<u8>,
    asked: usize,
    ended: bool,
    closed: bool,
}

fuzz_target!(|ops: Vec<Op>| {
    let now = Moment::from_nanos(1_000_000_000);
    let conversation = Conversation::new(now);
    let mut shell = Shell { conversation, now, sent: Vec::new(), asked: 0, ended: false, closed: false };
    for op in ops {
        shell.apply(op);
        shell.check();
    }
    // Whoever says nothing more and takes all is let go in the end, and so is whoever takes nothing.
    shell.finish();
    let statuses = String::from_utf8_lossy(&shell.sent).matches("HTTP/1.1 ").count();
    assert!(statuses <= shell.asked + 1, "{statuses} responses to {} requests", shell.asked);
});

impl Shell {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Say(said) => {
                for piece in bytes(said).chunks(READ_BYTES) {
                    if !self.closed && self.conversation.wants_input() {
                        self.conversation.handle_input(self.now, piece);
                        self.poll();
                    }
                }
            }
            Op::Pause(millis) => self.pause(Duration::from_millis(millis.into())),
            Op::Event => {
                let is_free = self.conversation.is_streaming() && self.conversation.output().is_empty();
                let was_sent = self.conversation.send_event(self.now, &event("x", &"y".repeat(BODY_BYTES)));
                assert_eq!(was_sent, is_free && !self.closed);
            }
            Op::Take(bytes) => self.take(bytes.into()),
            Op::TakeAll => self.take(usize::MAX),
            Op::EndOfInput => {
                self.ended = true;
                self.conversation.handle_end_of_input();
                self.poll();
            }
        }
    }

    fn poll(&mut self) {
        while let Some(action) = self.conversation.poll_action(self.now) {
            match action {
                Action::Respond(request) if request.path == "/events" => {
                    self.conversation.respond(self.now, &Response::events());
                }
                Action::Respond(_) => {
                    self.conversation.respond(self.now, &Response::text(200, "x".repeat(BODY_BYTES)));
                }
                Action::Close => {
                    assert!(self.conversation.output().is_empty(), "closed, and something was to be sent");
                    self.closed = true;
                    return;
                }
            }
            self.asked += 1;
            assert!(
                self.conversation.poll_action(self.now).is_none(),
                "another request before the response was sent"
            );
        }
    }

    fn take(&mut self, bytes: usize) {
        let output = self.conversation.output();
        let taken = bytes.min(output.len());
        self.sent.extend_from_slice(&output[..taken]);
        self.conversation.handle_written(self.now, taken);
        self.poll();
    }

    /// Lets time pass, as a shell does whose timers come in time.
    fn pause(&mut self, pause: Duration) {
        let until = self.now + pause;
        while let Some(at) = self.conversation.poll_timeout().filter(|at| *at <= until && !self.closed) {
            assert!(at > self.now, "a deadline that has passed");
            self.now = at;
            self.conversation.handle_timeout(at);
            self.poll();
        }
        self.now = until;
    }

    fn check(&self) {
        let unsent = self.conversation.output().len();
        assert!(unsent <= HEAD_BYTES + BODY_BYTES, "{unsent} bytes");
        assert!(!(self.ended && self.conversation.wants_input()));
        assert!(self.conversation.idle_since().is_none_or(|since| since <= self.now));
        if !self.closed && self.conversation.is_streaming() && unsent == 0 {
            assert!(self.conversation.poll_timeout().is_none() && !self.ended);
        }
    }

    fn finish(&mut self) {
        if self.conversation.is_streaming() {
            self.take(usize::MAX);
            self.apply(Op::EndOfInput);
        }
        let begun = self.now;
        // What stands in the input are at most so many requests.
        let rounds = u32::try_from(MAX_HEAD_BYTES + READ_BYTES).expect("it fits");
        let longest = (ALL_TAKEN_WITHIN + HEAD_WITHIN + IDLE) * rounds;
        while !self.closed {
            assert!(self.now.since(begun) < longest, "it does not end");
            self.take(usize::MAX);
            if self.conversation.is_streaming() {
                self.apply(Op::EndOfInput);
            }
            self.pause(Duration::from_secs(1));
        }
    }
}

fn bytes(said: Said) -> Vec<u8> {
    let head = |line: &str| format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
    match said {
        Said::Get(true) => head("GET /"),
        Said::Get(false) => b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(),
        Said::Head => head("HEAD /x"),
        Said::Subscribe => head("GET /events"),
        Said::Post => head("POST /"),
        Said::Half => b"GET / HTTP/1.1\r\nHost: a\r\n".into(),
        Said::Newline => b"\r\n".into(),
        Said::Bytes(bytes) => bytes,
        Said::Much(byte, times) => vec![byte; times.into()],
    }
}
