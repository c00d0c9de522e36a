//! Which step failed, with whom, and why.

use std::fmt;
use std::io;

use thiserror::Error;

use crate::client::news::Reason;
use crate::client::retry::{Refusal, Trouble};
use crate::wire::jeton::Jeton;

/// The other side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The one of control connections, with its address.
    Principal(String),
    /// The one of data connections, with its address.
    Secondary(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(address) => write!(f, "the principal at {address}"),
            Self::Secondary(address) => write!(f, "the secondary at {address}"),
        }
    }
}

/// A step of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Understanding what the caller wants.
    Arguments,
    /// Opening the control connection.
    Connect,
    /// Asking for work.
    Request,
    /// Opening the data connection.
    Open,
    /// Sending and receiving.
    Exchange,
    /// Hearing what became of a tracked job.
    Follow,
    /// Reading the caller's input.
    Input,
    /// Writing the caller's output.
    Output,
}

/// Which step failed, with whom, and why. Errors of the kind `TimedOut` say which limit was
/// exceeded ([`crate::client::Limits`]).
#[derive(Debug, Error)]
pub enum ClientError {
    /// No address of a principal.
    #[error("\"{given}\" is no address: HOST:PORT is wanted, such as 127.0.0.1:2222, or unix:PATH")]
    Address {
        /// What was given.
        given: String,
    },
    /// No name of a type of work could be that: it is empty, or has a space or a control character.
    #[error("\"{}\" cannot be a type of work", kind.escape_debug())]
    Kind {
        /// What was given.
        kind: String,
    },
    /// Nobody accepts the connection.
    #[error("cannot connect to {peer}: {source}")]
    Connect {
        /// To whom.
        peer: Peer,
        /// Why.
        source: io::Error,
    },
    /// The control connection broke, or was silent, or said nonsense (`InvalidData`).
    #[error("{peer} did not answer the request for \"{kind}\": {source}")]
    Request {
        /// Who was asked.
        peer: Peer,
        /// For what.
        kind: String,
        /// Why.
        source: io::Error,
    },
    /// The principal answered -1.
    #[error("{peer} refuses \"{kind}\": {reason}")]
    Refused {
        /// Who refuses.
        peer: Peer,
        /// What it was asked for.
        kind: String,
        /// The reason, in the principal's words.
        reason: String,
    },
    /// The data connection broke: reset, silent for too long (`TimedOut`), or closed too early
    /// (`UnexpectedEof`).
    #[error("the exchange with {peer} failed {}: {source}", after(*answered))]
    Exchange {
        /// With whom.
        peer: Peer,
        /// Bytes of answer that came before.
        answered: u64,
        /// Why.
        source: io::Error,
    },
    /// A tracked job ended with `errtraitement`.
    #[error("the job at {peer} failed {}: {reason}", after(*answered))]
    Job {
        /// Where it was.
        peer: Peer,
        /// Which.
        jeton: Jeton,
        /// Bytes of answer that came before.
        answered: u64,
        /// Why.
        reason: Reason,
    },
    /// How a tracked job ended was not told.
    #[error("{peer} does not tell how the job ended, {}: {source}", after(*answered))]
    Follow {
        /// Who should.
        peer: Peer,
        /// Bytes of answer that came before.
        answered: u64,
        /// Why.
        source: io::Error,
    },
    /// The caller's input cannot be read.
    #[error("cannot read the input: {0}")]
    Input(io::Error),
    /// The caller's output cannot be written, or the answer is longer than the caller allows
    /// (`FileTooLarge`).
    #[error("cannot keep the answer: {0}")]
    Output(io::Error),
    /// All tries failed.
    #[error("after {tries} tries: {last}")]
    Tried {
        /// How many.
        tries: u32,
        /// How the last one failed.
        last: Box<ClientError>,
    },
}

/// "before an answer", "after 5 bytes of answer".
fn after(answered: u64) -> String {
    match answered {
        0 => "before an answer".to_owned(),
        1 => "after 1 byte of answer".to_owned(),
        bytes => format!("after {bytes} bytes of answer"),
    }
}

impl ClientError {
    /// The step that failed.
    #[must_use]
    pub fn step(&self) -> Step {
        match self {
            Self::Address { .. } | Self::Kind { .. } => Step::Arguments,
            Self::Connect { peer: Peer::Principal(_), .. } => Step::Connect,
            Self::Connect { peer: Peer::Secondary(_), .. } => Step::Open,
            Self::Request { .. } | Self::Refused { .. } => Step::Request,
            Self::Exchange { .. } => Step::Exchange,
            Self::Job { .. } | Self::Follow { .. } => Step::Follow,
            Self::Input(_) => Step::Input,
            Self::Output(_) => Step::Output,
            Self::Tried { last, .. } => last.step(),
        }
    }

    /// Bytes of answer that came before the failure.
    #[must_use]
    pub fn answered(&self) -> u64 {
        match self {
            Self::Exchange { answered, .. } | Self::Job { answered, .. } | Self::Follow { answered, .. } => {
                *answered
            }
            Self::Tried { last, .. } => last.answered(),
            Self::Address { .. }
            | Self::Kind { .. }
            | Self::Connect { .. }
            | Self::Request { .. }
            | Self::Refused { .. }
            | Self::Input(_)
            | Self::Output(_) => 0,
        }
    }

    /// The failure, as far as trying again is concerned.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        use io::ErrorKind::{InvalidData, TimedOut};
        match self {
            Self::Connect { .. } => Trouble::Unreachable,
            Self::Refused { reason, .. } => Trouble::Refused(Refusal::of(reason)),
            Self::Job { reason, .. } => Trouble::Failed(reason.clone()),
            Self::Request { source, .. } | Self::Follow { source, .. } if source.kind() == InvalidData => {
                Trouble::Lasting
            }
            Self::Request { .. } => Trouble::Unanswered,
            Self::Exchange { source, .. } | Self::Follow { source, .. } if source.kind() == TimedOut => {
                Trouble::Silent
            }
            Self::Exchange { .. } => Trouble::Broken,
            Self::Follow { .. } => Trouble::Unfollowed,
            Self::Tried { last, .. } => last.trouble(),
            Self::Address { .. } | Self::Kind { .. } | Self::Input(_) | Self::Output(_) => Trouble::Lasting,
        }
    }
}
