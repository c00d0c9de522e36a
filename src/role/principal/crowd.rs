//! Who of those that come is heard.

use std::net::IpAddr;

use crate::os::stream::Stream;

use crate::core::conversation::Conversation;
use crate::core::crowd::{Entrance, Network};
use crate::os::reactor::Handle;
use crate::role::principal::{Key, Principal};
use crate::wire::client::Refusal;

/// Connections closed in favour of others, in one turn: each costs a look at all of them.
pub const EVICTIONS_PER_TURN: usize = 4;

/// A connection that waits until it is heard.
pub struct Parked {
    stream: Stream,
    address: IpAddr,
}

impl Principal {
    /// A connection was accepted. Returns whether one of another address was closed for it.
    pub(super) fn receive(
        &mut self,
        reactor: &mut Handle<Key>,
        stream: Stream,
        address: IpAddr,
        may_evict: bool,
    ) -> bool {
        self.connections.accepted += 1;
        let network = Network::from(address);
        match self.crowd.handle_arrival(network) {
            Entrance::Heard => {
                self.open_client(reactor, stream, address, Conversation::new(reactor.now()), true);
                false
            }
            Entrance::TurnedAway => {
                self.connections.turned_away += 1;
                let refusal = Refusal::TooManyConnections(self.config.max_clients_per_address);
                let conversation = Conversation::turned_away(reactor.now(), refusal);
                self.open_client(reactor, stream, address, conversation, false);
                false
            }
            Entrance::Full { too_many_of } => {
                if self.crowd.park(network, Parked { stream, address }).is_some() {
                    self.connections.evicted += 1;
                }
                match too_many_of {
                    Some(greediest) if may_evict => self.evict(reactor, greediest),
                    Some(_) | None => false,
                }
            }
        }
    }

    /// Closes the connection of a network that has been idle for longest, so that one that waits
    /// is heard. Returns whether there was one that nothing is owed to.
    fn evict(&mut self, reactor: &mut Handle<Key>, network: Network) -> bool {
        let idle = self.clients.iter().filter_map(|(key, client)| {
            let is_of_it = client.counts && Network::from(client.address) == network;
            is_of_it.then(|| Some((client.idle_since()?, key))).flatten()
        });
        let Some((_, key)) = idle.min() else {
            return false;
        };
        self.connections.evicted += 1;
        self.close_client(reactor, key);
        true
    }

    /// A connection that was heard is gone: another may be heard, or accepted.
    pub(super) fn departed(&mut self, reactor: &mut Handle<Key>, address: IpAddr) {
        if let Some(Parked { stream, address }) = self.crowd.handle_departure(address.into()) {
            self.open_client(reactor, stream, address, Conversation::new(reactor.now()), true);
        }
        if self.accept_paused && self.crowd.may_accept() {
            self.accept_again(reactor);
        }
    }

    /// Tells in the page how many there are.
    pub(super) fn tell_connections(&mut self) {
        self.connections.connected = self.crowd.connected() as u64;
        self.connections.parked = self.crowd.parked() as u64;
        if self.told_connections != self.connections {
            self.told_connections = self.connections;
            self.page().set_connections(self.connections);
        }
    }
}
