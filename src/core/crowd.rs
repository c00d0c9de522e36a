//! Who is heard when many come: a limit for each address, and fairness when all places are
//! taken.
//!
//! Clients are told apart by their network: an IPv4 address, or the /64 of an IPv6 address,
//! for whoever has one has all of them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

/// Who counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// All places are taken: it is to be parked.
    Full,
}

/// Who is there of one network.
#[derive(Debug)]
struct Member<T> {
    heard: usize,
    /// Oldest first, each with the number of its arrival.
    parked: VecDeque<(u64, T)>,
}

impl<T> Member<T> {
    fn total(&self) -> usize {
        self.heard + self.parked.len()
    }
}

/// How many connections there are by network, and those that are accepted but not heard yet.
/// Whatever is asked takes `O(log n)`: a hostile crowd has thousands of networks.
#[derive(Debug)]
pub struct Crowd<T> {
    max_clients: usize,
    /// Zero for no limit.
    max_per_network: usize,
    parking_places: usize,
    connected: usize,
    parked: usize,
    arrivals: u64,
    members: HashMap<Network, Member<T>>,
    /// By how many are heard.
    by_heard: BTreeSet<(usize, Network)>,
    /// Networks with parked connections: by how many are heard, then by the oldest arrival.
    waiting: BTreeSet<(usize, u64, Network)>,
    /// The same, by how many there are in all.
    waiting_by_total: BTreeSet<(usize, Network)>,
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
            parked: 0,
            arrivals: 0,
            members: HashMap::new(),
            by_heard: BTreeSet::new(),
            waiting: BTreeSet::new(),
            waiting_by_total: BTreeSet::new(),
        }
    }

    /// Whether one more may be accepted, be it to be parked. When all places are taken, only where
    /// a network has more than one and others are there: then somebody may have to wait for it
    /// who has none.
    #[must_use]
    pub fn may_accept(&self) -> bool {
        // Those who were there before a limit was lowered take the places of those who wait.
        let has_place = self.connected + self.parked < self.max_clients + self.parking_places;
        has_place
            || self.members.len() > 1 && self.waiting_by_total.last().is_some_and(|&(total, _)| total > 1)
    }

    /// A connection was accepted. Where it is heard, it counts from now on.
    pub fn handle_arrival(&mut self, network: Network) -> Entrance {
        let total = self.members.get(&network).map_or(0, Member::total);
        if self.max_per_network > 0 && total >= self.max_per_network {
            Entrance::TurnedAway
        } else if self.connected < self.max_clients {
            self.enter(network);
            Entrance::Heard
        } else {
            Entrance::Full
        }
    }

    /// Another process has heard it before us: it has its place, whatever the limits are now.
    pub fn handle_succession(&mut self, network: Network) {
        self.enter(network);
    }

    /// All that wait, in the order of their coming; nobody does any more.
    pub fn take_parked(&mut self) -> Vec<T> {
        let networks: Vec<Network> = self.waiting.iter().map(|&(_, _, network)| network).collect();
        let mut taken = Vec::new();
        for network in networks {
            taken.extend(self.change(network, |member| std::mem::take(&mut member.parked)));
        }
        taken.sort_by_key(|&(arrival, _)| arrival);
        self.parked = 0;
        taken.into_iter().map(|(_, connection)| connection).collect()
    }

    /// It waits, accepted but not heard. Returns the connection that has to go, if there is no
    /// place: the oldest that waits of the network that has most, where that is at least two more
    /// than the newcomer's has; else the newcomer.
    pub fn park(&mut self, network: Network, connection: T) -> Option<T> {
        let total = self.members.get(&network).map_or(0, Member::total);
        let mut goes = None;
        if self.connected.max(self.max_clients) + self.parked >= self.max_clients + self.parking_places {
            let greediest = self.waiting_by_total.last().filter(|(most, _)| *most >= total + 2);
            let Some(&(_, greediest)) = greediest else {
                return Some(connection);
            };
            goes = self.unpark(greediest);
        }
        self.park_again(network, connection);
        goes
    }

    /// It has waited before, and does so again, whatever the limits are now.
    pub fn park_again(&mut self, network: Network, connection: T) {
        self.arrivals += 1;
        self.parked += 1;
        let arrival = self.arrivals;
        self.change(network, |member| member.parked.push_back((arrival, connection)));
    }

    /// A connection that was heard is closed.
    pub fn handle_departure(&mut self, network: Network) {
        self.connected -= 1;
        self.change(network, |member| member.heard -= 1);
    }

    /// Takes a connection that waits, if there is a place for it: of the network that has fewest,
    /// the one that has waited longest. It counts as heard from now on.
    pub fn promote(&mut self) -> Option<T> {
        let &(_, _, network) = self.waiting.first().filter(|_| self.connected < self.max_clients)?;
        let connection = self.unpark(network)?;
        self.enter(network);
        Some(connection)
    }

    /// The network of which one should go, because somebody waits whose network has at least two
    /// fewer.
    #[must_use]
    pub fn too_many_of(&self) -> Option<Network> {
        let (&(fewest, _, _), &(most, network)) = (self.waiting.first()?, self.by_heard.last()?);
        (most >= fewest + 2).then_some(network)
    }

    /// How many are heard.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.connected
    }

    /// How many wait.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parked
    }

    fn enter(&mut self, network: Network) {
        self.connected += 1;
        self.change(network, |member| member.heard += 1);
    }

    fn unpark(&mut self, network: Network) -> Option<T> {
        let taken = self.change(network, |member| member.parked.pop_front());
        self.parked -= usize::from(taken.is_some());
        taken.map(|(_, connection)| connection)
    }

    /// Changes a member, and where it stands in each order.
    fn change<R>(&mut self, network: Network, change: impl FnOnce(&mut Member<T>) -> R) -> R {
        let Self { members, by_heard, waiting, waiting_by_total, .. } = self;
        let member = members.entry(network).or_insert(Member { heard: 0, parked: VecDeque::new() });
        by_heard.remove(&(member.heard, network));
        if let Some(&(oldest, _)) = member.parked.front() {
            waiting.remove(&(member.heard, oldest, network));
            waiting_by_total.remove(&(member.total(), network));
        }
        let result = change(member);
        if let Some(&(oldest, _)) = member.parked.front() {
            waiting.insert((member.heard, oldest, network));
            waiting_by_total.insert((member.total(), network));
        }
        if member.total() == 0 {
            members.remove(&network);
        } else {
            by_heard.insert((member.heard, network));
        }
        result
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
    fn those_who_wait_can_be_taken_in_their_order() {
        let mut crowd = Crowd::new(1, 0, 9);
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        for (of, number) in [(2, 1), (1, 2), (3, 3), (2, 4)] {
            assert_eq!(crowd.park(network(of), number), None);
        }
        assert_eq!(crowd.take_parked(), [1, 2, 3, 4]);
        assert_eq!((crowd.connected(), crowd.parked(), crowd.promote()), (1, 0, None));
        // Elsewhere they all have places, though there is one.
        let mut successor = Crowd::new(1, 1, 9);
        for _ in 0..2 {
            successor.handle_succession(network(1));
        }
        assert_eq!((successor.connected(), successor.handle_arrival(network(2))), (2, Entrance::Full));
        assert_eq!(successor.park(network(2), 5), None);
        let mut full = Crowd::new(1, 0, 1);
        (0..3).for_each(|_| full.handle_succession(network(1)));
        full.park_again(network(3), 7);
        assert_eq!(full.parked(), 1);
        assert_eq!(full.take_parked(), [7]);
        assert!(!full.may_accept(), "descriptors are for so many in all");
        assert_eq!((full.handle_arrival(network(2)), full.park(network(2), 6)), (Entrance::Full, Some(6)));
        successor.handle_departure(network(1));
        assert_eq!(successor.promote(), None);
        successor.handle_departure(network(1));
        assert_eq!(successor.promote(), Some(5));
    }

    #[test]
    fn an_address_has_its_limit_heard_or_not() {
        let mut crowd: Crowd<()> = Crowd::new(3, 2, 9);
        for _ in 0..2 {
            assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        }
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::TurnedAway);
        assert_eq!(crowd.handle_arrival(network(2)), Entrance::Heard);
        assert_eq!(crowd.handle_arrival(network(2)), Entrance::Full);
        assert_eq!(crowd.park(network(2), ()), None);
        assert_eq!(crowd.handle_arrival(network(2)), Entrance::TurnedAway, "one of its two waits");
        crowd.handle_departure(network(1));
        assert_eq!(crowd.promote(), Some(()));
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Full);
    }

    #[test]
    fn when_all_places_are_taken_the_greediest_gives_way_and_whoever_has_fewest_comes_first() {
        let mut crowd = Crowd::new(4, 0, 9);
        for _ in 0..4 {
            assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        }
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Full);
        assert_eq!(crowd.park(network(1), "first"), None);
        assert_eq!(crowd.too_many_of(), None, "nobody goes for one of his own");
        assert_eq!(crowd.handle_arrival(network(2)), Entrance::Full);
        assert_eq!(crowd.park(network(2), "second"), None);
        assert_eq!(crowd.too_many_of(), Some(network(1)));
        assert_eq!(crowd.promote(), None, "there is no place yet");
        crowd.handle_departure(network(1));
        assert_eq!(crowd.promote(), Some("second"));
        assert_eq!(crowd.too_many_of(), None);
        crowd.handle_departure(network(1));
        assert_eq!(crowd.promote(), Some("first"));
        assert_eq!((crowd.connected(), crowd.parked()), (4, 0));
    }

    #[test]
    fn who_waits_has_to_go_only_for_one_who_has_fewer() {
        let mut crowd = Crowd::new(1, 0, 2);
        assert_eq!(crowd.handle_arrival(network(1)), Entrance::Heard);
        for name in ["a", "b"] {
            assert!(crowd.may_accept());
            assert_eq!(crowd.park(network(1), name), None);
        }
        assert!(!crowd.may_accept(), "all come from one address: they wait in the backlog");
        crowd.handle_departure(network(1));
        assert_eq!(crowd.promote(), Some("a"));
        assert_eq!(crowd.park(network(2), "c"), None);
        assert!(crowd.may_accept(), "who knows who else waits behind the first address");
        assert_eq!(crowd.park(network(3), "d"), Some("b"));
        assert!(!crowd.may_accept(), "those who wait have one each");
        assert_eq!(crowd.park(network(4), "e"), Some("e"), "and none of them goes for another");
    }

    proptest! {
        #[test]
        fn the_counts_are_right(steps in prop::collection::vec((0u8..4, 0u8..3), 0..300)) {
            let mut crowd = Crowd::new(5, 3, 4);
            let (mut heard, mut parked): (Vec<Network>, Vec<Network>) = (Vec::new(), Vec::new());
            for (who, what) in steps {
                let who = network(who);
                let of = |list: &[Network]| list.iter().filter(|&&one| one == who).count();
                if what == 0 {
                    if let Some(at) = heard.iter().position(|&one| one == who) {
                        heard.swap_remove(at);
                        crowd.handle_departure(who);
                        if let Some(next) = crowd.promote() {
                            heard.push(next);
                            parked.remove(parked.iter().position(|&one| one == next).unwrap());
                        }
                    }
                } else if crowd.may_accept() {
                    match crowd.handle_arrival(who) {
                        Entrance::Heard => heard.push(who),
                        Entrance::TurnedAway => prop_assert!(of(&heard) + of(&parked) >= 3),
                        Entrance::Full => {
                            parked.push(who);
                            if let Some(goes) = crowd.park(who, who) {
                                parked.remove(parked.iter().position(|&one| one == goes).unwrap());
                            }
                        }
                    }
                }
                prop_assert_eq!((crowd.connected(), crowd.parked()), (heard.len(), parked.len()));
                prop_assert!(parked.is_empty() || heard.len() == 5, "somebody waits beside a free place");
                prop_assert!(of(&heard) + of(&parked) <= 3);
                let members = crowd.members.len();
                prop_assert_eq!(crowd.by_heard.len(), members);
                prop_assert_eq!(crowd.waiting.len(), crowd.waiting_by_total.len());
            }
        }
    }
}
