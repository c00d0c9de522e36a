//! Who of those that come is heard.

use std::net::IpAddr;
use std::time::Duration;

use crate::os::stream::{Stream, write_some};

use crate::config::Config;
use crate::core::conversation::Conversation;
use crate::core::crowd::{Crowd, Entrance, Network};
use crate::core::moment::Moment;
use crate::os::reactor::Handle;
use crate::page::principal::Connections;
use crate::role::principal::estate::HandedOver;
use crate::role::principal::{Key, Principal, Timer};
use crate::wire::client::Refusal;

/// Connections closed in favour of others, in one turn: each costs a look at all of them.
const EVICTIONS_PER_TURN: usize = 4;
/// When nobody could go, somebody may before long.
const EVICT_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// So many that are told that there are too many of them may linger until they have read it.
const MAX_LINGERING: usize = 64;

/// A connection that waits until it is heard.
pub struct Parked {
    pub stream: Stream,
    pub address: IpAddr,
}

impl Parked {
    /// All that a successor needs.
    pub fn describe(&self) -> HandedOver {
        HandedOver {
            address: self.address,
            is_tcp: self.stream.is_tcp(),
            counts: false,
            conversation: None,
            waits: None,
            stuck_since: None,
            jobs: Vec::new(),
        }
    }
}

/// Who comes in.
pub struct Door {
    pub crowd: Crowd<Parked>,
    /// Another look at who could go is to come.
    pub evict_timer_armed: bool,
    /// Control connections, counted; and as the page has it.
    pub connections: Connections,
    told: Connections,
}

impl Door {
    /// Nobody has come yet; but the books go on counting where a predecessor stopped.
    pub fn new(config: &Config, parking_places: usize, before: Connections) -> Self {
        let connections = Connections { connected: 0, parked: 0, ..before };
        Self {
            crowd: Crowd::new(config.max_clients, config.max_clients_per_address, parking_places),
            evict_timer_armed: false,
            connections,
            told: before,
        }
    }
}

impl Principal {
    /// A connection was accepted.
    pub(super) fn accepted(&mut self, reactor: &mut Handle<Key>, stream: Stream, address: IpAddr) {
        self.door.connections.accepted += 1;
        self.receive(reactor, stream, address);
    }

    /// Finds out whether it is heard.
    pub(super) fn receive(&mut self, reactor: &mut Handle<Key>, stream: Stream, address: IpAddr) {
        let network = Network::from(address);
        match self.door.crowd.handle_arrival(network) {
            Entrance::Heard => self.hear_client(reactor, Parked { stream, address }),
            Entrance::TurnedAway => {
                let refusal = Refusal::TooManyConnections(self.config.max_clients_per_address);
                self.turn_away(reactor, Parked { stream, address }, refusal);
            }
            Entrance::Full => {
                if let Some(goes) = self.door.crowd.park(network, Parked { stream, address }) {
                    self.turn_away(reactor, goes, Refusal::NoPlace);
                }
            }
        }
    }

    /// It has waited before, here or with a predecessor, whose limits may have been others.
    pub(super) fn park_again(&mut self, connection: Parked) {
        self.door.crowd.park_again(Network::from(connection.address), connection);
    }

    fn hear_client(&mut self, reactor: &mut Handle<Key>, Parked { stream, address }: Parked) {
        self.open_client(reactor, stream, address, Conversation::new(reactor.now()), true);
    }

    /// Tells a connection why it cannot stay. It lingers until it has read that, but not many do.
    fn turn_away(
        &mut self,
        reactor: &mut Handle<Key>,
        Parked { mut stream, address }: Parked,
        refusal: Refusal<'_>,
    ) {
        self.door.connections.turned_away += 1;
        let mut conversation = Conversation::turned_away(reactor.now(), refusal);
        if self.clients.len() - self.door.crowd.connected() < MAX_LINGERING {
            self.open_client(reactor, stream, address, conversation, false);
        } else {
            let _ = write_some(&mut stream, conversation.output());
            self.page().count_refused(conversation.take_refused());
        }
    }

    /// The end of a turn: takes in those who wait, as far as there are places, and makes places
    /// where one network has too many.
    pub(super) fn make_room(&mut self, reactor: &mut Handle<Key>) {
        self.take_in(reactor);
        if self.door.evict_timer_armed {
            return;
        }
        for _ in 0..EVICTIONS_PER_TURN {
            let Some(greediest) = self.door.crowd.too_many_of() else {
                return;
            };
            if !self.evict(reactor, greediest) {
                self.evict_again(reactor.now() + EVICT_AGAIN_AFTER);
                return;
            }
            self.take_in(reactor);
        }
        if self.door.crowd.too_many_of().is_some() {
            self.evict_again(reactor.now());
        }
    }

    fn evict_again(&mut self, at: Moment) {
        self.door.evict_timer_armed = true;
        self.timers.arm(at, Timer::Evict);
    }

    /// Closes the connection of a network that has been idle for longest. Returns whether there was
    /// one that nothing is owed to.
    fn evict(&mut self, reactor: &mut Handle<Key>, network: Network) -> bool {
        let idle = self.clients.iter().filter_map(|(key, client)| {
            let is_of_it = client.counts && Network::from(client.address) == network;
            is_of_it.then(|| Some((client.idle_since()?, key))).flatten()
        });
        let Some((_, key)) = idle.min() else {
            return false;
        };
        self.door.connections.evicted += 1;
        self.close_client(reactor, key);
        true
    }

    /// Hears those who wait while there is a place; who has gone meanwhile is passed over.
    fn take_in(&mut self, reactor: &mut Handle<Key>) {
        while let Some(next) = self.door.crowd.promote() {
            if next.stream.has_ended() {
                self.door.crowd.handle_departure(next.address.into());
            } else {
                self.hear_client(reactor, next);
            }
        }
        if self.accept_paused && self.door.crowd.may_accept() {
            self.accept_again(reactor);
        }
    }

    /// Tells in the page how many there are.
    pub(super) fn tell_connections(&mut self) {
        self.door.connections.connected = self.door.crowd.connected() as u64;
        self.door.connections.parked = self.door.crowd.parked() as u64;
        if self.door.told != self.door.connections {
            self.door.told = self.door.connections;
            self.page().set_connections(self.door.connections);
        }
    }
}
