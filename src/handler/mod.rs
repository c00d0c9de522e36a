//! What a secondary can do for a client.
//!
//! A handler makes one [`Session`] for each data connection. The secondary owns the
//! socket; the session is told what arrives and says what to answer. It never blocks,
//! except `block`, which is there to show what happens then.

mod block;
mod delay;
mod echo;

use crate::config::{self, Config};
use crate::core::moment::Moment;
use crate::wire::client::TypeIndex;

/// What a session may do in its turn.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The time.
    pub now: Moment,
    /// Bytes for the client.
    pub output: &'a mut Vec<u8>,
    /// When [`Session::on_timer`] is to be called; `None` for never.
    pub wake_at: &'a mut Option<Moment>,
}

/// One client's exchange with a handler.
pub trait Session {
    /// The client sent this, as one read returned it.
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>);

    /// The moment in `wake_at` has come.
    fn on_timer(&mut self, turn: &mut Turn<'_>);

    /// Whether the session owes the client an answer that it has not put into the
    /// output yet. While it does, a client that has half-closed is not closed.
    fn owes_answer(&self) -> bool;

    /// Whether the session can take more input now.
    fn wants_input(&self) -> bool;
}

/// The handlers of a configuration, by request type.
#[derive(Debug)]
pub struct Handlers {
    requests: Vec<config::Request>,
    slot: u16,
}

impl Handlers {
    /// The handlers of the secondary in that slot.
    #[must_use]
    pub fn new(config: &Config, slot: u16) -> Self {
        Self { requests: config.request.clone(), slot }
    }

    /// A session for a client that asked for that type.
    #[must_use]
    pub fn open(&self, kind: TypeIndex) -> BuiltIn {
        let request = &self.requests[kind];
        let delay = request.delay.unwrap_or_default();
        match request.handler {
            config::Handler::Echo => BuiltIn::Echo(echo::Echo),
            config::Handler::Delay => BuiltIn::Delay(delay::Delay::new(delay, self.slot)),
            config::Handler::Block => BuiltIn::Block(block::Block::new(delay, self.slot)),
            config::Handler::Exec | config::Handler::Registered(_) => unreachable!("not served by a session"),
        }
    }
}

/// The sessions that come with OSPS: an enum, so that a connection costs no allocation.
#[derive(Debug)]
pub enum BuiltIn {
    /// See [`config::Handler::Echo`].
    Echo(echo::Echo),
    /// See [`config::Handler::Delay`].
    Delay(delay::Delay),
    /// See [`config::Handler::Block`].
    Block(block::Block),
}

impl BuiltIn {
    fn session(&self) -> &dyn Session {
        match self {
            Self::Echo(echo) => echo,
            Self::Delay(delay) => delay,
            Self::Block(block) => block,
        }
    }

    fn session_mut(&mut self) -> &mut dyn Session {
        match self {
            Self::Echo(echo) => echo,
            Self::Delay(delay) => delay,
            Self::Block(block) => block,
        }
    }
}

impl Session for BuiltIn {
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.session_mut().on_input(input, turn);
    }

    fn on_timer(&mut self, turn: &mut Turn<'_>) {
        self.session_mut().on_timer(turn);
    }

    fn owes_answer(&self) -> bool {
        self.session().owes_answer()
    }

    fn wants_input(&self) -> bool {
        self.session().wants_input()
    }
}

/// Counts messages and numbers answers, for `delay` and `block`.
///
/// A message is a line, or, where what one read returned does not end in a newline,
/// just that rest.
#[derive(Debug, Default)]
struct Messages {
    waiting: usize,
    answered: u64,
}

/// So many messages may wait in a session before it stops taking input.
const MAX_WAITING: usize = 1024;

impl Messages {
    fn take(&mut self, input: &[u8]) {
        let lines = input.iter().filter(|&&byte| byte == b'\n').count();
        let rest = usize::from(input.last().is_some_and(|&last| last != b'\n'));
        self.waiting += lines + rest;
    }

    fn answer(&mut self, slot: u16, output: &mut Vec<u8>) {
        self.waiting -= 1;
        self.answered += 1;
        let written = std::io::Write::write_fmt(
            output,
            format_args!("ok message {} secondary {slot}\n", self.answered),
        );
        debug_assert!(written.is_ok(), "writing to a Vec does not fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// Runs a session over (time, input) and returns what it says and when.
    fn run(session: &mut dyn Session, story: &[(u64, &str)]) -> Vec<(u64, String)> {
        let (mut output, mut wake_at, mut said) = (Vec::new(), None, Vec::new());
        for millis in 0..1000 {
            let mut turn = Turn { now: at(millis), output: &mut output, wake_at: &mut wake_at };
            for (_, input) in story.iter().filter(|(when, _)| *when == millis) {
                session.on_input(input.as_bytes(), &mut turn);
            }
            if turn.wake_at.is_some_and(|wake_at| wake_at <= at(millis)) {
                *turn.wake_at = None;
                session.on_timer(&mut turn);
            }
            if !output.is_empty() {
                said.push((millis, String::from_utf8(std::mem::take(&mut output)).unwrap()));
            }
        }
        assert!(!session.owes_answer());
        said
    }

    #[test]
    fn delay_answers_each_message_after_its_wait_one_after_the_other() {
        let mut delay = delay::Delay::new(Duration::from_millis(20), 3);
        let said = run(&mut delay, &[(0, "a\nb"), (100, "c\n")]);
        let expected = [(20, 1), (40, 2), (120, 3)];
        assert_eq!(said, expected.map(|(when, n)| (when, format!("ok message {n} secondary 3\n"))));
    }

    #[test]
    fn an_empty_line_is_a_message_and_an_unfinished_one_too() {
        let mut messages = Messages::default();
        for (input, count) in [("\n", 1), ("a", 2), ("a\n\nb", 5), ("", 5)] {
            messages.take(input.as_bytes());
            assert_eq!(messages.waiting, count, "{input:?}");
        }
    }

    #[test]
    fn echo_sends_back_what_it_gets() {
        assert_eq!(run(&mut echo::Echo, &[(5, "abc\0")]), [(5, "abc\0".to_owned())]);
    }
}
