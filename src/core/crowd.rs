//! Who is heard when many come: a limit for each address, and fairness when all places are
//! taken.
//!
//! Clients are told apart by their network: an IPv4 address, or the /64 of an IPv6 address,
//! for whoever has one has all of them.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Who counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(u128);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits() >> 64 << 64),
        }
    }
}

/// What becomes of a connection that was just accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// It is heard.
    Heard,
    /// Too many come from its address.
    TurnedAway,
    /// All places are taken: it is to be parked, and then one of this network closed, if any.
    Full {
        /// The network that has most, where that is more than fair.
        too_many_of: Option<Network>,
    },
}

#[derive(Debug)]
struct Parked<T> {
    network: Network,
    connection: T,
}

/// How many connections there are by network, and those that are accepted but not heard yet.
#[derive(Debug)]
pub struct Crowd<T> {
    max_clients: usize,
    /// Zero for no limit.
    max_per_network: usize,
    parking_places: usize,
    connected: usize,
    by_network: HashMap<Network, usize>,
    /// Oldest first.
    parked: VecDeque<Parked<T>>,
    parked_by_network: HashMap<Network, usize>,
}

impl<T> Crowd<T> {
    /// Nobody is here. `parking_places`: how many may be accepted beyond `max_clients`, to see
    /// who comes.
    #[must_use]
    pub fn new(max_clients: usize, max_per_network: usize, parking_places: usize) -> Self {
        Self {
            max_clients,
            max_per_network,
            parking_places,
            connected: 0,
            by_network: HashMap::new(),
            parked: VecDeque::new(),
            parked_by_network: HashMap::new(),
        }
    }

    /// Whether one more may be accepted, be it to be parked. Where all come from one address,
    /// nobody could be treated unfairly: then those beyond the parking places wait in the backlog.
    #[must_use]
    pub fn may_accept(&self) -> bool {
        self.connected < self.max_clients || self.has_parking_place() || self.parked_by_network.len() > 1 || {
            let parked = self.parked_by_network.keys().next();
            self.by_network.keys().any(|network| Some(network) != parked)
        }
    }

    /// A connection was accepted. Where it is heard, it counts from now on.
    pub fn handle_arrival(&mut self, network: Network) -> Entrance {
        let has = self.of(network);
        if self.max_per_network > 0 && has >= self.max_per_network {
            return Entrance::TurnedAway;
        }
        if self.connected < self.max_clients {
            self.enter(network);
            return Entrance::Heard;
        }
        let greediest = self.by_network.iter().max_by_key(|(_, count)| **count);
        let too_many_of = greediest.filter(|(_, count)| **count >= has + 2).map(|(network, _)| *network);
        Entrance::Full { too_many_of }
    }

    /// It waits, accepted but not heard. Returns the connection that has to go for it, if there
    /// is no place: the one that has waited longest of those whose address has most of them.
    pub fn park(&mut self, network: Network, connection: T) -> Option<T> {
        let goes = (!self.has_parking_place()).then(|| self.unpark_of_greediest()).flatten();
        self.parked.push_back(Parked { network, connection });
        *self.parked_by_network.entry(network).or_default() += 1;
        goes
    }

    /// A connection that was heard is closed. Returns one that waited and is heard from now on,
    /// with its network: of the address that has fewest, the one that has waited longest.
    pub fn handle_departure(&mut self, network: Network) -> Option<T> {
        self.connected -= 1;
        decrement(&mut self.by_network, network);
        self.promote()
    }

    /// Takes one that waits where there is a place.
    fn promote(&mut self) -> Option<T> {
        if self.connected >= self.max_clients {
            return None;
        }
        let position = if self.parked_by_network.len() > 1 {
            let waiting = self.parked.iter().enumerate();
            waiting.min_by_key(|(position, parked)| (self.of(parked.network), *position))?.0
        } else {
            0
        };
        let Parked { network, connection } = self.unpark(position)?;
        self.enter(network);
        Some(connection)
    }

