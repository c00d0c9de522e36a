//! OSPS: a process-supervised TCP server.
//!
//! A client asks the *principal* for a type of work, gets the port of a *secondary*,
//! and talks to it directly. A *watchdog* starts, probes, kills and replaces them.
//! Each is a process with one thread around one event loop.
//!
//! # Where to begin reading
//!
//! 1. [`role::pingpong`]: two processes, one segment, one FIFO pair: the smallest whole.
//! 2. [`os::reactor`]: the event loop of every server.
//! 3. [`core::supervision`] and [`core::tree`]: what the watchdog decides, without any I/O.
//! 4. [`core::conversation`]: what a client may say, and what it gets.
//! 5. [`page`]: what stands in shared memory; [`core::job`]: the one word that two
//!    processes write.
//! 6. [`role`]: the shells that join all that: [`role::watchdog`], [`role::principal`],
//!    [`role::secondary`].
//!
//! [`Server`] and [`handler`] are for who writes a handler of his own, [`client`] for who writes a
//! client.
//!
//! [`stress`] is the load generator `osps-stress`, [`top`] the live view `osps top`.
//!
//! `docs/design.md` says why it is so, `docs/protocol.md` what others may rely on.

pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod exit;
pub mod handler;
pub mod observer;
pub mod os;
pub mod page;
pub mod role;
pub mod server;
pub mod status;
pub mod stress;
pub mod top;
pub mod wire;

pub use server::Server;

/// The programs in `docs/handlers.md` are tested.
#[cfg(doctest)]
#[doc = include_str!("../docs/handlers.md")]
pub mod programs_in_the_documents {}
