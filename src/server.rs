//! A server with handlers of one's own.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{self, ExitCode};

use crate::cli;
use crate::exit::Code;
use crate::handler::{Client, Error, Registry, Session, Setup};
use crate::os;

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
        cli::osps(&self.registry).into()
    }
}

/// Defines the `main` of a program that is a [`Server`], so that its processes start sooner than by [`Server::run`]: the C
/// library calls it, and not Rust's runtime, which would read `/proc/self/maps` to be able to tell that a stack has
/// overflowed: a tenth of a millisecond, of the one and a half that a replacement takes. A stack that overflows is
/// a plain SIGSEGV then. With another C library than GNU's, which does not tell a library what the command line is, and in
/// unit tests it is an ordinary `main`. That is all of a program:
///
/// ```no_run
/// #![cfg_attr(all(target_env = "gnu", not(test)), no_main)]
///
/// osps::main!(osps::Server::new());
/// ```
#[macro_export]
macro_rules! main {
    ($server:expr) => {
        #[cfg(all(target_env = "gnu", not(test)))]
        // SAFETY: no other function has this name: the compiler, which would make one, is told not to.
        #[unsafe(no_mangle)]
        extern "C" fn main(_: ::std::ffi::c_int, _: *const *const ::std::ffi::c_char) -> ::std::ffi::c_int {
            $crate::server::run_without_runtime(|| $server)
        }

        #[cfg(any(not(target_env = "gnu"), test))]
        fn main() -> ::std::process::ExitCode {
            $crate::Server::run($server)
        }
    };
}

/// What [`main!`](crate::main!) calls: does what Rust's runtime does for others, but for that.
#[doc(hidden)]
#[must_use]
pub fn run_without_runtime(server: impl FnOnce() -> Server) -> c_int {
    let code = match os::process::begin() {
        Ok(()) => catch_unwind(AssertUnwindSafe(|| cli::osps(&server().registry) as c_int)),
        Err(error) => {
            os::log::last_words("osps", &format_args!("cannot begin: {error}"));
            Ok(Code::Internal as c_int)
        }
    };
    process::exit(code.unwrap_or(PANICKED))
}

/// What a Rust program ends with where it panics.
const PANICKED: c_int = 101;
