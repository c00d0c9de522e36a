//! Sockets that a service manager has passed: they are listened on in place of sockets of our own.

use crate::config::{Address, PassedAddresses};
use crate::exit::{Code, Failure};
use crate::os::activation::{self, PassedSocket, Place};

/// What a socket for the observer is called (`FileDescriptorName=`).
const OBSERVE: &str = "observe";

/// The sockets, no two of the same address.
#[derive(Debug, Default)]
pub struct Passed(Vec<PassedSocket>);

impl Passed {
    /// Takes them; to be called before anything is opened.
    ///
    /// # Errors
    /// A [`Failure`] where one of them cannot be listened on.
    pub fn take() -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::new(Code::Config, error);
        let sockets = activation::take().map_err(|error| wrong(&error))?;
        for (index, socket) in sockets.iter().enumerate() {
            if sockets[..index].iter().any(|other| other.place == socket.place) {
                return Err(wrong(&format_args!(
                    "the service manager has passed two sockets of {}: one is wanted",
                    socket.place
                )));
            }
        }
        Ok(Self(sockets))
    }

    /// Where they listen.
    #[must_use]
    pub fn addresses(&self) -> PassedAddresses {
        let (observe, listen): (Vec<_>, Vec<_>) = self.0.iter().partition(|socket| socket.name == OBSERVE);
        let addresses = |sockets: Vec<&PassedSocket>| sockets.into_iter().map(address).collect();
        PassedAddresses { listen: addresses(listen), observe: addresses(observe) }
    }

    /// All of them, each with its address.
    pub(super) fn into_sockets(self) -> impl Iterator<Item = (Address, PassedSocket)> {
        self.0.into_iter().map(|socket| (address(&socket), socket))
    }
}

/// As a configuration would say it.
fn address(socket: &PassedSocket) -> Address {
    match &socket.place {
        Place::Tcp(address) => Address::Tcp(*address),
        Place::Unix(path) => Address::Unix(path.clone()),
    }
}
