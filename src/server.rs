//! A server with handlers of one's own.

use std::process::ExitCode;

use crate::cli;
use crate::handler::{Client, Error, Registry, Session, Setup};

/// The whole of OSPS, with handlers of one's own: watchdog, principal, secondaries, and every
/// command of `osps`, in one program.
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use osps::handler::{Session, Turn};
///
/// struct Shout;
///
/// impl Session for Shout {
///     fn on_input(&mut self, input: &[u8], turn: &mut Turn<'_>) {
///         turn.answer(input.to_ascii_uppercase());
///     }
/// }
///
/// fn main() -> ExitCode {
///     osps::Server::new().handler("shout", |_setup| Ok(|_client| Shout)).run()
/// }
/// ```
///
/// With this in its configuration, it serves:
///
/// ```toml
/// [[request]]
/// name = "shout"
/// handler = "shout"
/// ```
#[derive(Debug, Default)]
pub struct Server {
    registry: Registry,
}

impl Server {
    /// A server with the built-in handlers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a handler, which the configuration then calls by this name.
    ///
    /// For each request type that it serves, `maker` is called once in every secondary, and returns
    /// what opens a session for each client. What a maker keeps is shared by the sessions of one
    /// secondary, and dies with it. Before that, a maker is tried once with [`Setup::slot`] zero, by
    /// `check` and before a start: its error is an error of the configuration.
    #[must_use]
    pub fn handler<M, O, S>(mut self, name: &str, maker: M) -> Self
    where
        M: Fn(Setup) -> Result<O, Error> + 'static,
        O: Fn(Client) -> S + 'static,
        S: Session + 'static,
    {
        self.registry.add(name, maker);
        self
    }

    /// Does what the command line says; nothing, by default, but to serve until it is stopped.
    ///
    /// To be called first thing in `main`, whatever the arguments: principal and secondaries are this
    /// same program, started again with arguments of their own.
    #[must_use]
    pub fn run(self) -> ExitCode {
        cli::osps(&self.registry)
    }
}
