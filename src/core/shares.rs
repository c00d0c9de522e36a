//! How many jobs each network has open, and whether it may have one more.
//!
//! Whoever never comes for its jobs, or never ends them, must not take every place in the job
//! tables. No network is given a fixed part: alone it may have almost everything, but the last
//! places are for those who have less. (Choudhury and Hahne, "Dynamic queue length thresholds
//! for shared-memory packet switches", IEEE/ACM Transactions on Networking 6, 1998.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::core::crowd::Network;

/// A network may open a job while it has fewer than so many times the free places: of 4096, one
/// alone leaves 455 to the others, two such leave 50, three 5.
const SHARE: u64 = 8;
/// So few places are anybody's.
const FEW: u64 = 64;

/// The open jobs of each network that has some.
#[derive(Debug)]
pub struct Shares {
    are_limited: bool,
    open: HashMap<Network, u64>,
}

impl Shares {
    /// Shares of so many places.
    #[must_use]
    pub fn new(places: u64) -> Self {
        Self { are_limited: places > FEW, open: HashMap::new() }
    }

    /// Whether this network may open one more job where so many places are free.
    #[must_use]
    pub fn allow(&self, network: Network, free: u64) -> bool {
        free > 0 && (!self.are_limited || self.open(network) < SHARE.saturating_mul(free))
    }

    /// Jobs that this network has open.
    #[must_use]
    pub fn open(&self, network: Network) -> u64 {
        self.open.get(&network).copied().unwrap_or(0)
    }

    /// A job was opened.
    pub fn add(&mut self, network: Network) {
        *self.open.entry(network).or_default() += 1;
    }

    /// A job has ended.
    pub fn remove(&mut self, network: Network) {
        if let Entry::Occupied(mut open) = self.open.entry(network) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        } else {
            debug_assert!(false, "a job of {network:?} ended that was never opened");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn network(last: u8) -> Network {
        IpAddr::from([192, 0, 2, last]).into()
    }

    /// Opens jobs for a network until it may have no more. Returns how many.
    fn fill(shares: &mut Shares, network: Network, free: &mut u64) -> u64 {
        let before = *free;
        while shares.allow(network, *free) {
            shares.add(network);
            *free -= 1;
        }
        before - *free
    }

    #[test]
    fn few_places_are_anybodys() {
        for places in 0..=FEW {
            assert_eq!(fill(&mut Shares::new(places), network(1), &mut { places }), places);
        }
    }

    #[test]
    fn the_greedy_leave_places_to_those_who_have_less() {
        let (mut shares, mut free) = (Shares::new(4096), 4096);
        let taken: Vec<u64> = (1..=3).map(|last| fill(&mut shares, network(last), &mut free)).collect();
        assert_eq!((taken, free), (vec![3641, 405, 45], 5));
        assert!(shares.allow(network(4), free));
        shares.remove(network(1));
        assert!(!shares.allow(network(1), free + 1), "it has more than its share now");
        assert_eq!(shares.open(network(1)), 3640);
        for _ in 0..3640 {
            shares.remove(network(1));
        }
        assert!(!shares.open.contains_key(&network(1)), "who has nothing open costs nothing");
    }
}
