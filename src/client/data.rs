//! The data connection: bytes to and from a secondary.

use std::io;
use std::net::TcpStream;

use crate::client::control::{Limits, Place};
use crate::client::error::{ClientError, Peer};
use crate::client::input::{Input, Output};
use crate::client::pump::{Ending, Exchanged, Pump};
use crate::client::socket::{connect_tcp, resolve, send};
use crate::wire::jeton::Jeton;

/// A data connection.
#[derive(Debug)]
pub struct Data {
    pub(super) stream: TcpStream,
    pub(super) peer: Peer,
    pub(super) limits: Limits,
}

impl Data {
    /// Connects to a secondary and, with a jeton, claims a tracked job.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(place: &Place, jeton: Option<Jeton>, limits: &Limits) -> Result<Self, ClientError> {
        Self::connect_for(place, jeton, limits, false)
    }

    /// As [`Data::connect`]. Where input is at hand that is sent at once, the jeton goes with it.
    pub(super) fn connect_for(
        place: &Place,
        jeton: Option<Jeton>,
        limits: &Limits,
        is_input_at_hand: bool,
    ) -> Result<Self, ClientError> {
        let connect = || {
            let stream = match place {
                Place::Addresses(addresses) => connect_tcp(addresses, limits.connect)?,
                Place::Named(at) => connect_tcp(&resolve(at)?, limits.connect)?,
            };
            if let Some(jeton) = jeton {
                // A new connection has room for the whole of it.
                send(&stream, format!("jeton {jeton}\n").as_bytes(), is_input_at_hand)?;
            }
            Ok(stream)
        };
        match connect() {
            Ok(stream) => {
                let at = stream.peer_addr().map_or_else(|_| place.to_string(), |address| address.to_string());
                Ok(Self { stream, peer: Peer::Secondary(at), limits: *limits })
            }
            Err(source) => Err(ClientError::Connect { peer: Peer::Secondary(place.to_string()), source }),
        }
    }

    /// The socket, for an exchange of one's own: blocking, and without limits.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The secondary.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends all of `input` and ends the sending side; writes what comes back to `output` while
    /// it comes, until the secondary closes. Returns the bytes received.
    ///
    /// A secondary that closes before all was sent, or without an answer to what was sent, is an
    /// error: nothing tells whether it has done its work. Who must know tracks the job.
    ///
    /// # Errors
    /// [`ClientError::Exchange`], [`ClientError::Input`], [`ClientError::Output`].
    pub fn exchange(self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<u64, ClientError> {
        let Self { stream, peer, limits } = self;
        let Exchanged { answered, ending } = Pump::new(&stream, &limits, input, output).run(None);
        let failed = |source| ClientError::Exchange { peer: peer.clone(), answered, source };
        match ending {
            Ending::Complete if answered == 0 && input.is_begun() => Err(failed(closed_early(answered))),
            Ending::Complete => Ok(answered),
            Ending::Early | Ending::Told => Err(failed(closed_early(answered))),
            Ending::Broken(source) => Err(failed(source)),
            Ending::Input(error) => Err(ClientError::Input(error)),
            Ending::Output(error) => Err(ClientError::Output(error)),
        }
    }
}

/// The error of a secondary that has closed the connection without a word.
pub fn closed_early(answered: u64) -> io::Error {
    let what = if answered == 0 { "the connection was closed" } else { "it was closed before all was sent" };
    io::Error::new(io::ErrorKind::UnexpectedEof, what)
}