    /// How many are heard.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.connected
    }

    /// How many wait.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    fn has_parking_place(&self) -> bool {
        self.parked.len() < self.parking_places
    }

    fn unpark_of_greediest(&mut self) -> Option<T> {
        let (&greediest, _) = self.parked_by_network.iter().max_by_key(|(_, count)| **count)?;
        let position = self.parked.iter().position(|parked| parked.network == greediest)?;
        self.unpark(position).map(|parked| parked.connection)
    }

    fn unpark(&mut self, position: usize) -> Option<Parked<T>> {
        let parked = self.parked.remove(position)?;
        decrement(&mut self.parked_by_network, parked.network);
        Some(parked)
    }

    fn enter(&mut self, network: Network) {
        self.connected += 1;
        *self.by_network.entry(network).or_default() += 1;
    }

    fn of(&self, network: Network) -> usize {
        self.by_network.get(&network).copied().unwrap_or(0)
    }
}

fn decrement(counts: &mut HashMap<Network, usize>, network: Network) {
    if let Some(count) = counts.get_mut(&network) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&network);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(last: u8) -> Network {
        IpAddr::from([127, 0, 0, last]).into()
    }

    #[test]
    fn an_ipv6_address_counts_by_its_network_and_a_mapped_one_as_ipv4() {
        let of = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }

    #[test]
    fn an_address_has_its_limit() {
        let mut crowd: Crowd<()> = Crowd::new(10, 2, 0);
        for _ in 0..2 {
            assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        }
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::TurnedAway);
        assert_eq!(crowd.handle_arrival(network(2)), Entrance::Heard);
        assert_eq!(crowd.handle_departure(network(1)), None);
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
    }

    #[test]
    fn when_all_places_are_taken_the_greediest_gives_way_and_whoever_has_fewest_comes_first() {
        let mut crowd = Crowd::new(4, 0, 9);
        for _ in 0..4 {
            assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        }
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Full { too_many_of: None });
        assert_eq!(crowd.park(network(1), "first"), None);
        let greediest = Entrance::Full { too_many_of: Some(network(1)) };
        assert_eq!(crowd.handle_arrival(network(2)), greediest);
        assert_eq!(crowd.park(network(2), "second"), None);
        assert_eq!(crowd.handle_departure(network(1)), Some("second"));
        assert_eq!(crowd.handle_departure(network(1)), Some("first"));
        assert_eq!((crowd.connected(), crowd.parked()), (4, 0));
        assert_eq!(crowd.handle_departure(network(1)), None);
    }

    #[test]
    fn a_crowd_of_one_address_waits_in_the_backlog_but_not_in_front_of_others() {
        let mut crowd = Crowd::new(1, 0, 16);
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        for number in 0..16 {
            assert!(crowd.may_accept());
            assert_eq!(crowd.park(network(1), number), None);
        }
        assert!(!crowd.may_accept());
        assert_eq!(crowd.handle_departure(network(1)), Some(0));
        assert!(crowd.may_accept());
        assert_eq!(crowd.park(network(2), 100), None);
        assert!(crowd.may_accept(), "another address is here: who knows who else waits");
        assert_eq!(crowd.park(network(1), 16), Some(1), "the oldest of those that have most");
    }

    proptest! {
        #[test]
        fn the_counts_are_right(steps in prop::collection::vec((0u8..4, 0u8..3), 0..300)) {
            let mut crowd = Crowd::new(5, 3, 4);
            let mut heard: Vec<Network> = Vec::new();
            let mut parked = 0;
            for (who, what) in steps {
                let who = network(who);
                if what == 0 {
                    if let Some(at) = heard.iter().position(|&one| one == who) {
                        heard.swap_remove(at);
                        if let Some(next) = crowd.handle_departure(who) {
                            heard.push(next);
                            parked -= 1;
                        }
                    }
                } else if crowd.may_accept() {
                    match crowd.handle_arrival(who) {
                        Entrance::Heard => heard.push(who),
                        Entrance::TurnedAway => prop_assert!(heard.iter().filter(|&&one| one == who).count() >= 3),
                        Entrance::Full { .. } => {
                            prop_assert_eq!(heard.len(), 5);
                            parked += 1 - i32::from(crowd.park(who, who).is_some());
                        }
                    }
                }
                prop_assert_eq!((crowd.connected(), i32::try_from(crowd.parked()).unwrap()), (heard.len(), parked));
                prop_assert!(parked == 0 || heard.len() == 5, "somebody waits beside a free place");
                let counted: usize = crowd.by_network.values().sum();
                prop_assert_eq!(counted, heard.len());
            }
        }
    }
}
