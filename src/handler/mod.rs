//! What a secondary can do for a client.
//!
//! A handler makes one [`Session`] for each data connection. The secondary owns the socket; the
//! session is told what arrives and says what to answer. `docs/handlers.md` shows how to write one;
//! [`Server`](crate::Server) takes it into a server of one's own.

mod block;
mod delay;
mod echo;
mod lines;
mod registry;
mod turn;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{self, Config};
use crate::wire::client::TypeIndex;

pub use lines::Lines;
pub use registry::{Error, MakerError, Registry, Setup};
/// Of [`Setup::settings`].
pub use toml;
pub use turn::{Over, Turn, Wishes};

use registry::Opener;

/// One client's exchange with a handler.
///
/// Whatever a session has to say, it says to its [`Turn`]: answers, when it wants to be woken, and
/// that the exchange is over. While one of these methods runs, its process does nothing else: one
/// that takes longer than `kill_after` is taken for stuck.
///
/// ```
/// use osps::handler::{Session, Turn};
///
/// /// Answers each piece of input by its length.
/// struct Length;
///
/// impl Session for Length {
///     fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
///         turn.answer(format!("{} bytes\n", input.len()));
///     }
/// }
/// ```
pub trait Session {
    /// The exchange begins: whoever speaks first can do so here.
    fn on_open(&mut self, turn: &mut Turn<'_>) {
        let _ = turn;
    }

    /// The client sent this, as one read returned it: a message may come in pieces, or with others
    /// ([`Lines`] puts lines together).
    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>);

    /// The client will send nothing more, but may still wait for answers.
    fn on_end(&mut self, turn: &mut Turn<'_>) {
        let _ = turn;
    }

    /// The moment has come for which [`Turn::wake_at`] or [`Turn::wake_in`] asked last.
    fn on_timer(&mut self, turn: &mut Turn<'_>) {
        let _ = turn;
    }

    /// Whether the session owes the client an answer that it has not given yet. While it does, a
    /// client that is silent or has ended its input is not closed.
    fn owes_answer(&self) -> bool {
        false
    }

    /// Whether the session can take more input now. While it cannot, the client is made to wait.
    fn wants_input(&self) -> bool {
        true
    }
}

/// Who a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Where it comes from.
    pub address: IpAddr,
    /// The number of its job, as logs tell it.
    pub job: u64,
}

/// The handlers of a configuration, by request type.
pub struct Handlers {
    types: Vec<Type>,
    slot: u16,
}

/// Who serves a request type.
enum Type {
    Echo,
    Delay(Duration),
    Block(Duration),
    Registered(Opener),
    /// A command: there are no sessions.
    Exec,
}

impl Handlers {
    /// The handlers of the secondary in that slot.
    ///
    /// # Errors
    /// What the maker of a registered handler says.
    pub fn new(config: &Config, slot: u16, registry: &Registry) -> Result<Self, MakerError> {
        let of_request = |request: &config::Request| {
            let delay = request.delay.unwrap_or_default();
            Ok(match &request.handler {
                config::Handler::Echo => Type::Echo,
                config::Handler::Delay => Type::Delay(delay),
                config::Handler::Block => Type::Block(delay),
                config::Handler::Exec => Type::Exec,
                config::Handler::Registered(name) => Type::Registered(registry.make(name, request, slot)?),
            })
        };
        Ok(Self { types: config.request.iter().map(of_request).collect::<Result<_, _>>()?, slot })
    }

    /// A session for a client that asked for that type.
    pub fn open(&self, kind: TypeIndex, client: impl FnOnce() -> Client) -> AnySession {
        match &self.types[kind] {
            Type::Echo => AnySession::Echo(echo::Echo),
            Type::Delay(delay) => AnySession::Delay(delay::Delay::new(*delay, self.slot)),
            Type::Block(delay) => AnySession::Block(block::Block::new(*delay, self.slot)),
            Type::Registered(open) => AnySession::Registered(open(client())),
            Type::Exec => unreachable!("not served by a session"),
        }
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// A session of any handler. Those that come with OSPS cost no allocation.
pub enum AnySession {
    /// See [`config::Handler::Echo`].
    Echo(echo::Echo),
    /// See [`config::Handler::Delay`].
    Delay(delay::Delay),
    /// See [`config::Handler::Block`].
    Block(block::Block),
    /// See [`config::Handler::Registered`].
    Registered(Box<dyn Session>),
}

impl AnySession {
    fn session(&self) -> &dyn Session {
        match self {
            Self::Echo(echo) => echo,
            Self::Delay(delay) => delay,
            Self::Block(block) => block,
            Self::Registered(session) => &**session,
        }
    }

    fn session_mut(&mut self) -> &mut dyn Session {
        match self {
            Self::Echo(echo) => echo,
            Self::Delay(delay) => delay,
            Self::Block(block) => block,
            Self::Registered(session) => &mut **session,
        }
    }
}

impl Session for AnySession {
    fn on_open(&mut self, turn: &mut Turn<'_>) {
        self.session_mut().on_open(turn);
    }

    fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        self.session_mut().on_input(input, turn);
    }

    fn on_end(&mut self, turn: &mut Turn<'_>) {
        self.session_mut().on_end(turn);
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

    fn answer(&mut self, slot: u16, turn: &mut Turn<'_>) {
        self.waiting -= 1;
        self.answered += 1;
        turn.answer_fmt(format_args!("ok message {} secondary {slot}\n", self.answered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::moment::Moment;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// Runs a session over (time, input) and returns what it says and when.
    fn run(session: &mut dyn Session, story: &[(u64, &str)]) -> Vec<(u64, String)> {
        let (mut output, mut wishes, mut said) = (Vec::new(), Wishes::default(), Vec::new());
        for millis in 0..1000 {
            let now = at(millis);
            for (_, input) in story.iter().filter(|(when, _)| *when == millis) {
                session.on_input(input.as_bytes(), &mut Turn::new(now, &mut output, &mut wishes));
            }
            if wishes.take_wake(now) {
                session.on_timer(&mut Turn::new(now, &mut output, &mut wishes));
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
