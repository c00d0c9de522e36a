//! Connections of which it is not decided yet what they are, by network. Where there are too
//! many, one of the network that has most goes: whoever floods a port displaces himself.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use crate::core::crowd::Network;
use crate::core::moment::Moment;

/// Which connections are undecided, and since when.
#[derive(Debug, Default)]
pub struct Undecided {
    by_network: HashMap<Network, BTreeSet<(Moment, usize)>>,
}

impl Undecided {
    /// One has come; `key` is its owner's name for it.
    pub fn add(&mut self, network: Network, since: Moment, key: usize) {
        self.by_network.entry(network).or_default().insert((since, key));
    }

    /// One is decided, or gone.
    pub fn remove(&mut self, network: Network, since: Moment, key: usize) {
        if let Some(of_network) = self.by_network.get_mut(&network) {
            of_network.remove(&(since, key));
            if of_network.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }

    /// The oldest of the network that has most; among equals, the oldest of all.
    #[must_use]
    pub fn oldest_of_greediest(&self) -> Option<usize> {
        let oldest = |of_network: &BTreeSet<(Moment, usize)>| Reverse(of_network.first().copied());
        let greediest =
            self.by_network.values().max_by_key(|of_network| (of_network.len(), oldest(of_network)));
        greediest?.first().map(|&(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn who_has_most_goes_first_and_his_oldest_before_his_others() {
        let network = |last| Network::from(IpAddr::from([127, 0, 0, last]));
        let at = Moment::from_nanos;
        let mut undecided = Undecided::default();
        undecided.add(network(1), at(1), 10);
        for key in 20..23 {
            undecided.add(network(2), at(2), key);
        }
        let mut gone = Vec::new();
        while let Some(key) = undecided.oldest_of_greediest() {
            gone.push(key);
            let (of, since) = if key == 10 { (network(1), at(1)) } else { (network(2), at(2)) };
            undecided.remove(of, since, key);
        }
        assert_eq!(gone, [20, 21, 10, 22]);
        assert!(undecided.by_network.is_empty());
    }
}
