//! The client library: ask the principal for a type of work, then talk to the secondary.
//!
//! Blocking and plain: no reactor, no threads. A program that wants an answer needs no more than
//!
//! ```no_run
//! use osps::client::{Client, ClientError};
//!
//! fn main() -> Result<(), ClientError> {
//!     let mut client = Client::new("127.0.0.1:2222")?;
//!     let reply = client.call("echo", b"hello")?;
//!     println!("{}", String::from_utf8_lossy(&reply.bytes));
//!     Ok(())
//! }
//! ```
//!
//! The same by single steps, for programs that talk in turns:
//!
//! ```no_run
//! # use std::io::{Read, Write};
//! # use osps::client::{Control, Limits};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut control = Control::connect(&"127.0.0.1:2222".parse()?, &Limits::default())?;
//! let mut stream = control.open("requetetype1")?.into_stream();
//! let mut answer = [0; 100];
//! stream.write_all(b"hello\n")?;
//! let length = stream.read(&mut answer)?;
//! # let _ = length;
//! # Ok(())
//! # }
//! ```
//!
//! | step | by | limit |
//! |---|---|---|
//! | connect | [`Control::connect`]: `HOST:PORT` or `unix:PATH` | [`Limits::connect`] |
//! | request | [`Control::request`], [`Control::track`], [`Control::address`] | [`Limits::answer`] |
//! | open | [`Data::connect`] | [`Limits::connect`] |
//! | exchange | [`Data::exchange`] | [`Limits::silence`] |
//! | follow | [`Control::news`], [`Control::follow`] | [`Limits::news`] |
//!
//! A step that fails says which, with whom and why ([`ClientError`]). [`Client`] does them all, and
//! repeats the whole where that is safe ([`Evidence::allows_retry`]) as often as its [`Policy`]
//! allows. `docs/client.md` tells the same to users of the program `osps-client`.

mod call;
mod control;
mod data;
mod error;
mod input;
mod news;
mod pump;
mod retry;
mod socket;

pub use crate::wire::jeton::Jeton;
pub use call::{Client, Event, Mode, Reply, Streamed};
pub use control::{Control, Limits, Place, Tracked};
pub use data::Data;
pub use error::{ClientError, Peer, Step};
pub use input::{Input, Output, REPLAY_BYTES, Source};
pub use news::{Fate, MAX_FOLLOWED, News, Reason};
pub use retry::{Evidence, Policy, Refusal, Trouble};
pub use socket::Endpoint;
